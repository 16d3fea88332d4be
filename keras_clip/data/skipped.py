"""Counts what cannot be used of a source, by reason, and raises an error if too many samples are broken."""

import logging
from collections import Counter

from keras_clip.printable import printable

MAX_BROKEN = 0.05
_MIN_BROKEN_TO_REJECT = 1000
# Up to five texts without an image may be stray files, such as a README.txt beside ten pairs.
STRAY = 5
_MAX_EXAMPLES = 100


class SkippedSamples:
    """What a source has that is not used: broken samples, and files that a reader passed over.

    Broken samples are those of the latest epoch of a pipeline, complete at its end. What the reader passed over is
    known as soon as the source is open, and remains.

    Args:
        source: str. What errors call the source.
        limit: float in [0, 1]. The fraction of the samples that may be broken.
        passed_over: `SkippedSamples` or None. What the reader passed over.
        stray: int. This number of samples may have no image, whatever their fraction, if no others are broken and
            `limit` is not 0.

    Attributes:
        counts: `Counter` by reason. Of samples: "no image", "no caption", "caption not UTF-8", "undecodable image",
            "image too large". Of files: "not an image", "image format not read", "hidden file", and so on.
        examples: the first hundred broken samples and the first hundred files, each as "file: key: reason".
    """

    def __init__(
        self, source: str, limit: float = MAX_BROKEN, passed_over: "SkippedSamples | None" = None, stray: int = 0
    ):
        self.limit, self._stray = limit, stray if limit else 0
        self._source, self._passed_over = source, passed_over
        self.begin()

    def __repr__(self) -> str:
        return f"SkippedSamples({dict(self.counts)})"

    @property
    def total(self) -> int:
        """Broken samples and files that were passed over."""
        return self.counts.total()

    @property
    def broken(self) -> int:
        """Broken samples."""
        return self.total - (self._passed_over.total if self._passed_over else 0)

    def begin(self) -> None:
        """Resets the counts for a new epoch."""
        self.counts: Counter[str] = Counter(self._passed_over.counts if self._passed_over else ())
        self.examples: list[str] = list(self._passed_over.examples if self._passed_over else ())

    def add(self, name: str, reason: str, detail: str = "") -> None:
        """Counts one sample or file."""
        self.counts[reason] += 1
        if len(self.examples) < _MAX_EXAMPLES + self._first:
            self.examples.append(printable(f"{name}: {reason}{detail and f' ({detail})'}"))

    def merge(self, other: "SkippedSamples", prefix: str = "") -> None:
        """Adds what another object counted.

        Args:
            other: `SkippedSamples`.
            prefix: str. It is put before the names.
        """
        self.counts.update(other.counts)
        self.examples = [*self.examples, *(prefix + example for example in other.examples)][:_MAX_EXAMPLES]

    @property
    def _first(self) -> int:
        """The place in `examples` of the first broken sample."""
        return len(self._passed_over.examples) if self._passed_over else 0

    def check(self, seen: int, expected: int | None, ended: bool) -> None:
        """Raises a ValueError if too many of the `seen` of `expected` (None: unknown) samples are broken."""
        samples = seen if ended else expected
        is_known = samples is not None or not self.limit
        is_stray = self.broken <= self._stray and self.broken == self._counts_of_samples()["no image"]
        too_many = is_known and self.broken > self.limit * (samples or 0) and not is_stray
        all_broken = self.broken == seen and (ended or seen >= _MIN_BROKEN_TO_REJECT)
        if too_many or all_broken:
            raise ValueError(
                f"At most {100 * self.limit:.4g}% of the samples may be broken, and not all of the first "
                f"{_MIN_BROKEN_TO_REJECT:,}. Received: {self._source}: {self.describe(seen)} Repair or remove them, or "
                "raise `max_broken`."
            )

    def finish(self, seen: int) -> None:
        """Logs a warning if the epoch skipped samples."""
        if self.broken:
            logging.getLogger("keras_clip").warning("skipped %s", self.describe(seen))

    def warn_of_files(self) -> None:
        """Logs a warning if a reader passed over files."""
        if self.total:
            logging.getLogger("keras_clip").warning(
                "passed over %d files of %s: %s. First: %s.",
                self.total,
                self._source,
                _by_reason(self.counts),
                "; ".join(self.examples[:3]),
            )

    def describe(self, seen: int) -> str:
        """The broken samples of the `seen` in one sentence."""
        first = "; ".join(self.examples[self._first :][:3])
        return f"{self.broken:,} of {seen:,} samples: {_by_reason(self._counts_of_samples())}. First: {first}."

    def _counts_of_samples(self) -> Counter:
        return self.counts - (self._passed_over.counts if self._passed_over else Counter())


def _by_reason(counts: Counter) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
