"""The report is one self-contained page that shows every number and escapes all texts."""

import base64
import io
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation import own_results
from PIL import Image

from keras_clip.evaluation import Results, Score, report
from keras_clip.evaluation.parts.part import Part, ReportTable
from keras_clip.evaluation.report.figure_data import FIGURES
from keras_clip.evaluation.report.figures import OWN
from keras_clip.printable import printable

pytestmark = pytest.mark.backend_free

EVIL = '<script>alert("x")</script>'
GREEN = (0, 200, 90)


class Page(HTMLParser):
    """Parses a page into its tags, the sources of its images, the rows of its tables, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.links, self.rows, self.text = set(), [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        if tag == "img":
            self.pictures.append(attributes["src"])
        if tag == "tr":
            self.rows.append([])
        self.links += [value for name, value in attributes.items() if name in ("href", "src", "action", "data")]

    def handle_data(self, data):
        self.text += data
        if self.rows and data.strip():
            self.rows[-1].append(data)


def picture(color):
    data = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


@pytest.fixture(scope="module")
def results():
    made = own_results.results(model=EVIL)
    error = {"id": EVIL, "true": "cat", "predicted": "dog & <pony>", "confidence": 0.97, "thumbnail": picture(GREEN)}
    made.tables["errors/digits"] = [error] * 3
    made.tables["class_design/people"] = [{"class_set": "with child", "group": "0-2", "share": 0.25, "n": 8}]
    return made


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    return report.write(results, tmp_path_factory.mktemp("report"), title="Two & sets")


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


def test_it_is_self_contained(page):
    assert page.links == page.pictures and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form", "svg"}


def test_every_image_is_complete(page):
    images = [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in page.pictures]
    # Every figure of the gallery, which has a confusion matrix for each of two datasets, and three errors.
    assert len(images) == len(FIGURES) + 1 + 3
    for image in images:
        assert len(np.unique(np.asarray(image.convert("L")))) > 2 or image.size == (32, 32)


def test_texts_are_escaped(page):
    assert page.text.count(EVIL) == 4 and "dog & <pony>" in page.text and "Two & sets" in page.text


def test_every_score_has_its_row(page):
    rows = [row for row in page.rows if row[:1] == ["zero_shot/family"]]
    assert rows == [
        ["zero_shot/family", "accuracy", "50.0 %", "40.0 % to 60.0 %", "100", "1"],
        ["zero_shot/family", "accuracy", "55.0 %", "45.0 % to 65.0 %", "100", "93.8 %", "1"],
    ]
    assert sum(row[:1] == ["few_shot/16"] for row in page.rows) == 2
    assert ["with child", "0-2", "0.25", "8"] in page.rows
    assert own_results.PROTOCOL in page.text


def headings_of(results):
    """Returns {heading of a section: its text}."""
    text = report.render(results)
    return {part.partition("</h2>")[0]: part.partition("</h2>")[2] for part in text.split("<h2>")[1:]}


def test_a_table_is_shown_by_the_declaration_of_its_part():
    """The report knows no table of a part by its name: a part with a new table declares it, and it is shown."""
    made = own_results.results()
    part = Part(
        "sizes",
        "images",
        lambda *_: True,
        lambda case: case.results.tables.update({"sizes/digits": [{"side": 28}], "largest": [{"side": 31}]}),
        tables=(ReportTable("sizes/", "Image sizes", "In pixels & <more>."), ReportTable("largest", "Image sizes")),
    )
    part(SimpleNamespace(results=made))
    made.tables["plain"] = [{"answer": 42}]
    # The declaration is among the results, so that a report of stored results has it too.
    shown = headings_of(Results.from_json(made.to_json()))
    section = Page(shown["Image sizes"])
    assert section.rows == [["side"], ["28"], ["side"], ["31"]]
    assert "In pixels & <more>." in section.text and "digits" in section.text
    assert Page(shown["Plain"]).rows == [["answer"], ["42"]]
    assert list(shown).index("Image sizes") < list(shown).index("Plain")


@pytest.mark.parametrize("dataset", ["_hidden", "a/b", "tab\there"])
def test_a_table_with_a_figure_is_shown_as_the_figure(dataset):
    names = ["cat", "dog"]
    rows = [{"true": name, "predicted": name, "images": 3} for name in names]
    score = Score(dataset, "zero_shot/family", "accuracy", 0.5, 0.4, 0.6, 9, "test")
    made = Results([score], {f"confusion/{dataset}": rows}, {"class_names": {dataset: names}})
    shown = Page(headings_of(made)["Confusion"])
    assert len(shown.pictures) == 1 and not shown.rows and printable(dataset) in shown.text


def test_the_same_numbers_are_in_the_other_files(results, written):
    read = Results.from_json((written.parent / "results.json").read_text())
    assert read.to_json() == results.to_json()
    assert (written.parent / "results.csv").read_text() == results.to_csv()
    assert sorted(path.name for path in written.parent.iterdir()) == ["report.html", "results.csv", "results.json"]


def test_an_existing_report_stays_until_the_new_one_is_complete(results, written, monkeypatch):
    before = written.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.html, "render", lambda *_: "another page")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write(results, written.parent)
    assert written.read_bytes() == before
    assert len(list(written.parent.iterdir())) == 3


def test_a_report_without_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one score"):
        report.write(Results(), tmp_path)
    assert json.loads(Results().to_json())["scores"] == []


def close(pixels, color):
    """Returns how many pixels have about this colour."""
    return int((np.abs(pixels[..., :3].astype(int) - color).max(axis=-1) < 12).sum())


@pytest.mark.slow
def test_a_browser_shows_it(written, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser: install chromium")
    quiet = ["disable-quic", "no-first-run", "disable-background-networking", "disable-component-update"]
    options = ["headless", "no-sandbox", "disable-gpu", *quiet, "disable-sync", "window-size=1300,12000"]
    shot = tmp_path / "shot.png"
    command = [browser, *(f"--{option}" for option in options), f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={shot}", written.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    own = tuple(int(OWN[i : i + 2], 16) for i in (1, 3, 5))
    # Bars and points of the figures, and the three errors at 128 pixels: nothing else on the page has these colours.
    assert close(pixels, own) > 20_000
    assert close(pixels, GREEN) == pytest.approx(3 * 126 * 126, rel=0.1)
