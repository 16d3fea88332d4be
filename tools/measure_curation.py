"""Measures what a curation is worth: a small CLIP trained on as many pairs of a raw, a curated and a clean pool.

    KERAS_BACKEND=tensorflow python tools/measure_curation.py

The raw pool has drawn scenes of a few frequent and many rare classes, of which a part has faults (`SHARES`). It is
curated by the passes of `keras_clip.curation`; the model of the CLIP scores learns from the raw pool itself. The clean
pool has scenes of equally frequent classes without faults. Each model classifies scenes of unseen classes zero-shot.
Prints two tables in Markdown, and writes the results to --out.
"""

import sys
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import terminal

POOLS = ("raw", "curated", "clean")
# Kinds of faults as in make_noisy_pool.py, and their shares of the raw pool.
SHARES = {
    "wrong caption": 0.20,
    "file name as caption": 0.10,
    "truncated image": 0.02,
    "blank caption": 0.01,
    "exact duplicate": 0.10,
    "re-encoded duplicate": 0.10,
}
# The share of the images without faults that have copies.
COPIED = 0.05
# Pixels of the sides of the scenes in the pools, and of the images of the model.
DRAWN_SIZE, IMAGE_SIZE = 64, 32
BATCH_SIZE = 128
CONTEXT_LENGTH = 20
TEMPLATES = ("a photo of {}", "a picture of {}", "a sketch of {}", "a drawing of {}", "{}")
# The seed of the data; those of the models are 0, 1, ...
POOL_SEED = 7


def parse_args(argv):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--pairs", type=int, default=5000, help="pairs of the raw pool (default: 5000)")
    parser.add_argument(
        "--train", type=int, default=1280, help="pairs of a training; a multiple of 128 (default: 1280)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="models of each pool (default: 3)")
    parser.add_argument("--epochs", type=int, default=20, help="of each model (default: 20)")
    parser.add_argument("--score-share", type=float, default=0.7, help="pairs with the largest CLIP scores that stay")
    parser.add_argument("--t", type=float, default=100, help="see `curate.py balance` (default: 100)")
    parser.add_argument("--images", type=int, default=10, help="test images of each class; even (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/measure_curation"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import dataclasses
import tempfile
import time
from collections import Counter

import keras
import make_noisy_pool
import numpy as np
from make_noisy_pool import CLEAN, Pair
from PIL import Image

import keras_clip
from keras_clip import curation, encoders, evaluation
from keras_clip.data import synthetic
from keras_clip.data.readers import open_reader


def build_model():
    return keras_clip.CLIPModel(
        image_encoder=encoders.VisionTransformer(IMAGE_SIZE, patch_size=8, width=96, num_layers=3, num_heads=3),
        text_encoder=encoders.TextTransformer(64, 2, 2, context_length=CONTEXT_LENGTH),
        embed_dim=64,
    )


# The pools.


def frequent_and_rare(count, rng):
    """Yields scenes, of which the class of rank r is drawn with a probability proportional to 1 / r."""
    kinds = synthetic.kinds(held_out=False)
    kinds = [kinds[number] for number in rng.permutation(len(kinds)).tolist()]
    probability = 1 / np.arange(1, len(kinds) + 1)
    chosen = rng.choice(len(kinds), count, p=probability / probability.sum()).tolist()
    for index, number in enumerate(chosen):
        yield dataclasses.replace(synthetic.sample_scene(index, POOL_SEED), kind=kinds[number])


def equally_frequent(count):
    """Yields scenes of the clean pool, which are not those of the raw pool."""
    return (synthetic.sample_scene(index, POOL_SEED + 1) for index in range(count))


def as_pair(scene):
    """The `source` of the pair is its class."""
    image = Image.fromarray(synthetic.draw(scene, DRAWN_SIZE))
    return Pair(make_noisy_pool.as_file(image), synthetic.caption(scene), CLEAN, scene.kind.name)


def noisy_pairs(count, rng):
    """Returns the pairs of the raw pool, `Pair`s with their faults."""
    planted = {kind: round(share * count) for kind, share in SHARES.items()}
    originals = count - planted["exact duplicate"] - planted["re-encoded duplicate"]
    pairs = [as_pair(scene) for scene in frequent_and_rare(originals, rng)]
    numbers = iter(rng.permutation(originals).tolist())

    def take(kind):
        return [next(numbers) for _ in range(planted[kind])]

    wrong = take("wrong caption")
    captions = [pairs[number].caption for number in wrong]
    for number, caption in zip(wrong, captions[1:] + captions[:1], strict=True):
        pairs[number] = pairs[number]._replace(caption=caption, kind="wrong caption")
    for number in take("file name as caption"):
        name = make_noisy_pool.NAMES[number % len(make_noisy_pool.NAMES)].format(number)
        pairs[number] = pairs[number]._replace(caption=name, kind="file name as caption")
    for number in take("truncated image"):
        image = pairs[number].image
        pairs[number] = pairs[number]._replace(image=image[: len(image) // 2], kind="truncated image")
    for number in take("blank caption"):
        pairs[number] = pairs[number]._replace(caption=" ", kind="blank caption")
    good = list(numbers)
    copied = rng.choice(good[: max(1, round(COPIED * len(good)))], count - originals).tolist()
    for place, number in enumerate(copied):
        copy = pairs[number]
        if place < planted["exact duplicate"]:
            pairs.append(copy._replace(kind="exact duplicate", original=number))
        else:
            image = make_noisy_pool.re_encoded(make_noisy_pool.opened(copy.image), rng)
            pairs.append(copy._replace(image=image, kind="re-encoded duplicate", original=number))
    return pairs


def curate(folder, trainer, args):
    """Curates raw/ of a folder; returns its new shards."""
    pool = curation.Pool.open(str(folder / "raw" / "*.tar"), folder / "work")
    options = {"engine": "serial", "progress": False}
    curation.profile(pool, **options)
    rules = [curation.Rule("not file_name_like"), curation.Rule(f"min(width, height) >= {IMAGE_SIZE}")]
    curation.filter_pairs(pool, [*rules, curation.Rule("aspect <= 3")], **options)
    # Scenes differ in little more than a few small shapes, so that equal captions must confirm equal hashes.
    settings = curation.DuplicateSettings(same="pair", after=("filter",))
    curation.find_duplicates(pool, settings=settings, **options)
    curation.write(pool, folder / "unscored", ["profile", "filter", "duplicates"], **options)
    scorer = trainer.train(read_pairs(trainer.clip, folder / "unscored"), seed=args.seeds)
    curation.score(pool, scorer, batch_size=BATCH_SIZE, **options)
    rule = curation.Rule(f"top(clip_score, {args.score_share})")
    curation.filter_pairs(pool, [rule], name="aligned", after=("filter", "duplicates"), **options)
    captions = (text for table in pool.tables("profile", ["caption"]) for text in table["caption"].to_pylist())
    curation.match(pool, curation.build_queries(captions, min_count=10, min_pmi=5, ignore_case=True), **options)
    verdicts = ["profile", "filter", "aligned", "duplicates"]
    curation.balance(pool, t=args.t, after=verdicts[1:], **options)
    curation.write(pool, folder / "curated", [*verdicts, "balance"], **options)
    return folder / "curated"


# The models.


def read_pairs(clip, folder):
    """Returns the pairs of tars as arrays, without those whose image cannot be decoded, as a training skips them."""
    reader = open_reader(str(folder / "*.tar"))
    images, texts = [], []
    for start in range(0, len(reader), BATCH_SIZE):
        ids = np.arange(start, min(start + BATCH_SIZE, len(reader)))
        for image, captions in zip(*reader.read(ids), strict=True):
            try:
                images.append(clip.image_preprocessor.to_uint8(image)[0])
            except ValueError:
                continue
            texts.append(captions[0].decode())
    return {"images": np.stack(images), "token_ids": clip.tokenizer(texts, truncate=True)}


def drawn_pairs(clip, count):
    """Returns the clean pool as arrays; the images are compressed and resized as those of the other pools are."""
    pairs = [as_pair(scene) for scene in equally_frequent(count)]
    images = clip.image_preprocessor.to_uint8([pair.image for pair in pairs])
    return {"images": np.stack(images), "token_ids": clip.tokenizer([pair.caption for pair in pairs])}


class Trainer:
    """Trains one model after another. The training step is compiled once, which takes longer than a training.

    Args:
        count: pairs of each training.
        epochs: epochs of each training.
    """

    def __init__(self, count, epochs):
        self.clip, self._count, self._epochs = build_model(), count, epochs
        steps = count // BATCH_SIZE
        optimizer = keras_clip.training.adamw(self.clip, 2e-3, warmup_steps=steps, total_steps=(epochs + 1) * steps)
        optimizer.build(self.clip.trainable_variables)
        self._optimizer_state = [keras.ops.convert_to_numpy(each) for each in optimizer.variables]
        self.clip.compile(optimizer)

    def train(self, pairs, seed):
        """Trains the model anew on a sample of the pairs; initial weights and sample depend on the seed."""
        if len(pairs["images"]) < self._count:
            raise SystemExit(f"--train {self._count} needs as many pairs. Received: {len(pairs['images'])}.")
        keras.utils.set_random_seed(seed)
        self.clip.set_weights(build_model().get_weights())
        for variable, value in zip(self.clip.optimizer.variables, self._optimizer_state, strict=True):
            variable.assign(value)
        chosen = np.random.default_rng(seed).permutation(len(pairs["images"]))[: self._count]
        sample = {name: values[chosen] for name, values in pairs.items()}
        self.clip.fit(sample, batch_size=BATCH_SIZE, epochs=self._epochs, verbose=0)
        return self.clip


def zero_shot_hits(clip, images, labels, names):
    """Returns which images are classified correctly, bool (B,)."""
    classifier = keras_clip.ZeroShotClassifier(clip, names, TEMPLATES)
    # Not by `predict`, which is compiled for each classifier.
    batches = np.array_split(images, max(1, len(images) // BATCH_SIZE))
    scores = np.concatenate([keras.ops.convert_to_numpy(classifier(batch, training=False)) for batch in batches])
    return scores.argmax(axis=1) == labels


# The tables.


def composition(found):
    """Returns the number of pairs, and the shares of faults and of the most frequent tenth of the classes.

    Args:
        found: {key: `make_noisy_pool.Verdict`} of the pairs of a pool.
    """
    kinds = Counter(verdict.kind for verdict in found.values())
    # Either of two copies may have stayed.
    images = len({verdict.original or key for key, verdict in found.items()})
    classes = Counter(verdict.source for verdict in found.values()).most_common()
    frequent = sum(count for _, count in classes[: len(synthetic.kinds(held_out=False)) // 10])
    unreadable = kinds["truncated image"] + kinds["blank caption"]
    counts = (kinds["wrong caption"], kinds["file name as caption"], unreadable, len(found) - images, frequent)
    return len(found), *(count / len(found) for count in counts)


def summary(hits):
    """Returns the mean accuracy of the models of a pool, its 95 % interval over the images, and each accuracy.

    Args:
        hits: bool (S, B), of S models.
    """
    groups = np.tile(np.arange(hits.shape[1]), len(hits))
    interval = evaluation.clustered_interval(hits.reshape(-1), groups)
    return {"accuracy": hits.mean(), "interval": interval, "models": hits.mean(axis=1).tolist()}


def main(argv=None):
    args = parse_args(argv)
    start = time.monotonic()
    trainer = Trainer(args.train, args.epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(POOL_SEED)
        make_noisy_pool.write(folder, noisy_pairs(args.pairs, rng), 4, rng)
        new_shards = curate(folder, trainer, args)
        found = make_noisy_pool.verdicts(folder, folder / "work")
        kept = {key: verdict for key, verdict in found.items() if verdict.by is None}
        pairs = {"raw": read_pairs(trainer.clip, folder / "raw"), "curated": read_pairs(trainer.clip, new_shards)}
    pairs["clean"] = drawn_pairs(trainer.clip, args.train)
    print(
        "| pool | pairs | wrong captions | file names | unreadable or blank | copies | the largest tenth of classes |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = {"raw": composition(found), "curated": composition(kept)}
    for pool, (total, *shares) in rows.items():
        print(f"| {pool} | {total:,} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    seconds = time.monotonic() - start
    print(f"\nMade and curated in {seconds:.0f} s; training on {args.train:,} pairs of each pool.\n", flush=True)
    test = synthetic.held_out_set(args.images // 2, IMAGE_SIZE)
    hits = {pool: [] for pool in POOLS}
    # The pools take turns, so that what is measured is complete for fewer seeds if the time is up.
    for seed in range(args.seeds):
        for pool in POOLS:
            hits[pool].append(zero_shot_hits(trainer.train(pairs[pool], seed), *test))
            seconds = time.monotonic() - start
            print(f"{pool}, seed {seed}: {hits[pool][-1].mean():.1%} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    results = {pool: summary(np.stack(of_pool)) for pool, of_pool in hits.items()}
    print(f"| pool | top-1 of {len(test[2])} unseen classes | 95 % interval | each model |")
    print("|---|---|---|---|")
    for pool, result in results.items():
        low, high = result["interval"]
        models = ", ".join(f"{accuracy:.1%}" for accuracy in result["models"])
        print(f"| {pool} | {result['accuracy']:.1%} | {low:.1%} to {high:.1%} | {models} |")
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"pairs": args.train, "composition": rows, "accuracies": results, "seconds": time.monotonic() - start}
    keras_clip.files.write_json(args.out / "results.json", facts)
    return results


if __name__ == "__main__":
    terminal.run(main)
