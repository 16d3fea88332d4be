"""What to call the classes of a data set in prompts."""

from collections.abc import Mapping, Sequence

from keras_clip.data.prompts import validate_class_names


def align_names(class_names: Sequence[str], names: Mapping[str, str | Sequence[str]] | None = None) -> list[list[str]]:
    """What to call each class, found by the name that its labels have, never by its place.

    Args:
        class_names: K names, those of the labels.
        names: {name of the label: name or names to write into prompts}. None: the names of the labels themselves.

    Returns:
        K lists of names.

    Raises:
        ValueError: a class that `names` lacks, no names at all, or a name of two classes.
    """
    if class_names is None:
        raise ValueError("Zero-shot classification needs class names. Received: a store with class_names=None.")
    names = {name: name for name in class_names} if names is None else names
    if missing := [name for name in class_names if name not in names]:
        raise ValueError(
            f"`names` must have every class of the labels. Received: names without {missing[:5]} ({len(missing)} of "
            f"{len(class_names)}); it has {list(names)[:5]}, ..."
        )
    return validate_class_names([names[name] for name in class_names])
