"""Selects the image and the captions of an element, by a user's mapping or by usual names."""

from collections.abc import Callable, Sequence
from collections.abc import Mapping as AnyMapping
from typing import Any

from keras_clip.data.readers.brief import brief

# The names of the image and of the caption (of tuples without names: their places), or a function of an element that
# returns (image, caption or captions). The second name may be None if no captions are needed. For files the first may
# be None, which stands for the usual names.
Mapping = tuple[str | int | None, str | int | None] | Callable

# Usual names of the caption in tables and in the .json of tars, and of the path of an image in tables.
CAPTION_NAMES = ("caption", "captions", "text", "title")
PATH_NAMES = ("path", "image", "image_path", "filepath", "file_path", "filename", "file_name", "file")


def check_mapping(mapping: Any, captions: bool = True) -> Mapping | None:
    """Returns a user's mapping as a function or as a tuple of two names; None remains None.

    Args:
        mapping: a function, a sequence of two names, or None.
        captions: whether a caption must be named.

    Returns:
        The mapping.

    Raises:
        ValueError: neither a function nor two names.
    """
    if mapping is None or callable(mapping):
        return mapping
    names = tuple(mapping) if isinstance(mapping, (tuple, list)) else ()
    is_name = [isinstance(name, (str, int)) and name != "" for name in names]
    is_image = len(names) == 2 and (is_name[0] or names[0] is None)
    if not is_image or not (is_name[1] or (names[1] is None and not captions)):
        raise ValueError(f"mapping must name two columns, image and caption. Received: mapping={brief(mapping)}.")
    return names


def require_mapping(mapping: Mapping | None) -> Mapping:
    """Returns the mapping of a dataset, which is required because datasets have no usual names."""
    if mapping is None or (not callable(mapping) and mapping[0] is None):
        raise ValueError(
            f"A dataset needs a mapping to pairs. Received: mapping={mapping}. Pass the names of two columns, e.g. "
            'mapping=("image", "caption"), of tuples their places, mapping=(0, 1), or a function of an element that '
            "returns (image, caption or captions)."
        )
    return mapping


def pair_of(mapping: Mapping) -> Callable[[Any], tuple[Any, Any]]:
    """Returns the function of an element that returns (image, caption or captions); None as caption if unnamed."""
    if callable(mapping):
        return mapping
    image, caption = mapping
    return lambda element: (column(element, image), None if caption is None else column(element, caption))


def column(element: Any, name: str | int) -> Any:
    """Returns a column of an element: of a mapping or a named tuple by its name, of a tuple by its place."""
    if isinstance(name, str) and (fields := fields_of(element)):
        return element[fields.index(name)]
    return element[name]


def fields_of(element: Any) -> tuple[str, ...]:
    """The names of the parts of a named tuple; of any other element ()."""
    return getattr(element, "_fields", ()) if isinstance(element, tuple) else ()


def names_of(
    mapping: Mapping | None, images: Sequence[str], captions: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the accepted names of the image and of the caption: those of the mapping, or else the usual ones."""
    if mapping is None:
        return tuple(images), tuple(captions)
    if callable(mapping) or not {type(name) for name in mapping} <= {str, type(None)}:
        raise ValueError(f"A mapping for files must be two names. Received: mapping={brief(mapping)}.")
    image, caption = mapping
    return tuple(images) if image is None else (image,), () if caption is None else (caption,)


def require_columns(mapping: Mapping, element: Any) -> None:
    """Raises a ValueError unless the names of a mapping are among those of an element, or among the given ones."""
    names = [name for name in mapping if name is not None]
    if isinstance(element, AnyMapping) or (isinstance(element, list) and all(isinstance(name, str) for name in names)):
        missing = [name for name in names if name not in element]
    elif isinstance(element, (tuple, list)):
        fields, size = fields_of(element), len(element)
        missing = [
            name for name in names if (name not in fields if isinstance(name, str) else not -size <= name < size)
        ]
    else:
        missing = []
    if missing:
        columns = fields_of(element) or (range(len(element)) if isinstance(element, tuple) else element)
        raise ValueError(
            "A mapping must name two columns of the dataset, image and caption. "
            f"Received: mapping={brief(mapping)} for the columns {brief(list(columns))}."
        )
