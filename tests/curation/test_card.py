"""The data card counts what the passes did, shows images of each verdict, and takes every text literally."""

import base64
import io
import json
import random
import re
import shutil

import pyarrow as pa
import pytest
from numbered_pairs import image_file, write_tar
from PIL import Image

from keras_clip import curation
from keras_clip.curation.card.page import markdown
from keras_clip.curation.card.summary import WORDS, bars, grouped
from keras_clip.curation.shards import _open_path

pytestmark = pytest.mark.backend_free
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% include 'x' %}",
    "| a | table | [link](https://evil.example) `code` **bold**",
    "right to left \u202e and \x1b[31m red",
    "</style><iframe src=https://evil.example>",
)
REASON = "not: caption != '<b>bold</b>'"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two tars with hostile captions, numbered images, and a broken one."""
    folder = tmp_path_factory.mktemp("raw")
    captions = [*HOSTILE, *(f"a dog with number {number}" for number in range(6)), "<b>bold</b>", "<b>bold</b>"]
    members = []
    for number, caption in enumerate(captions):
        image = image_file(number, (300, 200 + number)) if number != 11 else b"<svg onload=alert(1)>"
        members.append([(f"{number:03d}.png", image), (f"{number:03d}.txt", caption.encode())])
    for shard in range(2):
        write_tar(folder / f"{shard:05d}.tar", sum(members[shard::2], []))
    return folder


def make(raw, work, shuffled=False):
    pool = curation.Pool.open(str(raw / "*.tar"), work)
    if shuffled:
        random.Random(0).shuffle(pool.shards)
    curation.profile(pool, "serial", progress=False)
    curation.filter_pairs(pool, [curation.Rule("caption != '<b>bold</b>'", REASON)], "serial", progress=False)
    return pool


def write_card(pool, folder, **settings):
    settings = curation.CardSettings(**settings)
    page = curation.write_card(pool, folder, settings=settings, engine="serial", progress=False)
    return page.read_text(), (folder / "card.md").read_text()


@pytest.fixture(scope="module")
def card(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    pool = make(raw, folder / "work")
    entries = {"entry": ["dog", "<i>cat</i>", "ship"], "source": ["word"] * 3, "count": [9, 2, 0], "kept": [5, 2, 0]}
    curation.write_table(pool.folder / "query_counts.parquet", pa.table(entries))
    curation.record_command(pool.folder, ["python", "examples/curate.py", "profile", "raw/*.tar; rm -rf <x>"])
    curation.write(pool, folder / "new", engine="serial", progress=False)
    texts = {"title": "Dogs & <cats>", "licence": "CC-BY-4.0", "description": "Found *here*.\nAnd <there>."}
    return pool, folder, *write_card(pool, folder / "new", **texts)


def test_the_counts_of_each_pass_are_shown(card):
    _, _, page, text = card
    assert "11 of 14 pairs" in page and "79 % kept, with 11 images, in 1 shard of" in page
    left = re.findall(r'<tr class="stage"><th>(\w+)</th>.*?width: ([\d.]+)%.*?number">([\d,]+)<', page)
    assert left == [("pool", "100", "14"), ("profile", "92.86", "13"), ("filter", "78.57", "11")]
    assert re.search(r"undecodable image</th><td class=\"number\">−1<", page)
    assert "| **profile** |  | 13 |" in text and "| undecodable image | 1 |  |" in text
    assert "| **filter** |  | 11 |" in text


def test_texts_are_literal(card):
    _, _, page, text = card
    tags = set(re.findall(r"<\s*([a-zA-Z!/]+)", re.sub(r"<style>.*?</style>", "", page, flags=re.S)))
    assert not tags & {"script", "iframe", "b", "svg", "/b", "cats"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "{{ 7 * 7 }}" in page
    assert "Dogs &amp; &lt;cats&gt;" in page and "onerror=alert(1)&gt;" in page
    assert "\u202e" not in page + text and "\x1b" not in page + text and r"\u202e" in page
    assert r"# Dogs \& \<cats\>" in text and r"\<i\>cat\<\/i\>" in text
    assert r"not\: caption \!\= \'\<b\>bold\<\/b\>\'" in text
    assert "<" not in re.sub(r"\\<", "", text.replace("    python examples", "").split("## How")[0])


def test_the_page_loads_nothing(card):
    _, _, page, _ = card
    assert "default-src 'none'; img-src data:" in page
    sources = re.findall(r"(?:src|href)=\"(.*?)\"", page)
    assert sources and all(source.startswith("data:image/") for source in sources)


def test_images_of_each_verdict_are_shown(card):
    _, _, page, _ = card
    headings = re.findall(r"<h3>(.*?) <span>(\w+), ([\d,]+)</span>", page)
    assert headings == [("undecodable image", "profile", "1"), (REASON_IN_HTML, "filter", "2")]
    assert page.count("<figcaption") == 11 + 2 and "<li>a dog with number 5</li>" in page
    thumbnails = re.findall(r'data:image/jpeg;base64,(.*?)"', page)
    assert len(thumbnails) == 13, "the broken one has none"
    sizes = [Image.open(io.BytesIO(base64.b64decode(each))).size for each in thumbnails]
    assert all(max(size) == 224 for size in sizes)


REASON_IN_HTML = "not: caption != &#39;&lt;b&gt;bold&lt;/b&gt;&#39;"


def test_queries_and_commands_are_shown(card):
    _, _, page, text = card
    assert "3 queries, of which 1 match no pair." in page and "data:image/svg+xml;base64," in page
    assert "&lt;i&gt;cat&lt;/i&gt;" in page and "| dog | 9 | 5 |" in text
    assert "python examples/curate.py profile &#39;raw/*.tar; rm -rf &lt;x&gt;&#39;" in page
    assert "    python examples/curate.py profile 'raw/*.tar; rm -rf <x>'" in text


def test_the_kept_pairs_are_described(card):
    _, _, page, text = card
    assert "| 129–256 | 11 |" in text and "| PNG | 11 |" in text and "| shorter side in pixels | pairs |" in text
    assert "Language" in page and "CC-BY-4.0" in page and r"Licence: CC\-BY\-4\.0" in text


def test_the_card_does_not_depend_on_the_order_of_shards(card, raw, tmp_path):
    _, folder, page, text = card
    other = make(raw, tmp_path / "work", shuffled=True)
    for name in ("query_counts.parquet", "commands.txt"):
        shutil.copy(folder / "work" / name, tmp_path / "work")
    curation.write(other, tmp_path / "new", engine="serial", progress=False)
    texts = {"title": "Dogs & <cats>", "licence": "CC-BY-4.0", "description": "Found *here*.\nAnd <there>."}
    assert write_card(other, tmp_path / "new", **texts) == (page, text)


def test_without_queries_shards_and_source(raw, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(raw, copy)
    pool = make(copy, tmp_path / "work")
    for path in copy.glob("*.tar*"):
        path.unlink()
    # An open file can still be read.
    _open_path.cache_clear()
    page, text = write_card(pool, tmp_path / "card", num_kept=3, num_rejected=0)
    assert "data:image" not in page and page.count("<li>") == 3
    assert "Queries" not in page + text and "How it was made" not in page + text and "not stated" in page


def test_a_recorded_command_is_listed_once(tmp_path):
    for command in (["a", "b c"], ["d"], ["a", "b c"], ["e\nf"]):
        curation.record_command(tmp_path, command)
    assert (tmp_path / "commands.txt").read_text() == "d\na 'b c'\n'e\\nf'\n"


def test_groups_of_lengths():
    assert grouped({0: 2, 1: 1, 3: 4}, WORDS) == [("1", 2), ("2", 1), ("3–4", 0), ("5–8", 4)]
    assert grouped({7: 1}, WORDS) == [("over 64", 1)]
    assert grouped({0: 1, 1: 1}, (64, 128)) == [("up to 64", 1), ("65–128", 1)]
    assert grouped({}, WORDS) == []


def test_rows_of_bars():
    assert bars({"b": 2, "a": 2, "c": 5}) == [("c", 5), ("a", 2), ("b", 2)]
    assert bars({str(number): number for number in range(10)}, 3) == [("9", 9), ("8", 8), ("other", 28)]


def test_markdown_is_one_line_a_text():
    facts = {
        "title": "a\n# b",
        "description": "1. c",
        "licence": "x",
        "counts": {"kept pairs": 0, "pairs": 1, "kept samples": 0},
        "manifest": None,
        "stages": [],
        "distributions": {},
        "truncated": 2,
        "queries": None,
        "commands": ["x\n```"],
    }
    lines = markdown(facts).splitlines()
    assert lines[0] == r"# a\\n\# b" and r"1\. c" in lines and r"    x\n```" in lines
    assert "2 captions are longer than 77 tokens and truncated." in lines


def test_a_manifest_that_is_not_complete_is_not_shown(raw, tmp_path):
    pool = make(raw, tmp_path / "work")
    (tmp_path / "new").mkdir()
    manifest = {"kind": "keras_clip shards", "complete": False, "shards": {"00000.tar": None}}
    (tmp_path / "new" / "manifest.json").write_text(json.dumps(manifest))
    page, _ = write_card(pool, tmp_path / "new", num_kept=0, num_rejected=0)
    assert "shard" not in page and "<figure" not in page and "<li>" not in page
