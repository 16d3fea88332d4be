"""What the numbers of a feature store depend on, and the digest of it."""

import hashlib
import json
from typing import Any

import keras
import numpy as np

from keras_clip.model import ImageEmbedder

# Raise it when the files, or what is computed, change.
FORMAT = 1
# Of the parts below, those that are the model's.
_MODEL = ("weights", "architecture", "preprocessing", "logit scale")


class Key:
    """The parts by name. Two stores with equal parts have the same numbers, up to the rounding of a backend.

    Args:
        parts: JSON-able; "format" and those of `model_parts`, "data set".
    """

    def __init__(self, parts: dict[str, Any]):
        self.parts = {"format": FORMAT, **parts}

    def digest(self) -> str:
        """Hex digest of all parts."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def _differences(self, other: dict[str, Any], names) -> list[str]:
        return [name for name in names if self.parts.get(name) != other.get(name)]

    def require_equal(self, other: "Key", place: Any) -> None:
        """Raises a ValueError that says which parts are not those of `other`, the one wanted."""
        self.require_format(place)
        if names := self._differences(other.parts, [*_MODEL, "data set"]):
            raise ValueError(
                f"The store must be of this model and these images. Received: {place}, of other {' and '.join(names)}. "
                "Give another folder, or delete that one."
            )

    def require_model(self, parts: dict[str, Any], place: Any) -> None:
        """Raises a ValueError if the model's parts are not these."""
        if names := self._differences(parts, _MODEL):
            raise ValueError(
                f"The store must be of this model. Received: {place}, of other {' and '.join(names)}. "
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
    """What of a model the numbers depend on.

    Args:
        embedder: the image half.
        logit_scale: log(1 / temperature), None where there is none.

    Returns:
        Dict of JSON-able values: digest of the weights' bytes, digest of the configuration (dtype policy and
        quantisation in it) without the names of layers, preprocessing rule with Pillow's version, logit scale.

    Raises:
        TypeError: no image half of a CLIP.
    """
    import PIL

    if not isinstance(embedder, ImageEmbedder):
        raise TypeError(
            "`clip` must be a `CLIPModel` or the image half of one. "
            f"Received: {embedder!r} of type {type(embedder).__name__}."
        )
    preprocessor = embedder.image_preprocessor
    return {
        "weights": _weights_digest(embedder),
        "architecture": hashlib.sha256(_configuration(embedder).encode()).hexdigest(),
        # Its resizing changes with the first number of its version.
        "preprocessing": json.loads(json.dumps(preprocessor.get_config()))
        | {"class": type(preprocessor).__name__, "pillow": PIL.__version__.split(".")[0]},
        "logit scale": logit_scale,
    }


def _weights_digest(embedder) -> str:
    """Of their bytes, shapes and dtypes in the order in which the layers hold them."""
    whole = hashlib.sha256()
    for weight in embedder.weights:
        array = np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(weight)))
        whole.update(f"{weight.dtype} {array.shape} ".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def _configuration(embedder) -> str:
    """The embedder's configuration as JSON. Names that Keras numbers afresh in each process stand as their order."""
    config = keras.saving.serialize_keras_object(embedder)
    config.get("config", {}).pop("image_preprocessor", None)
    names: dict[str, str] = {}
    _collect_names(config, names)
    return json.dumps(_renamed(config, names), sort_keys=True, default=repr)


def _collect_names(config: Any, names: dict[str, str]) -> None:
    if isinstance(config, dict):
        own = config.get("config")
        # The name of a policy is what it does.
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
