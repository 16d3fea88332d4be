"""Makes a pool of pairs with known faults, and compares what a curation kept with them.

    python tools/make_noisy_pool.py make noisy/
    python examples/curate.py all "noisy/raw/*.tar" --work noisy/work --out noisy/curated ...
    python tools/make_noisy_pool.py report noisy/ --work noisy/work

`make` writes tars into raw/, as img2dataset does, the test images into test/, a list of queries, and truth.parquet with
the kind of each pair. The clean pairs are drawn scenes; with --shared, or KERAS_CLIP_SHARED_DATA, also the emoji and
the photographs of groceries of that folder. `report` prints, for each kind, how many pairs are rejected and by which
pass, and for each pass how many of its rejections are faults.
"""

import os
import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=terminal.Parser)
    make_parser = commands.add_parser("make", description="make the pool")
    make_parser.add_argument("folder", type=Path)
    make_parser.add_argument("--scenes", type=int, default=3000, help="clean drawn scenes")
    make_parser.add_argument("--image-size", type=int, default=224, help="of the drawn scenes, in pixels")
    make_parser.add_argument("--each", type=int, default=100, help="pairs of each fault")
    make_parser.add_argument("--head", type=int, default=600, help="pairs of one concept that occurs too often")
    make_parser.add_argument("--shards", type=int, default=8)
    make_parser.add_argument("--seed", type=int, default=0)
    shared = os.environ.get("KERAS_CLIP_SHARED_DATA")
    make_parser.add_argument(
        "--shared", type=Path, default=shared and Path(shared), help="folder of emoji and groceries"
    )
    report_parser = commands.add_parser("report", description="compare a curation with the truth")
    report_parser.add_argument("folder", type=Path)
    report_parser.add_argument("--work", type=Path, required=True, help="folder of the curation")
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import dataclasses
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from keras_clip import curation
from keras_clip.data import synthetic
from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.data.readers import open_reader

# What is wrong with the pairs of each kind.
FAULTS = (
    "truncated image",
    "no image file",
    "wrong caption",
    "exact duplicate",
    "re-encoded duplicate",
    "cropped duplicate",
    "file name as caption",
    "blank caption",
    "tiny image",
    "narrow image",
    "test image",
)
CLEAN, FREQUENT = "clean", "frequent concept"
# Kinds of faults that are made of pairs that do not stay in the pool.
_TAKEN = 7
# Scenes from this number on are not among the others.
_FAR = 10**6
NAMES = ("IMG_{:04d}.JPG", "DSC{:05d}", "{:08d}.png", "photo-{:04d}.jpeg", "20230412_{:06d}")


class Pair(NamedTuple):
    """A pair with what is wrong with it, and the number of the pair that it is a copy of."""

    image: bytes
    caption: str
    kind: str
    source: str
    original: int = -1


def make(args):
    rng = np.random.default_rng(args.seed)
    base = [*scenes(args.scenes, args.image_size, args.seed), *shared_pairs(args.shared)]
    base = [base[number] for number in rng.permutation(len(base)).tolist()]
    taken = _TAKEN * args.each
    if len(base) < 2 * taken:
        raise SystemExit(f"--each {args.each} needs {2 * taken} pairs without faults. Received: {len(base)}.")
    clean, spare = base[taken:], base[:taken]
    tests = [synthetic.sample_scene(number, args.seed, held_out=True) for number in range(args.each)]
    pairs = [*clean, *made_faulty(spare, args.each, rng), *copies(clean, args.each, rng)]
    pairs += [*hidden_tests(tests, args.image_size, rng), *frequent(args.head, args.image_size, args.seed)]
    write(args.folder, pairs, args.shards, rng)
    write_tar(
        args.folder / "test" / "00000.tar",
        [(f"{number:05d}.png", png(synthetic.draw(scene, args.image_size))) for number, scene in enumerate(tests)],
    )
    # The words and bigrams of the clean captions.
    queries = curation.build_queries((pair.caption for pair in clean), min_count=1, min_pmi=5, ignore_case=True)
    curation.write_queries(queries, args.folder / "queries.parquet")
    for kind, count in Counter(pair.kind for pair in pairs).items():
        print(f"{count:>8,}  {kind}")


def write(folder, pairs, shards, rng):
    """Writes the pairs in a random order, and the kind of each."""
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "test").mkdir(exist_ok=True)
    order = rng.permutation(len(pairs))
    keys = [f"{place:09d}" for place in np.argsort(order).tolist()]
    rows = []
    for shard, block in enumerate(np.array_split(order, shards)):
        members = []
        for number in block.tolist():
            pair, key = pairs[number], keys[number]
            members += [(f"{key}.{extension(pair.image)}", pair.image), (f"{key}.txt", pair.caption.encode())]
            record = {"url": f"https://example.org/{key}", "key": key, "status": "success"}
            members.append((f"{key}.json", json.dumps(record).encode()))
            original = keys[pair.original] if pair.original >= 0 else None
            rows.append({"key": key, "kind": pair.kind, "source": pair.source, "original": original})
        write_tar(folder / "raw" / f"{shard:05d}.tar", members)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "truth.parquet")


def scenes(count, image_size, seed) -> Iterator[Pair]:
    for index in range(count):
        image, caption = synthetic.sample(index, image_size, seed)
        yield Pair(as_file(Image.fromarray(image)), caption, CLEAN, "scenes")


def shared_pairs(folder) -> Iterator[Pair]:
    for name in ("emoji", "grocery") if folder else ():
        reader = open_reader(str(folder / name / "train" / "*.tar"))
        for start in range(0, len(reader), 64):
            images, captions = reader.read(np.arange(start, min(len(reader), start + 64)))
            for image, (caption, *_) in zip(images, captions, strict=True):
                yield Pair(image, caption.decode(), CLEAN, name)


def frequent(count, image_size, seed) -> Iterator[Pair]:
    """Different images of one concept."""
    kind = synthetic.kinds(held_out=False)[0]
    for index in range(count):
        scene = dataclasses.replace(synthetic.sample_scene(_FAR + index, seed), kind=kind)
        image = Image.fromarray(synthetic.draw(scene, image_size))
        yield Pair(as_file(image), synthetic.caption(scene), FREQUENT, "scenes")


def hidden_tests(scenes, image_size, rng) -> Iterator[Pair]:
    """Images of the test set, stored at another quality."""
    for scene in scenes:
        image = Image.fromarray(synthetic.draw(scene, image_size))
        yield Pair(re_encoded(image, rng), synthetic.caption(scene), "test image", "scenes")


def made_faulty(spare, each, rng) -> Iterator[Pair]:
    """Pairs with one fault each, of images that occur only once in the pool."""
    parts = iter([spare[start : start + each] for start in range(0, _TAKEN * each, each)])
    for pair in next(parts):
        yield pair._replace(
            image=pair.image[: len(pair.image) * int(rng.integers(30, 80)) // 100], kind="truncated image"
        )
    for pair in next(parts):
        yield pair._replace(image=b"<!DOCTYPE html><title>404 Not Found</title>", kind="no image file")
    others = next(parts)
    for number, pair in enumerate(others):
        # The caption of another image of the same source, which is the hardest case.
        same = [other.caption for other in others if other.source == pair.source and other.caption != pair.caption]
        caption = same[number % len(same)] if same else others[number - 1].caption
        yield pair._replace(caption=caption, kind="wrong caption")
    for number, pair in enumerate(next(parts)):
        yield pair._replace(caption=NAMES[number % len(NAMES)].format(number), kind="file name as caption")
    for pair in next(parts):
        yield pair._replace(caption=" " * int(rng.integers(1, 4)), kind="blank caption")
    for pair in next(parts):
        yield pair._replace(image=as_file(opened(pair.image).resize((24, 24))), kind="tiny image")
    for pair in next(parts):
        yield pair._replace(image=as_file(opened(pair.image).resize((480, 80))), kind="narrow image")


def copies(clean, each, rng) -> Iterator[Pair]:
    """Copies of clean pairs."""
    originals = iter(rng.permutation(len(clean))[: 3 * each].tolist())
    for number in itertools.islice(originals, each):
        yield clean[number]._replace(kind="exact duplicate", original=number)
    for number in itertools.islice(originals, each):
        image = re_encoded(opened(clean[number].image), rng)
        yield clean[number]._replace(image=image, kind="re-encoded duplicate", original=number)
    for number in itertools.islice(originals, each):
        image = as_file(cropped(opened(clean[number].image), rng))
        yield clean[number]._replace(image=image, kind="cropped duplicate", original=number)


def opened(image) -> Image.Image:
    return open_image(image, "image", MAX_PIXELS)


def as_file(image, quality=92) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def re_encoded(image, rng) -> bytes:
    """The image at 50 to 150 % of its sides and at a low quality."""
    scale = rng.uniform(0.5, 1.5)
    sides = max(72, round(image.width * scale)), max(72, round(image.height * scale))
    return as_file(image.resize(sides, Image.Resampling.BICUBIC), int(rng.integers(30, 80)))


def cropped(image, rng) -> Image.Image:
    """90 % of both sides, at a random place."""
    width, height = round(0.9 * image.width), round(0.9 * image.height)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def extension(image) -> str:
    return "png" if image.startswith(b"\x89PNG") else "jpg"


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


class Verdict(NamedTuple):
    """A pair of the pool: its kind, source and original, and the pass that rejected it."""

    kind: str
    source: str
    original: str | None
    by: str | None


def verdicts(folder, work) -> dict[str, Verdict]:
    """Returns the truth and the verdict of each key."""
    pool = curation.Pool.open(None, work)
    rejected_by = {}
    for profile, kept in zip(pool.tables("profile", ["key"]), pool.tables("keep"), strict=True):
        rejected_by |= zip(profile["key"].to_pylist(), kept["rejected_by"].to_pylist(), strict=True)
    rows = parquet.read_table(folder / "truth.parquet").to_pylist()
    return {row["key"]: Verdict(row["kind"], row["source"], row["original"], rejected_by[row["key"]]) for row in rows}


def recall_rows(found: dict[str, Verdict]) -> list[tuple]:
    """(kind, planted, rejected, recall, passes) of each kind; of a pair of copies, either may be rejected."""
    rows = []
    for kind in FAULTS:
        planted = [verdict for verdict in found.values() if verdict.kind == kind]
        caught = Counter()
        for verdict in planted:
            caught[verdict.by or (found[verdict.original].by if verdict.original else None)] += 1
        missed = caught.pop(None, 0)
        if planted:
            share = 1 - missed / len(planted)
            rows.append((kind, len(planted), len(planted) - missed, share, listed(caught)))
    return rows


def precision_rows(found: dict[str, Verdict]) -> list[tuple]:
    """(pass, rejected, faults among them, precision, others) of each pass; originals with copies count as faults."""
    originals = {verdict.original for verdict in found.values()} - {None}
    rows = []
    for name in dict.fromkeys(verdict.by for verdict in found.values() if verdict.by):
        rejected = {key: verdict for key, verdict in found.items() if verdict.by == name}
        others = Counter(
            verdict.kind if verdict.kind != CLEAN else f"{CLEAN} ({verdict.source})"
            for key, verdict in rejected.items()
            if verdict.kind not in FAULTS and not (name == "duplicates" and key in originals)
        )
        faults = len(rejected) - others.total()
        rows.append((name, len(rejected), faults, faults / len(rejected), listed(others)))
    return rows


def kept_rows(found: dict[str, Verdict]) -> list[tuple]:
    """(kind and source, in the pool, kept, share) of what has no fault; an original stays if its copy does."""
    copy_of = {verdict.original: verdict for verdict in found.values() if verdict.original}
    counts, kept = Counter(), Counter()
    for key, verdict in found.items():
        if verdict.kind not in FAULTS:
            place = verdict.kind if verdict.kind == FREQUENT else f"{verdict.kind}, {verdict.source}"
            counts[place] += 1
            kept[place] += verdict.by is None or (key in copy_of and copy_of[key].by is None)
    return [(place, count, kept[place], kept[place] / count) for place, count in sorted(counts.items())]


def listed(counts: Counter) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def report(args):
    found = verdicts(args.folder, args.work)
    show(("kind of fault", "planted", "rejected", "recall", "by"), recall_rows(found))
    show(("pass", "rejected", "faults", "precision", "without a fault"), precision_rows(found))
    show(("without a fault", "in the pool", "kept", "share"), kept_rows(found))


def show(columns, rows):
    """Prints a table in Markdown."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        cells = [
            f"{cell:.1%}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell for cell in row
        ]
        print(f"| {' | '.join(cells)} |")
    print()


def main(argv=None):
    args = parse_args(argv)
    {"make": make, "report": report}[args.command](args)


if __name__ == "__main__":
    terminal.run(main)
