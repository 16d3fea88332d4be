"""The features that validation looks at: one row a pair, derived from the profile and the scores.

TFDV checks ranges on the extremes of a whole data set, where one bad row in a thousand million is an anomaly. What may
happen at a tolerated rate is therefore a string with few values (yes or no, or an interval): the share of the accepted
values is checked (`min_domain_mass` of the schema). The intervals also serve the comparison of distributions, which an
outlier then cannot stretch.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from keras_clip import files

if TYPE_CHECKING:
    import pyarrow

# Lower bounds of the intervals, each inclusive. The last one of caption_tokens is one more than the context of CLIP.
BINS = {
    "shorter_side": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "aspect": (1.25, 1.5, 2, 3, 5),
    "caption_words": (1, 2, 3, 5, 10, 20, 50),
    "caption_tokens": (3, 8, 16, 32, 48, 64, 78),
    "score": (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
}
# The slices of a data set: consecutive shards with at least this number of rows together.
SLICE_ROWS = 200
MAX_SLICES = 64
# Columns that are read, and what their type must be.
_PROFILE = {
    "key": "string",
    "sample": "integer",
    "decode_ok": "boolean",
    "reason": "string",
    "format": "string",
    "mode": "string",
    "width": "integer",
    "height": "integer",
    "bytes": "integer",
    "sha256": "string",
    "words": "integer",
    "tokens": "integer",
    "utf8_ok": "boolean",
    "file_name_like": "boolean",
    "blank": "boolean",
    "language": "string",
    "text_hash": "string",
}
_SCORES = {"clip_score": "floating"}
_ROW_GROUP = 10_000
# The value of each character as a hexadecimal digit; above 15 if it is none.
_HEXADECIMAL = np.full(256, 255, np.uint8)
_HEXADECIMAL[list(b"0123456789abcdef")] = range(16)
_HEXADECIMAL[list(b"ABCDEF")] = range(10, 16)


class Derived(NamedTuple):
    """Feature files of a data set, the number of rows in them, and the number of rows of the profile."""

    paths: list[Path]
    rows: int
    total: int


def intervals(name: str) -> list[str]:
    """Returns the names of the intervals of a feature in ascending order, such as ["<16", "[16, 32)", ">=32"].

    Args:
        name: a key of `BINS`.
    """
    edges = [f"{edge:g}" for edge in BINS[name]]
    between = [f"[{low}, {high})" for low, high in zip(edges, edges[1:], strict=False)]
    return [f"<{edges[0]}", *between, f">={edges[-1]}"]


def derive(
    profiles: Sequence[Path], scores: Sequence[Path] | None, folder: Path, sample_rows: int = 1_000_000
) -> Derived:
    """Writes the features of a profile as Parquet files, one for each slice of the data set.

    Above `sample_rows` rows, those samples are taken whose hash of shard and key is below a threshold: about
    `sample_rows` rows, the same ones in every run. Whether an image or a caption is repeated is still looked up in the
    whole profile.

    Args:
        profiles: Parquet files of the pass `profile`, one a shard, in order.
        scores: Parquet files of the pass `score` with the same rows, or None.
        folder: output folder, which is emptied first.
        sample_rows: int > 0.

    Returns:
        `Derived`.

    Raises:
        ValueError: a file is not a profile or does not have the rows of its profile; there are no pairs.
    """
    lengths = [_length(path, _PROFILE, "profile") for path in profiles]
    for path, length, scored in zip(profiles, lengths, scores or [], strict=False):
        if _length(scored, _SCORES, "score") != length:
            raise ValueError(
                f"The scores must have the rows of the profile. Received: {scored} for {path}, with another number of "
                "rows. Run the pass `score` again."
            )
    total = sum(lengths)
    if not total:
        raise ValueError(f"Validation needs at least one pair. Received: {len(profiles)} profiles without rows.")
    keep = min(1.0, sample_rows / total)
    repeated = {name: _Repeated(profiles, name, keep) for name in ("sha256", "text_hash")}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written, rows = [], 0
    for number, group in enumerate(_groups(lengths, keep)):
        path = folder / f"{number:05d}.parquet"
        names = [profiles[index].stem for index in group]
        shards = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        tables = (_features(profiles[index], scores and scores[index], shards, repeated, keep) for index in group)
        count = _write(path, tables)
        if count:
            written.append(path)
        rows += count
    if not rows:
        raise ValueError(
            f"No pair was sampled. Received: sample_rows={sample_rows} of {total} rows. Raise sample_rows."
        )
    return Derived(written, rows, total)


def _length(path: Path, columns: dict[str, str], pass_name: str) -> int:
    """The number of rows of an output of a pass; raises ValueError if it is not one."""
    import pyarrow as pa
    import pyarrow.parquet

    again = f"Make it with the pass `{pass_name}`: python examples/curate.py {pass_name}."
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a complete Parquet file: {error}. {again}") from error
    with file:
        schema = file.schema_arrow
        checks = {
            "string": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "integer": pa.types.is_integer,
            "boolean": pa.types.is_boolean,
            "floating": pa.types.is_floating,
        }
        for name, kind in columns.items():
            if name not in schema.names:
                received = ", ".join(schema.names[:6]) + (", ..." if len(schema.names) > 6 else "")
                raise ValueError(
                    f"{path} is not a {pass_name}: it has no column {name!r}. Received: {received}. {again}"
                )
            if not checks[kind](schema.field(name).type):
                raise ValueError(
                    f"{path} is not a {pass_name}: the column {name!r} must be {kind}. "
                    f"Received: {schema.field(name).type}. {again}"
                )
        return file.metadata.num_rows


def _read(path: Path, columns) -> "pyarrow.Table":
    import pyarrow.parquet

    # Not by its path alone, from which pyarrow would derive columns if a folder is called name=value.
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read(columns=list(columns))


def _groups(lengths: Sequence[int], keep: float = 1.0) -> Iterator[list[int]]:
    """Indices of consecutive shards, in at most `MAX_SLICES` groups of about `SLICE_ROWS` sampled rows or more."""
    wanted = max(SLICE_ROWS / keep, sum(lengths) / MAX_SLICES)
    group, rows, left = [], 0, sum(lengths)
    for index, length in enumerate(lengths):
        group.append(index)
        rows += length
        left -= length
        # A remainder that is too small for a group of its own stays with the last one.
        if rows >= wanted and left >= wanted:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _write(path: Path, tables: Iterator["pyarrow.Table"]) -> int:
    """Writes tables as row groups of moderate size, or no file if they are empty; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet

    rows, waiting = 0, []
    with files.replacing(path) as temporary:
        writer = None
        for table in tables:
            # The oldest format, which the pyarrow of every TFDV reads.
            writer = writer or pyarrow.parquet.ParquetWriter(temporary, table.schema, version="1.0")
            rows += len(table)
            waiting.append(table)
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting), row_group_size=_ROW_GROUP)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=_ROW_GROUP)
        writer.close()
    if not rows:
        path.unlink()
    return rows


def _features(
    path: Path,
    scores: Path | None,
    shards: str,
    repeated: dict[str, "_Repeated"],
    keep: float,
) -> "pyarrow.Table":
    """The features of a shard; see `derive`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    profile = _read(path, _PROFILE)
    score = _read(scores, _SCORES)["clip_score"].cast(pa.float32()) if scores else None
    if keep < 1:
        chosen = pa.array(_sampled(profile, path, keep))
        profile = profile.filter(chosen)
        score = score.filter(chosen) if scores else None
    width, height = (profile[side].cast(pa.int64()) for side in ("width", "height"))
    shorter, longer = pc.min_element_wise(width, height), pc.max_element_wise(width, height)
    # A side of 0 pixels is an anomaly of `width`; it must not be a division by zero here.
    aspect = pc.divide(longer.cast(pa.float64()), pc.max_element_wise(shorter, 1).cast(pa.float64()))
    aspect = pc.if_else(pc.is_null(shorter), pa.scalar(None, pa.float64()), aspect)
    status = pc.if_else(profile["decode_ok"], "ok", pc.coalesce(profile["reason"], pa.scalar("unreadable image")))
    columns = {
        "shards": pa.array([shards] * len(profile), pa.string()),
        "image_status": status,
        "format": profile["format"],
        "mode": profile["mode"],
        "shorter_side": _interval(shorter, "shorter_side"),
        "aspect": _interval(aspect, "aspect"),
        "image_repeated": _yes_no(repeated["sha256"].flags(profile)),
        "caption_blank": _yes_no(profile["blank"]),
        "caption_file_name": _yes_no(profile["file_name_like"]),
        "caption_utf8": _yes_no(profile["utf8_ok"]),
        "caption_repeated": _yes_no(repeated["text_hash"].flags(profile, without=profile["blank"])),
        "caption_words": _interval(profile["words"], "caption_words"),
        "caption_tokens": _interval(profile["tokens"], "caption_tokens"),
        "language": profile["language"],
        "width": width,
        "height": height,
        "bytes": profile["bytes"].cast(pa.int64()),
        "tokens": profile["tokens"].cast(pa.int64()),
    }
    if scores:
        columns |= {"clip_score": score, "score": _interval(score, "score")}
    columns = {
        name: column.cast(pa.string()) if pa.types.is_large_string(column.type) else column
        for name, column in columns.items()
    }
    return pa.table(columns)


def _sampled(profile: "pyarrow.Table", path: Path, keep: float) -> np.ndarray:
    """Whether each row is in the sample, by the hash of shard and key: all captions of an image, or none."""
    prefix = hashlib.blake2b(path.stem.encode(), digest_size=8)
    sampled = np.empty(len(profile), bool)
    for row, key in enumerate(profile["key"].to_pylist()):
        digest = prefix.copy()
        digest.update(b"/" + (key or "").encode())
        sampled[row] = int.from_bytes(digest.digest(), "little") < keep * 2**64
    return sampled


def _yes_no(flags: "pyarrow.Array") -> "pyarrow.Array":
    import pyarrow.compute as pc

    return pc.if_else(flags, "yes", "no")


def _interval(values: "pyarrow.Array", name: str) -> "pyarrow.Array":
    """The interval of each value; null for null and NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type)).to_numpy(zero_copy_only=False)
    numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    # Thresholds are decimal numbers, which float32 rounds: 0.3 of a score is not below 0.3.
    edges = np.asarray(BINS[name], numbers.dtype if numbers.dtype.kind == "f" else np.float64)
    index = np.searchsorted(edges, numbers, side="right")
    return pa.DictionaryArray.from_arrays(
        pa.array(index.astype(np.int32), mask=missing), pa.array(intervals(name))
    ).dictionary_decode()


class _Repeated:
    """Which values of a column occur in more than one sample of the whole profile.

    Args:
        profiles: all files of the profile.
        column: name of a column of hexadecimal digests.
        keep: fraction of the rows that are sampled. Only their values are looked up, so that memory stays bounded.
    """

    def __init__(self, profiles: Sequence[Path], column: str, keep: float):
        self._column = column
        columns = ("key", "sample", column)
        sampled = []
        for path in profiles:
            table = _read(path, columns)
            chosen = table.filter(_sampled(table, path, keep)) if keep < 1 else table
            sampled.append(np.unique(_digest(chosen[column])))
        self._values = np.unique(np.concatenate(sampled))
        if not len(self._values):
            return
        occurrences = np.zeros(len(self._values), np.int64)
        for path in profiles:
            table = _read(path, columns)
            # A sample with several captions has a row for each of them.
            samples, digests = table["sample"].to_numpy(), _digest(table[column])
            order = np.lexsort((samples, digests))
            samples, digests = samples[order], digests[order]
            is_first = np.append(True, (np.diff(samples) != 0) | (digests[1:] != digests[:-1]))[: len(samples)]
            digests = digests[is_first]
            index = np.searchsorted(self._values, digests)
            index = index[self._values[np.minimum(index, len(self._values) - 1)] == digests]
            occurrences += np.bincount(index, minlength=len(self._values))
        self._repeated = occurrences > 1

    def flags(self, table: "pyarrow.Table", without: "pyarrow.Array | None" = None) -> "pyarrow.Array":
        """Booleans of the rows; null where the column is null or `without` is true."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = table[self._column]
        missing = pc.is_null(values) if without is None else pc.or_(pc.is_null(values), without)
        index = np.searchsorted(self._values, _digest(values))
        return pa.array(self._repeated[index], mask=missing.to_numpy(zero_copy_only=False))


def _digest(values: "pyarrow.ChunkedArray") -> np.ndarray:
    """The first 64 bits of hexadecimal digests, uint64 (N,); 0 for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_lpad(pc.fill_null(pc.utf8_slice_codeunits(values.cast(pa.string()), 0, 16), ""), 16, "0")
    letters = np.frombuffer("".join(texts.to_pylist()).encode(), np.uint8)
    digits = _HEXADECIMAL[letters]
    if (digits > 15).any():
        raise ValueError(
            f"The digests of a profile must be hexadecimal. Received: {values.to_pylist()[:2]}. Make it again: "
            "python examples/curate.py profile."
        )
    digits = digits.reshape(-1, 16)
    return (digits[:, ::2] << 4 | digits[:, 1::2]).copy().view(">u8")[:, 0].astype(np.uint64)
