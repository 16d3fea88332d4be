"""What Hugging Face's datasets declare about their columns: images, names of classes, transforms."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

# The function from the numbers of a column of classes to their names; None for a number that has no name.
ClassNames = Mapping[str, Callable[[int], str | None]]


def class_names(dataset: Any) -> ClassNames:
    """Returns the class names of each column of classes of a dataset; none if a transform may have changed them."""
    features = {} if has_transform(dataset) else getattr(dataset, "features", None) or {}
    return {name: _lookup(kind.names) for name, kind in features.items() if hasattr(kind, "int2str")}


def class_names_of_schema(schema: "pyarrow.Schema") -> ClassNames:
    """Returns the class names of each column of classes of a Parquet file that Hugging Face's library has written."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
        return {name: _lookup(kind["names"]) for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _lookup(names: Any) -> Callable[[int], str | None]:
    names = list(names)
    # Splits without labels have the number -1.
    return lambda number: names[number] if 0 <= number < len(names) else None


def with_names(columns: Mapping[str, Any], names: ClassNames) -> dict[str, Any]:
    """Returns the columns of an element with the names of classes instead of their numbers."""
    named = {name: names[name](number) for name, number in columns.items() if name in names and number is not None}
    return {**columns, **named}


def has_transform(dataset: Any) -> bool:
    """Returns whether a dataset applies a transform of the user's to its elements."""
    form = getattr(dataset, "format", None)
    return isinstance(form, dict) and form.get("type") == "custom"


def undecoded(dataset: Any, mapping: Any) -> Any:
    """Returns a dataset that gives the files of its images, which the pipeline decodes faster.

    A transform of the user's gets the decoded images that it expects. Other formats, such as "torch", are left out:
    they change how values are represented, not the values.

    Args:
        dataset: a dataset of Hugging Face, or another object, which is returned unchanged.
        mapping: see `mapping.Mapping`.

    Returns:
        The dataset.
    """
    if callable(mapping) or has_transform(dataset):
        return dataset
    feature = (getattr(dataset, "features", None) or {}).get(mapping[0])
    if type(feature).__name__ != "Image" or not hasattr(dataset, "cast_column"):
        return dataset
    if isinstance(getattr(dataset, "format", None), dict):
        dataset = dataset.with_format(None)
    return dataset.cast_column(mapping[0], type(feature)(decode=False))
