"""The record of samples that could not be used, and the line between a few of them and a wrong source."""

import logging
from collections import Counter

_NONE_GOOD_AMONG = 1000
_LARGEST_SHARE = 0.05
_NAMED = 100


class SkippedSamples:
    """What the latest epoch of a pipeline has skipped, complete when the epoch is.

    Attributes:
        counts: `Counter` of samples by reason: "no image", "no caption", "caption not UTF-8", "undecodable image",
            "image too large".
        examples: the first hundred, each "file: key: reason".
    """

    def __init__(self, source: str):
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []
        self._source = source

    def __repr__(self) -> str:
        return f"SkippedSamples({dict(self.counts)})"

    @property
    def total(self) -> int:
        return self.counts.total()

    def begin(self) -> None:
        """Starts the record of another epoch."""
        self.counts, self.examples = Counter(), []

    def add(self, name: str, reason: str, detail: str = "") -> None:
        self.counts[reason] += 1
        if len(self.examples) < _NAMED:
            self.examples.append(f"{name}: {reason}{detail and f' ({detail})'}")

    def check(self, seen: int, expected: int | None, ended: bool) -> None:
        """Raises if too many samples are broken, `seen` of `expected` (None: unknown) into the epoch."""
        everything = seen if ended else expected
        too_many = everything is not None and self.total > _LARGEST_SHARE * everything
        none_good = self.total == seen and (ended or seen >= _NONE_GOOD_AMONG)
        if too_many or none_good:
            raise ValueError(
                f"At most {_LARGEST_SHARE:.0%} of the samples may be broken, and not all of the first "
                f"{_NONE_GOOD_AMONG:,}. Received: {self._source}: {self.describe(seen)}"
            )

    def finish(self, seen: int) -> None:
        """Warns of what the epoch has skipped."""
        if self.total:
            logging.getLogger("keras_clip").warning("skipped %s", self.describe(seen))

    def describe(self, seen: int) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
        return f"{self.total:,} of {seen:,} samples: {reasons}. First: {'; '.join(self.examples[:3])}."
