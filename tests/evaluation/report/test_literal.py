"""Strings of users stay text, in figures, HTML, CSV, file names, logs and terminals."""

import csv
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation import own_results

from keras_clip.data.skipped import SkippedSamples
from keras_clip.evaluation import Results, Score, report
from keras_clip.evaluation.report import figures
from keras_clip.printable import cell, printable

pytestmark = pytest.mark.backend_free
NAMES = {
    "a formula of TeX": "$_$",
    "an unknown command": r"$\frac$",
    "two prices": "pay $^ or $_",
    "a command of TeX": r"\frac",
    "an escaped dollar": r"costs \$5 or $6",
    "a formula of a spreadsheet": "=cmd|' /C calc'!A1",
    "another": "@SUM(1+1)",
    "a script": '<script>alert("x")</script>',
    "an attribute": '" onload="alert(1)',
    "a template": "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "an escape of the terminal": "\x1b[31mred\x1b]0;title\x07",
    "a path": "../../x",
    "an underscore": "_hidden",
    "a zero": "x\x00y",
    "half a pair": "file\udcff.jpg",
    "lines": "a\r\nb",
    "from right to left": "\u202etxt.exe",
}
each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture(scope="module")
def results():
    """Results in which models, data sets, classes, shifts and objectives have these names."""
    names = list(NAMES.values())
    made = Results.from_json(own_results.results(model="$_$").to_json())
    made.info["class_names"] = {"digits": names}
    del made.tables["confusion/Food101"]
    made.tables["confusion/digits"] = [{"true": name, "predicted": name, "images": 5} for name in names]
    for row in [row for rows in made.tables.values() for row in rows]:
        row |= {key: "pay $^ or $_" for key, value in row.items() if value in ("noise", "contrastive")}
    for name in names:
        details = {"note": name, name: 1}
        made.add(Score(name, "zero_shot/family", "accuracy", 0.5, 0.4, 0.6, 10, name, details=details))
        made.add(Score(name, "linear_probe", "accuracy", 0.6, 0.5, 0.7, 10, name))
    return made


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(results, folder, title='<script>alert("x")</script>')
    return folder


class Texts(HTMLParser):
    """The texts of a page, and what a browser would run."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.active = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.active += [tag] if tag in ("script", "iframe", "object", "embed", "form") else []
        self.active += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data)


def test_page(folder):
    # A text ends where a browser sees the next tag.
    page = Texts((folder / "report.html").read_text(encoding="utf-8"))
    assert page.active == []
    for name in NAMES.values():
        assert any(printable(name) in text for text in page.texts), name


def test_files_do_not_control_a_terminal(folder):
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "\\x1b" in text or "\\u001b" in text
        assert not [letter for letter in text.replace("\n", "") if printable(letter) != letter], path.name


def test_tables(folder, results):
    restored = Results.from_json((folder / "results.json").read_text(encoding="utf-8"))
    assert restored.datasets == results.datasets
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results.scores)
    assert not [row for row in rows if row["dataset"][0] in "=+-@" or row["protocol"][0] in "=+-@"]
    assert {"'=cmd|' /C calc'!A1", "'@SUM(1+1)", "$_$"} <= {row["dataset"] for row in rows}
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "results.csv", "results.json"]


@each_name
def test_figure(name):
    """Each text of the figure is a name itself, not what TeX would make of it."""
    figure = figures.confusion(np.eye(2), [printable(name), "b"])
    figure.savefig(io.BytesIO(), format="png")
    labels = [label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    found = [label for label in labels if label.get_text()[:3] == printable(name)[:3]]
    assert len(found) == 2 and not any(label.get_parse_math() for label in found)


def test_numbers_of_logarithmic_axes_are_still_set_in_tex():
    figure = figures.efficiency({"$_$": [(10, 0.1), (100_000, 0.2)]})
    figure.savefig(io.BytesIO(), format="png")
    axis = figure.axes[0].xaxis
    numbers = [label for label in axis.get_ticklabels() if "mathdefault" in label.get_text()]
    assert numbers and all(label.get_parse_math() for label in numbers)
    assert not figure.axes[0].get_legend().get_texts()[0].get_parse_math()


CELLS = {
    "=1+1": "'=1+1",
    "\uff0b1+1": "'\uff0b1+1",
    "\uff0d1": "'\uff0d1",
    "\uff1d1+1": "'\uff1d1+1",
    "\uff20SUM(1)": "'\uff20SUM(1)",
    "+1": "'+1",
    "-1": "'-1",
    "@x": "'@x",
    "\tx": "'\\tx",
    "a\x1b[2J\nb": "a\\x1b[2J\\nb",
    "\uff1d1": "'\uff1d1",
    "a=1": "a=1",
    "": "",
    -1.5: -1.5,
    None: None,
    "\udcff": "\\udcff",
}


@pytest.mark.parametrize("value, expected", CELLS.items())
def test_cell(value, expected):
    assert cell(value) == expected


PRINTABLE = {
    "\x1b[31m": "\\x1b[31m",
    "a\nb\r": "a\\nb\\r",
    "\x9b2J": "\\x9b2J",
    "\u202etxt": "\\u202etxt",
    "\udcff": "\\udcff",
    "été 日本 👩\u200d🚀": "été 日本 👩\u200d🚀",
}


@pytest.mark.parametrize("text, expected", PRINTABLE.items(), ids=map(repr, PRINTABLE))
def test_printable(text, expected):
    assert printable(text) == expected
    printable(text).encode()


def test_keys_of_an_archive_do_not_reach_the_log_as_they_are(caplog):
    skipped = SkippedSamples("shards")
    skipped.add("a.tar: \x1b[2Jkey", "undecodable image", "\x07")
    skipped.finish(10)
    assert "\\x1b[2Jkey" in caplog.text and "\x1b" not in caplog.text + "".join(skipped.examples)
