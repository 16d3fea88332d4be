"""Trains a detector of altered copies on your images, and compares it with a perceptual hash.

    python examples/train_duplicate_detector.py "shards/*.tar" --hold-out 0.25 --out runs/duplicates

The source is WebDataset tars of images and .json. A part of the images is held out from training: altered copies of
them (cropped, rotated, flipped, recompressed) are searched among the held-out images. `--group` names a key of the
.json that is equal for nearly identical images: groups are held out as a whole, and one image of each is used.

With `--detector`, a trained detector is measured, and the training images are not used.

Prints the recall of both at 99 % precision, by alteration, with its 95 % interval, and the fraction of copies that are
nearest to their original; the last line has a common threshold. Writes detector.keras and recall.json into the folder
`--out`.
"""

import hashlib
import json
import time
from pathlib import Path

import terminal


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    parser.add_argument("source", nargs="+", help="WebDataset tars")
    parser.add_argument("--group", help="a key of the .json that is equal for nearly identical images")
    parser.add_argument("--hold-out", type=float, default=0.25, help="fraction of the images, or groups, to measure on")
    parser.add_argument("--detector", type=Path, help="a detector.keras to measure, instead of training one")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/duplicates"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras

from keras_clip import files
from keras_clip.evaluation import duplicate_detector, overlap, sources


def split(source, group, share):
    """Returns training and held-out images, as the bytes of files; a digest of the id or group decides."""
    training, held_out, seen = [], [], set()
    for sample in sources.tars(source, group=group):
        key = sample.group or sample.id
        if int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) >= share * 2**32:
            training.append(sample.image)
        elif key not in seen:
            held_out.append(sample.image)
            seen.add(key)
    return training, held_out


def hash_vectors(images):
    return overlap.hash_vectors([overlap.perceptual_hash(image) for image in images])


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    training, held_out = split(args.source, args.group, args.hold_out)
    print(f"{len(training)} images to train on, {len(held_out)} held out", flush=True)
    start = time.perf_counter(), time.process_time()
    if args.detector:
        detector = keras.saving.load_model(args.detector)
    else:
        sizes = {"image_size": args.image_size, "width": args.width}
        detector = duplicate_detector.train_duplicate_detector(
            training, args.steps, args.batch_size, seed=args.seed, verbose=2, **sizes
        )
        detector.save(args.out / "detector.keras")
    minutes = round((time.perf_counter() - start[0]) / 60, 2), round((time.process_time() - start[1]) / 60, 2)
    print(f"ready after {minutes[0]} minutes ({minutes[1]} CPU minutes)", flush=True)
    record = {"minutes": minutes[0], "cpu_minutes": minutes[1], "backend": keras.backend.backend()}
    for name, vectors_of in (("hash", hash_vectors), ("detector", detector.embed)):
        record[name] = duplicate_detector.recall_on_copies(vectors_of, held_out, seed=args.seed)
    for alteration in record["hash"]:
        shown = [
            f"{name} {r['recall']:6.1%} [{r['low']:.1%}, {r['high']:.1%}] (nearest: {r['nearest']:.1%})"
            for name, r in ((name, record[name][alteration]) for name in ("hash", "detector"))
        ]
        print(f"{alteration:12} {'   '.join(shown)}   n = {record['hash'][alteration]['n']}", flush=True)
    text = json.dumps(record, indent=1, default=float).replace("Infinity", "null")
    files.write_text(args.out / "recall.json", text + "\n")
    return record


if __name__ == "__main__":
    terminal.run(main)
