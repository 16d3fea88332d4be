"""The model of an index, loaded when it is needed and compared with the one that the index was made by."""

import os
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_clip.evaluation.features.encoding import load_model, located, logit_scale_of
from keras_clip.evaluation.features.key import Key, model_parts
from keras_clip.model import CLIPModel, ImageEmbedder

# The logit scale is not part of how pictures are encoded.
_NOT_COMPARED = "logit scale"


class IndexedModel:
    """A model as the caller gave it.

    Args:
        clip: `CLIPModel`, `ImageEmbedder`, a model as `presets.load` takes it, or None for that of the index.
    """

    def __init__(self, clip: CLIPModel | ImageEmbedder | str | os.PathLike | None):
        self._given = None if clip is None else located(clip)
        self._clip: CLIPModel | ImageEmbedder | None = None
        self._indexed: tuple[dict[str, Any], Path] | None = None

    @property
    def name(self) -> str | None:
        """The model as `presets.load` takes it; None for a model in memory."""
        return self._given if isinstance(self._given, str) else None

    def require_given(self, folder: Path) -> None:
        """Raises a ValueError if no model was given, for an index that does not exist."""
        if self._given is None:
            raise ValueError(
                f"A new index needs a model. Received: clip=None for {folder}, which has no index. Pass the name of a "
                "published model, or the path of a saved one."
            )

    def require_name(self) -> None:
        """Raises a TypeError for a model in memory, which other processes cannot load."""
        if self.name is None:
            raise TypeError(
                "Workers in other processes load the model themselves. "
                f"Received: clip of type {type(self._given).__name__}. Save it by `keras_clip.presets.save(clip, "
                "path)`, and pass the path; or pass the name of a published model."
            )

    def check(self, indexed: dict[str, Any], folder: Path) -> None:
        """Compares the model with that of an index; one of the same name only when it is loaded.

        Args:
            indexed: `facts` of the model of the index.
            folder: folder of the index.

        Raises:
            ValueError: another model, or none was given and the index does not know where its model is.
        """
        self._indexed = indexed["model_parts"], folder
        if self._given is None:
            self._given = indexed["model"]
        elif self.name != indexed["model"] or self.name is None or self._clip is not None:
            self._load()

    def embedder(self) -> ImageEmbedder:
        """Returns the image tower, and loads it the first time."""
        clip = self._load()
        return getattr(clip, "image_embedder", clip)

    def facts(self) -> dict[str, Any]:
        """Returns what an index keeps of its model, JSON-serialisable: see the attributes of `PictureIndex`."""
        clip = self._load()
        embedder = getattr(clip, "image_embedder", clip)
        contrast = getattr(clip, "contrast", None)
        bias = getattr(clip, "logit_bias", None)
        return {
            "model": self.name,
            "model_parts": Key(model_parts(embedder, logit_scale_of(clip))).parts,
            "widths": {"features": 0, "embeddings": embedder.embed_dim},
            "loss": getattr(contrast, "kind", type(contrast).__name__ if contrast is not None else "contrastive"),
            "logit_scale": logit_scale_of(clip),
            "logit_bias": None if bias is None else float(ops.convert_to_numpy(ops.convert_to_tensor(bias))),
        }

    def _load(self) -> keras.Model:
        if self._clip is not None:
            return self._clip
        if self._given is None:
            raise ValueError(
                "The index was made by a model in memory. Received: clip=None. Pass the model, or where it is saved."
            )
        clip = load_model(self._given)
        if self._indexed is not None:
            require_model(clip, *self._indexed)
        self._clip = clip
        return clip


def require_model(clip: CLIPModel | ImageEmbedder, parts: dict[str, Any], folder: Path) -> None:
    """Raises a ValueError if an index was made by another model, or with another preprocessing.

    Args:
        clip: the model.
        parts: `model_parts` of the model of the index.
        folder: folder of the index.
    """
    embedder = getattr(clip, "image_embedder", clip)
    names = Key(parts).model_differences(model_parts(embedder, logit_scale_of(clip)))
    if names := [name for name in names if name != _NOT_COMPARED]:
        raise ValueError(
            f"The index must be of this model. Received: {folder}, which differs in {' and '.join(names)}. Give "
            "another folder for an index of this model, or delete that one and build it again."
        )
