"""What the paper reports (Radford et al., 2021), and what open_clip measured of the same weights, to compare with.

The numbers are in `published.json`, as printed; the functions here give shares in [0, 1]. Models are named as the
presets, data sets as in `published.datasets()`. Scores depend on the protocol too (split, resize rule, prompts): the
paper and open_clip differ by up to 11 points on the same weights and the same data set.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedDataset:
    """A data set as the paper uses it (table 9).

    Args:
        name: str.
        num_classes: int, K.
        train: int. Images to train the linear probe on.
        test: int. Images to test on.
        metric: key of `METRICS`.
        folds: int. Folds or splits that the metric is the mean over.
    """

    name: str
    num_classes: int
    train: int
    test: int
    metric: str
    folds: int


def datasets(suite: str = "all") -> tuple[str, ...]:
    """Names of the paper's data sets, in the order of its tables.

    Args:
        suite: "all" for the 27, "kornblith12" for the 12 of Kornblith et al. (2019).

    Returns:
        Tuple of names.

    Raises:
        ValueError: an unknown suite.
    """
    return tuple(_find("suite", suite, {"all": _tables()["datasets"], "kornblith12": _tables()["kornblith12"]}))


def dataset(name: str) -> PublishedDataset:
    """Sizes and metric of a data set (table 9).

    Args:
        name: one of `datasets()`.

    Returns:
        A `PublishedDataset`.

    Raises:
        ValueError: an unknown name.
    """
    return PublishedDataset(name, **_find("name", name, _tables()["datasets"]))


def models(table: str) -> tuple[str, ...]:
    """Names of the rows of a table.

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
    """The paper's zero-shot scores on the 27 data sets (table 11).

    Args:
        model: one of `models("zero_shot")`, the nine presets.

    Returns:
        {data set: share}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("zero_shot", model)


def linear_probe(model: str = "vit_l14_336") -> dict[str, float]:
    """The paper's linear probe scores on the 27 data sets (a part of table 10).

    Args:
        model: one of `models("linear_probe")`: the nine presets, "lm_rn50", "resnet50", "resnet101",
            "efficientnet_ns_l2_475", "efficientnet_ns_l2_800" and "bit_m_r152x2".

    Returns:
        {data set: share}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("linear_probe", model)


def robustness(model: str = "zero_shot_clip") -> dict[str, float]:
    """Accuracy on ImageNet and under natural shifts (table 16).

    Args:
        model: one of `models("robustness")`: "zero_shot_clip" and "linear_probe_clip" (ViT-L/14 at 336 pixels),
            "efficientnet_ns_l2" and "fixresnext101_32x48d_v2".

    Returns:
        {"ImageNet" or shift: share}. Where the paper has two, those of nearby frames are " PM10", of one frame " PM0".

    Raises:
        ValueError: an unknown model.
    """
    return _row("robustness", model)


def robustness_matched(model: str = "zero_shot_clip") -> dict[str, float]:
    """The two models of equal ImageNet accuracy that figure 13 compares under shift.

    Args:
        model: "zero_shot_clip" or "resnet101".

    Returns:
        {"ImageNet" or shift: share}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("robustness_matched", model)


def retrieval(data: str) -> dict[str, dict[str, float]]:
    """Zero-shot retrieval by ViT-L/14 at 336 pixels (table 13).

    Args:
        data: "Flickr30k" or "MSCOCO".

    Returns:
        {"image_to_text" or "text_to_image": {"recall_at_1", "recall_at_5" or "recall_at_10": share}}.

    Raises:
        ValueError: unknown data.
    """
    rows = _find("data", data, _tables()["retrieval"])
    return {direction: _shares(row) for direction, row in rows.items()}


def ocr(model: str = "zero_shot_clip") -> dict[str, float]:
    """Scores on data sets that need reading (table 14).

    Args:
        model: "zero_shot_clip", "linear_probe_clip" or "linear_raw_pixels".

    Returns:
        {data set: share}, those that the table has for the model.

    Raises:
        ValueError: an unknown model.
    """
    return _row("ocr", model)


def video(model: str = "zero_shot_clip") -> dict[str, float]:
    """Scores on actions in videos (table 15).

    Args:
        model: "zero_shot_clip" or "linear_probe_clip".

    Returns:
        {data set: share}.

    Raises:
        ValueError: an unknown model.
    """
    return _row("video", model)


def shots_to_match() -> dict[str, float]:
    """Labelled images per class at which a probe of the same features equals zero-shot, of 26 data sets (figure 7)."""
    return dict(_tables()["shots_to_match"])


def zero_shot_gain() -> dict[str, float]:
    """By how much zero-shot is above a probe of a ResNet-50's features, in shares of 1 (figure 5)."""
    return _shares(_tables()["zero_shot_gain"])


def open_clip(model: str = "vit_l14_336") -> dict[str, float]:
    """open_clip's scores of the same weights on its 38 data sets, by its names.

    Args:
        model: one of the nine presets.

    Returns:
        {data set: share}.

    Raises:
        ValueError: an unknown model.
    """
    return dict(_find("model", model, _tables()["open_clip"]))


def open_clip_retrieval(model: str = "vit_l14_336") -> dict[str, float]:
    """open_clip's retrieval scores of the same weights, by its names.

    Args:
        model: one of the nine presets.

    Returns:
        {score: share}.

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
    return _shares(_find("model", model, _tables()[table]))


def _shares(row):
    # Rounded, so that 59.6 of the table is 0.596 and not the number before it.
    return {name: round(value / 100, 6) for name, value in row.items()}


def _find(argument, name, rows):
    if name not in rows:
        raise ValueError(f"Nothing is published for this. Expected one of {list(rows)}. Received: {argument}={name!r}.")
    return rows[name]
