"""`parse` and `Query`: what a person writes, what it means, and errors that say how to write it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_clip.search.queries import Query, Term, parse

pytestmark = pytest.mark.backend_free


def terms(*parts):
    return [(part, 1.0) if not isinstance(part, tuple) else (part[0], float(part[1])) for part in parts]


MEANINGS = {
    # Text
    "red car at night": terms("red car at night"),
    "  red   car ": terms("red   car"),
    "": [],
    " \t\n\u3000": [],
    "赤い車": terms("赤い車"),
    "سيارة حمراء": terms("سيارة حمراء"),
    "🚗 at 🌙": terms("🚗 at 🌙"),
    # Operators
    "red car - night + picture:17": terms("red car", ("night", -1), 17),
    "a + b - c": terms("a", "b", ("c", -1)),
    "- night": terms(("night", -1)),
    "+ night": terms("night"),
    "car -night": terms("car", ("night", -1)),
    "car +dog": terms("car", "dog"),
    "車 － 夜 ＋ 海": terms("車", ("夜", -1), "海"),
    "車　－　夜": terms("車", ("夜", -1)),
    "car \u2212 night": terms("car", ("night", -1)),
    "car\n- night": terms("car", ("night", -1)),
    # Plus and minus signs that are text
    "t-shirt": terms("t-shirt"),
    "black-and-white photo": terms("black-and-white photo"),
    "C++ code": terms("C++ code"),
    "rock 'n' roll": terms("rock 'n' roll"),
    "at -5 degrees": terms("at -5 degrees"),
    "-5 degrees": terms("-5 degrees"),
    "iso +3 stops": terms("iso +3 stops"),
    "cat- dog": terms("cat- dog"),
    "A4-": terms("A4-"),
    "Paris – the city": terms("Paris – the city"),
    "コーヒー": terms("コーヒー"),
    "cat -- dog": terms("cat -- dog"),
    "--- title ---": terms("--- title ---"),
    "a +- b": terms("a +- b"),
    # Weights
    '2*"red car" + dog - 0.5*night + picture:17': terms(("red car", 2), "dog", ("night", -0.5), 17),
    "2 * red car": terms(("red car", 2)),
    "0,5*night": terms(("night", 0.5)),
    ".5*night": terms(("night", 0.5)),
    "car -0.5*night": terms("car", ("night", -0.5)),
    "car - 3*picture:4": terms("car", (4, -3)),
    "2＊車": terms(("車", 2)),
    "2x4 wood": terms("2x4 wood"),
    "a 2*b": terms("a 2*b"),
    "5 * star hotel": terms(("star hotel", 5)),
    "*star*": terms("*star*"),
    "3 cats": terms("3 cats"),
    # Quotes
    '"quoted - text"': terms("quoted - text"),
    '"+"': terms("+"),
    '"2*3"': terms("2*3"),
    '"picture:17"': terms("picture:17"),
    '"say \\"cheese\\""': terms('say "cheese"'),
    '"- a\\\\"': terms("- a\\"),
    '"C:\\dir - x"': terms("C:\\dir - x"),
    "a\\": terms("a\\"),
    "“Paris - the city” - rain": terms("Paris - the city", ("rain", -1)),
    "「夜 - 海」": terms("夜 - 海"),
    "«a + b» + c": terms("a + b", "c"),
    'a sign "no - entry" on a door': terms('a sign "no - entry" on a door'),
    '5" nail': terms('5" nail'),
    'a 5" nail - wood': terms('a 5" nail', ("wood", -1)),
    'the 2" and 3" pipes': terms('the 2" and 3" pipes'),
    # Pictures
    "picture:17": terms(17),
    "PICTURE:0": terms(0),
    "picture：５": terms(5),
    "picture: a dog": terms("picture: a dog"),
    "a picture:17 of": terms("a picture:17 of"),
    "mypicture:17": terms("mypicture:17"),
}


@pytest.mark.parametrize("text, expected", MEANINGS.items())
def test_meaning(text, expected):
    query = parse(text)
    assert [(t.text if t.is_text else t.picture, t.weight) for t in query.terms] == expected
    assert parse(str(query)) == query


WRONG = {
    "car -": "after the last operator. Received: 'car -'",
    "car + - dog": "between two operators. .*none before '- dog'",
    "+": "after the last operator",
    "- - night": "between two operators",
    "car - -2*night": "between two operators",
    '"red car': 'must end with one. Received: .*Add the closing quote "',
    "car + “night": "Add the closing quote ”",
    '2*"red car': "must end with one",
    '""': "a text inside quotes",
    'car - "  "': "a text inside quotes",
    "2*": "a term after the asterisk",
    "car - 2* + dog": "a term after the asterisk",
    "0*car": "a number above 0",
    "9" * 400 + "*car": "a number above 0",
    "picture:cat": 'To search for these words, put quotes around them: "picture:cat"',
    "picture:17 dog": "joins it with other terms",
    "picture:-1": "A picture of the index is picture: and its number",
    "picture:1.5": "A picture of the index is picture: and its number",
    "x" * 2001: "at most 2000 characters. Received: 2001",
    " + ".join("a" * 65): "at most 64 terms",
    "a\ud800b": "valid Unicode",
}


@pytest.mark.parametrize("text, message", WRONG.items(), ids=lambda value: ascii(value[:20]))
def test_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("text", [None, 5, b"car", ["car"]])
def test_something_else_than_a_text(text):
    with pytest.raises(ValueError, match="A query is a text. Received: "):
        parse(text)


words = st.text(
    st.sampled_from(list("ab \\\"“”«-−+*25.,:'\u3000é車")) | st.characters(codec="utf-8"), min_size=1, max_size=12
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(
            words.filter(str.strip).map(lambda text: {"text": text})
            | st.integers(0, 10**9).map(lambda i: {"picture": i}),
            st.floats(1e-100, 1e100) | st.floats(-1e6, -1e-300) | st.sampled_from([1, -1, 2]),
        ),
        max_size=5,
    )
)
def test_written_queries_are_read_back(parts):
    query = Query([Term(**part, weight=weight) for part, weight in parts])
    assert parse(str(query)) == query


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list('ab "+-*2.:\\“”')) | st.characters(), max_size=20))
def test_any_text_is_read_or_refused_with_a_reason(text):
    try:
        query = parse(text)
    except ValueError as error:
        assert "Received: " in str(error)
    else:
        assert parse(str(query)) == query


REFUSED = {
    "nothing": {},
    "two things": {"text": "a", "picture": 1},
    "no text": {"text": "  "},
    "a number as text": {"text": 3},
    "a negative id": {"picture": -1},
    "a bool as id": {"picture": True},
    "a weight of 0": {"text": "a", "weight": 0},
    "a weight of NaN": {"text": "a", "weight": float("nan")},
    "an infinite weight": {"text": "a", "weight": float("inf")},
    "a text as weight": {"text": "a", "weight": "2"},
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_term_refuses(arguments):
    with pytest.raises(ValueError, match="Received: "):
        Term(**arguments)


def test_query_refuses_something_else():
    with pytest.raises(ValueError, match="each a `Term`. Received: 1 of types"):
        Query(["car"])


def test_digests_differ():
    different = ["a", "b", "2*a", "-a", "a + b", "b + a", '"a + b"', "picture:1", '"picture:1"', ""]
    assert len({parse(text).digest() for text in different}) == len(different)
    pictures = [Query([Term(upload=upload)]).digest() for upload in (b"1", b"2")]
    assert len(set(pictures)) == 2
    with pytest.raises(ValueError, match="no written form"):
        str(Query([Term(upload=b"1")]))
