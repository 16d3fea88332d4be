"""Student's t distribution, and SciPy, which is imported on first use since it is an optional requirement."""

from types import ModuleType


def load_scipy() -> ModuleType:
    """Returns SciPy, whose modules are loaded on first use.

    Raises:
        ImportError: SciPy is not installed; names the extra that installs it.
    """
    try:
        import scipy
    except ImportError as error:
        raise ImportError(
            'Intervals of means, exact tests and linear regression require SciPy: pip install "keras_clip[evaluation]".'
        ) from error
    return scipy


def student_quantile(probability: float, degrees: float) -> float:
    """Returns a quantile of Student's t distribution.

    Args:
        probability: float in (0, 1).
        degrees: float > 0. Degrees of freedom.

    Returns:
        The value below which t lies with that probability.
    """
    return float(load_scipy().stats.t.ppf(probability, degrees))
