"""Student's t distribution against printed tables, and a machine without SciPy."""

import sys

import pytest

from keras_clip.evaluation import binomial_test
from keras_clip.evaluation.metrics.distributions import student_quantile

pytestmark = pytest.mark.backend_free


# Quantiles from printed tables of Student's t: 97.5 % and 95 %.
@pytest.mark.parametrize(
    "probability, degrees, expected", [(0.975, 1, 12.7062), (0.975, 3, 3.1824), (0.95, 10, 1.8125)]
)
def test_student_quantile(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, abs=5e-5)


def test_student_median():
    assert student_quantile(0.5, 4) == pytest.approx(0, abs=1e-7)


def test_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"keras_clip\[evaluation\]"):
        binomial_test(1, 2, 0.5)
