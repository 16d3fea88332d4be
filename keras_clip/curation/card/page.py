"""Lays out a data card. Jinja2 escapes every text of the pool, and the page may load nothing, whatever they contain."""

import base64
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_clip import files
from keras_clip.curation.card.summary import SIDES, WORDS, Pick, Summary, bars, grouped, summarise
from keras_clip.curation.keeping import KeepList, keep, verdicts_of
from keras_clip.curation.pool import Pool, read_table
from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.data.readers.storage.manifest import read_manifest
from keras_clip.engines import Engine
from keras_clip.pages import page_template
from keras_clip.printable import printable

# Commands that examples/curate.py ran, one a line, in the folder of the pool.
COMMANDS = "commands.txt"
_TEMPLATE = Path(__file__).parent / "card.html.j2"
_THUMBNAIL = 224
_CAPTION = 160
_POINTS = 300
_REASONS = 12
_ENDS = 10


@dataclass(frozen=True)
class CardSettings:
    """What a data card says beside the results.

    Args:
        title: heading.
        licence: str, of the new shards; the licences of single images are their owners'. "": "not stated".
        description: str, one paragraph: where the pool is from, and what it is for.
        commands: the commands that made the shards. None: those that examples/curate.py recorded.
        num_kept: int >= 0. Kept images on the contact sheet.
        num_rejected: int >= 0. Images of each reason.
        seed: int in [0, 2 ** 64). Of the choice of these images.
    """

    title: str = "Data card"
    licence: str = ""
    description: str = ""
    commands: Sequence[str] | None = None
    num_kept: int = 24
    num_rejected: int = 6
    seed: int = 0


class _Row(NamedTuple):
    """A row with a bar: its name, a number, and the length of its bar in per cent."""

    name: str
    count: int
    percent: float


class _Stage(NamedTuple):
    """A pass, what it rejected by reason, and what was left after it."""

    name: str
    left: int
    percent: float
    reasons: list[_Row]


def write_card(
    pool: Pool,
    folder: str | os.PathLike,
    verdicts: Sequence[str] | None = None,
    *,
    settings: CardSettings | None = None,
    engine: str | Engine = "auto",
    progress: bool = True,
) -> Path:
    """Writes the data card of a pool: card.html, a page that loads nothing else, and card.md, without images.

    They show how many pairs each pass rejected and why, the queries with most and fewest pairs if `balance` has run,
    the sizes, formats, languages and lengths of captions of the kept pairs, some kept images and some of each reason,
    the licence, and the commands.

    Args:
        pool: the pool, with its profile and verdicts.
        folder: folder of the card, such as that of the new shards, whose manifest is shown; it is created.
        verdicts: see `keep`.
        settings: `CardSettings`. None: its defaults.
        engine: see `run_pass`.
        progress: bool. Whether to show progress bars.

    Returns:
        Path of card.html.

    Raises:
        ImportError: matplotlib or Jinja2 is not installed (extra `curation`).
        ValueError: see `keep`.
    """
    settings, folder = settings or CardSettings(), Path(folder)
    # Before the passes run.
    template = page_template(_TEMPLATE, "curation", {"share": _share, "size": _size})
    verdicts = KeepList(verdicts_of(pool) if verdicts is None else verdicts).inputs
    counts = keep(pool, verdicts, engine, progress=progress)
    summary = summarise(pool, engine, settings.seed, settings.num_kept, settings.num_rejected)
    facts = {
        "title": settings.title,
        "description": settings.description,
        "licence": settings.licence or "not stated",
        "counts": counts,
        "manifest": _manifest(folder),
        "stages": _stages(counts, verdicts),
        "distributions": _distributions(summary),
        "truncated": summary.kept["truncated", True],
        "queries": _queries(pool),
        "commands": _commands(pool, settings),
    }
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "card.html"
    files.write_text(page, _safe(template.render(**facts, sheets=_sheets(pool, summary, counts, verdicts))))
    files.write_text(folder / "card.md", _safe(markdown(facts)))
    return page


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of the new shards, if they are complete."""
    manifest = read_manifest(folder)
    return manifest if manifest and manifest.get("complete") else None


def _stages(counts: Counter, verdicts: Sequence[str]) -> list[_Stage]:
    left, stages = counts["pairs"], []
    for name in verdicts:
        reasons = {key.partition(": ")[2]: count for key, count in counts.items() if key.startswith(f"{name}: ")}
        left -= sum(reasons.values())
        rows = [_Row(reason, count, 100 * count / counts["pairs"]) for reason, count in bars(reasons, _REASONS)]
        stages.append(_Stage(name, left, 100 * left / counts["pairs"], rows))
    return stages


def _distributions(summary: Summary) -> dict[str, list[_Row]]:
    found: dict[str, dict[Any, int]] = {}
    for (what, value), count in summary.kept.items():
        found.setdefault(what, {})[value] = count
    tables = {
        "Shorter side in pixels": grouped(found.get("side", {}), SIDES),
        "Words in a caption": grouped(found.get("words", {}), WORDS),
        "Language": bars(found.get("language", {})),
        "Format": bars(found.get("format", {})),
    }
    return {heading: _with_bars(rows) for heading, rows in tables.items() if rows}


def _with_bars(rows: Sequence[tuple[str, int]]) -> list[_Row]:
    largest = max(count for _, count in rows) or 1
    return [_Row(name, count, 100 * count / largest) for name, count in rows]


class _Queries(NamedTuple):
    """The queries of a pool: (entry, pairs, kept pairs) with most and with fewest pairs, numbers, and the plot."""

    head: list[tuple[str, int, int]]
    tail: list[tuple[str, int, int]]
    number: int
    unmatched: int
    plot: str


def _queries(pool: Pool) -> _Queries | None:
    """Returns the queries with most and with fewest pairs, if the pool has been balanced."""
    path = pool.folder / "query_counts.parquet"
    if not path.exists():
        return None
    table = read_table(path, ["entry", "count", "kept"])
    counts, kept = table["count"].to_numpy(), table["kept"].to_numpy()
    # Equal counts stay in the order of the list.
    order = np.argsort(-counts, kind="stable")
    matched = order[: int((counts > 0).sum())]

    def rows(places: np.ndarray) -> list[tuple[str, int, int]]:
        return [(table["entry"][row].as_py(), int(counts[row]), int(kept[row])) for row in places.tolist()]

    head, tail = matched[:_ENDS], matched[_ENDS:][-_ENDS:]
    plot = _plot(counts[matched], kept[matched])
    return _Queries(rows(head), rows(tail), len(counts), len(counts) - len(matched), plot)


def _plot(counts: np.ndarray, kept: np.ndarray) -> str:
    """Returns the plot of the pairs of each query before and after balancing as a data URL."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same ranks however long the list is.
    ranks = np.unique(np.geomspace(1, max(1, len(counts)), _POINTS).astype(int))[: len(counts)]
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    after = np.sort(kept)[::-1]
    axes.loglog(ranks, counts[ranks - 1], color="#b0b0b0", linewidth=3, label="before balancing")
    axes.loglog(ranks, np.maximum(after[ranks - 1], 0.5), color="#1f5fa8", linewidth=1.5, label="kept")
    axes.set_xlabel("rank of the query", loc="right")
    axes.set_ylabel("pairs", loc="top")
    axes.set_ylim(bottom=0.8)
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, color="#999")
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "keras_clip", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _commands(pool: Pool, settings: CardSettings) -> list[str]:
    if settings.commands is not None:
        return list(settings.commands)
    path = pool.folder / COMMANDS
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def record_command(folder: str | os.PathLike, arguments: Sequence[str]) -> None:
    """Records a command in the folder of a pool, for its data card; the same one again is recorded once.

    Args:
        folder: folder of the pool.
        arguments: the command and its arguments.
    """
    path = Path(folder) / COMMANDS
    line = printable(shlex.join(map(str, arguments)))
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    files.write_text(path, "".join(f"{each}\n" for each in [*(each for each in lines if each != line), line]))


class _Picture(NamedTuple):
    """A thumbnail as a data URL, None if the image cannot be shown, and its caption."""

    url: str | None
    caption: str


class _Sheet(NamedTuple):
    """The images of a verdict: the pass and the reason, both "" for kept pairs, and the number of such pairs."""

    by: str
    reason: str
    count: int
    pictures: list[_Picture]


def _sheets(pool: Pool, summary: Summary, counts: Counter, verdicts: Sequence[str]) -> list[_Sheet]:
    """Returns the contact sheet: kept images, then those of the most frequent reasons of each pass."""
    shards = {shard.name: shard for shard in pool.shards}
    ordered = [(None, counts["kept pairs"])]
    for name in verdicts:
        reasons = [(verdict, counts[": ".join(verdict)]) for verdict in summary.picks if verdict and verdict[0] == name]
        ordered += sorted(reasons, key=lambda row: (-row[1], row[0]))[:_REASONS]
    return [
        _Sheet(*(verdict or ("", "")), count, [_picture(shards[pick.shard], pick) for pick in summary.picks[verdict]])
        for verdict, count in ordered
        if summary.picks.get(verdict)
    ]


def _picture(shard: Any, pick: Pick) -> _Picture:
    caption = pick.caption if len(pick.caption) <= _CAPTION else f"{pick.caption[:_CAPTION]}…"
    try:
        reader, _ = shard.open()
        (image,), _ = reader.read(np.array([pick.sample], np.int64))
        # A photograph of that many pixels is decoded at a fraction of its size.
        picture = open_image(image, "image", MAX_PIXELS, _THUMBNAIL)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
    except (OSError, ValueError):
        # Broken, or the source is not there any more.
        return _Picture(None, caption)
    return _Picture(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", caption)


def _share(part: int, whole: int) -> str:
    """Returns a part of a whole in per cent, with a digit after the point below ten."""
    percent = 100 * part / max(1, whole)
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def _size(size: int) -> str:
    """Returns a number of bytes with a decimal unit."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" or value >= 10 else f"{value:.1f} {unit}"


def markdown(facts: Mapping[str, Any]) -> str:
    """Returns the card in Markdown; texts of the pool are escaped.

    Args:
        facts: what `write_card` found.

    Returns:
        str.
    """
    counts, manifest = facts["counts"], facts["manifest"]
    lines = [f"# {_escaped(facts['title'])}", ""]
    lines += [_escaped(facts["description"]), ""] if facts["description"] else []
    lines += [
        f"{counts['kept pairs']:,} of {counts['pairs']:,} pairs are kept "
        f"({_share(counts['kept pairs'], counts['pairs'])}), with {counts['kept samples']:,} images.",
        "",
    ]
    if manifest:
        lines += [f"{len(manifest['shards']):,} shards, {_size(manifest['bytes'])}.", ""]
    lines += [f"Licence: {_escaped(facts['licence'])}", "", "## What each pass rejected", ""]
    rows = []
    for stage in facts["stages"]:
        rows.append([f"**{_escaped(stage.name)}**", "", f"{stage.left:,}"])
        rows += [[_escaped(row.name), f"{row.count:,}", ""] for row in stage.reasons]
    lines += _table(["pass and reasons", "rejected", "left"], rows)
    if queries := facts["queries"]:
        lines += ["## Queries", "", f"{queries.number:,} queries, of which {queries.unmatched:,} match no pair.", ""]
        for heading, part in (("most pairs", queries.head), ("fewest pairs", queries.tail)):
            rows = [[_escaped(entry), f"{count:,}", f"{kept:,}"] for entry, count, kept in part]
            lines += _table([f"queries with {heading}", "before balancing", "kept"], rows) if rows else []
    lines += ["## The kept pairs", ""]
    for heading, rows in facts["distributions"].items():
        lines += _table([heading.lower(), "pairs"], [[_escaped(row.name), f"{row.count:,}"] for row in rows])
    if facts["truncated"]:
        lines += [f"{facts['truncated']:,} captions are longer than 77 tokens and truncated.", ""]
    if facts["commands"]:
        # Indented, because a text may hold any fence.
        lines += ["## How it was made", "", *(f"    {printable(command)}" for command in facts["commands"]), ""]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return [*(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)), ""]


def _escaped(text: str) -> str:
    """Returns a text that Markdown shows literally, in one line."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda match: f"\\{match.group()}", printable(text))


def _safe(text: str) -> str:
    # Names of files may hold what UTF-8 cannot.
    return text.encode("utf-8", "backslashreplace").decode()
