"""The expressions of rules: their grammar, and their values on a table.

    clip_score >= 0.28
    language == "en" and words > 2 and min(width, height) >= 200
    top(clip_score, 0.3) and not file_name_like
    format in ("JPEG", "PNG") or listed(cluster, "imagenet_clusters")

An expression has comparisons (also chained ones, such as 200 <= width < 4000), `in`, `and`, `or`, `not`, the arithmetic
+ - * / of columns and numbers, and these functions:

- `min(a, b, ...)` and `max(a, b, ...)` of columns and numbers;
- `known(column)`: the value is there and is not NaN;
- `contains(caption, "word", ...)`: any of these words or phrases occurs, in any case, at word boundaries;
- `matches(caption, "pattern")`: a regular expression (RE2) matches a part of the text;
- `top(column, share)`: the value is among this share of the largest ones of the whole pool, ties included;
- `listed(column, "name")`: the value is in a list that the caller gives by name;
- `mentions(caption, "name")`: an entry of a list given by name occurs, in any case, at word boundaries.

The text is parsed, never executed, and anything else is refused. A comparison with an absent value (null or NaN) is
unknown, as in SQL, and so is its negation; a pair is kept only if the whole expression is true.
"""

import ast
import functools
import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

_COMPARISONS = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
_MAX_LENGTH, _MAX_DEPTH = 10_000, 50
# Function: number of arguments (at least, at most).
_FUNCTIONS = {
    "min": (2, None),
    "max": (2, None),
    "known": (1, 1),
    "contains": (2, None),
    "matches": (2, 2),
    "top": (2, 2),
    "listed": (2, 2),
    "mentions": (2, 2),
}


def parsed(expression: str) -> ast.expr:
    if not isinstance(expression, str) or not expression.strip() or len(expression) > _MAX_LENGTH:
        raise ValueError(
            f"A rule must be an expression such as 'clip_score >= 0.28', of at most {_MAX_LENGTH:,} characters. "
            f"Received: {expression if not isinstance(expression, str) else expression[:80]!r}."
        )
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"A rule must be an expression such as 'clip_score >= 0.28 and words > 2'. Received: {expression!r}, "
            f"which cannot be parsed: {getattr(error, 'msg', error)}."
        ) from None


_OF_TEXTS = ("contains", "matches", "mentions")


class Checker:
    """Walks through the expression once, refuses what is not in the grammar, and collects what it reads."""

    def __init__(self, expression: str):
        self._expression = expression
        self._columns, self._shares, self._lists = {}, {}, {}

    def check(self, tree: ast.expr):
        self._condition(tree, 0)
        return tuple(self._columns), tuple(self._shares), tuple(self._lists)

    def _refuse(self, node, expected):
        raise ValueError(
            f"{expected} Received: {ast.unparse(node)!r} in the rule {self._expression!r}. The functions: "
            f"{', '.join(_FUNCTIONS)}."
        )

    def _condition(self, node, depth):
        if depth > _MAX_DEPTH:
            self._refuse(node, f"A rule may be nested {_MAX_DEPTH} times.")
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._condition(value, depth + 1)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._condition(node.operand, depth + 1)
        elif isinstance(node, ast.Compare):
            self._comparison(node, depth)
        elif isinstance(node, ast.Name):
            self._columns[node.id] = None
        elif isinstance(node, ast.Call) and self._function(node) not in ("min", "max"):
            self._test(node)
        else:
            self._refuse(node, "A condition must be a comparison, a column of truth values or a function of them.")

    def _comparison(self, node, depth):
        self._value(node.left, depth + 1)
        for operator, value in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                if not isinstance(value, ast.Tuple | ast.List) or not value.elts:
                    self._refuse(value, 'After `in` must be a list, such as ("JPEG", "PNG").')
                kinds = {type(self._constant(element)) in (int, float) for element in value.elts}
                if len(kinds) > 1:
                    self._refuse(value, "A list must hold texts or numbers, not both.")
            elif type(operator) in _COMPARISONS:
                self._value(value, depth + 1)
            else:
                self._refuse(node, "A comparison must be one of < <= > >= == != in, not in; `known(x)` tests for null.")

    def _value(self, node, depth):
        if depth > _MAX_DEPTH:
            self._refuse(node, f"A rule may be nested {_MAX_DEPTH} times.")
        if isinstance(node, ast.Name):
            self._columns[node.id] = None
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            self._value(node.left, depth + 1)
            self._value(node.right, depth + 1)
        elif isinstance(node, ast.Call) and self._function(node) in ("min", "max"):
            for argument in node.args:
                self._value(argument, depth + 1)
        elif not isinstance(node, ast.Call):
            self._constant(node)
        else:
            self._refuse(node, "A value must be a column, a constant, arithmetic, or `min` or `max` of them.")

    def _constant(self, node):
        value = _constant(node)
        if value is None:
            self._refuse(node, "A value must be a column, a finite number, a text or a truth value.")
        return value

    def _function(self, node):
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in _FUNCTIONS or node.keywords:
            self._refuse(node, "A rule has no other functions, and they have no named arguments.")
        low, high = _FUNCTIONS[name]
        if len(node.args) < low or (high is not None and len(node.args) > high):
            self._refuse(node, f"`{name}` has {low} arguments{'' if high else ' or more'}.")
        return name

    def _test(self, node):
        name = node.func.id
        first, *rest = node.args
        if not isinstance(first, ast.Name):
            self._refuse(node, f"The first argument of `{name}` must be a column.")
        self._columns[first.id] = None
        values = [self._constant(argument) for argument in rest]
        if name == "top":
            if isinstance(values[0], bool | str) or not 0 < values[0] <= 1:
                self._refuse(node, "The share of `top` must be a number in (0, 1].")
            self._shares[first.id, float(values[0])] = None
        elif not all(isinstance(value, str) and value for value in values):
            self._refuse(node, f"The arguments of `{name}` after the column must be texts.")
        if name in ("listed", "mentions"):
            self._lists[values[0]] = None
        if name == "matches":
            self._pattern(node, values[0])

    def _pattern(self, node, pattern):
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            pc.match_substring_regex(pa.array([""]), pattern)
        except pa.ArrowInvalid as error:
            self._refuse(node, f"The pattern must be a regular expression of RE2 ({error}).")


def _constant(node) -> Any:
    """Returns the value of a constant, None if it is none."""
    sign = 1
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -sign
    if not isinstance(node, ast.Constant) or not isinstance(node.value, bool | int | float | str):
        return None
    if isinstance(node.value, bool | str):
        return node.value if sign == 1 else None
    value = sign * node.value
    # Columns of integers have 64 bits, with or without a sign.
    in_range = math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**64
    return value if in_range else None


class Evaluator:
    """Computes an expression on a table with three-valued logic; absent and NaN are both null."""

    def __init__(self, expression, table, thresholds, lists):
        self._expression, self._table, self._thresholds, self._lists = expression, table, thresholds, lists

    def keeps(self, tree):
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            result = self._condition(tree)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            types = ", ".join(f"{field.name}: {field.type}" for field in self._table.schema)
            raise ValueError(
                f"A rule must compare values of one type. Received: {self._expression!r} on {types}: {error}."
            ) from None
        return np.asarray(pc.fill_null(result, False).combine_chunks()).astype(bool)

    def _condition(self, node):
        import pyarrow.compute as pc

        if isinstance(node, ast.BoolOp):
            combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            return functools.reduce(combine, map(self._condition, node.values))
        if isinstance(node, ast.UnaryOp):
            return pc.invert(self._condition(node.operand))
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Name):
            return self._truth(node)
        return self._test(node)

    def _truth(self, node):
        import pyarrow as pa

        column = self._column(node.id)
        if not pa.types.is_boolean(column.type):
            raise ValueError(
                f"A column that stands alone in a rule must hold truth values. Received: {node.id!r} of type "
                f"{column.type} in {self._expression!r}. Compare it with a value."
            )
        return column

    def _column(self, name):
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._table.column(name)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return column

    def _comparison(self, node):
        import pyarrow.compute as pc

        left, results = node.left, []
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                result = self._is_in(self._value(left), [_constant(element) for element in right.elts])
                results.append(pc.invert(result) if isinstance(operator, ast.NotIn) else result)
            else:
                compare = getattr(pc, _COMPARISONS[type(operator)])
                results.append(compare(*_of_one_type([self._value(left), self._value(right)])))
            left = right
        return self._spread(functools.reduce(pc.and_kleene, results))

    def _spread(self, value):
        """Returns a column also for a condition of constants alone."""
        import pyarrow as pa

        if isinstance(value, pa.Scalar):
            value = pa.array([value.as_py()] * self._table.num_rows, value.type)
        return pa.chunked_array([value]) if isinstance(value, pa.Array) else value

    def _is_in(self, column, values):
        import pyarrow as pa
        import pyarrow.compute as pc

        if _is_number(column.type):
            values = _numbers(values)
            if values is None:
                raise ValueError(
                    f"A list must have the type of its column. Received: {self._expression!r}, where the column has "
                    f"the type {column.type}."
                )
            if pa.types.is_integer(column.type):
                whole = [Decimal(int(value)) for value in values if math.isfinite(value) and value == int(value)]
                column, values = column.cast(_integers()), pa.array(whole, _integers())
            else:
                column, values = _as_float(column), pa.array([float(value) for value in values], pa.float64())
        else:
            values = pa.array([str(value) for value in values])
        result = pc.is_in(column, value_set=values)
        return pc.if_else(pc.is_valid(column), result, pa.scalar(None, pa.bool_()))

    def _value(self, node):
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.BinOp):
            left, right = (_as_float(self._value(part)) for part in (node.left, node.right))
            result = getattr(pc, _ARITHMETIC[type(node.op)])(left, right)
            return pc.if_else(pc.is_finite(result), result, pa.scalar(None, pa.float64()))
        if isinstance(node, ast.Call):
            combine = pc.min_element_wise if node.func.id == "min" else pc.max_element_wise
            return combine(*_of_one_type(map(self._value, node.args)), skip_nulls=False)
        value = _constant(node)
        return pa.scalar(value, pa.uint64() if type(value) is int and value >= 2**63 else None)

    def _test(self, node):
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._column(node.args[0].id)
        values = [_constant(argument) for argument in node.args[1:]]
        if node.func.id in _OF_TEXTS and not (pa.types.is_string(column.type) or pa.types.is_null(column.type)):
            raise ValueError(
                f"`{node.func.id}` needs a column of texts. Received: {node.args[0].id!r} of type {column.type} in "
                f"{self._expression!r}."
            )
        match node.func.id:
            case "known":
                return pc.is_valid(column)
            case "contains":
                return pc.match_substring_regex(column, _any_phrase(values))
            case "matches":
                return pc.match_substring_regex(column, values[0])
            case "top":
                threshold = self._given(self._thresholds, (node.args[0].id, float(values[0])), "threshold of")
                return pc.greater_equal(numbers_of(column, node.args[0].id), pa.scalar(threshold, pa.float64()))
            case "listed":
                return self._is_in(column, self._given(self._lists, values[0], "list"))
            case _:
                entries = self._given(self._lists, values[0], "list")
                return pa.chunked_array([pa.array(_mentions(column.to_pylist(), entries), pa.bool_())])

    def _given(self, there, name, what):
        if name not in there:
            raise ValueError(
                f"What a rule names must be given. Received: {self._expression!r} without the {what} {name!r}; there "
                f"are {', '.join(map(repr, there)) or 'none'}."
            )
        return there[name]


def numbers_of(column: "pyarrow.ChunkedArray", name: str) -> "pyarrow.ChunkedArray":
    """Returns the values of a column for `top`.

    Args:
        column: the column, of length N.
        name: its name.

    Returns:
        Column of float64 (N,).

    Raises:
        ValueError: a column of something else than numbers.
    """
    if not _is_number(column.type):
        raise ValueError(f"`top` needs a column of numbers. Received: {name!r} of type {column.type}.")
    return _as_float(column)


def _is_number(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _as_float(value):
    import pyarrow as pa
    import pyarrow.compute as pc

    # Integers beyond 2 ** 53 are rounded.
    return pc.cast(value, pa.float64(), safe=False)


def _integers():
    """The type in which all integers of 64 bits are exact, with and without a sign."""
    import pyarrow as pa

    return pa.decimal128(20)


def _of_one_type(values) -> list:
    """Returns numbers in one type; a float32 score and 0.28 are compared in float64, as a user means them."""
    import pyarrow as pa

    values = list(values)
    if not all(_is_number(value.type) for value in values):
        return values
    if any(pa.types.is_floating(value.type) for value in values):
        return list(map(_as_float, values))
    if any(value.type in (pa.uint64(), _integers()) for value in values):
        return [value.cast(_integers()) for value in values]
    return values


def _any_phrase(phrases) -> str:
    alternatives = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return rf"(?i)(^|[^\pL\pN_])({alternatives})($|[^\pL\pN_])"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


@functools.lru_cache(maxsize=8)
def _phrases(entries: tuple[str, ...]) -> tuple[frozenset[tuple[str, ...]], tuple[int, ...]]:
    phrases = frozenset(words for entry in entries if (words := tuple(_words(entry))))
    return phrases, tuple(sorted({len(words) for words in phrases}))


def _mentions(captions, entries) -> list[bool | None]:
    """Whether each caption has an entry as a sequence of whole words."""
    phrases, lengths = _phrases(tuple(entries))
    found = []
    for caption in captions:
        words = None if caption is None else _words(caption)
        found.append(
            words
            if words is None
            else any(
                tuple(words[start : start + length]) in phrases
                for length in lengths
                for start in range(len(words) - length + 1)
            )
        )
    return found


def _numbers(values) -> list[int | float] | None:
    """Returns a list as numbers, also if it was read from the lines of a file; None if a value is no number."""
    try:
        return [value if isinstance(value, int) else _number(value) for value in values]
    except (TypeError, ValueError):
        return None


def _number(value) -> int | float:
    try:
        return int(value) if isinstance(value, str) else float(value)
    except ValueError:
        return float(value)
