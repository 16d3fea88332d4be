"""`RidgeProbe` against scikit-learn's `Ridge`, on one-hot targets."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from keras_clip.evaluation import RidgeProbe
from keras_clip.evaluation.metrics.classification import IGNORED


def features_of(labels, rng, scale=1.0):
    centres = rng.normal(size=(3, 6))
    return (scale * (3 + centres[labels] + rng.normal(size=(len(labels), 6)))).astype("float32")


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_equals_ridge(penalty, rng):
    labels = rng.integers(0, 3, 100)
    features = features_of(labels, rng)
    probe = RidgeProbe(penalty).fit(features, labels)
    x = features.astype("float64")
    reference = Ridge(penalty * x.var(axis=0).mean() * len(x)).fit(x, np.eye(3)[labels])
    np.testing.assert_allclose(probe.coef, reference.coef_, atol=1e-10)
    np.testing.assert_allclose(probe.intercept, reference.intercept_, atol=1e-10)
    np.testing.assert_allclose(probe.decision_function(features), reference.predict(x), atol=1e-9)
    assert probe.predict(features).tolist() == reference.predict(x).argmax(axis=1).tolist()


@pytest.mark.backend_free
def test_several_labels(rng):
    labels = rng.integers(0, 2, (80, 3)).astype("uint8")
    labels[0, 0] = IGNORED
    features = rng.normal(size=(80, 4)).astype("float32") + labels[:, :1]
    probe = RidgeProbe().fit(features, labels)
    x = features.astype("float64")
    reference = Ridge(0.1 * x.var(axis=0).mean() * len(x)).fit(x, np.where(labels == 1, 1.0, 0.0))
    np.testing.assert_allclose(probe.coef, reference.coef_, atol=1e-10)
    assert probe.multi_label and probe.predict(features).tolist() == (reference.predict(x) > 0.5).tolist()


@pytest.mark.backend_free
def test_the_scale_of_the_features_does_not_matter(rng):
    labels = rng.integers(0, 3, 60)
    features = features_of(labels, rng)
    small, large = (RidgeProbe().fit(features * scale, labels) for scale in (np.float32(1), np.float32(1024)))
    np.testing.assert_allclose(small.coef, 1024 * large.coef, rtol=1e-9)
    np.testing.assert_allclose(small.intercept, large.intercept, rtol=1e-9)


@pytest.mark.backend_free
def test_more_features_than_images(rng):
    labels = np.array([0, 1, 0, 1])
    probe = RidgeProbe(1e-3).fit(rng.normal(size=(4, 50)), labels)
    assert np.isfinite(probe.coef).all() and probe.coef.shape == (2, 50)


REFUSED = {
    "NaN": ([[np.nan], [1]], [0, 1], {}, "row 0"),
    "one class only": ([[0], [1]], [1, 1], {}, "all of class 1"),
    "an empty class": ([[0], [1]], [0, 1], {"num_classes": 3}, r"none of class \[2\]"),
    "equal features": ([[2], [2]], [0, 1], {}, "2 equal rows"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("features, labels, others, message", REFUSED.values(), ids=REFUSED)
def test_refuses(features, labels, others, message):
    with pytest.raises(ValueError, match=f"Received.*{message}"):
        RidgeProbe().fit(np.array(features, float), np.array(labels), **others)


@pytest.mark.backend_free
@pytest.mark.parametrize("penalty", [0, -1, np.nan])
def test_refuses_penalty(penalty):
    with pytest.raises(ValueError, match="Received: penalty="):
        RidgeProbe(penalty)
