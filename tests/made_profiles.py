"""Profiles and scores of pools that do not exist: clean ones, and ones with a planted fault."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet

COLUMNS = {
    "key": pa.string(),
    "shard": pa.string(),
    "sample": pa.int32(),
    "caption_number": pa.int16(),
    "caption": pa.string(),
    "decode_ok": pa.bool_(),
    "reason": pa.string(),
    "format": pa.string(),
    "mode": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "aspect": pa.float32(),
    "bytes": pa.int64(),
    "sha256": pa.string(),
    "perceptual_hash": pa.uint64(),
    "characters": pa.int32(),
    "words": pa.int32(),
    "tokens": pa.int32(),
    "utf8_ok": pa.bool_(),
    "file_name_like": pa.bool_(),
    "blank": pa.bool_(),
    "language": pa.string(),
    "text_hash": pa.string(),
}


def rows(count=300, shard="00000", seed=0):
    """The columns of a clean profile as arrays of objects; they depend on the arguments alone."""
    draw = np.random.default_rng([seed, int(hashlib.sha256(shard.encode()).hexdigest()[:8], 16)])
    width, height = draw.integers(64, 1600, count), None
    height = np.maximum(64, (width * draw.uniform(0.6, 1.6, count)).astype(int))
    words = draw.integers(2, 18, count)
    names = [f"{shard}-{row}" for row in range(count)]
    columns = {
        "key": names,
        "shard": [shard] * count,
        "sample": range(count),
        "caption_number": [0] * count,
        "caption": [f"a photo number {name}" for name in names],
        "decode_ok": [True] * count,
        "reason": [None] * count,
        "format": draw.choice(["JPEG", "PNG", "WEBP"], count, p=[0.8, 0.15, 0.05]),
        "mode": draw.choice(["RGB", "L", "RGBA"], count, p=[0.9, 0.05, 0.05]),
        "width": width,
        "height": height,
        "aspect": np.maximum(width, height) / np.minimum(width, height),
        "bytes": draw.integers(1_000, 400_000, count),
        "sha256": [hashlib.sha256(f"image {seed} {name}".encode()).hexdigest() for name in names],
        "perceptual_hash": range(count),
        "characters": words * 6,
        "words": words,
        "tokens": words + draw.integers(2, 8, count),
        "utf8_ok": [True] * count,
        "file_name_like": [False] * count,
        "blank": [False] * count,
        "language": draw.choice(["en", "de", "fr"], count, p=[0.7, 0.2, 0.1]),
        "text_hash": [hashlib.sha256(f"text {seed} {name}".encode()).hexdigest()[:32] for name in names],
        "clip_score": np.clip(draw.normal(0.28, 0.05, count), -1, 1),
    }
    return {name: np.array(values, object) for name, values in columns.items()}


def write(folder, shards):
    """Writes {shard: columns} as `folder`/profile and `folder`/score; returns the two folders."""
    for name in ("profile", "score"):
        (folder / name).mkdir(parents=True)
    for shard, columns in shards.items():
        table = pa.table({name: pa.array(columns[name].tolist(), kind) for name, kind in COLUMNS.items()})
        pa.parquet.write_table(table, folder / "profile" / f"{shard}.parquet")
        scores = pa.table({"clip_score": pa.array(columns["clip_score"].tolist(), pa.float32())})
        pa.parquet.write_table(scores, folder / "score" / f"{shard}.parquet")
    return folder / "profile", folder / "score"


def break_images(columns, chosen, reason="undecodable image"):
    """Makes the image of the chosen rows unreadable."""
    columns["decode_ok"][chosen] = False
    columns["reason"][chosen] = reason
    for name in ("format", "mode", "width", "height", "aspect", "perceptual_hash", "clip_score"):
        columns[name][chosen] = None


def blank_captions(columns, chosen):
    """Makes the caption of the chosen rows empty."""
    columns["blank"][chosen] = True
    columns["language"][chosen] = None
    columns["words"][chosen] = columns["characters"][chosen] = 0
    columns["tokens"][chosen] = 2
