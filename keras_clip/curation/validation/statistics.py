"""Statistics of the features without TFDV: the same proto, computed with numpy and pyarrow in one process.

Counts, shares, extremes, means and deviations equal TFDV's. Medians and histograms are exact here, while TFDV estimates
them by sketches.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import statistics_pb2

# TFDV's name of the statistics of all rows, and its names of slices: the column, "_", the value.
ALL_ROWS = "All Examples"
SLICE_COLUMN = "shards"
_BUCKETS = 10
_TOP_VALUES = 1000


def compute(paths: Sequence[Path]) -> "statistics_pb2.DatasetFeatureStatisticsList":
    """Returns the statistics of all rows, followed by those of each slice if there are several.

    Args:
        paths: the feature files, one a slice; see `features.derive`.

    Returns:
        DatasetFeatureStatisticsList.
    """
    import pyarrow as pa
    import pyarrow.parquet
    from tensorflow_metadata.proto.v0 import statistics_pb2

    result = statistics_pb2.DatasetFeatureStatisticsList()
    everything = result.datasets.add(name=ALL_ROWS)
    counts: dict[str, Counter] = {}
    numbers: dict[str, list[np.ndarray]] = {}
    rows = 0
    for path in paths:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        rows += len(table)
        one = statistics_pb2.DatasetFeatureStatistics(
            name=f"{SLICE_COLUMN}_{table[SLICE_COLUMN][0].as_py()}", num_examples=len(table)
        )
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_string(column.type):
                of_slice = Counter({entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()})
                del of_slice[None]
                counts.setdefault(name, Counter()).update(of_slice)
                _add_strings(one, name, of_slice, len(table))
            else:
                of_slice = column.drop_null().to_numpy()
                numbers.setdefault(name, []).append(of_slice)
                _add_numbers(one, name, of_slice, len(table))
        if len(paths) > 1:
            result.datasets.append(one)
    everything.num_examples = rows
    for name in table.column_names:
        if name in counts:
            _add_strings(everything, name, counts[name], rows)
        else:
            _add_numbers(everything, name, np.concatenate(numbers[name]), rows)
    return result


def _add_common(common: "statistics_pb2.CommonStatistics", present: int, rows: int) -> None:
    common.num_non_missing = common.tot_num_values = present
    common.num_missing = rows - present
    if present:
        common.min_num_values = common.max_num_values = 1
        common.avg_num_values = 1.0


def _add_strings(dataset, name: str, counts: Counter, rows: int) -> None:
    feature = dataset.features.add(type="STRING")
    feature.path.step.append(name)
    statistics = feature.string_stats
    total = counts.total()
    _add_common(statistics.common_stats, total, rows)
    if not total:
        return
    statistics.unique = len(counts)
    statistics.avg_length = sum(len(value.encode()) * count for value, count in counts.items()) / total
    most_frequent = sorted(counts.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)
    for rank, (value, count) in enumerate(most_frequent[:_TOP_VALUES]):
        statistics.top_values.add(value=value, frequency=count)
        statistics.rank_histogram.buckets.add(low_rank=rank, high_rank=rank, label=value, sample_count=count)


def _add_numbers(dataset, name: str, values: np.ndarray, rows: int) -> None:
    kind = "FLOAT" if values.dtype.kind == "f" else "INT"
    feature = dataset.features.add(type=kind)
    feature.path.step.append(name)
    statistics = feature.num_stats
    _add_common(statistics.common_stats, len(values), rows)
    numbers = values.astype(np.float64)
    nans = int(np.isnan(numbers).sum())
    numbers = np.sort(numbers[~np.isnan(numbers)])
    if len(values):
        standard = statistics.histograms.add(type="STANDARD", num_nan=nans)
        quantiles = statistics.histograms.add(type="QUANTILES", num_nan=nans)
    if not len(numbers):
        return
    with np.errstate(invalid="ignore"):
        statistics.mean, statistics.std_dev = float(numbers.mean()), float(numbers.std())
    statistics.num_zeros = int((numbers == 0).sum())
    statistics.min, statistics.max = float(numbers[0]), float(numbers[-1])
    statistics.median = float(np.quantile(numbers, 0.5, method="inverted_cdf"))
    finite = numbers[np.isfinite(numbers)]
    for low in numbers[numbers == -np.inf][:1]:
        standard.buckets.add(low_value=low, high_value=low, sample_count=int((numbers == low).sum()))
    if len(finite):
        spread = finite[0] != finite[-1]
        heights, edges = (
            np.histogram(finite, np.linspace(finite[0], finite[-1], _BUCKETS + 1))
            if spread
            else (
                np.array([len(finite)]),
                np.array([finite[0], finite[0]]),
            )
        )
        for low, high, height in zip(edges, edges[1:], heights, strict=False):
            standard.buckets.add(low_value=low, high_value=high, sample_count=height)
    for high in numbers[numbers == np.inf][:1]:
        standard.buckets.add(low_value=high, high_value=high, sample_count=int((numbers == high).sum()))
    edges = np.quantile(numbers, np.linspace(0, 1, _BUCKETS + 1), method="inverted_cdf")
    for low, high in zip(edges, edges[1:], strict=False):
        quantiles.buckets.add(low_value=low, high_value=high, sample_count=len(numbers) / _BUCKETS)
