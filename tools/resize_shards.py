"""Copies shards with smaller images, so that training decodes fewer pixels.

    python tools/resize_shards.py "shards/*.tar" --side 336 --out resized

An image whose shorter side is longer than --side is resized to it (Lanczos) and stored as JPEG, upright and in RGB.
Others, and files that cannot be decoded, are copied as they are. Keys, captions and other values stay. The new shards
are tars in the same order, beside a manifest of counts and digests that `image_text_pairs` checks. A call that was
interrupted goes on with the shards that are not there yet.

Crops of the new images are not pixel by pixel those of the old ones: use it for training, not for evaluation.
"""

import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    parser.add_argument("shards", nargs="+", help="files of any form with a reader: tars, TFRecords, Parquet files")
    parser.add_argument("--side", type=int, default=336, help="longest shorter side of the new images, in pixels")
    parser.add_argument("--quality", type=int, default=95, help="quality of JPEG, 1 to 100")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new shards")
    parser.add_argument("--engine", choices=("auto", "serial", "processes", "ray"), default="auto")
    args = parser.parse_args(argv)
    if args.side < 1 or not 1 <= args.quality <= 100:
        parser.error(
            f"--side must be positive and --quality in [1, 100]. Received: --side {args.side} --quality {args.quality}."
        )
    return args


if __name__ == "__main__":
    terminal.start(parse_args)

import glob
import io
import json
import os
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from keras_clip import engines, files
from keras_clip.curation.writing.folder import ShardFolder
from keras_clip.curation.writing.formats import EXTENSIONS, StoredSample, tar_shard
from keras_clip.data.image_files import MAX_PIXELS, decode, open_header, reduce_jpeg
from keras_clip.data.readers import open_reader

# Samples that are read at a time.
BLOCK = 64


class Copy(NamedTuple):
    """A shard to copy: the file, and the new one."""

    source: str
    target: Path


class Resize(engines.Task):
    """Copies a shard with smaller images, and writes what the manifest has of it beside it."""

    def __init__(self, side, quality):
        self.side, self.quality = side, quality

    def run(self, state, item):
        facts = self.facts(item)
        reader = open_reader(item.source)
        with tar_shard(item.target) as shard:
            for start in range(0, len(reader), BLOCK):
                ids = np.arange(start, min(start + BLOCK, len(reader)))
                for image, captions, key, metadata in zip(
                    *reader.read(ids), reader.keys(ids), reader.metadata(ids), strict=True
                ):
                    image, extension = resized(image, self.side, self.quality)
                    shard.add(key.replace(".", "_"), StoredSample(image, extension, captions, metadata))
        # Written last, it says that the shard is whole.
        files.write_json(marker(item.target), {"facts": facts, "entry": shard.entry()})

    def facts(self, item):
        """What a new shard depends on."""
        state = os.stat(item.source)
        return [os.path.abspath(item.source), state.st_size, state.st_mtime_ns, self.side, self.quality]

    def done(self, item):
        """What the manifest has of a shard that is there already; None if it is not, or not of this source."""
        if not (item.target.exists() and marker(item.target).exists()):
            return None
        found = json.loads(marker(item.target).read_text(encoding="utf-8"))
        return found["entry"] if found["facts"] == self.facts(item) else None


def marker(target):
    return target.with_name(f".{target.name}.json")


def resized(image, side, quality):
    """Returns the bytes of the smaller image and its extension; of images that are small or broken, those given."""
    try:
        opened = open_header(image, "image", MAX_PIXELS)
        if min(opened.size) <= side:
            return image, EXTENSIONS.get(opened.format, "jpg")
        # Decoded at a fraction of its size where that is at least twice the new one.
        reduce_jpeg(opened, 2 * side)
        pixels = decode(opened, "image")
    except ValueError:
        return image, "jpg"
    scale = side / min(pixels.size)
    pixels = pixels.resize([max(side, round(length * scale)) for length in pixels.size], Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    pixels.save(stored, "JPEG", quality=quality)
    return stored.getvalue(), "jpg"


def copies(patterns, out):
    sources = sorted({path for pattern in patterns for path in glob.glob(pattern) or [pattern]})
    targets = [out / f"{Path(source).name.split('.')[0]}.tar" for source in sources]
    if len(set(targets)) < len(targets):
        raise ValueError(f"The files must have different names. Received: {', '.join(sources[:5])}. Copy each folder.")
    return list(map(Copy, sources, targets))


def main(argv=None):
    args = parse_args(argv)
    task, items = Resize(args.side, args.quality), copies(args.shards, args.out)
    folder = ShardFolder(args.out)
    folder.begin(item.target.name for item in items)
    left = [item for item in items if task.done(item) is None]
    with tqdm(total=len(items), initial=len(items) - len(left), unit="shards") as bar:
        for _ in engines.engine_named(args.engine).map(task, left):
            bar.update()
    counts = folder.finish({item.target.name: task.done(item) for item in items})
    before = sum(os.path.getsize(item.source) for item in items)
    print(f"{counts['samples']:,} samples in {counts['shards']:,} shards: {counts['bytes'] / before:.0%} of the bytes")


if __name__ == "__main__":
    terminal.run(main)
