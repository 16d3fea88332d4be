"""Which part of an element is its image and which its captions: a user's mapping, or the usual names."""

from collections.abc import Callable, Sequence
from typing import Any

# The names of the image and of the caption, or a function of an element that returns (image, caption or captions).
# Where no captions are needed, the second name may be None.
Mapping = tuple[str, str | None] | Callable

# Usual names of the caption in tables and in the .json of tars.
CAPTION_NAMES = ("caption", "captions", "text", "title")


def check_mapping(mapping: Any, captions: bool = True) -> Mapping | None:
    """A user's mapping as a function or as a tuple of two names; None remains None.

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
    names = tuple(mapping)
    if len(names) != 2 or isinstance(names[0], int) or (captions and names[1] is None):
        raise ValueError(f"mapping must name two columns, image and caption. Received: mapping={mapping!r}.")
    return names


def require_mapping(mapping: Mapping | None) -> Mapping:
    """The mapping of a data set, which has no usual names."""
    if mapping is None:
        raise ValueError(
            "A dataset needs a mapping to pairs. Received: mapping=None. Pass the names of two columns, e.g. "
            'mapping=("image", "caption"), or a function of an element that returns (image, caption or captions).'
        )
    return mapping


def require_no_mapping(mapping: Mapping | None, form: str) -> None:
    """Raises a ValueError if a form whose names are fixed is given a mapping."""
    if mapping is not None:
        raise ValueError(
            f"A {form} source has fixed names (<key>.jpg, <key>.txt) and takes no mapping. "
            f"Received: mapping={mapping!r}."
        )


def names_of(
    mapping: Mapping | None, images: Sequence[str], captions: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names under which files may hold the image, and those of the caption: of the mapping, else the usual ones."""
    if callable(mapping):
        raise ValueError(f"A mapping for files must be two names. Received: mapping={mapping!r}.")
    if mapping is None:
        return tuple(images), tuple(captions)
    return (mapping[0],), () if mapping[1] is None else (mapping[1],)


def require_columns(mapping: Mapping, element: Any) -> None:
    """Raises a ValueError unless the names of a mapping are among those of an element, or among the given ones."""
    if isinstance(element, (dict, list)) and not {name for name in mapping if name is not None} <= set(element):
        raise ValueError(
            f"A mapping must name two columns of the dataset, image and caption. Received: mapping={mapping!r} for the "
            f"columns {list(element)}."
        )
