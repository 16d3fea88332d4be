"""The key of a feature store: everything that its numbers depend on, and the digest of it."""

import hashlib
import json
from typing import Any

import keras

from keras_clip.model import ImageEmbedder
from keras_clip.presets.digests import weights_digest

# Increase it when the files or the computed values change.
FORMAT = 1
# The parts that describe the model.
_MODEL = ("weights", "architecture", "preprocessing", "logit scale")


class Key:
    """The parts of the key by name. Stores with equal parts hold equal numbers, up to a backend's rounding.

    Args:
        parts: JSON-serialisable values: those of `model_parts` and "data set".
    """

    def __init__(self, parts: dict[str, Any]):
        self.parts = {"format": FORMAT, **parts}

    def digest(self) -> str:
        """Hex digest of all parts."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def _differences(self, other: dict[str, Any], names) -> list[str]:
        return [name for name in names if self.parts.get(name) != other.get(name)]

    def require_equal(self, other: "Key", place: Any) -> None:
        """Raises a ValueError that names the parts in which the key differs from `other`."""
        self.require_format(place)
        if names := self._differences(other.parts, [*_MODEL, "data set"]):
            raise ValueError(
                "The store must be of this model and these images. "
                f"Received: {place}, which differs in {' and '.join(names)}. Pass another folder, or delete that one."
            )

    def model_differences(self, parts: dict[str, Any]) -> list[str]:
        """Returns the names of the parts of a model in which it differs from that of the key."""
        return self._differences(parts, _MODEL)

    def require_model(self, parts: dict[str, Any], place: Any) -> None:
        """Raises a ValueError if the key belongs to another model."""
        if names := self.model_differences(parts):
            raise ValueError(
                f"The store must be of this model. Received: {place}, which differs in {' and '.join(names)}. "
                "Build a store with this model."
            )

    def require_format(self, place: Any) -> None:
        """Raises a ValueError if another version of the library wrote it."""
        if self.parts["format"] != FORMAT:
            raise ValueError(
                f"The store must be of format {FORMAT}. Received: {place} of format {self.parts['format']}. "
                "Delete it and build it again."
            )


def model_parts(embedder: ImageEmbedder, logit_scale: float | None) -> dict[str, Any]:
    """The parts of the key that describe a model.

    Args:
        embedder: `ImageEmbedder`.
        logit_scale: log(1 / temperature), None where there is none.

    Returns:
        Dict of JSON-serialisable values: digest of the weights' bytes, digest of the configuration (with dtype policy
        and quantisation, without layer names), preprocessing with Pillow's major version, logit scale.

    Raises:
        TypeError: `embedder` is not an `ImageEmbedder`.
    """
    import PIL

    if not isinstance(embedder, ImageEmbedder):
        raise TypeError(
            "`clip` must be a `CLIPModel` or an `ImageEmbedder`. "
            f"Received: {embedder!r} of type {type(embedder).__name__}."
        )
    preprocessor = embedder.image_preprocessor
    return {
        "weights": weights_digest(embedder.weights),
        "architecture": hashlib.sha256(_configuration(embedder).encode()).hexdigest(),
        # Pillow's resizing changes with its major version.
        "preprocessing": json.loads(json.dumps(preprocessor.get_config()))
        | {"class": type(preprocessor).__name__, "pillow": PIL.__version__.split(".")[0]},
        "logit scale": logit_scale,
    }


def _configuration(embedder) -> str:
    """The embedder's configuration as JSON. Names that Keras numbers per process are replaced by their order."""
    config = keras.saving.serialize_keras_object(embedder)
    config.get("config", {}).pop("image_preprocessor", None)
    names: dict[str, str] = {}
    _collect_names(config, names)
    return json.dumps(_renamed(config, names), sort_keys=True, default=repr)


def _collect_names(config: Any, names: dict[str, str]) -> None:
    if isinstance(config, dict):
        own = config.get("config")
        # The name of a dtype policy is its meaning and stays.
        if isinstance(own, dict) and isinstance(own.get("name"), str) and "Policy" not in str(config.get("class_name")):
            names.setdefault(own["name"], f"name {len(names)}")
        for value in config.values():
            _collect_names(value, names)
    elif isinstance(config, list | tuple):
        for value in config:
            _collect_names(value, names)


def _renamed(config: Any, names: dict[str, str]) -> Any:
    if isinstance(config, dict):
        return {key: _renamed(value, names) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_renamed(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config
