"""The former module of `keras_clip.prompts`, for code that imports it from here."""

from keras_clip.prompts import (  # noqa: F401
    CAPTURES,
    DETERMINERS,
    FAMILIES,
    LOOKS,
    MATERIALS,
    RENDITIONS,
    read,
    templates,
    validate_class_names,
    validate_templates,
)
