"""Evaluation of a model on datasets in one call (Radford et al., 2021, section 3)."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_clip import flops
from keras_clip.encoders.resnet import ModifiedResNet
from keras_clip.encoders.vit import VisionTransformer
from keras_clip.evaluation.features.encoding import load_model
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
from keras_clip.evaluation.results import Failure, Results, digest_of
from keras_clip.evaluation.tasks import Images, Task, encode
from keras_clip.model import CLIPModel
from keras_clip.printable import printable

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
# Images that could not be read, and files that were passed over, which results name for each split.
_EXAMPLES = 20


def evaluate(
    clip: CLIPModel | str | os.PathLike,
    tasks: Task | Images | Sequence[Task | Images],
    folder: str | os.PathLike | None = None,
    parts: Sequence[str] | None = None,
    model: str | None = None,
    batch_size: int = 64,
    verbose: int = 1,
    out: str | os.PathLike | None = None,
    max_broken: float | None = None,
    full_digest: bool = False,
) -> Results:
    """Evaluates a model on datasets by the methods of the paper's section 3; each score has a confidence interval.

    Images are encoded once; their features are stored in `folder`, so that a second call takes seconds.

    A part that raises an error does not take the others along: it is among `Results.failures`, and there is a warning;
    likewise if the files in `out` cannot be written. If nothing could be measured, the first error is raised.

    Args:
        clip: `CLIPModel`; or a model as `presets.load` takes it, such as the path of a .keras file or the name of a
            published model.
        tasks: a `Task`, or several; images alone are the test split of a task with default options.
        folder: folder of the feature stores. Not needed if all splits are stores.
        parts: names from `evaluation.PARTS`: "zero_shot", "linear_probe", "few_shot", "heads", "calibration",
            "robustness", "retrieval", "class_design", "limits" and "errors". None: every part for which the task has
            the data.
        model: str. The name of the model in the report. None: what `clip` names, or "model".
        batch_size: int. Images per step of the encoder.
        verbose: int. 0 hides the progress bars.
        out: folder in which results.json and results.csv hold, after each part, what has been measured so far. None:
            nothing is written.
        max_broken: float in [0, 1]. The fraction of the images of a split that may be unreadable; they are left out,
            counted and named in `Results.info["skipped"]`. None: that of each task.
        full_digest: bool. Whether all images are read to see whether they have changed; False: only those of which the
            sizes and times of change of the files do not show it (see `FeatureStore.build`).

    Returns:
        `Results`. `report.write` writes them as an HTML page.

    Raises:
        ValueError: no task, two datasets with the same name, an unknown part, a part without its data; if nothing else
            can be measured, a store of another model, or splits that do not match.
        TypeError: a model without text encoder.
    """
    from tqdm import tqdm

    model = model or (os.fspath(clip) if isinstance(clip, (str, os.PathLike)) else "model")
    tasks = [tasks] if isinstance(tasks, Images) or isinstance(tasks, Task) else list(tasks)
    tasks = [task if isinstance(task, Task) else Task(task) for task in tasks]
    if not tasks or not set(parts or ()) <= set(PARTS):
        raise ValueError(f"Expected a task, and parts from {list(PARTS)}. Received: {len(tasks)} tasks, parts={parts}.")
    names = [task.test.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected datasets with different names. Received: {names}. Pass `name` to their sources.")
    selected = [_selected(task, parts) for task in tasks]
    if out is not None:
        # An error now costs nothing; one after the images are encoded costs the evaluation.
        Path(out).mkdir(parents=True, exist_ok=True)
    clip = load_model(clip)
    if not isinstance(clip, CLIPModel):
        raise TypeError(
            "`clip` must be a `CLIPModel`, or what `presets.load` makes one of: the path of a .keras file, the name of "
            f"a published model. Received: {type(clip).__name__}. For the features of an encoder alone, see "
            "`FeatureStore` and `LinearProbe`."
        )
    results, raised = Results(info=_describe(clip, model)), []

    def attempt(dataset: str, part: str, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except Exception as error:
            logging.getLogger("keras_clip").debug("%s: %s failed", dataset, part, exc_info=error)
            if (failure := Failure.of(dataset, part, error)) not in results.failures:
                results.failures.append(failure)
                raised.append(error)
            return None

    def step(dataset: str, part: str, run: Callable[[], Any]) -> Any:
        bar.set_postfix_str(printable(f"{dataset}: {part}"))
        found = attempt(dataset, part, run)
        if out is not None:
            attempt(dataset, "write results", lambda: results.save(out))
        bar.update()
        return found

    def encoded(task: Task) -> Case:
        case = Case(clip, task, encode(clip, task, folder, batch_size, max_broken, full_digest), results, verbose)
        _describe_images(case)
        return case

    steps = sum(1 + len(of_task) for of_task in selected)
    with tqdm(total=steps, desc="Evaluating", disable=not verbose, leave=False) as bar:
        for task, of_task in zip(tasks, selected, strict=True):
            case = step(task.test.name, "encode", lambda task=task: encoded(task))
            for part in of_task if case is not None else ():
                step(case.name, part, lambda part=part, case=case: _PARTS[part](case))
    measured = [rows for name, rows in results.tables.items() if rows and name != "dropped"]
    if raised and not results.scores and not measured:
        raise raised[0]
    if raised:
        failed = printable("; ".join(f"{one.part} of {one.dataset}: {one.error}" for one in results.failures))
        warnings.warn(f"{len(raised)} parts of the evaluation failed. {failed}", stacklevel=2)
    return results


def _describe_images(case: Case) -> None:
    """Adds which images the scores are of, and which were left out or passed over."""
    results, splits = case.results, case.splits
    results.info.setdefault("images", {})[case.name] = digest_of(splits.test.ids)
    if splits.dropped:
        results.tables.setdefault("dropped", []).extend(map(dict, splits.dropped))
    for store in (splits.test, splits.train, splits.validation, *splits.shifts.values()):
        if store is not None and store.skipped.total:
            found = {"counts": dict(store.skipped.counts), "examples": store.skipped.examples[:_EXAMPLES]}
            results.info.setdefault("skipped", {})[f"{store.name}/{store.split}"] = found


def _selected(task: Task, parts: Sequence[str] | None) -> list[str]:
    selected = []
    for name, part in _PARTS.items():
        if parts is not None and name not in parts:
            continue
        if part.is_possible(task, task):
            selected.append(name)
        elif parts is not None:
            raise ValueError(
                f"The part {name!r} requires {part.needs}. Received: a task on {task.test.name}/{task.test.split} "
                "without this. Add the data to the task, or remove the part."
            )
    return selected


def _describe(clip: CLIPModel, model: str) -> dict[str, Any]:
    encoder = clip.image_encoder
    info = {"model": model, "parameters": clip.count_params(), "image_size": list(clip.image_preprocessor.sides)}
    if isinstance(encoder, VisionTransformer | ModifiedResNet):
        operations = flops.image_encoder(encoder.get_config(), whole=True)
        operations += flops.projection(clip.image_projection.dense.kernel.shape[0], clip.embed_dim)
        # As in the paper's figures, a multiply-add counts as one operation.
        info["gflops_per_image"] = operations / 2e9
    return info
