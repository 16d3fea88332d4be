"""Features and embeddings of images, by one model in this process or by workers, each of which loads it once."""

import itertools
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_clip import files, presets
from keras_clip.data.decoding import Broken, decoded, fill_batch
from keras_clip.data.image_files import PixelBudget
from keras_clip.evaluation.datasets.labelled_images import LabelledImages
from keras_clip.evaluation.features.key import Key, model_parts
from keras_clip.model import CLIPModel, ImageEmbedder

COLUMNS = ("features", "embeddings")
# Images of a block: what is encoded again if a worker is killed.
_IMAGES_OF_BLOCK = 1024


class _FeaturesAndEmbeddings(keras.Model):
    """Features and embeddings from one pass through the encoder. It holds the embedder's layers, not the embedder."""

    def __init__(self, embedder: ImageEmbedder):
        super().__init__(dtype=embedder.dtype_policy, name="features_and_embeddings")
        self.pixels, self.encoder, self.projection = embedder.pixels, embedder.encoder, embedder.projection
        self.quantization = embedder.quantization
        self.built = True

    def call(self, images, training=False):
        features = self.encoder(self.pixels(images), training=False)
        return ops.cast(features, "float32"), self.projection(features)


# All stores of a model share its compiled function.
_COMPILED: "weakref.WeakKeyDictionary[ImageEmbedder, _FeaturesAndEmbeddings]" = weakref.WeakKeyDictionary()


def features_and_embeddings(embedder: ImageEmbedder) -> keras.Model:
    """Returns the model that maps images to float32 features (B, D) and embeddings (B, E)."""
    model = _COMPILED.get(embedder)
    if model is None or model.encoder is not embedder.encoder or model.quantization != embedder.quantization:
        model = _COMPILED[embedder] = _FeaturesAndEmbeddings(embedder)
    return model


class Encoded(NamedTuple):
    """What became of consecutive images.

    Args:
        size: int N, the number of images.
        broken: place below N and `Broken` of each image that could not be decoded, ascending.
        rows: int64 (R,), the places of the others, ascending.
        columns: features, float32 (R, D), and embeddings, float32 (R, E), by name; {} if R is 0.
    """

    size: int
    broken: list[tuple[int, Broken]]
    rows: np.ndarray
    columns: dict[str, np.ndarray]


def encode(
    embedder: ImageEmbedder,
    images: LabelledImages,
    start: int,
    stop: int | None,
    batch_size: int,
    budget: PixelBudget | None,
) -> Iterator[Encoded]:
    """Encodes images batch by batch.

    Args:
        embedder: `ImageEmbedder`.
        images: the images.
        start: int, number of the first image.
        stop: int or None, end of the images; None: all.
        batch_size: int. All batches have this size, so that the encoder compiles once.
        budget: `PixelBudget` of all threads that decode. None: the default.

    Returns:
        Iterator over the results of each batch.

    Raises:
        ValueError: NaN among the features.
    """
    model = features_and_embeddings(embedder)
    each = itertools.islice(iter(images.read(start)), None if stop is None else stop - start)
    batches = iter(lambda: list(itertools.islice(each, batch_size)), [])
    for batch in decoded(batches, embedder.image_preprocessor, budget):
        broken = [(place, image) for place, image in enumerate(batch) if isinstance(image, Broken)]
        rows, filled = fill_batch(batch, batch_size)
        columns = {}
        if filled is not None:
            outputs = zip(COLUMNS, model.predict_on_batch(filled), strict=True)
            columns = {name: np.asarray(output, np.float32)[: len(rows)] for name, output in outputs}
        for name, values in columns.items():
            _require_finite(name, values, images, start + np.array(rows))
        yield Encoded(len(batch), broken, np.array(rows, np.int64), columns)
        start += len(batch)


def _require_finite(name: str, values: np.ndarray, images: LabelledImages, rows: np.ndarray) -> None:
    if not np.isfinite(values).all():
        row = rows[~np.isfinite(values).all(axis=1)][0]
        raise ValueError(
            f"The model must return finite {name}. "
            f"Received: NaN or infinity for image {images.ids[row]!r} of {images.name}/{images.split}. Try float32, or "
            "check the model's weights."
        )


class EncodeBlock:
    """The task of an engine that encodes a block of images and writes the result to a file, whole or not at all.

    A block is (start, stop), the numbers of its images; blocks are multiples of a batch, so that the batches are those
    of one process.

    Args:
        model: as `presets.load` takes it; for engines in this process also a `CLIPModel` or `ImageEmbedder`.
        images: the images.
        place: folder of the files, which all workers reach under this path.
        batch_size: int. Images per step.
        max_pixels: int or None, see `PixelBudget`: of each worker.
        key: key of the store. A worker whose model or preprocessing differs is refused.
    """

    uses_accelerator = True

    def __init__(
        self,
        model: str | os.PathLike | CLIPModel | ImageEmbedder,
        images: LabelledImages,
        place: Path,
        batch_size: int,
        max_pixels: int | None,
        key: Key,
    ):
        self._model, self._images, self._place = model, images, place.absolute()
        self._batch_size, self._max_pixels, self._key = batch_size, max_pixels, key

    @staticmethod
    def block_size(batch_size: int) -> int:
        """Returns the number of images of a block."""
        return max(1, _IMAGES_OF_BLOCK // batch_size) * batch_size

    def path(self, block: tuple[int, int]) -> Path:
        """Returns the path of the file of a block."""
        return self._place / f"block-{self._key.digest()[:16]}-{block[0]:010d}-{block[1]:010d}.npz"

    def start(self) -> ImageEmbedder:
        """Loads the model."""
        clip = load_model(self._model)
        embedder = getattr(clip, "image_embedder", clip)
        if names := self._key.model_differences(model_parts(embedder, logit_scale_of(clip))):
            raise ValueError(
                f"All workers must have the same model. Received: model={str(self._model)!r}, which differs in "
                f"{' and '.join(names)} in a worker. Use the same files and versions on all machines."
            )
        return embedder

    def run(self, state: ImageEmbedder, item: tuple[int, int]) -> None:
        """Encodes a block, if there is no file of it."""
        path = self.path(item)
        if path.exists():
            return
        batches = encode(state, self._images, *item, self._batch_size, PixelBudget(self._max_pixels))
        _save(path, list(batches))


def load_model(model: str | os.PathLike | CLIPModel | ImageEmbedder) -> CLIPModel | ImageEmbedder:
    """Returns a model, which is loaded by `presets.load` unless it is one."""
    return presets.load(model) if isinstance(model, (str, os.PathLike)) else model


def located(model: str | os.PathLike | CLIPModel | ImageEmbedder) -> str | CLIPModel | ImageEmbedder:
    """Returns a model as workers load it: a path as an absolute one."""
    if not isinstance(model, (str, os.PathLike)):
        return model
    return os.path.abspath(model) if os.path.exists(model) else os.fspath(model)


def logit_scale_of(clip: CLIPModel | ImageEmbedder) -> float | None:
    """Returns log(1 / temperature) of a model, or None where there is none."""
    weight = getattr(clip, "logit_scale", None)
    return None if weight is None else float(ops.convert_to_numpy(ops.convert_to_tensor(weight)))


def _save(path: Path, batches: list[Encoded]) -> None:
    starts = np.cumsum([0, *(batch.size for batch in batches)])
    pairs = list(zip(starts[:-1].tolist(), batches, strict=True))
    broken = [(start + place, *image) for start, batch in pairs for place, image in batch.broken]
    arrays: dict[str, Any] = {
        "size": starts[-1],
        "rows": np.concatenate([np.zeros(0, np.int64), *(start + batch.rows for start, batch in pairs)]),
        "broken": np.array([place for place, _, _ in broken], np.int64),
        "reasons": np.array([reason for _, reason, _ in broken], str),
        "details": np.array([detail for _, _, detail in broken], str),
    }
    for name in COLUMNS:
        if parts := [batch.columns[name] for batch in batches if batch.columns]:
            arrays[name] = np.concatenate(parts)
    with files.replacing(path) as temporary:
        np.savez(temporary, **arrays)


def read_block(path: Path) -> Encoded:
    """Reads the file of a block.

    Args:
        path: the file.

    Returns:
        The results of its images.
    """
    with np.load(path, allow_pickle=False) as stored:
        broken = zip(stored["broken"].tolist(), stored["reasons"].tolist(), stored["details"].tolist(), strict=True)
        columns = {name: stored[name] for name in COLUMNS if name in stored}
        return Encoded(
            int(stored["size"]),
            [(place, Broken(reason, detail)) for place, reason, detail in broken],
            stored["rows"],
            columns,
        )
