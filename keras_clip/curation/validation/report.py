"""The report of a validation: one HTML page that loads nothing else and has no script, and the same data as JSON."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_clip import files
from keras_clip.curation.validation import checker
from keras_clip.curation.validation import statistics as statistics_module
from keras_clip.pages import page_template

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

_MOST_BARS = 12
_INTERVAL = re.compile(r"(<|\[|>=)(-?[\d.]+)")
_ALL = "all pairs"
_MEASURES = {
    "JENSEN_SHANNON_DIVERGENCE": "Jensen-Shannon divergence, bits",
    "L_INFTY": "largest difference of a value's share",
}
_LABELS = {
    "COMPARATOR_CONTROL_DATA_MISSING": "Nothing to compare with",
    "DATASET_HIGH_NUM_EXAMPLES": "Too many pairs",
    "DATASET_LOW_NUM_EXAMPLES": "Too few pairs",
    "ENUM_TYPE_UNEXPECTED_STRING_VALUES": "Too few accepted values",
    "FEATURE_TYPE_LOW_FRACTION_PRESENT": "Too many missing values",
    "FEATURE_TYPE_LOW_NUMBER_PRESENT": "Too many missing values",
    "FEATURE_TYPE_NOT_PRESENT": "All values are missing",
    "FLOAT_TYPE_BIG_FLOAT": "Too large",
    "FLOAT_TYPE_HAS_INF": "Infinite",
    "FLOAT_TYPE_HAS_NAN": "Not a number",
    "FLOAT_TYPE_SMALL_FLOAT": "Too small",
    "INT_TYPE_BIG_INT": "Too large",
    "INT_TYPE_SMALL_INT": "Too small",
    "SCHEMA_MISSING_COLUMN": "Missing feature",
    "SCHEMA_NEW_COLUMN": "Unknown feature",
    "UNEXPECTED_DATA_TYPE": "Another type",
}


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of the rows that have an accepted value, and the least one that the schema allows."""

    feature: str
    share: float
    minimum: float
    others: list[tuple[str, float]]

    @property
    def holds(self) -> bool:
        return not self.others or self.share >= self.minimum


@dataclasses.dataclass(frozen=True)
class Distance:
    """The distance of a feature's distribution to another one, and the largest one that the schema allows."""

    feature: str
    measure: str
    value: float
    threshold: float
    slice: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.threshold

    @property
    def relative(self) -> float:
        """The part of a bar that is twice the threshold long."""
        return min(self.value / (2 * self.threshold), 1.0) if self.threshold else float(self.value > 0)


def write(
    folder: Path,
    schema: "schema_pb2.Schema",
    statistics: "statistics_pb2.DatasetFeatureStatisticsList",
    found: "Mapping[str, anomalies_pb2.Anomalies]",
    anomalies: Sequence[tuple[str, str, str, str]],
    facts: Mapping[str, Any],
    earlier: "statistics_pb2.DatasetFeatureStatisticsList | None" = None,
) -> Path:
    """Writes validation.json and report.html; each is complete at any time.

    Args:
        folder: output folder.
        schema: Schema.
        statistics: of all rows, and of the slices.
        found: Anomalies of all rows ("") and of each slice, with their distances.
        anomalies: (feature, kind, description, slice) of each anomaly.
        facts: what stands at the top of the page: names and values.
        earlier: statistics of the snapshot before.

    Returns:
        Path of report.html.

    Raises:
        ImportError: Jinja2 is not installed (extra `curation`).
    """
    everything = statistics.datasets[0]
    shares, distances = _shares(everything, schema), _distances(found)
    files.write_json(
        folder / "validation.json",
        {
            "valid": not anomalies,
            "anomalies": [
                dict(zip(("feature", "kind", "description", "slice"), each, strict=True)) for each in anomalies
            ],
            **facts,
            "shares": [
                {**dataclasses.asdict(each), "others": dict(each.others), "holds": each.holds} for each in shares
            ],
            "drift": [{**dataclasses.asdict(each), "holds": each.holds} for each in distances["drift"]],
            "skew": [{**dataclasses.asdict(each), "holds": each.holds} for each in distances["skew"]],
        },
    )
    page = folder / "report.html"
    files.write_text(page, render(everything, anomalies, shares, distances, facts, earlier and earlier.datasets[0]))
    return page


def render(
    statistics: "statistics_pb2.DatasetFeatureStatistics",
    anomalies: Sequence[tuple[str, str, str, str]],
    shares: Sequence[Share],
    distances: Mapping[str, Sequence[Distance]],
    facts: Mapping[str, Any],
    earlier: "statistics_pb2.DatasetFeatureStatistics | None" = None,
) -> str:
    """Returns the page that `write` writes, as HTML."""
    template = page_template(
        Path(__file__).parent / "report.html.j2", "curation", {"percent": percent, "number": number}
    )
    bad = {feature for feature, _, _, _ in anomalies}
    before = {_name(feature): feature for feature in earlier.features} if earlier else {}
    accepted = {share.feature: dict(share.others) for share in shares}
    cards = [_card(feature, before.get(_name(feature)), accepted, bad) for feature in statistics.features]
    page = template.render(
        anomalies=[
            (_label(kind, part), kind, feature or "pairs", description, part or _ALL)
            for feature, kind, description, part in anomalies
        ],
        shares=sorted(shares, key=lambda share: share.holds),
        distances={kind: sorted(rows, key=lambda row: -row.relative) for kind, rows in distances.items()},
        facts={name: value for name, value in facts.items() if value != ""},
        histograms=[card for card in cards if card["bars"]],
        numbers=[card for card in cards if card["numbers"]],
        compared=bool(earlier),
    )
    # Names of files may hold what UTF-8 cannot.
    return page.encode("utf-8", "backslashreplace").decode()


def percent(share: float) -> str:
    """Returns a share as text; what is not all or nothing is not rounded to that."""
    if share in (0, 1):
        return f"{share:.0%}"
    digits = 1 if 0.001 <= share <= 0.999 else 3
    return f"{min(max(100 * share, 0.001), 99.999):.{digits}f} %".replace(" %", "%")


def number(value: float) -> str:
    """Returns a number with at most four significant digits or as an integer."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value)):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _label(kind: str, part: str) -> str:
    if kind.startswith("COMPARATOR_") and kind.endswith("_HIGH"):
        return "Skew between shards" if part else "Drift"
    return _LABELS.get(kind, kind.replace("_", " ").capitalize())


def _name(feature: "statistics_pb2.FeatureNameStatistics") -> str:
    return feature.path.step[0] if feature.path.step else feature.name


def _counts(feature: "statistics_pb2.FeatureNameStatistics | None") -> dict[str, float]:
    if feature is None:
        return {}
    return {bucket.label: bucket.sample_count for bucket in feature.string_stats.rank_histogram.buckets}


def _shares(statistics, schema) -> list[Share]:
    features = {_name(feature): feature for feature in statistics.features}
    shares = []
    for feature in schema.feature:
        domain = checker.accepted_values(feature, schema)
        counts = _counts(features.get(feature.name))
        total = sum(counts.values())
        if domain is not None and total:
            others = [(value, count / total) for value, count in counts.items() if value not in domain[0]]
            shares.append(Share(feature.name, 1 - sum(share for _, share in others), domain[1], others))
    return shares


def _distances(found: "Mapping[str, anomalies_pb2.Anomalies]") -> dict[str, list[Distance]]:
    """Distances to the snapshot before, and of each feature the largest one of a slice relative to its threshold."""
    drift = [each for info in found[""].drift_skew_info for each in _measured(info, info.drift_measurements, "")]
    largest: dict[tuple[str, str], Distance] = {}
    for name, of_slice in found.items():
        for info in of_slice.drift_skew_info:
            for each in _measured(info, info.skew_measurements, name):
                place = each.feature, each.measure
                if place not in largest or each.value > largest[place].value:
                    largest[place] = each
    return {"drift": drift, "skew": list(largest.values())}


def _measured(info, measurements, name: str):
    for each in measurements:
        kind = type(each).DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[each.type].name
        measure = _MEASURES.get(kind, kind.replace("_", " ").lower())
        yield Distance(".".join(info.path.step), measure, each.value, each.threshold, name)


def _card(feature, before, accepted: Mapping[str, Mapping[str, float]], bad: set[str]) -> dict[str, Any]:
    """What the page shows of a feature: bars of a string, or a row of numbers with a histogram."""
    name, kind = _name(feature), feature.WhichOneof("stats")
    common = getattr(feature, kind).common_stats
    rows = common.num_non_missing + common.num_missing
    card = {"name": name, "bad": name in bad, "missing": common.num_missing / rows if rows else 0.0}
    if kind == "string_stats":
        return card | {"numbers": None, **_bars(feature, before, accepted.get(name, {}))}
    statistics = feature.num_stats
    standard = [histogram for histogram in statistics.histograms if histogram.type == histogram.STANDARD]
    buckets = [bucket for histogram in standard for bucket in histogram.buckets if math.isfinite(bucket.low_value)]
    highest = max((bucket.sample_count for bucket in buckets), default=0)
    return card | {
        "bars": None,
        "numbers": [statistics.min, statistics.mean, statistics.median, statistics.max, statistics.std_dev]
        if common.num_non_missing
        else [],
        "nans": sum(histogram.num_nan for histogram in standard),
        "heights": [bucket.sample_count / highest for bucket in buckets] if highest else [],
        "range": f"{name}: ten intervals from {buckets[0].low_value:g} to {buckets[-1].high_value:g}"
        if buckets
        else "",
    }


def _bars(feature, before, others: Mapping[str, float]) -> dict[str, Any]:
    """The share of each value of a string: intervals in their order, other values by frequency."""
    counts, earlier = _counts(feature), _counts(before)
    total, total_before = sum(counts.values()), sum(earlier.values())
    values = list(counts) + [value for value in earlier if value not in counts]
    if values and all(map(_INTERVAL.match, values)):
        values.sort(key=_order)
    elif _name(feature) == statistics_module.SLICE_COLUMN:
        values.sort()
    shown, hidden = values[:_MOST_BARS], values[_MOST_BARS:]
    bars = [
        {
            "label": value,
            "share": counts.get(value, 0) / total if total else 0.0,
            "before": earlier.get(value, 0) / total_before if total_before else None,
            "accepted": value not in others,
        }
        for value in shown
    ]
    return {
        "bars": bars,
        "hidden": len(hidden),
        "hidden_share": sum(counts.get(value, 0) for value in hidden) / (total or 1),
    }


def _order(label: str) -> tuple[float, bool]:
    kind, bound = _INTERVAL.match(label).groups()
    return float(bound), kind != "<"
