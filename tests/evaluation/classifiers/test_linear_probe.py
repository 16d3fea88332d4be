"""`LinearProbe` and `search_C` against scikit-learn in float64, with `tol=1e-4 / n`."""

import sys
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_info, threadpool_limits

from keras_clip.evaluation import CSearch, LinearProbe, map_11pt, search_C
from keras_clip.evaluation.classifiers import newton
from keras_clip.evaluation.classifiers.logistic_loss import LogisticLoss
from keras_clip.evaluation.metrics.classification import IGNORED


def clusters(classes, rows, width, spread, seed=0, shift=0.0, weights=None):
    """Returns clusters with a spectrum like that of features: few strong and many weak directions, rotated."""
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, width + 1) ** -0.7
    centres = rng.normal(size=(classes, width)) * sizes * spread
    labels = rng.choice(classes, rows, p=weights)
    labels[:classes] = np.arange(classes)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    features = (centres[labels] + rng.normal(size=(rows, width)) * sizes) @ rotation + shift
    return features.astype("float32"), labels


def theirs(features, labels, C):
    probe = LogisticRegression(C=C, tol=1e-4 / len(features), max_iter=20_000)
    if labels.ndim == 2:
        probe = OneVsRestClassifier(probe)
    return probe.fit(features.astype("float64"), labels)


def objective(features, labels, scores, squares, C):
    """Returns mean loss plus penalty in float64, by definition, of scores (N, K) and the sum of squared weights."""
    rows = np.arange(len(labels))
    if labels.ndim == 2:
        loss = (np.logaddexp(0, scores) - scores * labels).sum(axis=1)
    else:
        loss = np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)) + scores.max(axis=1)
        loss = loss - scores[rows, labels]
    return loss.mean() + squares / (2 * C * len(labels))


def objectives(ours, reference, features, labels, C):
    """Returns our objective and scikit-learn's, each computed from its parameters."""
    x = features.astype("float64")
    scores = reference.decision_function(x)
    if labels.ndim == 2:
        weights = [np.vstack([one.coef_ for one in reference.estimators_]), ours.coef]
    elif scores.ndim == 1:
        scores = np.stack([-scores / 2, scores / 2], axis=1)
        weights = [reference.coef_, ours.coef[1:] - ours.coef[:1]]
    else:
        weights = [reference.coef_, ours.coef]
    our_scores = x @ ours.coef.T + ours.intercept
    return [
        objective(features, labels, s, np.sum(w**2), C)
        for s, w in zip((our_scores, scores), weights[::-1], strict=True)
    ]


# name: (classes, images, width, spread of the clusters, C, other arguments of `clusters`)
PROBLEMS = {
    "ten classes that overlap": (10, 1500, 24, 0.7, 1.0, {}),
    "ten classes, weak penalty": (10, 1500, 24, 0.7, 100.0, {}),
    "ten classes, strong penalty": (10, 1500, 24, 0.7, 1e-4, {}),
    "two classes that overlap": (2, 800, 16, 0.5, 1.0, {}),
    "two classes, weak penalty": (2, 800, 16, 0.5, 1e4, {}),
    "three classes, apart": (3, 600, 12, 5.0, 1.0, {}),
    "two classes, apart": (2, 600, 12, 5.0, 10.0, {}),
    "unbalanced": (4, 1500, 16, 0.7, 1.0, {"weights": [0.9, 0.07, 0.02, 0.01]}),
    "more features than images": (5, 60, 100, 1.0, 1.0, {}),
    "off the origin": (5, 800, 16, 0.7, 1.0, {"shift": 1.0}),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("classes, rows, width, spread, C, others", PROBLEMS.values(), ids=PROBLEMS)
def test_equals_scikit_learn(classes, rows, width, spread, C, others):
    features, labels = clusters(classes, rows + 3000, width, spread, **others)
    train, test = slice(rows), slice(rows, None)
    reference = theirs(features[train], labels[train], C)
    probe = LinearProbe(C).fit(features[train], labels[train])
    ours, best = objectives(probe, reference, features[train], labels[train], C)
    assert ours == pytest.approx(best, rel=1e-6)
    assert probe.objective == pytest.approx(ours, rel=1e-9)
    assert np.mean(probe.predict(features[test]) == reference.predict(features[test])) >= 0.999
    assert probe.coef.shape == (classes, width) and probe.converged and not probe.multi_label


def digits(kind):
    """Returns 500 images of 64 pixels from 0 to 16, of which some are constant: all classes can be separated."""
    features, labels = load_digits(return_X_y=True)
    features, labels = features[:500].astype("float32"), labels[:500]
    if kind.startswith("columns of other scales"):
        decades = 3 if kind.endswith("by six decades") else 2
        features = features * np.float32(10) ** np.random.default_rng(0).uniform(-decades, decades, 64).astype(
            "float32"
        )
    if kind == "duplicates":
        features = np.concatenate([features, features], axis=1)
    if kind == "fewer images than features":
        features, labels = features[:50], labels[:50]
    if kind == "two classes":
        labels = (labels == 8).astype("int64")
    if kind == "several labels":
        labels = (labels[:, None] == [3, 8]).astype("uint8")
    return features, labels


DIGITS = ["ten classes", "columns of other scales", "columns of other scales, by six decades", "duplicates"]
DIGITS += ["fewer images than features", "two classes"]


@pytest.mark.slow
@pytest.mark.backend_free
@pytest.mark.parametrize("C", [1e-6, 1e-2, 1e2, 1e5, 1e6])
@pytest.mark.parametrize("kind", [*DIGITS, "several labels"])
def test_reaches_the_minimum_at_every_C(kind, C):
    """With a weak penalty, scikit-learn stops above the minimum, whatever the limit of its iterations."""
    features, labels = digits(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = LinearProbe(C).fit(features, labels)
        ours, best = objectives(probe, theirs(features, labels, C), features, labels, C)
    assert probe.converged
    assert ours <= best * (1 + 1e-6)
    assert probe.objective == pytest.approx(ours, rel=1e-6)


@pytest.mark.parametrize("kind", ["ten classes", "several labels"])
def test_hessian_equals_its_products(kind):
    """Column by column; the parameters are such that some images are certain and others are not."""
    features, labels = digits(kind)
    features, rng = features[:, 20:28], np.random.default_rng(0)
    loss = LogisticLoss(features, labels, 10 if labels.ndim == 1 else 2)
    weights, bias = rng.normal(size=(8, loss.columns)), rng.normal(size=loss.columns)
    hessian = loss.hessian(weights, bias)
    assert hessian.shape == (loss.columns, 9, loss.columns, 9)
    for column in range(loss.columns):
        for row in (0, 7, 8):
            change = np.zeros((9, loss.columns))
            change[row, column] = 1
            by_weights, by_bias = loss.hessian_product(weights, bias, change[:-1], change[-1], "float64")
            np.testing.assert_allclose(hessian[column, row, :, :-1].T, by_weights, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(hessian[column, row, :, -1], by_bias, rtol=1e-9, atol=1e-12)


@pytest.mark.backend_free
def test_badly_scaled_features_need_the_second_derivatives(monkeypatch):
    features, labels = digits("columns of other scales, by six decades")
    with_them = LinearProbe(1e2).fit(features, labels)
    monkeypatch.setattr(newton, "LARGEST_HESSIAN", 100)
    with pytest.warns(UserWarning, match="has not converged"):
        without = LinearProbe(1e2).fit(features, labels)
    assert with_them.converged and with_them.iterations < 700 < without.iterations
    assert with_them.objective < without.objective


@pytest.mark.parametrize("classes", [2, 3])
def test_equals_scikit_learn_on_this_backend(classes):
    features, labels = clusters(classes, 300, 8, 0.5)
    reference = theirs(features, labels, 1.0)
    probe = LinearProbe(1.0).fit(features, labels)
    ours, best = objectives(probe, reference, features, labels, 1.0)
    assert ours == pytest.approx(best, rel=1e-9)
    scores = reference.decision_function(features.astype("float64"))
    if classes == 2:
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    np.testing.assert_allclose(probe.decision_function(features), scores, atol=1e-4)
    np.testing.assert_array_equal(probe.predict(features), reference.predict(features))


def several_labels(rows, width, classes, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width)).astype("float32")
    logits = features @ rng.normal(size=(width, classes)) - 1
    return features, (logits + rng.logistic(size=logits.shape) > 0).astype("uint8")


def test_several_labels_equal_scikit_learn():
    features, labels = several_labels(400, 8, 3)
    reference = theirs(features, labels, 2.0)
    probe = LinearProbe(2.0).fit(features, labels)
    ours, best = objectives(probe, reference, features, labels, 2.0)
    assert ours == pytest.approx(best, rel=1e-9) and probe.multi_label
    np.testing.assert_array_equal(probe.predict(features), reference.predict(features.astype("float64")))


@pytest.mark.backend_free
def test_ignored_labels_equal_absent_images():
    features, labels = several_labels(300, 6, 2)
    ignored = labels.copy()
    ignored[:100, 1] = IGNORED
    probe = LinearProbe(1.0).fit(features, ignored)
    one = theirs(features[100:], labels[100:, 1], 1.0)
    np.testing.assert_allclose(probe.coef[1], one.coef_[0], atol=1e-5)
    np.testing.assert_allclose(probe.coef[0], theirs(features, labels[:, 0], 1.0).coef_[0], atol=1e-5)


def test_same_data_same_bits():
    features, labels = clusters(4, 500, 16, 0.7)
    first, second = (LinearProbe(10.0).fit(features, labels) for _ in range(2))
    np.testing.assert_array_equal(first.coef, second.coef)
    np.testing.assert_array_equal(first.intercept, second.intercept)


@pytest.mark.backend_free
@pytest.mark.parametrize("other_C", [1e-3, 1.0, 1e3])
def test_the_start_does_not_change_the_result(other_C, recwarn):
    features, labels = clusters(4, 500, 16, 0.7)
    cold = LinearProbe(1.0).fit(features, labels)
    start = LinearProbe(other_C).fit(features, labels)
    warm = LinearProbe(1.0).fit(features, labels, start=start)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-10) and warm.converged
    np.testing.assert_allclose(warm.coef, cold.coef, atol=2e-4)
    if other_C == 1.0:
        assert warm.iterations <= 10  # those of the estimate of the distance from the minimum
    assert not [w for w in recwarn if "converged" in str(w.message)]


@pytest.mark.backend_free
def test_a_shift_changes_nothing_but_the_intercept():
    """Far from the origin scikit-learn does not converge within 10,000 iterations."""
    features, labels = clusters(5, 800, 16, 0.7)
    features = np.round(features * 1024) / 1024  # so that the sum has no rounding
    there, here = (LinearProbe(10.0).fit(features + shift, labels) for shift in (np.float32(32), 0))
    assert there.objective == pytest.approx(here.objective, rel=1e-6) and there.converged
    np.testing.assert_allclose(there.coef, here.coef, atol=1e-3 * np.abs(here.coef).max())
    np.testing.assert_allclose(there.intercept, here.intercept - 32 * here.coef.sum(axis=1), atol=0.05)


@pytest.mark.backend_free
def test_few_iterations_and_most_of_them_in_float32(monkeypatch):
    """The probe is fast because it needs few iterations: scikit-learn needs hundreds here."""
    features, labels = clusters(10, 1000, 32, 0.5)
    features *= 10
    dtypes, product = [], LogisticLoss.hessian_product
    monkeypatch.setattr(LogisticLoss, "hessian_product", lambda self, *a: dtypes.append(a[-1]) or product(self, *a))
    probe = LinearProbe(1.0).fit(features, labels)
    assert probe.iterations == len(dtypes) < theirs(features, labels, 1.0).n_iter_[0] / 3
    assert dtypes == sorted(dtypes) and dtypes.count("float32") > 0.7 * len(dtypes)


@pytest.mark.backend_free
def test_numpy_has_one_thread_during_the_fit(monkeypatch):
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    seen, evaluate = [], newton._Newton.evaluate
    monkeypatch.setattr(newton._Newton, "evaluate", lambda self, *at: seen.extend(threads()) or evaluate(self, *at))
    with threadpool_limits(2, "blas"):
        LinearProbe(0.1).fit(*clusters(3, 60, 5, 0.5))
        assert set(seen) == {1} and set(threads()) == {2}


@pytest.mark.backend_free
def test_warns_when_it_does_not_converge():
    features, labels = clusters(4, 300, 16, 0.7)
    with pytest.warns(UserWarning, match="C=1 has not converged after 3 iterations: its gradient is up to"):
        probe = LinearProbe(1.0, max_iter=3).fit(features, labels)
    assert not probe.converged and probe.iterations == 3 and probe.gradient > 1e-4 / 300


def searched_by_scikit_learn(train, validation):
    """Runs the paper's search as directly as possible, with every fit from zero."""
    scores = {}

    def score(step):
        if abs(step) <= 48 and step not in scores:
            scores[step] = theirs(*train, 10 ** (step / 8)).score(*validation)

    for step in range(-48, 49, 16):
        score(step)
    for interval in (8, 4, 2, 1):
        best = max(sorted(scores), key=scores.get)
        score(best - interval)
        score(best + interval)
    return {10 ** (step / 8): value for step, value in sorted(scores.items())}


@pytest.mark.backend_free
def test_search_equals_scikit_learn():
    features, labels = clusters(5, 1200, 12, 0.5, seed=3)
    train, validation = (features[:400], labels[:400]), (features[400:800], labels[400:800])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = searched_by_scikit_learn(train, validation)
    found = search_C(train, validation, verbose=0)
    assert list(found.scores) == pytest.approx(list(expected)) and len(found.scores) == 15
    assert found.C == pytest.approx(max(expected, key=expected.get))
    assert list(found.scores.values()) == pytest.approx(list(expected.values()), abs=1 / 400)
    both = theirs(features[:800], labels[:800], found.C)
    assert found.probe.C == found.C
    np.testing.assert_allclose(found.probe.coef, both.coef_, atol=2e-3 * np.abs(both.coef_).max())


def search_with(best_step, monkeypatch):
    """Searches where the score decreases on both sides of one C; returns the result and the number of fits."""
    fitted = []

    def metric(scores, labels):
        fitted.append(scores)
        return -abs(np.log10(current[-1]) * 8 - best_step)

    current, init = [], LinearProbe.__init__
    monkeypatch.setattr(LinearProbe, "__init__", lambda self, C, n: current.append(C) or init(self, C, n))
    data = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return search_C(data, data, metric, refit=False, verbose=0), len(fitted)


@pytest.mark.backend_free
@pytest.mark.parametrize("best, fits", {-48: 11, -37: 15, 0: 15, 5: 15, 48: 11}.items())
def test_search_finds_any_step(best, fits, monkeypatch):
    found, made = search_with(best, monkeypatch)
    assert isinstance(found, CSearch) and found.C == pytest.approx(10 ** (best / 8))
    assert made == fits == len(found.scores)


@pytest.mark.backend_free
def test_search_takes_the_smallest_of_equally_good_values():
    features, labels = clusters(2, 40, 3, 20.0)
    found = search_C((features, labels), (features, labels), lambda *_: 0.5, verbose=0)
    assert found.C == 1e-6


@pytest.mark.backend_free
def test_search_of_several_labels():
    features, labels = several_labels(300, 5, 2)
    train, validation = (features[:200], labels[:200]), (features[200:], labels[200:])
    found = search_C(train, validation, refit=False, verbose=0)
    assert found.scores[found.C] == map_11pt(found.probe.decision_function(validation[0]), validation[1])


@pytest.mark.backend_free
def test_refit_is_on_both_splits():
    features, labels = clusters(3, 90, 4, 0.5)
    train, validation = (features[:60], labels[:60]), (features[60:], labels[60:])
    refitted, alone = (search_C(train, validation, refit=refit, verbose=0) for refit in (True, False))
    assert refitted.C == alone.C
    for found, rows in ((refitted, 90), (alone, 60)):
        expected = LinearProbe(found.C).fit(features[:rows], labels[:rows])
        np.testing.assert_allclose(found.probe.coef, expected.coef, rtol=1e-3, atol=1e-6)


REFUSED = {
    "another width": ((np.ones((2, 3)), np.array([0, 1])), None, "same 2 classes"),
    "another class": ((np.ones((2, 2)), np.array([0, 2])), None, "from 0 to 2"),
    "a metric that returns NaN": (
        (np.ones((2, 2)), np.array([0, 1])),
        lambda *_: np.nan,
        "must return a finite number",
    ),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("validation, metric, message", REFUSED.values(), ids=REFUSED)
def test_search_refuses(validation, metric, message):
    train = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1])
    with pytest.raises(ValueError, match=message):
        search_C(train, validation, metric, verbose=0)


@pytest.mark.backend_free
@pytest.mark.parametrize("arguments", [{"C": 0}, {"C": np.inf}, {"C": np.nan}, {"max_iter": 0}], ids=str)
def test_probe_refuses(arguments):
    with pytest.raises(ValueError, match="Received: C="):
        LinearProbe(**arguments)


@pytest.mark.backend_free
def test_fit_checks_its_inputs():
    with pytest.raises(ValueError, match="row 1"):
        LinearProbe().fit(np.array([[0.0], [np.nan]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="all of class 0"):
        LinearProbe().fit(np.ones((2, 1)), np.array([0, 0]))


@pytest.mark.backend_free
@pytest.mark.parametrize("package", ["threadpoolctl", "scipy.linalg"])
def test_names_the_package_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"keras_clip\[evaluation\]"):
        LinearProbe().fit(np.array([[0.0], [1.0]]), np.array([0, 1]))


@pytest.mark.backend_free
def test_fewer_images_than_features_are_fitted_in_their_span():
    """The gradient by the features, not by the coordinates, is within tolerance; a start of other images is used."""
    features, labels = clusters(4, 24, 60, 1.0)
    problem = newton.Problem(features[:20], labels[:20], 4)
    assert problem.loss.width == 20
    first = LinearProbe(10.0).fit(features[:20], labels[:20], 4)
    probe = LinearProbe(10.0).fit(features, labels, 4, start=first)
    value, d_weights, d_bias = LogisticLoss(features, labels, 4)(probe.coef.T, probe.intercept, "float64")
    d_weights = d_weights + probe.coef.T / (10.0 * 24)
    assert probe.gradient == pytest.approx(max(abs(d_weights).max(), abs(d_bias).max()), rel=1e-3)
    assert probe.converged and probe.gradient <= 1e-4 / 24
    assert probe.objective == pytest.approx(value + np.sum(probe.coef**2) / (2 * 10.0 * 24), rel=1e-9)
    assert LinearProbe(10.0).fit(features, labels, 4, start=probe).iterations < probe.iterations
