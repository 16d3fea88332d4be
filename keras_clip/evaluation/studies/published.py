"""Scores that the paper reports (Radford et al., 2021), and open_clip's scores of the same weights, for comparison.

The numbers are in `published.json`, as printed; the functions return fractions in [0, 1]. Models have the names of the
presets, and datasets the names in `published.datasets()`. Scores also depend on the protocol (split, preprocessing,
prompts): the paper and open_clip differ by up to 11 percentage points for the same weights and dataset.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset as the paper uses it (table 9).

    Args:
        name: str.
        num_classes: int, K.
        train: int. Number of training images of the linear probe.
        test: int. Number of test images.
        metric: key of `METRICS`.
        folds: int. Number of folds or splits over which the metric is averaged.
    """

    name: str
    num_classes: int
    train: int
    test: int
    metric: str
    folds: int


def datasets(suite: str = "all") -> tuple[str, ...]:
    """Returns the names of the paper's datasets, in the order of its tables.

    Args:
        suite: "all" for the 27, "kornblith12" for the 12 of Kornblith et al. (2019).

    Returns:
        Tuple of names.

    Raises:
        ValueError: an unknown suite.
    """
    return tuple(_find("suite", suite, {"all": _tables()["datasets"], "kornblith12": _tables()["kornblith12"]}))


def dataset(name: str) -> PublishedDataset:
    """Returns the sizes and the metric of a dataset (table 9).

    Args:
        name: one of `datasets()`.

    Returns:
        A `PublishedDataset`.

    Raises:
        ValueError: an unknown name.
    """
    return PublishedDataset(name, **_find("name", name, _tables()["datasets"]))


def models(table: str) -> tuple[str, ...]:
    """Returns the names of the models in a table.

    Args:
        table: "zero_shot", "linear_probe", "robustness", "robustness_matched", "ocr", "video", "open_clip" or
            "open_clip_retrieval".

    Returns:
        Tuple of names.

    Raises:
        ValueError: an unknown table.
    """
    by_model = [name for name in _tables() if name in _ROWS]
    return tuple(_tables()[_find("table", table, {name: name for name in by_model})])


def zero_shot(model: str = "vit_l14_336") -> dict[str, float]:
    """Returns the paper's zero-shot scores on the 27 datasets (table 11).

    Args:
        model: one of `models("zero_shot")`, the nine presets.

    Returns:
        {dataset: fraction}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("zero_shot", model)


def linear_probe(model: str = "vit_l14_336") -> dict[str, float]:
    """Returns the paper's linear probe scores on the 27 datasets (from table 10).

    Args:
        model: one of `models("linear_probe")`: the nine presets, "lm_rn50", "resnet50", "resnet101",
            "efficientnet_ns_l2_475", "efficientnet_ns_l2_800" and "bit_m_r152x2".

    Returns:
        {dataset: fraction}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("linear_probe", model)


def robustness(model: str = "zero_shot_clip") -> dict[str, float]:
    """Returns the accuracy on ImageNet and under natural distribution shifts (table 16).

    Args:
        model: one of `models("robustness")`: "zero_shot_clip" and "linear_probe_clip" (ViT-L/14 at 336 pixels),
            "efficientnet_ns_l2" and "fixresnext101_32x48d_v2".

    Returns:
        {"ImageNet" or shift: fraction}. For video datasets, " PM0" is the accuracy on single frames, and " PM10" that
        on all nearby frames.

    Raises:
        ValueError: an unknown model.
    """
    return _row("robustness", model)


def robustness_matched(model: str = "zero_shot_clip") -> dict[str, float]:
    """Returns the accuracies of one of the two models of equal ImageNet accuracy that figure 13 compares.

    Args:
        model: "zero_shot_clip" or "resnet101".

    Returns:
        {"ImageNet" or shift: fraction}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("robustness_matched", model)


def retrieval(data: str) -> dict[str, dict[str, float]]:
    """Returns the zero-shot retrieval scores of ViT-L/14 at 336 pixels (table 13).

    Args:
        data: "Flickr30k" or "MSCOCO".

    Returns:
        {"image_to_text" or "text_to_image": {"recall_at_1", "recall_at_5" or "recall_at_10": fraction}}.

    Raises:
        ValueError: an unknown dataset.
    """
    rows = _find("data", data, _tables()["retrieval"])
    return {direction: _fractions(row) for direction, row in rows.items()}


def ocr(model: str = "zero_shot_clip") -> dict[str, float]:
    """Returns the scores on datasets that require optical character recognition (table 14).

    Args:
        model: "zero_shot_clip", "linear_probe_clip" or "linear_raw_pixels".

    Returns:
        {dataset: fraction}, for the datasets that the table has for the model.

    Raises:
        ValueError: an unknown model.
    """
    return _row("ocr", model)


def video(model: str = "zero_shot_clip") -> dict[str, float]:
    """Returns the scores on action recognition in videos (table 15).

    Args:
        model: "zero_shot_clip" or "linear_probe_clip".

    Returns:
        {dataset: fraction}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("video", model)


def shots_to_match() -> dict[str, float]:
    """Returns the shots needed to match zero-shot by a probe on the same features, for 26 datasets (figure 7)."""
    return dict(_tables()["shots_to_match"])


def zero_shot_gain() -> dict[str, float]:
    """Returns zero-shot CLIP minus a linear probe on ResNet-50 features, as fractions (figure 5)."""
    return _fractions(_tables()["zero_shot_gain"])


def open_clip(model: str = "vit_l14_336") -> dict[str, float]:
    """Returns open_clip's scores of the same weights on its 38 datasets, by open_clip's names.

    Args:
        model: one of the nine presets.

    Returns:
        {dataset: fraction}.

    Raises:
        ValueError: an unknown model.
    """
    return dict(_find("model", model, _tables()["open_clip"]))


def open_clip_retrieval(model: str = "vit_l14_336") -> dict[str, float]:
    """Returns open_clip's retrieval scores of the same weights, by open_clip's names.

    Args:
        model: one of the nine presets.

    Returns:
        {score: fraction}.

    Raises:
        ValueError: an unknown model.
    """
    return dict(_find("model", model, _tables()["open_clip_retrieval"]))


_ROWS = frozenset(
    {
        "zero_shot",
        "linear_probe",
        "robustness",
        "robustness_matched",
        "ocr",
        "video",
        "open_clip",
        "open_clip_retrieval",
    }
)


@functools.cache
def _tables():
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def _row(table, model):
    return _fractions(_find("model", model, _tables()[table]))


def _fractions(row):
    # Without rounding, 59.6 / 100 is not the float 0.596.
    return {name: round(value / 100, 6) for name, value in row.items()}


def _find(argument, name, rows):
    if name not in rows:
        raise ValueError(f"Expected one of the published {list(rows)}. Received: {argument}={name!r}.")
    return rows[name]
