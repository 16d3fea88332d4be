"""One call from a model and data sets to all results (Radford et al., 2021, section 3)."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_clip import flops
from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.evaluation.metrics.comparison import compare_over_datasets
from keras_clip.evaluation.parts import inspecting, measuring
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.results import Results
from keras_clip.evaluation.tasks import Images, Splits, Task, encode
from keras_clip.model import CLIPModel

# A part, and what it wants of a task beside the test split: a name for it, and whether it is there.
_PARTS: Mapping[str, tuple[Callable[[Case], None], str, Callable[[Splits, Task], bool]]] = {
    "zero_shot": (measuring.zero_shot, "class names", lambda splits, _: splits.test.class_names is not None),
    "linear_probe": (measuring.linear_probe, "`train`", lambda splits, _: splits.train is not None),
    "few_shot": (measuring.few_shot, "`train`, one class per image", lambda splits, _: _is_trained(splits)),
    "heads": (measuring.heads, "`train`, one class per image", lambda splits, _: _is_trained(splits)),
    "calibration": (measuring.calibration, "one class per image", lambda splits, _: _is_single(splits)),
    "robustness": (measuring.robustness, "`shifts`", lambda splits, _: bool(splits.shifts)),
    "retrieval": (inspecting.retrieval, "`captions`", lambda _, task: bool(task.captions)),
    "class_design": (inspecting.class_design, "`class_sets`", lambda _, task: bool(task.class_sets)),
    "errors": (inspecting.errors, "one class per image", lambda splits, _: _is_single(splits)),
}
PARTS = tuple(_PARTS)


def _is_single(splits: Splits) -> bool:
    return not splits.test.multi_label and splits.test.class_names is not None


def _is_trained(splits: Splits) -> bool:
    return splits.train is not None and _is_single(splits)


def evaluate(
    clip: CLIPModel,
    tasks: Task | Images | Sequence[Task | Images],
    folder: str | os.PathLike | None = None,
    parts: Sequence[str] | None = None,
    model: str = "model",
    batch_size: int = 64,
    verbose: int = 1,
) -> Results:
    """Measures a model on data sets: all of the paper's section 3 that the data allow, each number with its interval.

    Images go through the image encoder once; what comes out is kept in `folder`, so that a second call takes seconds.

    Args:
        clip: `CLIPModel`.
        tasks: a `Task`, or several; images alone are the test split of a task that asks for nothing else.
        folder: of the feature stores. Not needed where all splits are stores.
        parts: some of `evaluate.PARTS`: "zero_shot", "linear_probe", "few_shot", "heads", "calibration", "robustness",
            "retrieval", "class_design" and "errors". None: all that a task has the data for.
        model: str. What the report calls the model.
        batch_size: int. Images per step of the encoder.
        verbose: int. 0 hides the progress bars.

    Returns:
        `Results`. `report.write` makes a page of it.

    Raises:
        ValueError: no task, two data sets of one name, an unknown part, a part without its data, a store of another
            model, or splits that do not match.
    """
    from tqdm import tqdm

    tasks = [tasks] if isinstance(tasks, Images) or isinstance(tasks, Task) else list(tasks)
    tasks = [task if isinstance(task, Task) else Task(task) for task in tasks]
    if not tasks or not set(parts or ()) <= set(PARTS):
        raise ValueError(f"Wanted: a task, and parts of {list(PARTS)}. Received: {len(tasks)} tasks, parts={parts}.")
    results = Results(info=_describe(clip, model))
    cases = [Case(clip, task, encode(clip, task, folder, batch_size), results, verbose) for task in tasks]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"Data sets want different names. Received: {names}. Give their sources a `name`.")
    todo = [(case, part) for case in cases for part in _chosen(case, parts)]
    with tqdm(todo, desc="Evaluating", disable=not verbose, leave=False) as bar:
        for case, part in bar:
            bar.set_postfix_str(f"{case.name}: {part}")
            _PARTS[part][0](case)
    for case in cases:
        results.info.setdefault("images", {})[case.name] = _digest(case.splits.test.ids)
    return results


def _chosen(case: Case, parts: Sequence[str] | None) -> list[str]:
    chosen = []
    for part, (_, wanted, is_there) in _PARTS.items():
        if parts is not None and part not in parts:
            continue
        if is_there(case.splits, case.task):
            chosen.append(part)
        elif parts is not None:
            raise ValueError(
                f"{part!r} wants {wanted}. Received: a task of {case.splits.test} without. Give it, or leave the part "
                "out."
            )
    return chosen


def _digest(ids) -> str:
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def _describe(clip: CLIPModel, model: str) -> dict[str, Any]:
    encoder = clip.image_encoder
    info = {"model": model, "parameters": clip.count_params(), "image_size": list(clip.image_preprocessor.sides)}
    if isinstance(encoder, VisionTransformer | ModifiedResNet):
        operations = flops.image_encoder(encoder.get_config(), whole=True)
        operations += flops.projection(clip.image_projection.dense.kernel.shape[0], clip.embed_dim)
        # As the paper's figures have it: a multiply-add is one.
        info["gflops_per_image"] = operations / 2e9
    return info


def compare(first: Results, second: Results) -> list[dict[str, Any]]:
    """Two models on the same images, by every method of both, with McNemar's test and Holm's correction.

    Args:
        first: `Results` of one model.
        second: those of the other.

    Returns:
        Rows: "dataset", "method", "n", "first", "second" (shares of right answers), "difference" (second - first),
        "low", "high", "p_value", "adjusted_p_value".

    Raises:
        ValueError: nothing in common, or data sets of one name with other images.
    """
    pairs = {key: (first.correct[key], second.correct[key]) for key in first.correct if key in second.correct}
    if not pairs:
        raise ValueError(
            "Wanted: a data set and a method that both results have. "
            f"Received: {list(first.correct)[:5]} and {list(second.correct)[:5]}."
        )
    ours, theirs = (results.info.get("images", {}) for results in (first, second))
    if differing := [name for name in ours if name in theirs and ours[name] != theirs[name]]:
        raise ValueError(
            f"Wanted: the same images in the same order for both models. Received: others of {differing}. Evaluate "
            "both on one data set."
        )
    compared = compare_over_datasets(*({key: pair[i] for key, pair in pairs.items()} for i in (0, 1)))
    rows = []
    for key, found in compared.items():
        # Names of data sets may have the slash that stands before the method.
        dataset = max((name for name in first.datasets if key.startswith(f"{name}/")), key=len)
        rows.append({"dataset": dataset, "method": key.removeprefix(f"{dataset}/"), **vars(found)})
    return rows
