"""The list of queries by which a pool is balanced: words, pairs of words, titles and names (Radford et al., 2021, 2.2).

Built from the algorithm as CLIP and MetaCLIP (Xu et al., 2024) published it, from data of the user.
"""

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_clip.curation.pool import read_table, require_parquet, write_table
from keras_clip.curation.queries.corpus import SpillingCounter, open_text, read_texts
from keras_clip.curation.queries.separated import is_single_letter, is_word, separated

if TYPE_CHECKING:
    import pyarrow

# English words without meaning of their own, and fragments such as the "ll" of "we'll".
STOP_WORDS = frozenset((Path(__file__).parent / "stop_words.txt").read_text(encoding="utf-8").split())
# Sources of entries, in the order in which they fill the list.
SOURCES = ("word", "bigram", "title", "digits", "wordnet")
_GIVEN = "given"


class _Entry(NamedTuple):
    entry: str
    source: str
    count: int | None = None
    score: float | None = None


class Queries(NamedTuple):
    """A list of queries.

    Attributes:
        table: pyarrow table of K rows with the columns entry (str), source ("word", "bigram", "title", "digits",
            "wordnet" or "given"), count (int64: occurrences of a word or bigram, views of a title; otherwise null) and
            score (float64: pointwise mutual information of a bigram in bits; otherwise null).
        ignore_case: bool. Whether its entries match in upper and lower case.
        facts: dict, JSON data: the settings, and how many candidates of each source were left out, by reason.
    """

    table: "pyarrow.Table"
    ignore_case: bool = False
    facts: Mapping[str, Any] = {}

    @property
    def entries(self) -> list[str]:
        """The K entries."""
        return self.table["entry"].to_pylist()

    @property
    def digest(self) -> str:
        """SHA-256 of the entries in their order and of `ignore_case`, 64 hexadecimal digits."""
        content = json.dumps([self.ignore_case, self.entries])
        return hashlib.sha256(content.encode()).hexdigest()


def build_queries(
    corpus: Iterable[str] = (),
    *,
    titles: Mapping[str, int] | None = None,
    wordnet: Iterable[str] = (),
    digits: bool = False,
    min_count: int = 100,
    min_pmi: float = 10.0,
    min_views: int = 70,
    max_entries: int = 500_000,
    ignore_case: bool = False,
    stop_words: Collection[str] = STOP_WORDS,
    max_counts: int = 4_000_000,
) -> Queries:
    """Builds a list of queries.

    The list is filled in this order until it is full: the words of the corpus, by count; its bigrams, by pointwise
    mutual information; titles, by views; "0" to "99"; names of WordNet, in the order given. Single letters and stop
    words are left out, and so is what an earlier source contains already.

    A word is a part of a text between white space or punctuation (`separated`) with a letter in it. Scripts that are
    written without spaces have no words in this sense; their entries come from titles and WordNet. A bigram is two
    words with nothing but a space between them, none of them a stop word; its score is
    `log2(count(x y) * N / (count(x) * count(y)))` bits with N words in the corpus. It is at most
    `log2(N / min_count)`: MetaCLIP's published threshold of 30 presupposes a larger corpus or another definition.

    Args:
        corpus: iterable of str, such as `read_texts("wiki.txt.gz")`. Read once.
        titles: {title: views}, such as from `read_titles`.
        wordnet: iterable of str, such as from `read_wordnet`.
        digits: bool. Whether to add the numbers "0" to "99".
        min_count: int >= 1. The smallest number of occurrences of a word or a bigram.
        min_pmi: float. The smallest score of a bigram, in bits. `math.inf`: no bigrams.
        min_views: int. The smallest number of views of a title. Titles with a colon, which are no articles, are left
            out.
        max_entries: int >= 1. The largest number of entries.
        ignore_case: bool. Whether upper and lower case are equal, here and in matching.
        stop_words: words that are no entries, in lower case; they are left out in upper case too.
        max_counts: int >= 1. How many different words, and as many bigrams, are held in memory; others are written to
            temporary files. It does not change the result.

    Returns:
        `Queries`. The same arguments give the same list.

    Raises:
        TypeError, ValueError: an invalid argument, or no entry is left.
    """
    _check(min_count=min_count, max_entries=max_entries)
    for name, value in (("min_pmi", min_pmi), ("min_views", min_views)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise ValueError(f"`{name}` must be a number. Received: {name}={value!r}.")
    if isinstance(corpus, (str, bytes, os.PathLike)):
        raise TypeError(
            f"`corpus` must be an iterable of texts. Received: {corpus!r:.80}. Use `read_texts(path)` for files."
        )
    words, bigrams = _count(corpus, min_count, min_pmi, ignore_case, stop_words, max_counts)
    candidates = {
        "word": words,
        "bigram": bigrams,
        "title": _title_candidates(titles or {}, min_views),
        "digits": [_Entry(str(number), "digits") for number in range(100 if digits else 0)],
        "wordnet": (_Entry(name, "wordnet") for name in wordnet),
    }
    entries, facts = [], {}
    seen: set[str] = set()
    for source in SOURCES:
        kept, facts[source] = _fill(candidates[source], seen, stop_words, ignore_case, max_entries - len(entries))
        entries += kept
    settings = {"min_count": min_count, "min_pmi": min_pmi if math.isfinite(min_pmi) else str(min_pmi)}
    settings |= {"min_views": min_views, "max_entries": max_entries, "ignore_case": ignore_case}
    return _queries(entries, ignore_case, {"settings": settings, "sources": facts})


def given_queries(entries: Iterable[str], ignore_case: bool = False) -> Queries:
    """Makes a list of queries from entries of the user, in their order and without any rule.

    Args:
        entries: iterable of str.
        ignore_case: bool. Whether they match in upper and lower case.

    Returns:
        `Queries`.

    Raises:
        ValueError: no entries, or a blank one.
    """
    entries = [_Entry(entry, _GIVEN) for entry in entries]
    for number, (entry, *_) in enumerate(entries):
        if not separated(entry):
            raise ValueError(f"Queries must not be blank. Received: {entry!r} as entry {number}. Remove it.")
    return _queries(entries, ignore_case, {})


def write_queries(queries: Queries, path: str | os.PathLike) -> None:
    """Writes a list of queries to a Parquet file, with its digest. Equal lists give equal bytes.

    Args:
        queries: the list.
        path: the file. Its folder must exist.
    """
    record = {"ignore_case": queries.ignore_case, "facts": queries.facts, "digest": queries.digest}
    write_table(path, queries.table.replace_schema_metadata({"keras_clip.queries": json.dumps(record, sort_keys=True)}))


def read_queries(path: str | os.PathLike, ignore_case: bool | None = None) -> Queries:
    """Reads a list of queries.

    Args:
        path: a Parquet file of `write_queries`, or a text file with an entry in each line, which may be compressed.
        ignore_case: bool. For text files; None: False. A Parquet file has its own.

    Returns:
        `Queries`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or one that was changed.
    """
    if Path(path).suffix != ".parquet":
        return given_queries((line for line in _lines(path) if separated(line)), bool(ignore_case))
    import pyarrow

    require_parquet()
    try:
        table = read_table(path)
        record = json.loads((table.schema.metadata or {})[b"keras_clip.queries"])
    except (pyarrow.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a list of queries written by `write_queries`, or a text file with an entry in each line. "
            f"Received: {os.fspath(path)!r}: {error}."
        ) from error
    queries = Queries(table.replace_schema_metadata(None), record["ignore_case"], record["facts"])
    if queries.digest != record["digest"]:
        raise ValueError(
            f"A list of queries must be as it was written. Received: {os.fspath(path)!r}, whose entries do not have "
            "the digest that the file states. Build it again, or give your own list as a text file."
        )
    if ignore_case is not None and ignore_case != queries.ignore_case:
        raise ValueError(
            "A list of queries determines itself whether upper and lower case are equal. Received: "
            f"ignore_case={ignore_case} for {os.fspath(path)!r}, built with ignore_case={queries.ignore_case}. Build "
            "it again."
        )
    return queries


def _lines(path: str | os.PathLike) -> Iterator[str]:
    """Yields the lines of a list of the user's; one that is not UTF-8 would match nothing, without a word."""
    for number, line in enumerate(read_texts(path), 1):
        if "\ufffd" in line or "\0" in line:
            raise ValueError(
                f"A list of queries must be UTF-8, with an entry in each line. Received: {os.fspath(path)!r}, line "
                f"{number}: {line[:80]!r}. Save it as UTF-8."
            )
        yield line.removeprefix("\ufeff") if number == 1 else line


def read_titles(path: str | os.PathLike) -> dict[str, int]:
    """Reads titles and their views from lines `title<TAB>views`, which may be compressed.

    Underscores become spaces, as in the titles of Wikipedia's lists. The views of a title in several lines are added,
    so that the lists of several days can be joined. A first line without a number is taken for a header.

    Args:
        path: the file.

    Returns:
        {title: views}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form.
    """
    titles: dict[str, int] = {}
    for number, line in enumerate(read_texts(path), 1):
        title, tab, views = line.rpartition("\t")
        try:
            views = int(views)
        except ValueError:
            views = None
        if views is None or not tab:
            if (number == 1 and tab) or not line.strip():
                continue
            raise ValueError(
                f"Each line must be a title, a tab and the number of its views. Received: {os.fspath(path)!r}, line "
                f"{number}: {line[:80]!r}."
            )
        title = title.replace("_", " ").strip()
        titles[title] = titles.get(title, 0) + views
    return titles


def read_wordnet(path: str | os.PathLike) -> Iterator[str]:
    """Yields the names in one of WordNet's index files, such as index.noun, in its order.

    Args:
        path: the file, which comes with WordNet (https://wordnet.princeton.edu), or a folder with index.noun.

    Returns:
        Iterator of str.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form.
    """
    path = Path(path) / "index.noun" if Path(path).is_dir() else Path(path)
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            # Lines of the licence begin with two spaces.
            if line.startswith(b"  ") or not line.strip():
                continue
            fields = line.decode("utf-8", "replace").split()
            if len(fields) < 6 or fields[1] not in ("n", "v", "a", "r"):
                raise ValueError(
                    f"Expected an index file of WordNet: lemma, part of speech, numbers. Received: {str(path)!r}, line "
                    f"{number}: {line[:80]!r}."
                )
            yield fields[0].replace("_", " ")


def _check(**positive):
    for name, value in positive.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}.")


def _count(corpus, min_count, min_pmi, ignore_case, stop_words, max_counts):
    """Returns the words and the bigrams of a corpus that reach the thresholds, the first ones first."""
    stop_words = frozenset(stop_words)
    with SpillingCounter(max_counts) as counter, SpillingCounter(max_counts) as pairs:
        for text in corpus:
            tokens = separated(text, ignore_case).split(" ")
            counter.update(tokens)
            if min_pmi < math.inf:
                pairs.update(map(" ".join, zip(tokens, tokens[1:], strict=False)))
        words, total = {}, 0
        for token, count in counter.items():
            if is_word(token):
                total += count
                if count >= min_count:
                    words[token] = count
        bigrams = []
        for bigram, count in pairs.items():
            first, _, second = bigram.partition(" ")
            # A bigram is not more frequent than its words, so both are there if it is frequent enough.
            if count >= min_count and first in words and second in words:
                score = math.log2(count * total / (words[first] * words[second]))
                if score >= min_pmi and stop_words.isdisjoint((first.casefold(), second.casefold())):
                    bigrams.append(_Entry(bigram, "bigram", count, score))
    frequent = [_Entry(word, "word", count) for word, count in words.items()]
    frequent.sort(key=lambda entry: (-entry.count, entry.entry))
    bigrams.sort(key=lambda entry: (-entry.score, -entry.count, entry.entry))
    return frequent, bigrams


def _title_candidates(titles, min_views):
    entries = [_Entry(title, "title", int(views)) for title, views in titles.items() if views >= min_views]
    return sorted(entries, key=lambda entry: (-entry.count, entry.entry))


def _fill(candidates, seen, stop_words, ignore_case, free) -> tuple[list[_Entry], dict[str, int]]:
    """Returns the entries of a source that go into the list, and how many did not, by reason."""
    kept, reasons = [], {"kept": 0, "blank": 0, "letter or stop word": 0, "colon": 0, "known": 0, "full": 0}
    for candidate in candidates:
        text = separated(candidate.entry, ignore_case)
        if not text:
            reason = "blank"
        elif candidate.source != "digits" and (is_single_letter(text) or text.casefold() in stop_words):
            reason = "letter or stop word"
        elif candidate.source == "title" and ":" in candidate.entry:
            reason = "colon"
        elif text in seen:
            reason = "known"
        elif len(kept) >= free:
            reason = "full"
        else:
            reason = "kept"
            seen.add(text)
            kept.append(candidate)
        reasons[reason] += 1
    return kept, {reason: count for reason, count in reasons.items() if count}


def _queries(entries, ignore_case, facts) -> Queries:
    require_parquet()
    import pyarrow as pa

    if not entries:
        raise ValueError(
            "A list of queries must not be empty. Received: no entry that reaches the thresholds. Give a larger "
            "corpus, titles or names, or lower `min_count`."
        )
    columns = zip(*entries, strict=True)
    types = {"entry": pa.string(), "source": pa.string(), "count": pa.int64(), "score": pa.float64()}
    arrays = {name: pa.array(column, types[name]) for name, column in zip(types, columns, strict=True)}
    return Queries(pa.table(arrays), ignore_case, facts)
