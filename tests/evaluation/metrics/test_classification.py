"""The paper's metrics against scikit-learn and by hand: ties, ignored labels, intervals, refusals."""

import numpy as np
import pytest
from sklearn import metrics as peer

from keras_clip.evaluation import METRICS, blaker_interval, mean_over_folds, published
from keras_clip.evaluation.metrics import classification, curves

pytestmark = pytest.mark.backend_free
IGNORED = classification.IGNORED


@pytest.fixture
def single(rng):
    """Returns scores with many ties, and labels that correlate with them."""
    labels = rng.permutation(np.arange(300) % 7)
    return (rng.normal(size=(300, 7)) + 1.5 * np.eye(7)[labels]).round(1), labels


@pytest.fixture
def several(rng):
    labels = (rng.random((200, 5)) < 0.3).astype("uint8")
    return (rng.normal(size=(200, 5)) + labels).round(1), labels


@pytest.fixture
def binary(rng):
    labels = (rng.random(200) < 0.3).astype("int64")
    return np.stack([rng.normal(size=200).round(1), (rng.normal(size=200) + labels).round(1)], 1), labels


def test_every_metric_of_the_paper_is_there():
    assert {published.dataset(name).metric for name in published.datasets()} <= set(METRICS)


def test_accuracy_equals_scikit_learn(single):
    scores, labels = single
    assert METRICS["accuracy"](scores, labels) == peer.accuracy_score(labels, scores.argmax(1))
    assert (classification.correct(scores, labels) == (scores.argmax(1) == labels)).all()


def test_mean_per_class_equals_scikit_learn(single):
    scores, labels = single
    keep = (labels != 2) | (np.arange(300) % 5 == 0)  # a rare class
    expected = peer.balanced_accuracy_score(labels[keep], scores[keep].argmax(1))
    assert METRICS["mean_per_class"](scores[keep], labels[keep]) == pytest.approx(expected, rel=1e-12)


def test_top5_equals_scikit_learn(single, rng):
    scores, labels = single
    scores = scores + 1e-6 * rng.normal(size=scores.shape)  # scikit-learn breaks ties differently
    assert METRICS["top5_accuracy"](scores, labels) == peer.top_k_accuracy_score(labels, scores, k=5)
    mean = (METRICS["accuracy"](scores, labels) + METRICS["top5_accuracy"](scores, labels)) / 2
    assert METRICS["mean_top1_top5"](scores, labels) == mean


def test_roc_auc_equals_scikit_learn(binary):
    scores, labels = binary
    expected = peer.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    assert METRICS["roc_auc"](scores, labels) == pytest.approx(expected, rel=1e-12)
    expected = peer.roc_auc_score(labels, scores[:, 1])
    assert METRICS["roc_auc"](scores[:, 1], labels) == pytest.approx(expected, rel=1e-12)


def test_map_equals_scikit_learn(several):
    scores, labels = several
    points = []
    for k in range(5):
        precision, recall, _ = peer.precision_recall_curve(labels[:, k], scores[:, k])
        points += [precision[:-1][recall[:-1] >= t / 10 - 1e-9].max() for t in range(11)]
    assert METRICS["map_11pt"](scores, labels) == pytest.approx(np.mean(points), rel=1e-12)


def test_average_precision_by_hand():
    # In descending score: right, wrong, right, wrong. Precision is 1 up to recall 0.5 (6 points), then 2/3 (5 points).
    scores, labels = np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[1], [0], [1], [0]], "uint8")
    assert METRICS["map_11pt"](scores, labels) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # Equal scores pass the threshold together: precision is 1/2 at every recall.
    assert METRICS["map_11pt"](np.zeros((4, 1)), labels) == pytest.approx(0.5)


def test_recall_of_three_tenths_is_reached_by_three_of_ten():
    # 3 of 10 positives come before the first negative; in floats, 0.1 * 3 > 0.3. The other 7 come after 30 negatives.
    positive = np.array([1] * 3 + [0] * 30 + [1] * 7, "uint8")[:, None]
    scores = -np.arange(40.0)[:, None]
    tail = 10 / 40  # the highest of 4/34 ... 10/40
    assert METRICS["map_11pt"](scores, positive) == pytest.approx((4 + 7 * tail) / 11)


def test_ignored_labels_are_as_if_absent(several, rng):
    scores, labels = several
    ignored = labels.copy()
    ignored[rng.permutation(200)[:60], 1] = IGNORED
    seen = ignored[:, 1] != IGNORED
    parts = [METRICS["map_11pt"](scores[:, [k]], labels[:, [k]]) for k in (0, 2, 3, 4)]
    parts.append(METRICS["map_11pt"](scores[seen][:, [1]], labels[seen][:, [1]]))
    assert METRICS["map_11pt"](scores, ignored) == pytest.approx(np.mean(parts), rel=1e-12)
    low, high = classification.interval("map_11pt", scores, ignored, resamples=50)
    assert low < METRICS["map_11pt"](scores, ignored) < high


def test_an_image_drawn_twice_counts_twice(several, binary, rng):
    scores, labels = several
    labels = labels.copy()
    labels[rng.permutation(200)[:60], 1] = IGNORED
    drawn = rng.integers(0, 4, 200)
    points = [curve.average_precision(drawn) for curve in curves.class_curves(scores, labels)]
    repeated = METRICS["map_11pt"](np.repeat(scores, drawn, 0), np.repeat(labels, drawn, 0))
    assert np.mean(points) == pytest.approx(repeated, rel=1e-12)
    scores, labels = binary
    repeated = METRICS["roc_auc"](np.repeat(scores, drawn, 0), np.repeat(labels, drawn))
    assert curves.binary_curve(scores, labels).roc_auc(drawn) == pytest.approx(repeated, rel=1e-12)


def test_interval_of_perfect_scores_is_not_empty():
    # The rare class has one positive image. Resampling within classes, it is always drawn.
    labels = np.repeat(np.eye(2, dtype="uint8"), [1, 30], 0)
    low, high = classification.interval("map_11pt", labels * 1.0, labels, resamples=50)
    assert 0.3 < low < 0.95 and high == 1
    # As few as five negative images.
    labels = np.repeat([0, 1], [5, 30])
    low, high = classification.interval("roc_auc", labels * 1.0, labels)
    assert 0.3 < low < 0.8 and high == 1


def test_correct_for_several_labels():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [IGNORED, 1, 0]], "uint8")
    assert classification.correct(scores, labels).tolist() == [True, False, True]


def test_ties_go_to_the_first_class():
    scores, labels = np.zeros((6, 6)), np.arange(6)
    assert METRICS["accuracy"](scores, labels) == 1 / 6
    assert METRICS["top5_accuracy"](scores, labels) == 5 / 6
    assert METRICS["roc_auc"](np.zeros(4), np.array([0, 1, 1, 0])) == 0.5


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class", "top5_accuracy", "mean_top1_top5"])
def test_invariances(metric, single, rng):
    scores, labels = single
    scores, order = scores + 1e-6 * rng.normal(size=scores.shape), rng.permutation(7)
    value = METRICS[metric](scores, labels)
    assert METRICS[metric](scores * 3 + rng.normal(size=(300, 1)), labels) == pytest.approx(value)
    assert METRICS[metric](scores[:, order], np.argsort(order)[labels]) == pytest.approx(value)


def data_of(metric, single, several, binary):
    return {"map_11pt": several, "roc_auc": binary}.get(metric, single)


@pytest.mark.parametrize("metric", METRICS)
def test_interval_holds_the_value(metric, single, several, binary):
    data = data_of(metric, single, several, binary)
    value, (low, high) = METRICS[metric](*data), classification.interval(metric, *data, resamples=200)
    wide = classification.interval(metric, *data, resamples=200, confidence=0.99)
    assert wide[0] < low < value < high < wide[1]
    assert METRICS[metric].unit != "fraction" or (wide[0] >= 0 and wide[1] <= 1)
    assert {type(low), type(high)} == {float}


def test_interval_of_accuracy_is_exact(single):
    right = int(classification.correct(*single).sum())
    assert classification.interval("accuracy", *single) == blaker_interval(right, 300)
    top5 = int(classification.correct(*single, k=5).sum())
    assert classification.interval("top5_accuracy", *single) == blaker_interval(top5, 300)


def test_interval_of_top1_and_top5_is_that_of_a_mean_of_thirds(single):
    value = METRICS["mean_top1_top5"](*single)
    hits = (classification.correct(*single) + 1.0 * classification.correct(*single, k=5)) / 2
    half = 1.96 * hits.std() / np.sqrt(300)
    bounds = classification.interval("mean_top1_top5", *single)
    assert bounds == pytest.approx((value - half, value + half), abs=0.004)


def test_interval_of_the_mean_per_class():
    # With classes of equal size and accuracy, the interval is that of all images together.
    labels = np.repeat([0, 1], 50)
    right = np.tile(np.arange(50) < 40, 2)
    scores = np.eye(2)[np.where(right, labels, 1 - labels)]
    assert classification.interval("mean_per_class", scores, labels) == pytest.approx(
        blaker_interval(80, 100), abs=0.01
    )
    # A class of 4 images beside one of 1000 determines the width of the interval.
    labels = np.repeat([0, 1], [1000, 4])
    low, high = classification.interval("mean_per_class", np.eye(2)[labels], labels)
    assert high == 1 and 0.6 < low < 0.9


CLASSES = {
    "some of each": ([10, 40, 80, 20], [0.95, 0.7, 0.4, 0.99]),
    "a class of three images": ([50, 47, 3], [0.9, 0.9, 0.5]),
}


@pytest.mark.parametrize("counts, rates", CLASSES.values(), ids=CLASSES)
def test_interval_of_the_mean_per_class_covers(counts, rates, rng):
    """For 120 simulated test sets, the interval encloses the true mean in about 95 % of the cases."""
    held = 0
    for hits in rng.binomial(counts, rates, (120, len(counts))):
        low, high = classification._class_counts_interval(hits, np.array(counts), 0.95)
        assert low <= (hits / counts).mean() <= high
        held += low <= np.mean(rates) <= high
    assert 0.9 < held / 120 < 0.995


def test_interval_of_the_auc_is_as_wide_as_theory_says(rng):
    labels = np.repeat([0, 1], [300, 200])
    scores = rng.normal(size=500) + labels
    auc = METRICS["roc_auc"](scores, labels)
    # Hanley and McNeil (1982).
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = np.sqrt((auc * (1 - auc) + 199 * (q1 - auc**2) + 299 * (q2 - auc**2)) / 60000)
    low, high = classification.interval("roc_auc", scores, labels)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_placements_are_delongs(binary):
    scores, labels = binary
    margin = (scores[:, 1] - scores[:, 0]).round(9)
    positive, negative = margin[labels == 1], margin[labels == 0]
    below = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
    found = curves.binary_curve(margin, labels).placements()
    assert np.sort(found[0]) == pytest.approx(np.sort(below.mean(1)))
    assert np.sort(found[1]) == pytest.approx(np.sort(below.mean(0)))


def test_mean_over_folds():
    assert mean_over_folds([0.5, 0.7]) == pytest.approx(0.6)
    assert mean_over_folds([(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)]) == pytest.approx((0.6, 0.5, 0.7))
    # Independent folds: half of the root of the sum of two squares of 0.1, and of 0.3 and 0.4.
    independent = mean_over_folds([(0.5, 0.4, 0.8), (0.7, 0.6, 1.1)], same_images=False)
    assert independent == pytest.approx((0.6, 0.6 - 0.1 / np.sqrt(2), 0.6 + 0.25))
    with pytest.raises(ValueError, match="independent folds"):
        mean_over_folds([(0.5, 0.4), (0.7, 0.6)], same_images=False)
    for bad in ([], [0.5, (0.5, 0.4)], [[[1.0]]]):
        with pytest.raises(ValueError, match="per fold"):
            mean_over_folds(bad)


SCORES = np.eye(3)
BAD_INPUT = {
    "NaN": ("accuracy", np.where(SCORES, np.nan, 0), [0, 1, 2], "NaN or infinity in 3 rows; the first is row 0"),
    "infinite": ("accuracy", np.where(SCORES, np.inf, 0), [0, 1, 2], "NaN or infinity"),
    "no images": ("accuracy", np.zeros((0, 3)), np.zeros(0, int), r"\(0, 3\)"),
    "too few labels": ("accuracy", SCORES, [0, 1], r"labels of shape \(2,\)"),
    "label too high": ("accuracy", SCORES, [0, 1, 3], r"labels \[3\], K=3"),
    "label below 0": ("mean_per_class", SCORES, [0, 1, -1], r"labels \[-1\]"),
    "labels are floats": ("accuracy", SCORES, [0.0, 1.0, 2.0], "dtype float64"),
    "several labels": ("accuracy", SCORES, np.eye(3, dtype=int), "one class index per image"),
    "four classes for top-5": ("top5_accuracy", np.eye(4), [0, 1, 2, 3], "at least five classes"),
    "empty class": ("mean_per_class", SCORES, [0, 1, 1], r"none of the classes \[2\]"),
    "single labels for mAP": ("map_11pt", SCORES, [0, 1, 2], "0 and 1 for map_11pt"),
    "no positive": ("map_11pt", SCORES, [[1, 0, 0]] * 3, r"none of the classes \[1, 2\]"),
    "label 2 in mAP": ("map_11pt", SCORES, [[1, 1, 2]] * 3, r"labels \[2\]"),
    "three classes for AUC": ("roc_auc", SCORES, [0, 1, 2], "both 0 and 1 occur"),
    "one class for AUC": ("roc_auc", np.eye(2), [1, 1], r"labels \[1\]"),
    "AUC's labels": ("roc_auc", np.eye(2), [1, 2], r"labels \[2\]"),
}


@pytest.mark.parametrize("metric, scores, labels, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_refusals(metric, scores, labels, message):
    for measure in (METRICS[metric], lambda s, y: classification.interval(metric, s, y, resamples=2)):
        with pytest.raises(ValueError, match=message):
            measure(scores, np.array(labels))


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric='f1'"):
        classification.interval("f1", SCORES, np.arange(3))


def test_top_k_of_several_labels_is_refused():
    with pytest.raises(ValueError, match="k=5"):
        classification.correct(SCORES, np.eye(3, dtype=int), k=5)


def test_a_user_s_metric_is_one_entry_of_the_table(monkeypatch, rng):
    """One object determines the evaluation, its intervals and the unit that a report shows."""
    top_two = classification.Metric(
        "top2_errors",
        lambda scores, labels: np.sum(~classification.correct(scores, labels, k=2)),
        lambda scores, labels, confidence, resamples, seed: (0.0, float(len(labels))),
        unit="images",
    )
    monkeypatch.setitem(METRICS, top_two.name, top_two)
    scores, labels = np.eye(4)[[0, 1, 2, 3]], np.array([0, 1, 1, 0])
    # Ties go to the first class, so class 0 is second for images of other classes.
    assert METRICS["top2_errors"](scores, labels) == 1.0
    assert classification.interval("top2_errors", scores, labels) == (0.0, 4.0)
    assert METRICS["top2_errors"].unit == "images" and METRICS["accuracy"].unit == "fraction"
