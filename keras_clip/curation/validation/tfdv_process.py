"""Runs TFDV. This file is executed by its path in an environment of TFDV, where keras_clip cannot be imported.

    python -I tfdv_process.py jobs.json [Beam's options]

`jobs.json` is a list of jobs, each with the paths "features" (Parquet files), "schema" (text proto), "previous"
(statistics to compare with, or null), the "environment" of the schema (or ""), the "slice_column", and the outputs
"statistics" and "verdicts". Statistics are a binary DatasetFeatureStatisticsList. Verdicts are JSON: {"anomalies": the
Anomalies of all rows, "slices": {name: the Anomalies of the slice's distribution compared with that of all rows}}.
With --temp_location, features and statistics go through that folder, which the workers of a cluster must reach.

Works with TFDV 1.16 (Python 3.11 and older) and 1.21 alike.
"""

# Imports stand in functions: Beam sends functions to workers, which import what they need.
import json
import os
import shutil
import sys

ALL_ROWS = "All Examples"
# The runner of one process. "DirectRunner" would look for a program called Prism on the network first.
IN_PROCESS = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
BATCH_ROWS = 1000
# As many as make the shares of all values exact.
TOP_VALUES = 1000


def read_batches(path):
    """Yields the rows of a Parquet file as RecordBatches whose columns are lists of one value, or null."""
    import pyarrow as pa
    import pyarrow.parquet
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as file:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH_ROWS):
            columns = []
            for column in batch.columns:
                present = column.is_valid().to_numpy(zero_copy_only=False)
                ends = present.cumsum()
                # A null list is one whose offset is null.
                offsets = [int(end) - 1 if is_present else None for end, is_present in zip(ends, present, strict=True)]
                offsets = pa.array([*offsets, int(ends[-1])], pa.int32())
                columns.append(pa.ListArray.from_arrays(offsets, column.drop_null()))
            yield pa.RecordBatch.from_arrays(columns, batch.schema.names)


def generate(job, arguments):
    """Runs the pipeline of a job, and returns its statistics."""
    import apache_beam as beam
    import tensorflow_data_validation as tfdv
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions

    options = PipelineOptions(arguments)
    if options.view_as(StandardOptions).runner in (None, "DirectRunner"):
        options.view_as(StandardOptions).runner = IN_PROCESS
    temporary = options.view_as(GoogleCloudOptions).temp_location
    features, statistics = job["features"], job["statistics"]
    if temporary:
        features = [copy_to(temporary, path) for path in features]
        statistics = FileSystems.join(temporary, os.path.basename(statistics))
    stats_options = tfdv.StatsOptions(num_top_values=TOP_VALUES, num_rank_histogram_buckets=TOP_VALUES)
    if len(features) > 1:
        # A feature file is a slice.
        slicer = tfdv.experimental_get_feature_value_slicer({job["slice_column"]: None})
        stats_options.experimental_slice_functions = [slicer]
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "Files" >> beam.Create(features)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(read_batches)
            | "Statistics" >> tfdv.GenerateStatistics(stats_options)
            | "Write" >> tfdv.WriteStatisticsToBinaryFile(statistics)
        )
    result = read_statistics(statistics)
    if len(result.datasets) == 1:
        # Without slices, TFDV gives no name.
        result.datasets[0].name = ALL_ROWS
    with open(job["statistics"], "wb") as file:
        file.write(result.SerializeToString(deterministic=True))
    return result


def copy_to(folder, path):
    """Copies a local file to a folder of any file system that Beam knows; returns the new path."""
    from apache_beam.io.filesystems import FileSystems

    copied = FileSystems.join(folder, os.path.basename(path))
    with open(path, "rb") as source, FileSystems.create(copied, "application/octet-stream") as target:
        shutil.copyfileobj(source, target)
    return copied


def read_statistics(path):
    from apache_beam.io.filesystems import FileSystems
    from tensorflow_metadata.proto.v0 import statistics_pb2

    with FileSystems.open(path) as file:
        return statistics_pb2.DatasetFeatureStatisticsList.FromString(file.read())


def single(dataset):
    """A list of the statistics of one slice, named as all rows, which is how TFDV recognises what to validate."""
    from tensorflow_metadata.proto.v0 import statistics_pb2

    result = statistics_pb2.DatasetFeatureStatisticsList(datasets=[dataset])
    result.datasets[0].name = ALL_ROWS
    return result


def validate(job, statistics):
    """Compares statistics with the schema, with earlier statistics, and each slice with all rows."""
    import tensorflow_data_validation as tfdv
    from google.protobuf import json_format

    schema = tfdv.load_schema_text(job["schema"])
    environment = job["environment"] or None
    all_rows, *slices = statistics.datasets
    previous = read_statistics(job["previous"]) if job["previous"] else None
    anomalies = tfdv.validate_statistics(single(all_rows), schema, environment, previous_statistics=previous)
    of_slices = {
        each.name: tfdv.validate_statistics(single(all_rows), schema, environment, serving_statistics=single(each))
        for each in slices
    }
    for each in (anomalies, *of_slices.values()):
        # A copy of the schema.
        each.ClearField("baseline")
    return {
        "anomalies": json_format.MessageToDict(anomalies),
        "slices": {name: json_format.MessageToDict(found) for name, found in of_slices.items()},
    }


def main(arguments):
    import apache_beam as beam
    import tensorflow_data_validation as tfdv

    with open(arguments[0], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        verdicts = validate(job, generate(job, arguments[1:])) | {"tfdv": tfdv.__version__, "beam": beam.__version__}
        with open(job["verdicts"], "w", encoding="utf-8") as file:
            json.dump(verdicts, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
