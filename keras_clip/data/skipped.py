"""Counts the samples of a source that cannot be used, and raises an error if there are too many."""

import logging
from collections import Counter

_MIN_BROKEN_TO_REJECT = 1000
_MAX_BROKEN_FRACTION = 0.05
_MAX_EXAMPLES = 100


class SkippedSamples:
    """The samples that the latest epoch of a pipeline skipped, complete at the end of the epoch.

    Attributes:
        counts: `Counter` of samples by reason: "no image", "no caption", "caption not UTF-8", "undecodable image",
            "image too large".
        examples: the first hundred skipped samples, each as "file: key: reason".
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
        """Resets the counts for a new epoch."""
        self.counts, self.examples = Counter(), []

    def add(self, name: str, reason: str, detail: str = "") -> None:
        self.counts[reason] += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"{name}: {reason}{detail and f' ({detail})'}")

    def check(self, seen: int, expected: int | None, ended: bool) -> None:
        """Raises a ValueError if too many of the `seen` of `expected` (None: unknown) samples are broken."""
        samples = seen if ended else expected
        too_many = samples is not None and self.total > _MAX_BROKEN_FRACTION * samples
        all_broken = self.total == seen and (ended or seen >= _MIN_BROKEN_TO_REJECT)
        if too_many or all_broken:
            raise ValueError(
                f"At most {_MAX_BROKEN_FRACTION:.0%} of the samples may be broken, and not all of the first "
                f"{_MIN_BROKEN_TO_REJECT:,}. Received: {self._source}: {self.describe(seen)}"
            )

    def finish(self, seen: int) -> None:
        """Logs a warning if the epoch skipped samples."""
        if self.total:
            logging.getLogger("keras_clip").warning("skipped %s", self.describe(seen))

    def describe(self, seen: int) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
        return f"{self.total:,} of {seen:,} samples: {reasons}. First: {'; '.join(self.examples[:3])}."
