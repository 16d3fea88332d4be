"""The schema of the features: a text proto of tensorflow_metadata's Schema, for one version of the features."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import schema_pb2

SHIPPED = Path(__file__).with_name("schema.pbtxt")
# Raised when features or their values change, so that an older schema would not check what it says.
VERSION = 1
_VERSION = re.compile(r"keras_clip validation features, version (\d+)")


def load(path: str | os.PathLike | None = None) -> "schema_pb2.Schema":
    """Reads a schema.

    Args:
        path: a `.pbtxt` file; by default the shipped schema.

    Returns:
        Schema.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a schema, or one for another version of the features.
        ImportError: tensorflow-metadata is not installed (extra `curation`).
    """
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    path = Path(path or SHIPPED)
    copy = f"Edit a copy of {SHIPPED}."
    try:
        schema = text_format.Parse(path.read_bytes(), schema_pb2.Schema())
    except FileNotFoundError:
        raise FileNotFoundError(f"No such schema. Received: {path}. {copy}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"A schema must be in text form. Received: {path}: {error}. {copy}") from error
    versions = [int(found[1]) for comment in schema.annotation.comment for found in _VERSION.finditer(comment)]
    if versions != [VERSION]:
        received = f"version {versions[0]}" if versions else "no version"
        raise ValueError(
            f"The schema must be for version {VERSION} of the features of validation. Received: {path}, which names "
            f"{received}. Compare it with {SHIPPED}, make the same edits in a copy of that, and use the copy."
        )
    constraints = schema.dataset_constraints
    if constraints.HasField("max_examples_count") and not constraints.HasField("min_examples_count"):
        raise ValueError(
            f"TFDV ignores max_examples_count without min_examples_count. Received: {path} with the former alone. "
            "Add min_examples_count: 1."
        )
    for feature in schema.feature:
        if feature.value_count.HasField("max") and feature.value_count.min > feature.value_count.max:
            raise ValueError(
                f"value_count must have min <= max. Received: min={feature.value_count.min}, "
                f"max={feature.value_count.max} for the feature {feature.name} of {path}. Exchange them."
            )
    return schema


def environment_of(schema: "schema_pb2.Schema", scored: bool) -> str:
    """Returns the environment of data with or without scores: "scored" or "profile"; "" if the schema has none.

    Args:
        schema: Schema.
        scored: whether the data has scores.

    Raises:
        ValueError: the schema has environments, but not that one.
    """
    name = "scored" if scored else "profile"
    if schema.default_environment and name not in schema.default_environment:
        raise ValueError(
            f"The schema must have the environment {name!r}. Received: {', '.join(schema.default_environment)}. "
            f'Add the line default_environment: "{name}".'
        )
    return name if schema.default_environment else ""
