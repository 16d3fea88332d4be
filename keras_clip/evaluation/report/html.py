"""Writes an evaluation as one HTML file that loads nothing else, and the same numbers as JSON and CSV.

The page is static: its styles and pictures are inside the file, and it has no script. `template.html.j2` lays it out.
Jinja2 escapes every text of users (names, captions, ids), and control characters are shown as `\\x1b`.
"""

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_clip import files
from keras_clip.evaluation.metrics.comparison import compare
from keras_clip.evaluation.report.figure_data import gallery, table_name
from keras_clip.evaluation.results import Results, Score, format_value
from keras_clip.pages import page_template
from keras_clip.printable import printable


class Cell(str):
    """The text of a number, which a table aligns to the right."""


class Table(NamedTuple):
    """Headings of the columns, and rows of (text, is_number)."""

    columns: list[str]
    rows: list[list[tuple[str, bool]]]


class Picture(NamedTuple):
    """A PNG as a data URL, its description for screen readers, and its caption ("" for none)."""

    url: str | None
    description: str = ""
    caption: str = ""


class Block(NamedTuple):
    """A part of a section: a heading, a table, pictures and notes, each of which may be empty."""

    heading: str = ""
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    style: str = ""


class Section(NamedTuple):
    """A heading of the page, its blocks, and a note above them."""

    heading: str
    blocks: Sequence[Block]
    note: str = ""


def write(
    results: Results, folder: str | os.PathLike, other: Results | None = None, title: str = "Evaluation of a CLIP model"
) -> Path:
    """Writes results.json and results.csv, and then draws and writes report.html.

    Each file is complete at any time: it is written under another name and then renamed.

    Args:
        results: `Results`.
        folder: output folder; it is created. Files of these names in it are replaced.
        other: `Results` of a second model to compare with: see `evaluation.compare`.
        title: str. Heading of the page.

    Returns:
        Path of report.html.

    Raises:
        ValueError: no scores.
        ImportError: matplotlib or Jinja2 is not installed (extra `evaluation`).
    """
    if not results.scores:
        raise ValueError("A report needs at least one score. Received: results without scores.")
    # An error in a drawing must not take the numbers along.
    results.save(folder)
    page = Path(folder) / "report.html"
    files.write_text(page, render(results, other, title))
    return page


def render(results: Results, other: Results | None = None, title: str = "Evaluation of a CLIP model") -> str:
    """Returns the page that `write` writes, as HTML; arguments as of `write`."""
    template = page_template(Path(__file__).parent / "template.html.j2", "evaluation", finalize=_shown)
    sections = [section for section in _sections(results, other) if section.blocks]
    return template.render(title=title, facts=_facts(results), sections=sections)


def _sections(results: Results, other: Results | None) -> list[Section]:
    """Returns the sections of the page in their order; sections without results have no blocks."""
    pictures = {name: Picture(_png_url(figure), _words(name)) for name, figure in gallery(results, other).items()}
    comparison = [Block(table=as_table(compare(results, other)))] if other else []
    failures = as_table([vars(failure) for failure in results.failures])
    of_tables, used = _sections_of_tables(results, pictures)
    paper = {name: picture for name, picture in pictures.items() if name.startswith("figure_")}
    others = {name: picture for name, picture in pictures.items() if name not in used and name not in paper}
    dropped = [section for section in of_tables if section.heading == DECLARED["dropped"]["heading"]]
    return [
        Section("Failed parts", [Block(table=failures)] if failures else [], _FAILURES_NOTE),
        *dropped,
        Section("Scores", [_scores_of(results, dataset) for dataset in results.datasets]),
        Section("Figures of the paper", [Block(pictures=list(paper.values()))] if paper else [], _FIGURES_NOTE),
        Section("Other figures", [Block(pictures=list(others.values()))] if others else []),
        Section("Comparison of two models", comparison, _COMPARISON_NOTE),
        *(section for section in of_tables if section not in dropped),
    ]


def _sections_of_tables(results: Results, pictures: Mapping[str, Picture]) -> tuple[list[Section], set[str]]:
    """Returns a section for each heading of the declared tables and for each other table, and the figures in them.

    A table of which there is a figure of the same name is shown as this figure.
    """
    declared = {**DECLARED, **results.info.get("tables", {})}
    blocks: dict[str, list[Block]] = {}
    used = set()
    for name, rows in results.tables.items():
        kind, _, dataset = name.partition("/")
        place = declared.setdefault(f"{kind}/" if dataset else name, {"heading": _words(kind).capitalize()})
        if (figure := table_name(name)) in pictures:
            used.add(figure)
            url, description, _ = pictures[figure]
            block = Block(pictures=[Picture(url, description, dataset)])
        elif any("thumbnail" in row for row in rows):
            block = Block(dataset, pictures=list(map(_thumbnail, rows)), style="thumbnails")
        else:
            block = Block(dataset, as_table(rows))
        if block.table or block.pictures:
            blocks.setdefault(place["heading"], []).append(block)
    notes: dict[str, str] = {}
    for place in declared.values():
        notes[place["heading"]] = notes.get(place["heading"]) or place.get("note", "")
    return [Section(heading, blocks[heading], note) for heading, note in notes.items() if heading in blocks], used


# The declarations of the tables that no part of `evaluate` fills, in the form of `results.info["tables"]`, where each
# part declares its own.
DECLARED = {
    "dropped": {
        "heading": "Images that were left out",
        "note": "Not all splits have these classes; the scores are of the other images.",
    },
    "overlap": {"heading": "Overlap with the training data"},
    "scaling": {"heading": "Score against compute"},
}
_FIGURES_NOTE = (
    "Values of this evaluation are blue and filled, those of the paper are grey and hollow. Figures are numbered as in "
    "Radford et al. (2021). Datasets, splits and prompts differ from the paper's unless they have the paper's names."
)
_COMPARISON_NOTE = (
    "Fractions of independent images have McNemar's exact test on the images that exactly one of the two models "
    "classifies correctly; other scores have a paired permutation test, in which the captions of an image stay "
    "together. The p-values have Holm's correction over all rows. The difference is the second model's score minus the "
    "first model's."
)
_FAILURES_NOTE = "These parts of the evaluation raised an error; their scores are missing or incomplete."


def _facts(results: Results) -> Table | None:
    facts = {name: value for name, value in results.info.items() if not isinstance(value, Mapping)}
    return as_table([{"": _words(name), " ": value} for name, value in facts.items()])


def _scores_of(results: Results, dataset: str) -> Block:
    """Returns the scores of a dataset: method, metric, value, interval, n, published value, and numbered protocols."""
    scores = results.select(dataset)
    protocols = list(dict.fromkeys(score.protocol for score in scores))
    notes = ["Protocols:", *(f"{i}: {protocol}" for i, protocol in enumerate(protocols, 1))]
    return Block(dataset, as_table([_score_row(score, protocols) for score in scores]), notes=notes)


def _score_row(score: Score, protocols: Sequence[str]) -> dict[str, Any]:

    def show(value: float) -> str:
        return format_value(value, score.unit)

    return {
        "method": score.method,
        "metric": score.metric,
        "value": Cell(show(score.value)),
        "95 % interval": Cell(f"{show(score.low)} to {show(score.high)}" if math.isfinite(score.low) else ""),
        "n": Cell(f"{score.n:,}"),
        "paper": Cell("" if score.published is None else show(score.published)),
        "protocol": Cell(str(1 + protocols.index(score.protocol))),
        "details": ", ".join(f"{name}: {_text(value)}" for name, value in score.details.items()),
    }


def _thumbnail(row: Mapping[str, Any]) -> Picture:
    """Returns a row that has a "thumbnail" (a PNG in base64, or None): its image above its other values."""
    caption = "; ".join(f"{_words(name)} {_text(value)}" for name, value in row.items() if name != "thumbnail")
    return Picture(f"data:image/png;base64,{row['thumbnail']}" if row.get("thumbnail") else None, caption=caption)


def as_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Makes a table. Its columns are the keys in the order of their first occurrence; empty columns are omitted.

    Args:
        rows: dicts of JSON values or `Cell`s.

    Returns:
        `Table`, or None if there are no rows.
    """
    if not rows:
        return None
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]
    cells = [[(_text(value), _is_number(value)) for value in map(row.get, columns)] for row in rows]
    return Table(list(map(_words, columns)), cells)


def _is_number(value: Any) -> bool:
    return isinstance(value, Cell | int | float) and not isinstance(value, bool)


def _png_url(figure: Any) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Any) -> Any:
    """A value as the page shows it: texts of users without what could control a terminal that displays the file."""
    # A macro's result is markup, whose texts have been through here already.
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return format_value(value, "")
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value)
