"""Rules that keep or reject pairs by the columns of their tables, written as short expressions (see `expressions`)."""

import ast
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.curation.expressions import Checker, Evaluator, parsed

if TYPE_CHECKING:
    import pyarrow


class Rule:
    """Keeps the pairs for which an expression is true.

    Args:
        expression: str; see the module `expressions`.
        reason: str, why a pair is rejected, for verdicts and the data card. None: "not: " and the expression.
        name: str, by which the card names the rule. None: the expression.

    Attributes:
        expression: str, with normal spacing.
        columns: tuple of str, the columns that it reads.
        shares: tuple of (column, share), which `top` needs thresholds for.
        lists: tuple of str, the names of lists that it needs.

    Raises:
        ValueError: an expression that is not in the grammar.
    """

    def __init__(self, expression: str, reason: str | None = None, name: str | None = None):
        self._tree = parsed(expression)
        self.expression = ast.unparse(self._tree)
        self.reason = f"not: {self.expression}" if reason is None else reason
        self.name = self.expression if name is None else name
        self.columns, self.shares, self.lists = Checker(expression).check(self._tree)

    def __repr__(self) -> str:
        return f"Rule({self.expression!r}, reason={self.reason!r}, name={self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.as_json() == other.as_json()

    def __hash__(self) -> int:
        return hash((self.expression, self.reason, self.name))

    def as_json(self) -> dict[str, str]:
        """Returns the arguments, as JSON data."""
        return {"expression": self.expression, "reason": self.reason, "name": self.name}

    @classmethod
    def from_json(cls, config: Mapping[str, str]) -> "Rule":
        """Returns the rule with these arguments.

        Args:
            config: {"expression", "reason", "name"}, of which the last two may be absent.

        Raises:
            ValueError: something else.
        """
        if (
            not isinstance(config, Mapping)
            or "expression" not in config
            or set(config) - {"expression", "reason", "name"}
            or not all(isinstance(value, str) or value is None for value in config.values())
        ):
            raise ValueError(
                'A rule must be {"expression": text, "reason": text, "name": text}, of which reason and name may be '
                f"absent. Received: {str(config)[:200]}."
            )
        return cls(**config)

    def keeps(
        self,
        table: "pyarrow.Table",
        thresholds: Mapping[tuple[str, float], float] | None = None,
        lists: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Returns which pairs the rule keeps.

        Args:
            table: a table with the columns that the rule reads, N rows.
            thresholds: {(column, share): the smallest value among this share}, for `top`; see `share_threshold`.
            lists: {name: values}, for `listed` and `mentions`.

        Returns:
            bool (N,).

        Raises:
            ValueError: a column, threshold or list that is absent, or values of another type than the rule needs.
        """
        if missing := sorted(set(self.columns) - set(table.column_names)):
            raise ValueError(
                f"A rule reads columns of the profile and the scores. Received: {self.expression!r}, and no column "
                f"{', '.join(missing)} among {', '.join(table.column_names)}. `clip_score` takes the pass `score`."
            )
        return Evaluator(self.expression, table, thresholds or {}, lists or {}).keeps(self._tree)


def read_rules(path: str | os.PathLike) -> tuple[Rule, ...]:
    """Reads rules from a file.

    Args:
        path: JSON file, a list of what `Rule.as_json` returns.

    Returns:
        The rules.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a list of rules.
    """
    try:
        with open(path, encoding="utf-8") as file:
            rules = json.load(file)
    except ValueError as error:
        raise ValueError(f"Rules must be in a JSON file. Received: {os.fspath(path)!r}: {error}.") from error
    if not isinstance(rules, list):
        raise ValueError(
            'Rules must be a list, such as [{"expression": "words > 2"}]. '
            f"Received: {os.fspath(path)!r}, with a value of type {type(rules).__name__}."
        )
    try:
        return tuple(map(Rule.from_json, rules))
    except ValueError as error:
        raise ValueError(f"{error} In the file {os.fspath(path)!r}.") from error


def all_of(rules: Iterable[Rule], reason: str | None = None, name: str | None = None) -> Rule:
    """Returns the rule that keeps what all of the rules keep.

    Args:
        rules: one rule or more.
        reason: str or None, as of `Rule`.
        name: str or None, as of `Rule`.

    Returns:
        The rule.
    """
    return Rule(" and ".join(f"({rule.expression})" for rule in rules), reason, name)


def any_of(rules: Iterable[Rule], reason: str | None = None, name: str | None = None) -> Rule:
    """Returns the rule that keeps what any of the rules keeps; arguments as of `all_of`."""
    return Rule(" or ".join(f"({rule.expression})" for rule in rules), reason, name)


def not_(rule: Rule, reason: str | None = None, name: str | None = None) -> Rule:
    """Returns the rule that keeps what a rule rejects, unless a value is absent; arguments as of `Rule`."""
    return Rule(f"not ({rule.expression})", reason, name)


def datacomp_basic(language: str = "en") -> tuple[Rule, ...]:
    """Returns the basic filter of DataComp (Gadre et al., 2023, section 3.2), one rule for each reason.

    Args:
        language: str, ISO 639-1.

    Returns:
        Rules on the profile: the image is decodable, the caption is in the language, has more than 2 words and more
        than 5 characters, the shorter side is at least 200 pixels, and the aspect is at most 3.

    Raises:
        ValueError: a language that is not named by two letters.
    """
    if not (isinstance(language, str) and len(language) == 2 and language.isascii() and language.islower()):
        raise ValueError(f"`language` must be two letters of ISO 639-1, such as 'en'. Received: language={language!r}.")
    return (
        Rule("decode_ok", "image cannot be used", "decodable"),
        Rule(f"language == {language!r}", f"caption not in {language}", "DataComp basic: language"),
        Rule("words > 2", "caption of two words or fewer", "DataComp basic: words"),
        Rule("characters > 5", "caption of five characters or fewer", "DataComp basic: characters"),
        Rule("min(width, height) >= 200", "shorter side below 200 pixels", "DataComp basic: size"),
        Rule("aspect <= 3", "aspect above 3", "DataComp basic: aspect"),
    )


def first_reasons(
    rules: Iterable[Rule],
    table: "pyarrow.Table",
    thresholds: Mapping[tuple[str, float], float] | None = None,
    lists: Mapping[str, Any] | None = None,
) -> "pyarrow.Array":
    """Returns the reason of the first rule that rejects each pair, arguments as of `Rule.keeps`; null if none does."""
    import pyarrow as pa

    reasons = np.full(table.num_rows, None, object)
    for rule in rules:
        rejected = ~rule.keeps(table, thresholds, lists)
        reasons[rejected & (reasons == None)] = rule.reason  # noqa: E711 (elementwise)
    return pa.array(reasons, pa.string())


def share_threshold(columns: Callable[[], Iterable[np.ndarray]], share: float) -> float:
    """Returns the smallest value among a share of the largest ones, exactly and in any order of the parts.

    Four histograms of 65,536 bins, each over all values, select the value from its high to its low bits, so that memory
    does not depend on the number of values.

    Args:
        columns: function that returns the parts of the column, numbers (N,) each, anew for each call. NaN is left out.
        share: float in (0, 1]. ceil(share * number of values) values are at or above the threshold, and those equal to
            it.

    Returns:
        The threshold; infinity if there are no values.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"A share must be in (0, 1]. Received: share={share!r}.")
    prefix, rank = 0, None
    for shift in (48, 32, 16, 0):
        histogram = np.zeros(2**16, np.int64)
        for part in columns():
            bits = _ordered(part)
            if shift < 48:
                bits = bits[bits >> np.uint64(shift + 16) == prefix]
            histogram += np.bincount((bits >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64), minlength=2**16)
        if rank is None:
            total = int(histogram.sum())
            if not total:
                return float("inf")
            # The exact product of a decimal such as 0.3, which as a float is slightly larger, must not round up.
            rank = min(total, max(1, int(np.ceil(share * total - 1e-9 * total))))
        above = histogram[::-1].cumsum()
        place = int(np.searchsorted(above, rank))
        rank -= int(above[place - 1]) if place else 0
        prefix = prefix << 16 | (2**16 - 1 - place)
    return _value(prefix)


def _ordered(values) -> np.ndarray:
    """Returns numbers of 64 bits in the order of the values, without NaN."""
    values = np.asarray(values, np.float64)
    # Adding 0 makes -0 the same as 0.
    bits = (values[~np.isnan(values)] + 0.0).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(2**63))


def _value(ordered: int) -> float:
    bits = ordered ^ 2**63 if ordered >> 63 else ordered ^ (2**64 - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])
