"""Checks statistics against a schema without TFDV, with TFDV's verdicts.

Knows what the shipped schema is made of: presence, value counts, types, domains of integers, floats and strings,
environments, numbers of rows, unique values, and the comparison of strings (`infinity_norm`,
`jensen_shannon_divergence`). A schema with anything else is refused, because a check that is left out would look like a
passed one.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

# The fields of the schema that are checked, or that say nothing about data.
_SCHEMA_FIELDS = {"feature", "string_domain", "default_environment", "annotation", "dataset_constraints"}
_FEATURE_FIELDS = {
    "name",
    "annotation",
    "deprecated",
    "distribution_constraints",
    "domain",
    "drift_comparator",
    "float_domain",
    "in_environment",
    "int_domain",
    "lifecycle_stage",
    "not_in_environment",
    "presence",
    "skew_comparator",
    "string_domain",
    "type",
    "unique_constraints",
    "value_count",
}
_COMPARATOR_FIELDS = {"infinity_norm", "jensen_shannon_divergence"}
_CONSTRAINT_FIELDS = {"min_examples_count", "max_examples_count"}
_FLOAT_FIELDS = {"name", "min", "max", "disallow_nan", "disallow_inf"}
# TFDV's stages of features that are not validated.
_UNCHECKED_STAGES = ("PLANNED", "ALPHA", "DEBUG_ONLY", "DEPRECATED", "DISABLED")

Reason = tuple[str, str]


def check(
    statistics: "statistics_pb2.DatasetFeatureStatistics",
    schema: "schema_pb2.Schema",
    environment: str = "",
    previous: "statistics_pb2.DatasetFeatureStatistics | None" = None,
    other: "statistics_pb2.DatasetFeatureStatistics | None" = None,
) -> "anomalies_pb2.Anomalies":
    """Returns the anomalies of a data set, as `tfdv.validate_statistics` does.

    Args:
        statistics: of the data set.
        schema: Schema.
        environment: str. One of the schema's environments, or "" for all features.
        previous: statistics of the snapshot before, for the `drift_comparator`s.
        other: statistics of data that should have the same distribution, for the `skew_comparator`s.

    Returns:
        Anomalies. Descriptions are this module's own.

    Raises:
        ValueError: the schema has a part that this module does not know.
    """
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    _refuse_unknown(schema)
    result = anomalies_pb2.Anomalies()
    features = {_name(feature): feature for feature in statistics.features}
    for name, reasons in _of_features(features, schema, environment, statistics.num_examples):
        _add(result.anomaly_info[name], name, reasons)
    for kind, control in (("drift", previous), ("skew", other)):
        if control is not None:
            controls = {_name(feature): feature for feature in control.features}
            _compare(result, features, controls, schema, environment, kind)
    dataset = list(_of_dataset(statistics, schema.dataset_constraints))
    if dataset:
        _add(result.dataset_anomaly_info, "", dataset)
    return result


def accepted_values(feature: "schema_pb2.Feature", schema: "schema_pb2.Schema") -> tuple[list[str], float] | None:
    """Returns the values that a string may have, and the least share of them; None if there is no domain.

    Args:
        feature: Feature of `schema`.
        schema: Schema, which may name domains that features share.
    """
    if feature.HasField("string_domain"):
        values = list(feature.string_domain.value)
    elif feature.HasField("domain"):
        values = [value for domain in schema.string_domain if domain.name == feature.domain for value in domain.value]
    else:
        return None
    constraints = feature.distribution_constraints
    return values, constraints.min_domain_mass if constraints.HasField("min_domain_mass") else 1.0


def in_environment(feature: "schema_pb2.Feature", schema: "schema_pb2.Schema", environment: str) -> bool:
    """Whether a feature is expected in an environment; "" expects all."""
    if not environment or environment in feature.in_environment:
        return True
    return environment in schema.default_environment and environment not in feature.not_in_environment


def _refuse_unknown(schema: "schema_pb2.Schema") -> None:
    parts = [("", schema, _SCHEMA_FIELDS), ("dataset_constraints.", schema.dataset_constraints, _CONSTRAINT_FIELDS)]
    for feature in schema.feature:
        place = f"feature {feature.name}: "
        parts.append((place, feature, _FEATURE_FIELDS))
        parts.append((f"{place}float_domain.", feature.float_domain, _FLOAT_FIELDS))
        for comparator in ("drift_comparator", "skew_comparator"):
            parts.append((f"{place}{comparator}.", getattr(feature, comparator), _COMPARATOR_FIELDS))
        is_number = feature.HasField("int_domain") or feature.HasField("float_domain")
        if (is_number or feature.type in (2, 3)) and (
            feature.HasField("drift_comparator") or feature.HasField("skew_comparator")
        ):
            raise _unknown(f"{place}a comparator of numbers")
        if feature.int_domain.is_categorical:
            raise _unknown(f"{place}int_domain.is_categorical")
    for place, message, known in parts:
        for field, _ in message.ListFields():
            if field.name not in known:
                raise _unknown(place + field.name)


def _unknown(part: str) -> ValueError:
    return ValueError(
        f"The checker that runs without TFDV does not know this part of the schema. Received: {part}. Install TFDV "
        "(make validation), or leave the part out."
    )


def _name(feature: "statistics_pb2.FeatureNameStatistics") -> str:
    return ".".join(feature.path.step) or feature.name


def _add(info: "anomalies_pb2.AnomalyInfo", name: str, reasons: list[Reason]) -> None:
    """Adds the reasons of one feature to its anomaly."""
    if name:
        info.path.step[:] = [name]
    info.severity = info.ERROR
    for kind, description in reasons:
        info.reason.add(type=kind, short_description=kind.replace("_", " ").capitalize(), description=description)
    info.short_description = "; ".join(reason.short_description for reason in info.reason)
    info.description = " ".join(reason.description for reason in info.reason)


def _of_dataset(statistics, constraints) -> Iterator[Reason]:
    rows = statistics.num_examples
    if constraints.HasField("min_examples_count") and rows < constraints.min_examples_count:
        yield "DATASET_LOW_NUM_EXAMPLES", f"{rows} rows, fewer than {constraints.min_examples_count}."
    if constraints.HasField("max_examples_count") and rows > constraints.max_examples_count:
        yield "DATASET_HIGH_NUM_EXAMPLES", f"{rows} rows, more than {constraints.max_examples_count}."


def _common(feature: "statistics_pb2.FeatureNameStatistics") -> "statistics_pb2.CommonStatistics":
    return getattr(feature, feature.WhichOneof("stats")).common_stats


def _present(feature: "statistics_pb2.FeatureNameStatistics") -> int:
    """The number of rows that have a value."""
    return _common(feature).num_non_missing


def _is_checked(feature) -> bool:
    stages = type(feature).DESCRIPTOR.fields_by_name["lifecycle_stage"].enum_type.values_by_number
    return not feature.deprecated and stages[feature.lifecycle_stage].name not in _UNCHECKED_STAGES


def _of_features(
    features: Mapping[str, Any], schema, environment: str, rows: int
) -> Iterator[tuple[str, list[Reason]]]:
    """The names of features that break the schema, and why."""
    known = {feature.name: feature for feature in schema.feature}
    for name in features.keys() - known.keys():
        yield name, [("SCHEMA_NEW_COLUMN", "The schema has no such feature.")]
    for name, feature in known.items():
        if not _is_checked(feature):
            continue
        expected = in_environment(feature, schema, environment)
        is_required = expected and (feature.presence.min_count > 0 or feature.presence.min_fraction > 0)
        reasons = []
        if name in features and _present(features[name]):
            if not expected:
                reasons.append(("SCHEMA_NEW_COLUMN", f"The environment {environment} has no such feature."))
            reasons += _of_feature(features[name], feature, schema, rows)
        elif is_required and name in features:
            reasons.append(("FEATURE_TYPE_NOT_PRESENT", "No row has a value."))
        elif is_required:
            reasons.append(("SCHEMA_MISSING_COLUMN", "The data has no such feature."))
        if reasons:
            yield name, reasons


def _of_feature(statistics, feature, schema, rows: int) -> Iterator[Reason]:
    """Why the statistics of a feature break the schema."""
    kind = {0: "INT", 1: "FLOAT", 2: "BYTES", 3: "BYTES"}.get(statistics.type, "STRUCT")
    expected = {0: "any type", 1: "BYTES", 2: "INT", 3: "FLOAT"}.get(feature.type, "STRUCT")
    if expected not in (kind, "any type"):
        yield "UNEXPECTED_DATA_TYPE", f"The values are {kind}, not {expected}."
    yield from _of_presence(_common(statistics), feature, rows)
    if feature.HasField("unique_constraints") and kind != "BYTES":
        yield "FEATURE_TYPE_NO_UNIQUE", "The unique values of numbers are not counted."
    elif feature.HasField("unique_constraints"):
        unique = statistics.string_stats.unique
        if unique < feature.unique_constraints.min:
            yield "FEATURE_TYPE_LOW_UNIQUE", f"{unique} values, fewer than {feature.unique_constraints.min}."
        if unique > feature.unique_constraints.max:
            yield "FEATURE_TYPE_HIGH_UNIQUE", f"{unique} values, more than {feature.unique_constraints.max}."
    if kind == "BYTES" and feature.HasField("int_domain"):
        yield "INT_TYPE_NOT_INT_STRING", "The values are strings."
    elif kind == "BYTES" and feature.HasField("float_domain"):
        yield "FLOAT_TYPE_STRING_NOT_FLOAT", "The values are strings."
    elif kind == "BYTES":
        yield from _of_strings(statistics.string_stats, accepted_values(feature, schema))
    elif kind == "INT" and feature.HasField("int_domain"):
        yield from _of_range(statistics.num_stats, feature.int_domain, "INT_TYPE_SMALL_INT", "INT_TYPE_BIG_INT")
    elif kind == "FLOAT" and feature.HasField("float_domain"):
        domain = feature.float_domain
        if domain.disallow_nan and any(histogram.num_nan for histogram in statistics.num_stats.histograms):
            yield "FLOAT_TYPE_HAS_NAN", "There are values that are not a number (NaN)."
        yield from _of_range(statistics.num_stats, domain, "FLOAT_TYPE_SMALL_FLOAT", "FLOAT_TYPE_BIG_FLOAT")
        extremes = (statistics.num_stats.min, statistics.num_stats.max)
        if domain.disallow_inf and any(map(math.isinf, extremes)):
            yield "FLOAT_TYPE_HAS_INF", "There are infinite values."


def _of_presence(common, feature, rows: int) -> Iterator[Reason]:
    present, presence = common.num_non_missing, feature.presence
    if presence.HasField("min_fraction") and rows and present / rows < presence.min_fraction:
        yield (
            "FEATURE_TYPE_LOW_FRACTION_PRESENT",
            f"{present / rows:.2%} have a value, not {presence.min_fraction:.2%}.",
        )
    if presence.HasField("min_count") and present < presence.min_count:
        yield "FEATURE_TYPE_LOW_NUMBER_PRESENT", f"{present} have a value, fewer than {presence.min_count}."
    if feature.value_count.HasField("min") and common.min_num_values < feature.value_count.min:
        yield "FEATURE_TYPE_LOW_NUMBER_VALUES", f"A row has {common.min_num_values} values."
    if feature.value_count.HasField("max") and common.max_num_values > feature.value_count.max:
        yield "FEATURE_TYPE_HIGH_NUMBER_VALUES", f"A row has {common.max_num_values} values."


def _of_strings(statistics, accepted: tuple[list[str], float] | None) -> Iterator[Reason]:
    if accepted is None:
        return
    values, minimum = accepted
    counts = _counts(statistics)
    total = sum(counts.values())
    other = {value: count / total for value, count in counts.items() if value not in values}
    if other and sum(other.values()) > 1 - minimum:
        shown = sorted(other.items(), key=lambda item: -item[1])[:5]
        listed = ", ".join(f"{value} ({share:.2%})" for value, share in shown) + (", ..." if len(other) > 5 else "")
        yield (
            "ENUM_TYPE_UNEXPECTED_STRING_VALUES",
            f"{1 - sum(other.values()):.2%} have an accepted value, not {minimum:.2%}. Others: {listed}.",
        )


def _of_range(statistics, domain, low: str, high: str) -> Iterator[Reason]:
    if domain.HasField("min") and statistics.min < domain.min:
        yield low, f"The smallest value is {statistics.min:g}, below {domain.min:g}."
    if domain.HasField("max") and statistics.max > domain.max:
        yield high, f"The largest value is {statistics.max:g}, above {domain.max:g}."


def _counts(statistics: "statistics_pb2.StringStatistics") -> dict[str, float]:
    """How often each value of a feature occurs."""
    return {bucket.label: bucket.sample_count for bucket in statistics.rank_histogram.buckets}


def _compare(
    result, features: Mapping[str, Any], controls: Mapping[str, Any], schema, environment: str, kind: str
) -> None:
    """Adds the distances between two data sets, and the anomalies of those above their thresholds."""
    for feature in schema.feature:
        comparator = getattr(feature, f"{kind}_comparator")
        if (
            not feature.HasField(f"{kind}_comparator")
            or feature.name not in features
            or not _present(features[feature.name])
            or not _is_checked(feature)
        ):
            continue
        if feature.name not in controls:
            reason = ("COMPARATOR_CONTROL_DATA_MISSING", "The other data has no such feature.")
            _add(result.anomaly_info[feature.name], feature.name, [reason])
            continue
        one, two = (_counts(data[feature.name].string_stats) for data in (features, controls))
        for field, name, measure in (
            ("infinity_norm", "L_INFTY", infinity_norm),
            ("jensen_shannon_divergence", "JENSEN_SHANNON_DIVERGENCE", jensen_shannon_divergence),
        ):
            threshold = getattr(comparator, field).threshold
            if not comparator.HasField(field) or (name != "L_INFTY" and not (one and two)):
                continue
            value, worst = measure(one, two)
            info = next((info for info in result.drift_skew_info if info.path.step[0] == feature.name), None)
            if info is None:
                info = result.drift_skew_info.add()
                info.path.step.append(feature.name)
            getattr(info, f"{kind}_measurements").add(type=name, value=value, threshold=threshold)
            if value > threshold:
                description = (
                    f"The distance is {value:.3g}, above {threshold:.3g}; the largest difference is that of {worst}."
                )
                reason = (f"COMPARATOR_{name}_HIGH", description)
                _add(result.anomaly_info[feature.name], feature.name, [reason])


def infinity_norm(one: Mapping[str, float], two: Mapping[str, float]) -> tuple[float, str]:
    """Returns the largest difference of a value's share, and that value.

    Args:
        one: counts of the values.
        two: counts of the values of the other data.
    """
    differences = {value: abs(first - second) for value, first, second in _shares(one, two)}
    worst = max(differences, key=differences.get, default="")
    return differences.get(worst, 0.0), worst


def jensen_shannon_divergence(one: Mapping[str, float], two: Mapping[str, float]) -> tuple[float, str]:
    """Returns the Jensen-Shannon divergence in bits, and the value that adds most to it; as `infinity_norm`."""
    parts = {}
    for value, first, second in _shares(one, two):
        middle = (first + second) / 2
        parts[value] = sum(share * math.log2(share / middle) / 2 for share in (first, second) if share)
    worst = max(parts, key=parts.get, default="")
    return sum(parts.values()), worst


def _shares(one: Mapping[str, float], two: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    totals = sum(one.values()), sum(two.values())
    for value in sorted(one.keys() | two.keys()):
        yield value, one.get(value, 0) / (totals[0] or 1), two.get(value, 0) / (totals[1] or 1)
