"""Finds pairs whose image is near an image of a test set (Radford et al., 2021, section 5)."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_clip.curation.clusters import embedding_rows
from keras_clip.curation.colours import MOST_COLOURS, check_colours, colour_rows, verifier
from keras_clip.curation.passes import ShardPass, run_pass
from keras_clip.curation.pool import Pool
from keras_clip.curation.shards import Shard
from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.data.readers import Reader
from keras_clip.engines import Engine
from keras_clip.similarity.fingerprints import COLOUR_SIDE, HASH_SHORTEST, colours_of_decoded, hash_of_decoded
from keras_clip.similarity.hamming import near_pairs
from keras_clip.similarity.nearest import nearest_vectors

if TYPE_CHECKING:
    import pyarrow

_READ = 64


class TestImages(ShardPass):
    """The verdict on pairs that are near an image of a test set.

    Columns: `reason`, "near a test image of NAME", or null; `test_set` and `test_row`, the nearest image of those that
    are near, the first among equals; `similarity`, the cosine, or 1 - bits / 64 of perceptual hashes.

    Args:
        hashes: {name of the test set: perceptual hashes of its images, uint64 (M,)}, from `hash_images`: in a
            masked array, images without a hash are masked.
        vectors: {name of the test set: embeddings of its images, float (M, E), unit vectors}; rows of NaN are images
            without an embedding.
        colours: {name of the test set: colours of its images, uint8 (M, 192)}, from `fingerprint_images`. Those of an
            image that is near by its hash must be similar too, see `DuplicateSettings`. None: they do not count.
        most_colours: float >= 0. The largest difference of colours.
        distance: int in [0, 16]. Hashes that differ in at most this number of bits are near.
        cosine: float in (-1, 1]. Embeddings with at least this cosine are near.
        embeddings: (pass, column) of the embeddings of the pool, by the same model as `vectors`.
        drop: bool. Whether the pairs are rejected; otherwise they are listed, without a reason.
        name: str, name of the pass.

    Raises:
        ValueError: no test set, or an invalid value.
    """

    # The name begins like those of pytest's classes.
    __test__ = False

    def __init__(
        self,
        hashes: Mapping[str, np.ndarray] | None = None,
        vectors: Mapping[str, np.ndarray] | None = None,
        *,
        colours: Mapping[str, np.ndarray] | None = None,
        most_colours: float = MOST_COLOURS,
        distance: int = 4,
        cosine: float = 0.95,
        embeddings: tuple[str, str] = ("score", "image_embedding"),
        drop: bool = True,
        name: str = "test_images",
    ):
        hashes, vectors = dict(sorted((hashes or {}).items())), dict(sorted((vectors or {}).items()))
        # The rows of the test set that have a hash or an embedding.
        present = {
            "hashes": {
                name: ~np.ma.getmaskarray(each).any(axis=tuple(range(1, np.ndim(each))))
                for name, each in hashes.items()
            },
            "vectors": {name: np.isfinite(each).all(axis=-1) for name, each in vectors.items()},
        }
        self._rows = {kind: {name: np.flatnonzero(is_there) for name, is_there in sets.items()}
                      for kind, sets in present.items()}  # fmt: skip
        self._hashes = {name: np.ma.getdata(each)[self._rows["hashes"][name]] for name, each in hashes.items()}
        self._vectors = {name: np.asarray(each)[self._rows["vectors"][name]] for name, each in vectors.items()}
        if set(colours or {}) - set(hashes):
            raise ValueError(f"Colours go with hashes. Received: those of {sorted(set(colours) - set(hashes))} alone.")
        self._colours = {name: np.asarray(each)[self._rows["hashes"][name]] for name, each in (colours or {}).items()}
        check_colours(most_colours)
        self._most_colours = most_colours
        if not self._hashes and not self._vectors:
            raise ValueError("Hashes or embeddings of a test set must be given. Received: none.")
        if not -1 < cosine <= 1:
            raise ValueError(f"`cosine` must be in (-1, 1]. Received: cosine={cosine!r}.")
        for values in self._hashes.values():
            near_pairs(np.zeros(0, np.uint64), values, distance)
        self.name, self._distance, self._cosine, self._embeddings, self._drop = (
            name, distance, cosine, tuple(embeddings), drop
        )  # fmt: skip
        self.inputs = ("profile", embeddings[0]) if self._vectors else ("profile",)

    @property
    def needs_colours(self) -> bool:
        """Whether the colours of the profile are read."""
        return bool(self._colours)

    def config(self) -> dict[str, Any]:
        """See `ShardPass.config`."""
        given = {"hashes": self._hashes, "vectors": self._vectors}
        given |= {f"rows of {kind}": sets for kind, sets in self._rows.items()}
        digests = {kind: {name: _digest(array) for name, array in sets.items()} for kind, sets in given.items()}
        digests["colours"] = {name: [_digest(each), self._most_colours] for name, each in self._colours.items()}
        settings = [self._distance, self._cosine, list(self._embeddings), self._drop]
        return {"version": 2, "test sets": digests, "settings": settings}

    def run(
        self, state: Any, shard: Shard, inputs: Mapping[str, "pyarrow.Table"]
    ) -> tuple["pyarrow.Table", Mapping[str, int]]:
        """Computes the table of a shard; arguments as of `ShardPass.run`."""
        import pyarrow as pa

        profile = inputs["profile"]
        best = np.full(profile.num_rows, -np.inf, np.float32)
        place, names = np.full(profile.num_rows, -1), np.full(profile.num_rows, None, object)
        found = []
        for name, index in self._hashes.items():
            colours = self._colours.get(name)
            rows, nearest, similarity = _near_hashes(profile, index, self._distance, colours, self._most_colours)
            found.append((name, rows, self._rows["hashes"][name][nearest], similarity))
        if self._vectors:
            table, column = inputs[self._embeddings[0]], self._embeddings[1]
            rows, queries = embedding_rows(table, column)
            for name, index in self._vectors.items():
                if len(rows) and len(index):
                    cosines, nearest = nearest_vectors(queries, index)
                    near = cosines >= self._cosine
                    found.append((name, rows[near], self._rows["vectors"][name][nearest[near]], cosines[near]))
        for name, rows, nearest, similarity in found:
            better = similarity > best[rows]
            best[rows[better]], place[rows[better]], names[rows[better]] = similarity[better], nearest[better], name
        reasons = [name and f"near a test image of {name}" for name in names]
        absent = place < 0
        columns = {
            "reason": pa.array(reasons if self._drop else [None] * len(reasons), pa.string()),
            "test_set": pa.array(names, pa.string()),
            "test_row": pa.array(place, pa.int64(), mask=absent),
            "similarity": pa.array(np.where(absent, 0, best), pa.float32(), mask=absent),
        }
        return pa.table(columns), Counter(filter(None, reasons))


def find_test_images(
    pool: Pool, test_images: TestImages, engine: str | Engine = "auto", *, progress: bool = True
) -> Counter:
    """Looks for images of test sets in a pool that is profiled, and writes the verdict of each shard.

    Args:
        pool: the pool.
        test_images: the pass.
        engine: see `run_pass`.
        progress: bool. Whether to show a progress bar.

    Returns:
        Number of pairs by reason, also if they are only listed.
    """
    if test_images.needs_colours:
        pool.require("profile")
        pool.column_type("profile", "colours")
    return run_pass(pool, test_images, engine, progress=progress)


def hash_images(reader: Reader, max_pixels: int = MAX_PIXELS) -> np.ma.MaskedArray:
    """Returns the perceptual hashes of the images of a test set, as the profile computes them.

    Args:
        reader: `Reader` of the test set.
        max_pixels: int. Larger images are left out.

    Returns:
        Masked array uint64 (M,), in which the images that cannot be decoded are masked.
    """
    return fingerprint_images(reader, max_pixels)[0]


def fingerprint_images(reader: Reader, max_pixels: int = MAX_PIXELS) -> tuple[np.ma.MaskedArray, np.ndarray]:
    """Returns the perceptual hashes and the colours of the images of a test set, as the profile computes them.

    Args:
        reader: `Reader` of the test set.
        max_pixels: int. Larger images are left out.

    Returns:
        Hashes, masked array uint64 (M,), in which the images that cannot be decoded are masked, and colours, uint8
        (M, 192), 0 for these.
    """
    hashes, is_broken = np.zeros(len(reader), np.uint64), np.zeros(len(reader), bool)
    colours = np.zeros((len(reader), 3 * COLOUR_SIDE**2), np.uint8)
    for start in range(0, len(reader), _READ):
        for row, content in enumerate(reader.read(np.arange(start, min(start + _READ, len(reader))))[0], start):
            try:
                image = open_image(content, "image", max_pixels, HASH_SHORTEST)
            except ValueError:
                is_broken[row] = True
                continue
            hashes[row] = hash_of_decoded(image)
            colours[row] = np.frombuffer(colours_of_decoded(image), np.uint8)
    return np.ma.MaskedArray(hashes, is_broken), colours


def _near_hashes(profile, index, distance, colours, most) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows that are near, the nearest place of the index for each, and 1 - bits / 64."""
    column = profile["perceptual_hash"]
    rows = np.flatnonzero(~np.asarray(column.is_null().combine_chunks()))
    hashes = column.fill_null(0).to_numpy()[rows]
    verify = None if colours is None else verifier(colour_rows(profile["colours"], rows), colours, most)
    queries, places = near_pairs(hashes, index, distance, verify=verify)
    bits = np.bitwise_count(hashes[queries] ^ index[places])
    order = np.lexsort([places, bits, queries])
    _, first = np.unique(queries[order], return_index=True)
    chosen = order[first]
    return rows[queries[chosen]], places[chosen], (1 - bits[chosen] / 64).astype(np.float32)


def _digest(array) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
