"""Reads and encodes pictures, in this process or by an engine whose workers load the model once each."""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_clip.data.decoding import Broken, fill_batch, in_threads
from keras_clip.data.image_files import PixelBudget
from keras_clip.evaluation.features.encoding import COLUMNS, features_and_embeddings, load_model, logit_scale_of
from keras_clip.evaluation.features.key import Key, model_parts
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.search.pictures import facts


class Wanted(NamedTuple):
    """A picture to be read.

    Attributes:
        number: int, by which the caller knows it.
        path: absolute path.
        has_caption: whether there is a text beside it.
    """

    number: int
    path: bytes
    has_caption: bool


class Encoded(NamedTuple):
    """What became of a picture.

    Attributes:
        number: int, as of `Wanted`.
        facts: `Facts`; `Broken`; or None if there is no such file any more.
        columns: features, float32 (D,), and embeddings, float32 (E,), by name; {} without facts.
    """

    number: int
    facts: "facts.Facts | Broken | None"
    columns: dict[str, np.ndarray]


def encode(
    embedder: ImageEmbedder,
    pictures: Iterable[Wanted],
    place: Path,
    batch_size: int,
    budget: PixelBudget,
    fast_jpeg: bool = False,
) -> Iterator[list[Encoded]]:
    """Encodes pictures batch by batch, while the next ones are read.

    Args:
        embedder: `ImageEmbedder`.
        pictures: the pictures; they are taken one by one.
        place: folder of the index, for thumbnails.
        batch_size: int. All batches have this size, so that the encoder compiles once.
        budget: bounds the pixels that are decoded at the same time.
        fast_jpeg: see `facts.read`.

    Returns:
        Iterator over the results of each batch.

    Raises:
        ValueError: NaN among the embeddings.
        OSError: a thumbnail cannot be written.
    """
    model, preprocessor = features_and_embeddings(embedder), embedder.image_preprocessor
    pictures = iter(pictures)
    batches = iter(lambda: list(itertools.islice(pictures, batch_size)), [])

    def read(picture):
        return picture, facts.read(picture.path, picture.has_caption, preprocessor, place, budget, fast_jpeg)

    for batch in in_threads(batches, read):
        results = [result for _, result in batch]
        pixels = [each.pixels if isinstance(each, facts.Read) else Broken("", "") for each in results]
        good, filled = fill_batch(pixels, batch_size)
        columns: list[dict[str, np.ndarray]] = [{} for _ in batch]
        if filled is not None:
            outputs = [np.asarray(output, np.float32) for output in model.predict_on_batch(filled)]
            for row, at in enumerate(good):
                columns[at] = {name: output[row] for name, output in zip(COLUMNS, outputs, strict=True)}
                _require_finite(columns[at], batch[at][0].path)
        yield [
            Encoded(picture.number, result.facts if isinstance(result, facts.Read) else result, of_picture)
            for (picture, result), of_picture in zip(batch, columns, strict=True)
        ]


def _require_finite(columns: dict[str, np.ndarray], path: bytes) -> None:
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"The model must return finite {name}. Received: NaN or infinity for {os.fsdecode(path)!r}. Try "
                "float32, or check the model's weights."
            )


class EncodePictures:
    """The task of an engine that reads and encodes a block of pictures.

    Args:
        model: as `presets.load` takes it.
        place: folder of the index, which all workers reach under this path, as they do the pictures.
        batch_size: int. Images per step.
        max_pixels: int or None, see `PixelBudget`: of each worker.
        parts: the parts of the model by `model_parts`. A worker whose model or preprocessing differs is refused.
        fast_jpeg: see `facts.read`.
    """

    uses_accelerator = True

    def __init__(
        self,
        model: str,
        place: Path,
        batch_size: int,
        max_pixels: int | None,
        parts: dict[str, Any],
        fast_jpeg: bool = False,
    ):
        self._model, self._place, self._batch_size, self._parts = model, place.absolute(), batch_size, parts
        self._max_pixels, self._fast_jpeg = max_pixels, fast_jpeg

    def start(self) -> ImageEmbedder:
        """Loads the model."""
        clip: CLIPModel | ImageEmbedder = load_model(self._model)
        embedder = getattr(clip, "image_embedder", clip)
        if names := Key(self._parts).model_differences(model_parts(embedder, logit_scale_of(clip))):
            raise ValueError(
                f"All workers must have the same model. Received: model={self._model!r}, which differs in "
                f"{' and '.join(names)} in a worker. Use the same files and versions on all machines."
            )
        return embedder

    def run(self, state: ImageEmbedder, item: list[Wanted]) -> list[Encoded]:
        """Encodes a block."""
        budget = PixelBudget(self._max_pixels)
        return list(itertools.chain(*encode(state, item, self._place, self._batch_size, budget, self._fast_jpeg)))
