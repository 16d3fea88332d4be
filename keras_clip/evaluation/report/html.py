"""Writes an evaluation down: one HTML file that needs nothing else, the same numbers as JSON and CSV.

The page is static: styles and pictures are in it, no script, nothing is loaded from anywhere. All that comes from users
(names, captions, ids) is escaped.
"""

import base64
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from keras_clip.evaluation.metrics.comparison import compare
from keras_clip.evaluation.report.figure_data import gallery
from keras_clip.evaluation.results import Results, Score

# Whether its values are shares in [0, 1].
_NOT_SHARES = ("median_rank", "temperature", "shots")
_AT_RIGHT = ' class="number"'
# Nothing but what is in the file, whatever the texts in it say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 0.6rem 0; font-size: 0.87rem; }
th, td { padding: 0.22rem 0.7rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th { background: #f3f5f8; } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { display: inline-block; margin: 0.8rem 1rem 0.8rem 0; vertical-align: top; }
figure img { max-width: 100%; } figcaption { font-size: 0.8rem; max-width: 11rem; overflow-wrap: anywhere; }
.errors img { width: 8rem; image-rendering: auto; border: 1px solid #ccc; } p.note { color: #555; font-size: 0.87rem; }
"""


def write(
    results: Results, folder: str | os.PathLike, other: Results | None = None, title: str = "Evaluation of a CLIP"
) -> Path:
    """Writes report.html, results.json and results.csv.

    Each file is whole at any time: it is written under another name first.

    Args:
        results: `Results`.
        folder: where to; it is made. What it has of these names is replaced.
        other: `Results` of a second model, to compare with: see `evaluation.compare`.
        title: str. Heading of the page.

    Returns:
        Path of report.html.

    Raises:
        ValueError: no scores.
        ImportError: matplotlib is not installed (extra `evaluation`).
    """
    if not results.scores:
        raise ValueError("A report wants scores. Received: results without any.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(results, other, title)
    for name, text in (("report.html", page), ("results.json", results.to_json()), ("results.csv", results.to_csv())):
        _write_whole(folder / name, text)
    return folder / "report.html"


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def render(results: Results, other: Results | None = None, title: str = "Evaluation of a CLIP") -> str:
    """The page that `write` writes; arguments as of `write`."""
    drawn = {name: _picture(figure) for name, figure in gallery(results, other).items()}
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(results),
        _section("Scores", _score_tables(results)),
        _section("Figures of the paper", _figures(drawn, "figure_"), _FIGURES_NOTE),
        _section("Calibration", [_rows(results, "calibration"), *_figures(drawn, "reliability")], _CALIBRATION_NOTE),
        _section("Robustness", [_rows(results, "robustness")]),
        _section("Labels that zero-shot is worth", [_rows(results, "shots_to_match")], _SHOTS_NOTE),
        _section("Which class for which", _figures(drawn, "confusion/")),
        _section("Most confident errors", _errors(results)),
        _section("Class design", _prefixed(results, "class_design/"), _DESIGN_NOTE),
        _section("Two models", [table(compare(results, other))] if other else [], _COMPARISON_NOTE),
        _section("Overlap with the training data", [_rows(results, "overlap")]),
        _section("Score against compute", [_rows(results, "scaling")]),
        _section("Prompts", [_rows(results, "templates")]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


_FIGURES_NOTE = (
    "Own values in blue and filled, the paper's in grey and hollow; numbers of figures are those of Radford et al. "
    "(2021). Data sets, splits and prompts differ from the paper's unless they bear its names."
)
_CALIBRATION_NOTE = "The temperature was fitted to the validation data, or to training data where there is none."
_SHOTS_NOTE = "Labelled images per class at which a linear probe on the same features equals zero-shot (figure 7)."
_DESIGN_NOTE = "The same images under class sets that differ: how often each group gets a watched label."
_COMPARISON_NOTE = (
    "McNemar's exact test on the images that just one of the two models has right, with Holm's correction over all "
    "rows; the difference is second minus first."
)


def _section(heading: str, parts: Iterable[str], note: str = "") -> str:
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(heading)}</h2>\n{note}\n{content}"


def _facts(results: Results) -> str:
    facts = {name: value for name, value in results.info.items() if not isinstance(value, Mapping)}
    return table([{"": name.replace("_", " "), " ": value} for name, value in facts.items()])


def _score_tables(results: Results) -> list[str]:
    """A table for each data set: method, metric, value with interval, n, the paper's value, protocol."""
    parts = []
    for name in results.datasets:
        scores = results.select(name)
        protocols = list(dict.fromkeys(score.protocol for score in scores))
        rows = [_score_row(score, protocols) for score in scores]
        parts.append(f"<h3>{escape(name)}</h3>")
        parts.append(table(rows))
        numbered = "".join(f"<br>{i}: {escape(protocol)}" for i, protocol in enumerate(protocols, 1))
        parts.append(f'<p class="note">Protocols:{numbered}</p>')
    return parts


def _score_row(score: Score, protocols: Sequence[str]) -> dict[str, Any]:
    is_share = score.metric not in _NOT_SHARES
    show = _percent if is_share else _number
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


class Cell(str):
    """The text of a number, which stands at the right of its cell."""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "none"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An HTML table of rows; the columns are the keys in the order in which they come, numbers at the right.

    Args:
        rows: dicts of what JSON allows.

    Returns:
        HTML, "" of no rows.
    """
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            is_number = isinstance(value, Cell | int | float) and not isinstance(value, bool)
            cells.append(f"<td{_AT_RIGHT if is_number else ''}>{escape(_text(value))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _rows(results: Results, name: str) -> str:
    return table(results.tables.get(name, ()))


def _prefixed(results: Results, prefix: str) -> list[str]:
    return [
        f"<h3>{escape(name.removeprefix(prefix))}</h3>{table(rows)}"
        for name, rows in results.tables.items()
        if name.startswith(prefix)
    ]


def _picture(figure: Any) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _figures(drawn: Mapping[str, str], prefix: str) -> list[str]:
    return [
        f'<figure><img src="{picture}" alt="{escape(name.replace("_", " "))}">'
        + (f"<figcaption>{escape(name.removeprefix(prefix))}</figcaption>" if prefix.endswith("/") else "")
        + "</figure>"
        for name, picture in drawn.items()
        if name.startswith(prefix)
    ]


def _errors(results: Results) -> list[str]:
    """Pictures of the images that were named wrongly with most confidence, from the tables "errors/<data set>"."""
    parts = []
    for name, rows in results.tables.items():
        if not name.startswith("errors/") or not rows:
            continue
        parts.append(f'<h3>{escape(name.removeprefix("errors/"))}</h3><div class="errors">')
        for row in rows:
            caption = (
                f"named {escape(str(row['named']))} ({100 * row['confidence']:.0f} %), "
                f"is {escape(str(row['class']))}; {escape(str(row['id']))}"
            )
            picture = ""
            if row.get("thumbnail"):
                picture = f'<img src="data:image/png;base64,{escape(row["thumbnail"])}" alt="">'
            parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
        parts.append("</div>")
    return parts
