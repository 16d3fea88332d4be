"""Measures the coverage of every interval of the evaluation on simulated test sets whose true values are known.

    python tools/simulate_coverage.py --write docs/evaluation.md
    python tools/simulate_coverage.py --only calibration disparity --repetitions 200

Prints one row per interval and setting: the percentage of simulated test sets whose 95 % interval (99.5 % for the data
overlap) encloses the true value, at 100, 300 and 1,000 images, and how many intervals exclude their own estimate. The
measurements are appended to `--out` one by one, and those that are there already are not repeated; `--write` replaces
the table of a Markdown file. An interval is in the library under the name of its row: the list is complete, and a new
interval gets rows here.
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from statistics import NormalDist

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import numpy as np
import terminal


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=1000, help="test sets of each number")
    parser.add_argument("--only", nargs="+", default=[], help="words of the names of intervals")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.jsonl"), help="file of the measurements")
    parser.add_argument("--write", type=Path, help="Markdown file whose table of coverage is replaced")
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from keras_clip.evaluation.metrics import bootstrap as resampling
from keras_clip.evaluation.metrics import calibration, classification, comparison, intervals, retrieval
from keras_clip.evaluation.studies import class_design, overlap, robustness, scaling

SIZES = (100, 300, 1000)
# Resamples of the intervals that simulate or resample, and of the variance of `map_11pt`: fewer than their default of
# 1,000, to save time.
RESAMPLES, VARIANCE_RESAMPLES = 300, 100
blaker = functools.cache(intervals.blaker_interval)
clopper_pearson = functools.cache(intervals.clopper_pearson_interval)


# Each setting is a function of (generator, number of images) that returns (true value, estimate, low, high).


def proportion(interval, truth):
    def simulate(generator, size):
        hits = int(generator.binomial(size, truth))
        return truth, hits / size, *interval(hits, size)

    return simulate


def top1_top5(top1, top5):
    def simulate(generator, size):
        kind = generator.choice(3, size, p=[top1, top5 - top1, 1 - top5])
        # Class 0 is the true class: first, second or last of six.
        scores = np.array([[9, 5, 4, 3, 2, 1], [5, 9, 4, 3, 2, 1], [0, 9, 4, 3, 2, 1]], float)[kind]
        labels = np.zeros(size, int)
        bounds = classification.interval("mean_top1_top5", scores, labels)
        return (top1 + top5) / 2, classification.mean_top1_top5(scores, labels), *bounds

    return simulate


def per_class(counts_of, rates_of):
    """Mean over classes; `counts_of(size)` are the images of each class, `rates_of(classes)` their true accuracies."""

    def simulate(generator, size):
        counts = np.array(counts_of(size))
        rates = np.broadcast_to(rates_of(len(counts)), len(counts))
        hits = generator.binomial(counts, rates)
        bounds = classification._class_counts_interval(hits, counts, 0.95)
        return rates.mean(), (hits / counts).mean(), *bounds

    return simulate


def equal(classes):
    return lambda size: np.full(classes, size // classes)


def skewed(classes):
    return lambda size: np.maximum(1, size * 0.5 ** np.arange(1, classes + 1)).astype(int)


def one_rare(size):
    return np.array([size // 2, size // 2 - 3, 3])


def auc(truth, spread=1.0, positives=0.5):
    """Binormal scores; the standard deviation of the positive images is `spread`."""

    def simulate(generator, size):
        distance = 40.0 if truth == 1 else NormalDist().inv_cdf(truth) * np.sqrt(1 + spread**2)
        labels = (np.arange(size) < (positives if positives >= 1 else positives * size)).astype(int)
        scores = generator.normal(size=size) * np.where(labels, spread, 1) + distance * labels
        return truth, classification.roc_auc(scores, labels), *classification.interval("roc_auc", scores, labels)

    return simulate


def average_precision(classes, share, distance):
    def draw(generator, size):
        labels = np.zeros((size, classes), int)
        while not labels.any(0).all():
            labels = (generator.random((size, classes)) < share).astype(int)
        return generator.normal(size=(size, classes)) + distance * labels, labels

    @functools.cache
    def expected(size):
        generator = np.random.default_rng(99)
        return np.mean([classification.map_11pt(*draw(generator, size)) for _ in range(1000)])

    def simulate(generator, size):
        data = draw(generator, size)
        seed = int(generator.integers(2**31))
        bounds = classification.interval("map_11pt", *data, resamples=VARIANCE_RESAMPLES, seed=seed)
        return expected(size), classification.map_11pt(*data), *bounds

    return simulate


CONFIDENCES = {
    "uniform": lambda generator, size: generator.uniform(0.3, 1, size),
    "high": lambda generator, size: 1 - generator.beta(0.3, 3, size) / 2,
    "sure": lambda generator, size: np.full(size, 0.9999),
}


def calibration_error(confidences, accuracy_at, bins=15):
    """`accuracy_at` is the probability of a correct prediction at each confidence."""

    def two_classes(confidence, hits):
        probabilities = np.full((len(confidence), 6), 0.0)
        probabilities[:, 0] = confidence
        probabilities[:, 1:] = (1 - confidence[:, None]) / 5
        return probabilities, np.where(hits, 0, 1)

    @functools.cache
    def truth():
        confidence = CONFIDENCES[confidences](np.random.default_rng(98), 10**6)
        index = np.searchsorted(np.linspace(0, 1, bins + 1), confidence) - 1
        gaps = np.bincount(index, confidence - np.clip(accuracy_at(confidence), 0, 1), bins)
        return abs(gaps).sum() / len(confidence)

    def simulate(generator, size):
        confidence = CONFIDENCES[confidences](generator, size)
        data = two_classes(confidence, generator.random(size) < accuracy_at(confidence))
        seed = int(generator.integers(2**31))
        bounds = calibration.calibration_error_interval(*data, bins, resamples=RESAMPLES, seed=seed)
        return truth(), calibration.expected_calibration_error(*data, bins), *bounds

    return simulate


def wave(confidence):
    """Over- and underconfident by 5 points in turn, bin by bin."""
    return confidence - 0.05 * np.where((confidence * 15).astype(int) % 2, 1, -1)


def disparity(rates, shares):
    def simulate(generator, size):
        counts = np.maximum(1, np.round(np.array(shares) * size)).astype(int)
        groups = np.repeat(np.arange(len(counts)), counts)
        hits = generator.random(len(groups)) < np.array(rates)[groups]
        found = class_design.disparity(hits, groups, resamples=RESAMPLES, seed=int(generator.integers(2**31)))
        return np.ptp(rates), found.difference, found.low, found.high

    return simulate


@functools.lru_cache(1200)
def ranks_of(noise, size, seed, captions=5, dimension=16):
    """Ranks of images and captions with a shared vector each; settings of equal noise share the test sets."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(size, dimension))
    own = images + 0.5 * noise * generator.normal(size=images.shape)
    image_of_text = np.repeat(np.arange(size), captions)
    texts = own[image_of_text] + noise * generator.normal(size=(len(image_of_text), dimension))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    return retrieval.retrieval_ranks(*unit, image_of_text)


def recall(direction, noise, k=1, median=False):
    """The true value is the mean (or median) over simulated test sets."""

    @functools.cache
    def expected(size):
        sets = [ranks_of(noise, size, (97, i)) for i in range(400 if size < 1000 else 60)]
        if median:
            return np.median(np.concatenate([getattr(ranks, direction) for ranks in sets]))
        return np.mean([ranks.recall(direction, k) for ranks in sets])

    def simulate(generator, size):
        ranks = ranks_of(noise, size, int(generator.integers(2**31)))
        if median:
            return expected(size), ranks.median_rank(direction), *ranks.median_rank_interval(direction)
        return expected(size), ranks.recall(direction, k), *ranks.recall_interval(direction, k)

    return simulate


def clustered(truth, correlation, members=5):
    """Beta-binomial groups of examples, such as the captions of an image or the altered copies of one."""

    def simulate(generator, size):
        strength = (1 - correlation) / correlation
        rates = (
            generator.beta(truth * strength, (1 - truth) * strength, size) if 0 < truth < 1 else np.full(size, truth)
        )
        hits = (generator.random((size, members)) < rates[:, None]).ravel()
        bounds = intervals.clustered_interval(hits, np.repeat(np.arange(size), members))
        return truth, hits.mean(), *bounds

    return simulate


def paired(only_first, only_second, both):
    def simulate(generator, size):
        cell = generator.choice(4, size, p=[only_first, only_second, both, 1 - only_first - only_second - both])
        first, second = np.isin(cell, (0, 2)), np.isin(cell, (1, 2))
        found = comparison.compare_models(first, second)
        return only_second - only_first, found.difference, found.low, found.high

    return simulate


def effective(reference, shifted):
    def simulate(generator, size):
        line = robustness.SHIFT_LINES["ImageNetV2"]
        counts = [int(generator.binomial(size, rate)) for rate in (reference, shifted)]
        low, high = robustness.effective_robustness_interval(line, (counts[0], size), (counts[1], size))
        estimate = robustness.effective_robustness(line, np.clip(counts[0] / size, 1e-9, 1 - 1e-9), counts[1] / size)
        return robustness.effective_robustness(line, reference, shifted), estimate, low, high

    return simulate


def folds(same_images):
    def simulate(generator, size):
        rates = (0.7, 0.8, 0.9)
        if same_images:
            hits = [
                int((threshold < np.array(rates)[i]).sum()) for i, threshold in enumerate([generator.random(size)] * 3)
            ]
        else:
            hits = generator.binomial(size, rates).tolist()
        values = [(count / size, *blaker(int(count), size)) for count in hits]
        return np.mean(rates), *classification.mean_over_folds(values, same_images)

    return simulate


def slope(models):
    def simulate(generator, size):
        x = np.linspace(0, 3, models)
        law = scaling.fit_power_law(np.exp(x), np.exp(-1 - 0.08 * x + 0.02 * generator.normal(size=models)))
        return -0.08, law.line.slope, law.line.slope_low, law.line.slope_high

    return simulate


def compute(models):
    def simulate(generator, size):
        x = np.linspace(0, 3, models)
        law = scaling.fit_power_law(np.exp(x), np.exp(-1 - 0.08 * x + 0.02 * generator.normal(size=models)))
        return np.exp(8.0), *law.compute_for(np.exp(-1 - 0.64))

    return simulate


def data_overlap(truth, share):
    def simulate(generator, size):
        similarities = (np.arange(size) < max(1, share * size)).astype(float)
        hits = generator.random(size) < truth
        found = overlap.analyse_overlap(hits, similarities, 0.5)
        return truth, found.accuracy_overlap, found.low, found.high

    return simulate


def bootstrap(statistic, truth, draw):
    def simulate(generator, size):
        x = draw(generator, size)
        bounds = resampling.bootstrap_interval(
            lambda weights: statistic(x, weights), size, resamples=RESAMPLES, seed=int(generator.integers(2**31))
        )
        return truth, statistic(x, np.ones(size, int)), *bounds

    return simulate


def weighted_mean(x, weights):
    return (x * weights).sum() / weights.sum()


# (interval, setting) -> simulation.
SETTINGS = {
    **{
        ("accuracy, rates of groups (`blaker_interval`)", f"truth {truth}"): proportion(blaker, truth)
        for truth in (0.0, 0.01, 0.03, 0.1, 0.5, 0.8, 0.97, 0.99, 0.998, 1.0)
    },
    ("`mean_top1_top5`", "0.6 and 0.85"): top1_top5(0.6, 0.85),
    ("`mean_top1_top5`", "0.97 and 0.995"): top1_top5(0.97, 0.995),
    ("`mean_top1_top5`", "both 1"): top1_top5(1.0, 1.0),
    ("`mean_per_class`", "10 equal classes, 0.9"): per_class(equal(10), lambda k: 0.9),
    ("`mean_per_class`", "10 equal classes, 0.02 to 0.98"): per_class(equal(10), lambda k: np.linspace(0.02, 0.98, k)),
    ("`mean_per_class`", "50 equal classes, 0.9"): per_class(equal(50), lambda k: 0.9),
    ("`mean_per_class`", "50 equal classes, 0.99"): per_class(equal(50), lambda k: 0.99),
    ("`mean_per_class`", "10 classes, each half of the one before, 0.8"): per_class(skewed(10), lambda k: 0.8),
    ("`mean_per_class`", "one image per class, 0.7"): per_class(lambda size: np.ones(size, int), lambda k: 0.7),
    ("`mean_per_class`", "one image per class, 0.2 or 0.98"): per_class(
        lambda size: np.ones(size, int), lambda k: np.where(np.arange(k) % 2, 0.2, 0.98)
    ),
    ("`mean_per_class`", "a class of 3 images; 0.9, 0.9, 0.5"): per_class(
        one_rare, lambda k: np.array([0.9, 0.9, 0.5])
    ),
    ("`mean_per_class`", "a class of 3 images; 0.99, 0.99, 0.9"): per_class(
        one_rare, lambda k: np.array([0.99, 0.99, 0.9])
    ),
    ("`mean_per_class`", "truth 1"): per_class(equal(10), lambda k: 1.0),
    ("`mean_per_class`", "truth 0"): per_class(equal(10), lambda k: 0.0),
    ("`roc_auc`", "0.7, half positive"): auc(0.7),
    ("`roc_auc`", "0.9, half positive"): auc(0.9),
    ("`roc_auc`", "0.98, a tenth positive"): auc(0.98, positives=0.1),
    ("`roc_auc`", "0.8, half positive, positives spread twice as much"): auc(0.8, 2.0),
    ("`roc_auc`", "0.8, a tenth positive, positives spread twice as much"): auc(0.8, 2.0, 0.1),
    ("`roc_auc`", "0.9, five positive images"): auc(0.9, positives=5),
    ("`roc_auc`", "truth 1"): auc(1.0),
    ("`map_11pt`", "5 classes, 30 % positive, 0.6"): average_precision(5, 0.3, 1.0),
    ("`map_11pt`", "10 classes, 5 % positive, 0.4"): average_precision(10, 0.05, 1.5),
    ("`map_11pt`", "10 classes, 5 % positive, 0.85"): average_precision(10, 0.05, 3.0),
    ("`calibration_error_interval`", "uniform confidence, truth 0"): calibration_error("uniform", lambda c: c),
    ("`calibration_error_interval`", "uniform confidence, truth 0.03"): calibration_error(
        "uniform", lambda c: c - 0.03
    ),
    ("`calibration_error_interval`", "uniform confidence, truth 0.1"): calibration_error("uniform", lambda c: c - 0.1),
    ("`calibration_error_interval`", "over and under by 0.05 in turn"): calibration_error("uniform", wave),
    ("`calibration_error_interval`", "high confidence, truth 0"): calibration_error("high", lambda c: c),
    ("`calibration_error_interval`", "high confidence, truth 0.02"): calibration_error("high", lambda c: c - 0.02),
    ("`calibration_error_interval`", "high confidence, truth 0.3"): calibration_error("high", lambda c: c - 0.3),
    ("`calibration_error_interval`", "sure and right in 98 %"): calibration_error("sure", lambda c: c - 0.02),
    ("`calibration_error_interval`", "sure and always wrong"): calibration_error("sure", lambda c: 0 * c),
    ("`disparity`", "4 equal groups, truth 0"): disparity([0.3] * 4, [0.25] * 4),
    ("`disparity`", "2 equal groups, truth 0"): disparity([0.3] * 2, [0.5] * 2),
    ("`disparity`", "2 equal groups, truth 0.1"): disparity([0.3, 0.4], [0.5] * 2),
    ("`disparity`", "2 equal groups, truth 1"): disparity([0.0, 1.0], [0.5] * 2),
    ("`disparity`", "2 equal groups, rate 0"): disparity([0.0, 0.0], [0.5] * 2),
    ("`disparity`", "4 equal groups, truth 0.1"): disparity([0.25, 0.3, 0.3, 0.35], [0.25] * 4),
    ("`disparity`", "4 groups, one of 4 %, truth 0.2"): disparity([0.2, 0.25, 0.3, 0.4], [0.32, 0.32, 0.32, 0.04]),
    ("`disparity`", "7 groups, rare outcome, truth 0.05"): disparity(
        [0.01, 0.02, 0.02, 0.02, 0.03, 0.03, 0.06], [1 / 7] * 7
    ),
    ("`disparity`", "9 groups, truth 0.4"): disparity(np.linspace(0.3, 0.7, 9), [1 / 9] * 9),
    ("retrieval, R@1 text to image", "5 captions, weak noise"): recall("text_to_image", 0.8),
    ("retrieval, R@10 text to image", "5 captions, weak noise"): recall("text_to_image", 0.8, k=10),
    ("retrieval, R@1 image to text", "5 captions, strong noise"): recall("image_to_text", 1.6),
    ("retrieval, median rank", "text to image, 5 captions, strong noise"): recall("text_to_image", 1.6, median=True),
    ("retrieval, median rank", "image to text, very strong noise"): recall("image_to_text", 3.0, median=True),
    ("copies and captions (`clustered_interval`)", "0.6, correlation 0.1"): clustered(0.6, 0.1),
    ("copies and captions (`clustered_interval`)", "0.6, correlation 0.9"): clustered(0.6, 0.9),
    ("copies and captions (`clustered_interval`)", "0.97, correlation 0.5"): clustered(0.97, 0.5),
    ("copies and captions (`clustered_interval`)", "truth 1"): clustered(1.0, 0.5),
    ("difference of two models (`compare_models`)", "0.1 and 0.1 differ"): paired(0.1, 0.1, 0.7),
    ("difference of two models (`compare_models`)", "0.02 and 0.08 differ"): paired(0.02, 0.08, 0.8),
    ("difference of two models (`compare_models`)", "0.01 and 0.01 differ"): paired(0.01, 0.01, 0.9),
    ("difference of two models (`compare_models`)", "0 and 0.02 differ"): paired(0.0, 0.02, 0.9),
    ("difference of two models (`compare_models`)", "the same"): paired(0.0, 0.0, 0.9),
    ("difference of two models (`compare_models`)", "truth 1"): paired(0.0, 1.0, 0.0),
    ("effective robustness", "0.7 and 0.6"): effective(0.7, 0.6),
    ("effective robustness", "0.95 and 0.5"): effective(0.95, 0.5),
    ("effective robustness", "0.9 and 0.99"): effective(0.9, 0.99),
    ("`mean_over_folds`", "three folds on the same images"): folds(True),
    ("`mean_over_folds`", "three folds on different images"): folds(False),
    ("slope of a power law or line (`fit_line`)", "5 models"): slope(5),
    ("slope of a power law or line (`fit_line`)", "9 models"): slope(9),
    ("compute to reach a score (Fieller)", "5 models"): compute(5),
    ("compute to reach a score (Fieller)", "9 models"): compute(9),
    ("data overlap, 99.5 % (Clopper and Pearson)", "0.9, a tenth overlaps"): data_overlap(0.9, 0.1),
    ("data overlap, 99.5 % (Clopper and Pearson)", "0.5, half overlaps"): data_overlap(0.5, 0.5),
    ("`bootstrap_interval`", "mean of a normal variable"): bootstrap(weighted_mean, 0.0, lambda g, n: g.normal(size=n)),
    ("`bootstrap_interval`", "mean of an exponential variable"): bootstrap(
        weighted_mean, 1.0, lambda g, n: g.exponential(size=n)
    ),
}
HEADER = ["| interval | setting | n = 100 | 300 | 1,000 | excludes its estimate |", "|---|---|---|---|---|---|"]


def measure(simulate, size, repetitions, seed=0):
    """Returns the share of intervals that enclose the true value, and the number that exclude their own estimate."""
    generator = np.random.default_rng((seed, size))
    held = excluded = 0
    for _ in range(repetitions):
        truth, estimate, low, high = simulate(generator, size)
        held += low - 1e-9 <= truth <= high + 1e-9
        excluded += not low - 1e-9 <= estimate <= high + 1e-9
    return held / repetitions, excluded


def read(path):
    """Returns {(interval, setting, size, repetitions): (coverage, number of excluded estimates)} of earlier runs."""
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(r["interval"], r["setting"], r["size"], r["repetitions"]): (r["held"], r["excluded"]) for r in rows}


def lines(only, repetitions, out):
    """Yields the rows of the table; measures what is not in the file, and appends it there."""
    found = read(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for (name, setting), simulate in SETTINGS.items():
        if only and not any(word in name for word in only):
            continue
        measured = []
        for size in SIZES:
            key = name, setting, size, repetitions
            if key not in found:
                held, excluded = found[key] = measure(simulate, size, repetitions)
                row = dict(zip(("interval", "setting", "size", "repetitions"), key, strict=True))
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | {"held": held, "excluded": excluded}) + "\n")
            measured.append(found[key])
        cells = " | ".join(f"{100 * held:.1f} %" for held, _ in measured)
        yield f"| {name} | {setting} | {cells} | {sum(excluded for _, excluded in measured)} |"


def write_table(path, table):
    """Replaces the rows below the header of the table in a Markdown file."""
    before = path.read_text(encoding="utf-8").splitlines()
    if HEADER[0] not in before:
        raise SystemExit(f"Expected the header of the table. Received: {path} without the line {HEADER[0]!r}.")
    start = end = before.index(HEADER[0])
    while end < len(before) and before[end].startswith("|"):
        end += 1
    path.write_text("\n".join([*before[:start], *table, *before[end:]]) + "\n", encoding="utf-8")


def main(argv=None):
    args = parse_args(argv)
    if args.write and args.only:
        raise SystemExit("Expected all intervals for `--write`. Received: --only. Run again without --only.")
    table = list(HEADER)
    print("\n".join(table), flush=True)
    for line in lines(args.only, args.repetitions, args.out):
        table.append(line)
        print(line, flush=True)
    if args.write:
        write_table(args.write, table)


if __name__ == "__main__":
    terminal.run(main)
