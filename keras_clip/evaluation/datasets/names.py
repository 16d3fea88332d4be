"""The class names that prompts use for a dataset's labels."""

from collections.abc import Mapping, Sequence

from keras_clip.prompts import validate_class_names


def align_names(class_names: Sequence[str], names: Mapping[str, str | Sequence[str]] | None = None) -> list[list[str]]:
    """Returns the prompt names of each class, looked up by the label's name, never by its index.

    Args:
        class_names: K names of the labels.
        names: {label: name or names for prompts}. None: the labels themselves.

    Returns:
        K lists of names.

    Raises:
        ValueError: a class is missing from `names`, there are no names, or two classes share a name.
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
