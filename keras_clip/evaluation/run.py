"""Evaluation of a model on datasets in one call (Radford et al., 2021, section 3)."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from keras_clip import flops
from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.evaluation.parts import (
    calibration,
    class_design,
    errors,
    few_shot,
    heads,
    limits,
    linear_probe,
    retrieval,
    robustness,
    zero_shot,
)
from keras_clip.evaluation.parts.case import Case
from keras_clip.evaluation.results import Results
from keras_clip.evaluation.tasks import Images, Task, encode
from keras_clip.model import CLIPModel

_PARTS = {
    part.name: part
    for part in (
        zero_shot.PART,
        linear_probe.PART,
        few_shot.PART,
        heads.PART,
        calibration.PART,
        robustness.PART,
        retrieval.PART,
        class_design.PART,
        limits.PART,
        errors.PART,
    )
}
PARTS = tuple(_PARTS)


def evaluate(
    clip: CLIPModel,
    tasks: Task | Images | Sequence[Task | Images],
    folder: str | os.PathLike | None = None,
    parts: Sequence[str] | None = None,
    model: str = "model",
    batch_size: int = 64,
    verbose: int = 1,
) -> Results:
    """Evaluates a model on datasets by the methods of the paper's section 3; each score has a confidence interval.

    Images are encoded once; their features are stored in `folder`, so that a second call takes seconds.

    Args:
        clip: `CLIPModel`.
        tasks: a `Task`, or several; images alone are the test split of a task with default options.
        folder: folder of the feature stores. Not needed if all splits are stores.
        parts: names from `evaluation.PARTS`: "zero_shot", "linear_probe", "few_shot", "heads", "calibration",
            "robustness", "retrieval", "class_design", "limits" and "errors". None: every part for which the task has
            the data.
        model: str. The name of the model in the report.
        batch_size: int. Images per step of the encoder.
        verbose: int. 0 hides the progress bars.

    Returns:
        `Results`. `report.write` writes them as an HTML page.

    Raises:
        ValueError: no task, two datasets with the same name, an unknown part, a part without its data, a store of
            another model, or splits that do not match.
    """
    from tqdm import tqdm

    tasks = [tasks] if isinstance(tasks, Images) or isinstance(tasks, Task) else list(tasks)
    tasks = [task if isinstance(task, Task) else Task(task) for task in tasks]
    if not tasks or not set(parts or ()) <= set(PARTS):
        raise ValueError(f"Expected a task, and parts from {list(PARTS)}. Received: {len(tasks)} tasks, parts={parts}.")
    results = Results(info=_describe(clip, model))
    cases = [Case(clip, task, encode(clip, task, folder, batch_size), results, verbose) for task in tasks]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected datasets with different names. Received: {names}. Pass `name` to their sources.")
    runs = [(case, part) for case in cases for part in _selected(case, parts)]
    with tqdm(runs, desc="Evaluating", disable=not verbose, leave=False) as bar:
        for case, part in bar:
            bar.set_postfix_str(f"{case.name}: {part}")
            _PARTS[part].run(case)
    for case in cases:
        results.info.setdefault("images", {})[case.name] = _digest(case.splits.test.ids)
    return results


def _selected(case: Case, parts: Sequence[str] | None) -> list[str]:
    selected = []
    for name, part in _PARTS.items():
        if parts is not None and name not in parts:
            continue
        if part.is_possible(case.splits, case.task):
            selected.append(name)
        elif parts is not None:
            raise ValueError(
                f"The part {name!r} requires {part.needs}. Received: a task on {case.splits.test} without this. Add "
                "the data to the task, or remove the part."
            )
    return selected


def _digest(ids) -> str:
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def _describe(clip: CLIPModel, model: str) -> dict[str, Any]:
    encoder = clip.image_encoder
    info = {"model": model, "parameters": clip.count_params(), "image_size": list(clip.image_preprocessor.sides)}
    if isinstance(encoder, VisionTransformer | ModifiedResNet):
        operations = flops.image_encoder(encoder.get_config(), whole=True)
        operations += flops.projection(clip.image_projection.dense.kernel.shape[0], clip.embed_dim)
        # As in the paper's figures, a multiply-add counts as one operation.
        info["gflops_per_image"] = operations / 2e9
    return info
