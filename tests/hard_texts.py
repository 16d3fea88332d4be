"""Texts that tokenizers often encode differently."""

HARD_TEXTS = [
    "",
    " \t\n",
    "a photo of a cat",
    "it's, don't, WE'LL; I'm you're 'tis rock'n'roll 'S",
    "x'\u017f long s after an apostrophe",
    "1234 and 3.14159 in 2021, \u00bd \u00b2 \u0663\u0664 \u2167",
    "&amp;lt; &eacute;t&eacute; &#x41; &amp;amp; AT&T &nbsp;",
    "l&#39;\u00e9t\u00e9 <br>&gt;</br>",
    "cafe\u0301 NFD and caf\u00e9 NFC",
    "\u0134A",
    "\x00\x07bell\x1b[31mred\x1b[0m\x7f",
    "tab\tline\nreturn\r\nvertical\x0bform\x0cfile\x1cgroup\x1dnext\x85end",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44b\U0001f3fd \U0001f1e9\U0001f1ea",
    "\u0130stanbul \u1e9e \u0152UVRE \u01c5 \u03a3\u03a3",
    "a\u00a0b\u3000c\u200bd\u2028e\u2060f\ufeffg",
    "\u00e2\u20ac\u0153mojibake\u00e2\u20ac\x9d \u00c3\u00a9t\u00c3\u00a9",
    "\u2018curly\u2019 \u201cquotes\u201d \u2026 \u2013 \u2014",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940",  # noqa: E501
    "\ufb01ligature \uff26\uff35\uff2c\uff2c \U0001d518\U0001d52b\U0001d526",
    "\ud800 lone surrogate",
    "under_score CamelCase http://example.org/?q=1&r=2#top @user #tag",
    "!!!???...---___***",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 20_000,
    "word " * 4_000,
]
