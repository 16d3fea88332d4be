"""Results of an evaluation: scores with intervals and the outcome of each example, tables, and parts that failed."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_clip import files
from keras_clip.printable import cell

FORMAT = "keras_clip.evaluation/2"
# Its `correct` is a dict by "dataset/method" beside the scores.
_FORMER_FORMAT = "keras_clip.evaluation/1"
# The details that distinguish scores of one dataset, method and metric.
IDENTITY = ("reference", "seed")
_DTYPES = ("bool", "uint8", "uint16", "uint32", "int32", "int64", "float32", "float64")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a score, in their order. Two models are compared on equal examples only.

    Args:
        ids: str. Hex digest of the ids of the images, and of their captions in retrieval.
        images: str. Hex digest of the images themselves with their labels; "" where only features are known.
        labels: ints (N,) or (N, K), as of `FeatureStore`, or None.
        groups: ints (N,). Examples of one group are not independent, such as the captions of an image. None: all
            examples are independent.
    """

    ids: str
    images: str = ""
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None


def digest_of(texts: Sequence[str]) -> str:
    """Returns the hex digest of texts in their order.

    Args:
        texts: sequence of str, such as the ids of images.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Score:
    """One measured value with its interval, protocol and unit, and the outcome of each example.

    Scores are equal if they are so without the outcomes of their examples.

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
        correct: bool (n,): the examples that count as correct (the highest score, one of the five highest, a hit of
            retrieval). None: unknown.
        outcomes: floats or ints (n,) or (n, K) that the metric is computed from, where `correct` does not suffice, as
            `Metric.outcomes` returns them.
        examples: `Examples`, or None.

    Raises:
        ValueError: no examples, an empty name of dataset, method or metric, or correctness that is not n booleans.
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
    correct: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    outcomes: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    examples: Examples | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.n < 1 or not (self.dataset and self.method and self.metric):
            raise ValueError(
                "A score requires at least one example, and names of dataset, method and metric. "
                f"Received: n={self.n}, dataset={self.dataset!r}, method={self.method!r}, metric={self.metric!r}."
            )
        if self.correct is None:
            return
        correct = np.asarray(self.correct)
        if correct.shape != (self.n,) or correct.dtype != bool:
            raise ValueError(
                f"Correctness must be n booleans. Received: {self.dataset + '/' + self.method!r} with n={self.n}, "
                f"and correctness of shape {correct.shape} and dtype {correct.dtype}."
            )
        object.__setattr__(self, "correct", correct)

    @property
    def key(self) -> tuple[str, ...]:
        """What distinguishes the score from the others of an evaluation: dataset, method, metric, reference, seed."""
        identity = (f"{name}={self.details[name]}" for name in IDENTITY if self.details.get(name) is not None)
        return (self.dataset, self.method, self.metric, *identity)


# The fields of a score that a table can hold.
COLUMNS = tuple(field.name for field in dataclasses.fields(Score) if field.compare)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A part of an evaluation that raised an error.

    Args:
        dataset: str. Name of the dataset.
        part: str. Name of the part, or "encode" if the images could not be encoded.
        error: str. The error in one line.
    """

    dataset: str
    part: str
    error: str

    @classmethod
    def of(cls, dataset: str, part: str, error: Exception) -> "Failure":
        """The record of an exception.

        Args:
            dataset: str. Name of the dataset.
            part: str. Name of the part.
            error: the exception.

        Returns:
            `Failure`.
        """
        return cls(dataset, part, f"{type(error).__name__}: {' '.join(str(error).split())}")


class Results:
    """Scores and tables of one evaluation, and the parts of it that failed.

    Args:
        scores: `Score`s.
        tables: {name: rows}; a row is a dict of JSON values.
        info: properties of the evaluation: the model's name, number of parameters, GFLOPs per image.
        failures: `Failure`s.
    """

    def __init__(
        self,
        scores: Sequence[Score] = (),
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        info: Mapping[str, Any] | None = None,
        failures: Sequence[Failure] = (),
    ):
        self.scores = list(scores)
        self.tables = {name: [dict(row) for row in rows] for name, rows in (tables or {}).items()}
        self.info = dict(info or {})
        self.failures = list(failures)

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """Raises an AttributeError: a key of dataset and method would stand for several scores."""
        raise AttributeError(
            "Correctness belongs to a score. Received: `Results.correct`. Use `Score.correct`, of "
            "`results.select(dataset, method)`."
        )

    def add(self, score: Score, correct: np.ndarray | None = None) -> None:
        """Adds a score.

        Args:
            score: `Score`.
            correct: bool (n,), the `Score.correct` of a score without it; or None.
        """
        self.scores.append(score if correct is None else dataclasses.replace(score, correct=correct))

    def extend(self, other: "Results") -> None:
        """Adds the scores, tables, failures and properties of other results; their rows follow in tables of one name.

        Args:
            other: `Results`, such as those of another dataset. Of properties that both have, dicts are joined, and
                other values replaced.
        """
        self.scores += other.scores
        self.failures += other.failures
        for name, rows in other.tables.items():
            self.tables.setdefault(name, []).extend(rows)
        for name, value in other.info.items():
            former = self.info.get(name)
            self.info[name] = {**former, **value} if isinstance(value, dict) and isinstance(former, dict) else value

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

    def save(self, folder: str | os.PathLike) -> None:
        """Writes results.json and results.csv. Each file is complete at any time.

        Args:
            folder: output folder; it is created. Files of these names in it are replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "results.json", self.to_json())
        files.write_text(folder / "results.csv", self.to_csv())

    def to_json(self) -> str:
        """Returns the results as JSON; numbers that are not finite become null."""
        # Scores of one split share their examples, which are written once.
        examples = list({id(score.examples): score.examples for score in self.scores if score.examples}.values())
        place = {id(of_split): number for number, of_split in enumerate(examples)}
        content = {
            "format": FORMAT,
            "info": self.info,
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "scores": [
                {
                    **_row(score),
                    "correct": _packed(score.correct),
                    "outcomes": _packed(score.outcomes),
                    "examples": None if score.examples is None else place[id(score.examples)],
                }
                for score in self.scores
            ],
            "examples": [
                {**vars(of_split), "labels": _packed(of_split.labels), "groups": _packed(of_split.groups)}
                for of_split in examples
            ],
            "tables": self.tables,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Reads results that `to_json` wrote, in this version or an earlier one.

        Args:
            text: str, JSON.

        Returns:
            `Results` equal to those written; null in a score's value or bounds becomes NaN.

        Raises:
            ValueError: JSON of a different format.
        """
        content = json.loads(text)
        received = content.get("format") if isinstance(content, dict) else type(content).__name__
        if received not in (FORMAT, _FORMER_FORMAT):
            raise ValueError(f"Expected JSON that `Results.to_json` wrote, format {FORMAT!r}. Received: {received!r}.")
        if received == _FORMER_FORMAT:
            return _former(content)
        examples = [
            Examples(**{**stored, "labels": _unpacked(stored["labels"]), "groups": _unpacked(stored["groups"])})
            for stored in content["examples"]
        ]
        scores = [
            Score(
                **_numbers(stored)
                | {
                    "correct": _unpacked(stored["correct"]),
                    "outcomes": _unpacked(stored["outcomes"]),
                    "examples": None if stored["examples"] is None else examples[stored["examples"]],
                }
            )
            for stored in content["scores"]
        ]
        failures = [Failure(**failure) for failure in content["failures"]]
        return cls(scores, _tables(content), content["info"], failures)

    def to_csv(self) -> str:
        """Returns the scores as CSV, one per line; `details` is JSON in its cell.

        Text that a spreadsheet would take for a formula begins with an apostrophe. JSON has every text as it is.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for score in self.scores:
            row = _row(score)
            row["details"] = json.dumps(_plain(row["details"]), sort_keys=True)
            writer.writerow("" if _missing(row[column]) else cell(row[column]) for column in COLUMNS)
        return text.getvalue()


def _former(content: dict[str, Any]) -> Results:
    """Results of the former format, whose correctness is that of the last score of each dataset and method."""
    # Files of version 0.1 have no units.
    units = ({"unit": "rank" if score["metric"] == "median_rank" else "fraction"} for score in content["scores"])
    scores = [Score(**unit | _numbers(score)) for unit, score in zip(units, content["scores"], strict=True)]
    for name, packed in content["correct"].items():
        correct = _bits(packed)
        found = [
            place
            for place, score in enumerate(scores)
            if name == f"{score.dataset}/{score.method}" and score.metric != "expected_calibration_error"
        ]
        if found and scores[found[-1]].n == len(correct):
            scores[found[-1]] = dataclasses.replace(scores[found[-1]], correct=correct)
    return Results(scores, _tables(content), content["info"])


def _tables(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tables of a file. Files of version 0.1 call the true class "class" and the predicted one "named"."""
    names = {"class": "true", "named": "predicted"}
    return {
        table: [{names.get(key, key): value for key, value in row.items()} if "named" in row else row for row in rows]
        for table, rows in content["tables"].items()
    }


def format_value(value: float, unit: str) -> str:
    """The value of a score as people read it.

    Args:
        value: float.
        unit: as of `Score`.

    Returns:
        Per cent for fractions, else four digits; "none" of NaN or infinity.
    """
    if not math.isfinite(value):
        return "none"
    return f"{100 * value:.1f} %" if unit == "fraction" else f"{value:.4g}"


def _numbers(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored score, with NaN where a number is null."""
    return {k: math.nan if k in ("value", "low", "high") and v is None else v for k, v in stored.items()}


def _row(score: Score) -> dict[str, Any]:
    return {name: getattr(score, name) for name in COLUMNS}


def _packed(array: np.ndarray | None) -> dict[str, Any] | None:
    """An array as JSON values; booleans take one bit each."""
    if array is None:
        return None
    array = np.asarray(array)
    stored = np.packbits(array) if array.dtype == bool else np.ascontiguousarray(array)
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(stored.astype(stored.dtype.newbyteorder("<")).tobytes()).decode(),
    }


def _unpacked(packed: Mapping[str, Any] | None) -> np.ndarray | None:
    if packed is None:
        return None
    if packed["dtype"] not in _DTYPES:
        raise ValueError(f"Arrays must be of one of the dtypes {_DTYPES}. Received: dtype={packed['dtype']!r}.")
    data, shape = base64.b64decode(packed["data"]), packed["shape"]
    if packed["dtype"] == "bool":
        return np.unpackbits(np.frombuffer(data, np.uint8), count=math.prod(shape)).astype(bool).reshape(shape)
    return np.frombuffer(data, np.dtype(packed["dtype"]).newbyteorder("<")).astype(packed["dtype"]).reshape(shape)


def _bits(packed: Mapping[str, Any]) -> np.ndarray:
    return _unpacked({"dtype": "bool", "shape": [packed["n"]], "data": packed["bits"]})


def _missing(value) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


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
