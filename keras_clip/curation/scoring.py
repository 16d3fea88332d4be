"""The CLIP score of each pair, and the embedding of its image, by any model on any backend.

Images are decoded as in evaluation, by PIL in threads, while the encoder works on the batch before. All batches have
one shape, so that the encoder compiles once. An image with several captions is encoded once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_clip import presets
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.data.decoding import decoded, fill_batch
from keras_clip.data.readers import Reader
from keras_clip.engines import Engine
from keras_clip.model import CLIPModel, ImageEmbedder
from keras_clip.presets.digests import weights_digest

if TYPE_CHECKING:
    import pyarrow

# Texts are padded to the shortest of these widths, so that three shapes are compiled.
_WIDTHS = (16, 32)


class ImageEmbeddings(ShardPass):
    """The embedding of each pair's image: `image_embedding`, E float32, a unit vector; null if it cannot be decoded.

    Args:
        load: function without arguments that returns an `ImageEmbedder`, once in each worker. It is pickled.
        digest: str, what identifies the weights.
        name: str, name of the pass.
        batch_size: int >= 1. Images per step of the encoder.

    Raises:
        ValueError: an invalid `batch_size`.
    """

    inputs = ("profile",)
    reads_source = True
    uses_accelerator = True

    def __init__(self, load: Callable[[], Any], digest: str, name: str = "image_embeddings", batch_size: int = 64):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}.")
        self.name, self._load, self._digest, self._batch_size = name, load, digest, batch_size

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": 1, "model": self._digest}

    def start(self) -> ImageEmbedder:
        """See `ShardPass.start`."""
        return self._load()

    def run(
        self, state: ImageEmbedder, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        rows, places, vectors = _embedded_images(state, shard, inputs["profile"], self._batch_size)
        column = _lists(vectors[places[rows]], rows, len(places))
        return pa.table({"image_embedding": column}), {"images": len(vectors)}


class Score(ShardPass):
    """The CLIP score of each pair.

    Columns: `clip_score` float32, the cosine of the embeddings of image and caption, and `image_embedding`, E float32.
    Both are null if the image cannot be decoded, the score also if the caption is blank.

    Args:
        model: as `presets.load` takes it: the name of a published model, a repository, a directory or a file; or a
            `CLIPModel`, for engines in this process.
        batch_size: int >= 1. Images per step of the encoder, and captions.
        dtype: dtype policy of the model, see `presets.load`.
        name: str, name of the pass.

    Raises:
        ValueError: an invalid `batch_size`.
    """

    inputs = ("profile",)
    reads_source = True
    uses_accelerator = True

    def __init__(
        self, model: str | Path | CLIPModel, batch_size: int = 64, dtype: str | None = None, name: str = "score"
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}.")
        self.name, self._model, self._batch_size, self._dtype = name, model, batch_size, dtype

    @cached_property
    def _digest(self) -> str:
        return model_digest(self._model)

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        return {"version": 1, "model": self._digest, "dtype": self._dtype}

    def start(self) -> CLIPModel:
        """See `ShardPass.start`."""
        if isinstance(self._model, keras.Model):
            return _required_clip(self._model, self._model)
        return _required_clip(presets.load(self._model, dtype=self._dtype), self._model)

    def run(
        self, state: CLIPModel, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        profile = inputs["profile"]
        rows, places, vectors = _embedded_images(state.image_embedder, shard, profile, self._batch_size)
        scored = rows[~profile["blank"].to_numpy()[rows]]
        texts = profile["caption"].take(pa.array(scored)).to_pylist()
        text_vectors = embed_captions(state.text_embedder, texts, self._batch_size)
        scores = np.zeros(len(places), np.float32)
        scores[scored] = np.einsum("ne,ne->n", vectors[places[scored]].astype(np.float64), text_vectors)
        absent = np.ones(len(places), bool)
        absent[scored] = False
        table = {
            "clip_score": pa.array(scores, pa.float32(), mask=absent),
            "image_embedding": _lists(vectors[places[rows]], rows, len(places)),
        }
        return pa.table(table), {"scored": len(scored), "images": len(vectors)}


def score(
    pool: Pool,
    model: str | Path | CLIPModel,
    engine: str | Engine = "serial",
    *,
    batch_size: int = 64,
    dtype: str | None = None,
    name: str = "score",
    progress: bool = True,
) -> Mapping[str, int]:
    """Computes the CLIP score of each pair of a pool that is profiled; see `Score`.

    Args:
        pool: the pool.
        model: see `Score`.
        engine: see `run_pass`. Each worker loads the model.
        batch_size: int >= 1. Images per step of the encoder.
        dtype: dtype policy of the model.
        name: str, name of the pass.
        progress: bool. Whether to show a progress bar.

    Returns:
        Counts of pairs "scored" and "images".

    Raises:
        ValueError, FileNotFoundError, ConnectionError: see `presets.load` and `run_pass`.
    """
    return run_pass(pool, Score(model, batch_size, dtype, name), engine, progress=progress)


def embed_captions(text_embedder: Any, captions: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """Returns the embeddings of captions; longer ones than the context of the encoder are truncated.

    Args:
        text_embedder: `TextEmbedder` with a tokenizer.
        captions: N texts. Equal ones are encoded once.
        batch_size: int >= 1.

    Returns:
        float32 (N, E), unit vectors.

    Raises:
        ValueError: the model returns NaN.
    """
    if not len(captions):
        return np.zeros((0, text_embedder.embed_dim), np.float32)
    tokenizer = text_embedder.tokenizer
    token_ids, inverse = np.unique(tokenizer(list(captions), truncate=True), axis=0, return_inverse=True)
    lengths = (token_ids == tokenizer.end_token_id).argmax(axis=1) + 1
    vectors, shorter = np.empty((len(token_ids), text_embedder.embed_dim), np.float32), 0
    for width in sorted({min(width, token_ids.shape[1]) for width in (*_WIDTHS, token_ids.shape[1])}):
        rows = np.flatnonzero((lengths > shorter) & (lengths <= width))
        shorter = width
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            filled = token_ids[np.resize(batch, batch_size), :width]
            vectors[batch] = np.asarray(text_embedder.predict_on_batch(filled), np.float32)[: len(batch)]
    return _unit(vectors, "captions")[inverse.reshape(-1)]


def embed_images(embedder: Any, reader: Reader, ids: np.ndarray, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings of images, which are decoded while the encoder works on the batch before.

    Args:
        embedder: `ImageEmbedder`.
        reader: `Reader` of the images.
        ids: int64 (N,), their indices.
        batch_size: int >= 1.

    Returns:
        Whether each image was decoded, bool (N,), and float32 (N, E), unit vectors, zero for images that were not.

    Raises:
        ValueError: the model returns NaN.
    """
    vectors, is_embedded = np.zeros((len(ids), embedder.embed_dim), np.float32), np.zeros(len(ids), bool)
    starts = range(0, len(ids), batch_size)
    batches = (reader.read(ids[start : start + batch_size])[0] for start in starts)
    for start, images in zip(starts, decoded(batches, embedder.image_preprocessor), strict=True):
        good, filled = fill_batch(images, batch_size)
        if filled is None:
            continue
        batch = np.asarray(embedder.predict_on_batch(filled), np.float32)[: len(good)]
        vectors[start + np.array(good)] = _unit(batch, "images")
        is_embedded[start + np.array(good)] = True
    return is_embedded, vectors


def model_digest(model: str | Path | keras.Model) -> str:
    """Identifies the weights of a model.

    Args:
        model: see `Score`.

    Returns:
        SHA-256 of its files, or of the weights of a model object; a name that is no file is returned as it is.
    """
    if isinstance(model, keras.Model):
        return weights_digest(model.weights, repr(model.dtype_policy.name))
    path, whole = Path(model), hashlib.sha256()
    if not path.exists():
        return str(model)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as opened:
                whole.update(f"{file.name if path.is_dir() else ''} ".encode())
                whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def _required_clip(model, given) -> CLIPModel:
    if not hasattr(model, "image_embedder") or not hasattr(model, "text_embedder"):
        raise ValueError(
            f"A score needs both encoders of a `CLIPModel`. Received: model={given!r}, a {type(model).__name__}."
        )
    if model.text_embedder.tokenizer is None:
        raise ValueError(
            f"A score needs a model with its tokenizer. Received: model={given!r} without one. Pass "
            "`CLIPModel(tokenizer=...)`."
        )
    return model


def _embedded_images(embedder, shard, profile, batch_size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows whose image has an embedding, and for all rows the row of it among the embeddings.

    Returns:
        int64 (R,), int64 (N,), float32 (M, E) of unit length.
    """
    ok = np.asarray(profile["decode_ok"].combine_chunks())
    samples, first, inverse = np.unique(profile["sample"].to_numpy(), return_index=True, return_inverse=True)
    wanted = np.flatnonzero(ok[first])
    place = np.full(len(samples), -1)
    place[wanted] = np.arange(len(wanted))
    is_embedded, vectors = embed_images(embedder, shard.open()[0], samples[wanted], batch_size)
    places = place[inverse.reshape(-1)]
    rows = np.flatnonzero((places >= 0) & is_embedded[places] if len(wanted) else np.zeros(len(places), bool))
    return rows, places, vectors


def _unit(vectors, what) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise ValueError(
            f"The model must return finite embeddings of {what}. Received: NaN or infinity. Try dtype='float32', or "
            "check its weights."
        )
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _lists(vectors, rows, num_rows) -> "pyarrow.Array":
    """Returns a column of lists of one length, null but for these rows."""
    import pyarrow as pa

    whole = np.zeros((num_rows, vectors.shape[1]), np.float32)
    whole[rows] = vectors
    absent = np.ones(num_rows, bool)
    absent[rows] = False
    values = pa.array(whole.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=pa.array(absent))
