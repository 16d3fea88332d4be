"""Results of an evaluation: scores with intervals, tables, and the correctness of each prediction."""

import base64
import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FORMAT = "keras_clip.evaluation/1"


@dataclasses.dataclass(frozen=True)
class Score:
    """One measured value with its interval, protocol and unit.

    Args:
        dataset: str. Name of the dataset, as in the paper's tables if they contain it.
        method: str, a path: "zero_shot/bare_name", "linear_probe", "few_shot/4", "retrieval/image_to_text".
        metric: str, a key of `METRICS`, or the name of another metric ("recall_at_1", "median_rank").
        value: float, in `unit`.
        low: float, lower bound of the 95 % interval; NaN if there is no interval.
        high: float, upper bound.
        n: int >= 1. Number of examples.
        protocol: str. The other conditions of the measurement: split, image size, prompts. Two scores are comparable
            if their protocols are equal.
        published: float or None. The value that the paper reports for the same model.
        details: further JSON values, such as the seed or C.
        unit: str. "fraction" for values in [0, 1], which reports show as percentages; "rank", for instance, otherwise.

    Raises:
        ValueError: no examples, or an empty name of dataset, method or metric.
    """

    dataset: str
    method: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    protocol: str
    published: float | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: str = "fraction"

    def __post_init__(self):
        if self.n < 1 or not (self.dataset and self.method and self.metric):
            raise ValueError(
                "A score requires at least one example, and names of dataset, method and metric. "
                f"Received: n={self.n}, dataset={self.dataset!r}, method={self.method!r}, metric={self.metric!r}."
            )


COLUMNS = tuple(field.name for field in dataclasses.fields(Score))


class Results:
    """Scores, tables and per-example correctness of one evaluation.

    Args:
        scores: `Score`s.
        tables: {name: rows}; a row is a dict of JSON values.
        correct: {"dataset/method": bool (N,)}, in the order of the dataset's examples.
        info: properties of the evaluation: the model's name, number of parameters, GFLOPs per image.

    Raises:
        ValueError: correctness that is not a vector of booleans.
    """

    def __init__(
        self,
        scores: Sequence[Score] = (),
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        correct: Mapping[str, np.ndarray] | None = None,
        info: Mapping[str, Any] | None = None,
    ):
        self.scores = list(scores)
        self.tables = {name: [dict(row) for row in rows] for name, rows in (tables or {}).items()}
        self.correct = {name: _booleans(name, values) for name, values in (correct or {}).items()}
        self.info = dict(info or {})

    def add(self, score: Score, correct: np.ndarray | None = None) -> None:
        """Adds a score, and which of its examples were classified correctly.

        Args:
            score: `Score`.
            correct: bool (N,), or None.
        """
        self.scores.append(score)
        if correct is not None:
            key = f"{score.dataset}/{score.method}"
            self.correct[key] = _booleans(key, correct)

    def select(self, dataset: str | None = None, method: str | None = None, metric: str | None = None) -> list[Score]:
        """Returns the scores of a dataset, a method and a metric.

        Args:
            dataset: str, or None for all.
            method: str, the method or the first components of its path ("few_shot" for "few_shot/4"). None for all.
            metric: str, or None for all.

        Returns:
            List of `Score`, in the order in which they were added.
        """
        return [
            score
            for score in self.scores
            if dataset in (None, score.dataset)
            and (method is None or f"{score.method}/".startswith(f"{method}/"))
            and metric in (None, score.metric)
        ]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, in the order in which they were added."""
        return list(dict.fromkeys(score.dataset for score in self.scores))

    def to_json(self) -> str:
        """Returns the results as JSON; numbers that are not finite become null."""
        content = {
            "format": FORMAT,
            "info": self.info,
            "scores": [dataclasses.asdict(score) for score in self.scores],
            "tables": self.tables,
            "correct": {
                name: {"n": len(values), "bits": base64.b64encode(np.packbits(values).tobytes()).decode()}
                for name, values in self.correct.items()
            },
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Reads results that `to_json` wrote.

        Args:
            text: str, JSON.

        Returns:
            `Results` equal to those written; null in a score's value or bounds becomes NaN.

        Raises:
            ValueError: JSON of a different format.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            received = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"Expected JSON that `Results.to_json` wrote, format {FORMAT!r}. Received: {received!r}.")
        numbers = ("value", "low", "high")
        scores = [
            # Files of version 0.1 have no units.
            Score(
                **{"unit": "rank" if score["metric"] == "median_rank" else "fraction"}
                | {k: math.nan if k in numbers and v is None else v for k, v in score.items()}
            )
            for score in content["scores"]
        ]
        correct = {
            name: np.unpackbits(np.frombuffer(base64.b64decode(packed["bits"]), np.uint8), count=packed["n"]).astype(
                bool
            )
            for name, packed in content["correct"].items()
        }
        return cls(scores, content["tables"], correct, content["info"])

    def to_csv(self) -> str:
        """Returns the scores as CSV, one per line; `details` is JSON in its cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for score in self.scores:
            row = dataclasses.asdict(score)
            row["details"] = json.dumps(_plain(row["details"]), sort_keys=True)
            writer.writerow("" if _missing(row[column]) else row[column] for column in COLUMNS)
        return text.getvalue()


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _booleans(name: str, values) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype != bool:
        raise ValueError(
            f"Correctness must be booleans (N,). Received: {name!r} of shape {values.shape} and dtype {values.dtype}."
        )
    return values


def _plain(value):
    """Returns the value converted to the Python types that JSON supports."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if _missing(value) else value
