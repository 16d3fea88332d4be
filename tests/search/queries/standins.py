"""A model and an index of pictures that the tests of queries search, without files and without a backend."""

import hashlib
from types import SimpleNamespace

import numpy as np

DIMENSIONS = 8


def unit(x):
    return (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)).astype(np.float32)


def direction(text):
    """A unit vector for a text: of small integers before scaling, another one for each text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return unit(np.random.default_rng(seed).normal(size=DIMENSIONS))


class Clip:
    """As much of a `CLIPModel` as a search uses. The embedding of a text is `direction` of it."""

    def __init__(self, logit_bias=None):
        self.embed_dim = DIMENSIONS
        self.logit_scale, self.logit_bias = np.float32(np.log(20.0)), logit_bias
        self.text_embedder = SimpleNamespace(predict_on_batch=self._embed_texts)
        self.image_embedder = SimpleNamespace(
            predict_on_batch=lambda pixels: pixels[:, 0, 0, :1] * np.eye(DIMENSIONS)[:1]
        )
        self.image_preprocessor = SimpleNamespace(to_uint8=lambda images: np.full((1, 4, 4, 3), images[0][0, 0, 0]))
        self.texts, self.batches = [], []

    def tokenizer(self, texts, truncate=False):
        assert truncate
        self.texts += [text for text in texts if text not in self.texts]
        return np.array([[self.texts.index(text)] * 3 for text in texts])

    def _embed_texts(self, token_ids):
        self.batches.append(len(token_ids))
        return np.stack([direction(self.texts[row[0]]) for row in token_ids])


class Pictures:
    """As much of a `PictureIndex` as a search uses; `change` makes a new version, which `refresh` moves on to."""

    def __init__(self, embeddings, seed=0, **columns):
        self._columns = {}
        nothing = np.zeros(0, np.int64)
        self._state = self._next = (0, np.zeros((0, DIMENSIONS), np.float32), nothing, nothing, 0)
        self._rng = np.random.default_rng(seed)
        self.change(add=embeddings, **columns)
        self.refresh()

    version = property(lambda self: self._state[0])
    embeddings = property(lambda self: self._state[1])
    ids = property(lambda self: self._state[2])
    rows = property(lambda self: self._state[3])
    generation = property(lambda self: self._state[4])

    def change(self, add=(), remove=(), compact=False, **columns):
        version, embeddings, ids, rows, generation = self._next
        keep = ~np.isin(ids, list(remove))
        ids, rows = ids[keep], rows[keep]
        add = np.asarray(add, np.float32).reshape(-1, DIMENSIONS)
        first = 1 + max(self._columns, default=0)
        new = np.arange(first, first + len(add))
        ids, rows = np.concatenate([ids, new]), np.concatenate([rows, len(embeddings) + np.arange(len(add))])
        embeddings = np.concatenate([embeddings, add])
        for place, id in enumerate(new.tolist()):
            drawn = {
                "root": 0,
                "folder": f"2024/{'abc'[self._rng.integers(3)]}",
                "name": f"IMG_{id}.jpg",
                "caption": ["", "a red boat", "Straße am Meer", "海の写真"][self._rng.integers(4)],
                "width": int(self._rng.integers(1, 5)) * 100,
                "height": int(self._rng.integers(1, 5)) * 100,
                "size": int(self._rng.integers(1, 4)) * 1000,
                "taken": np.datetime64("2024-01-01T12:00:00") + np.timedelta64(int(self._rng.integers(0, 6)), "D"),
            }
            self._columns[id] = drawn | {name: values[place] for name, values in columns.items()}
        if compact:
            embeddings, rows, generation = embeddings[rows], np.arange(len(rows)), generation + 1
        self._next = (version + 1, embeddings, ids, rows, generation)

    def refresh(self):
        is_newer, self._state = self._next[0] != self._state[0], self._next
        return is_newer

    def columns(self, names):
        return {
            name: np.array(
                [self._columns[id][name] for id in self.ids.tolist()],
                {"taken": "datetime64[s]", "folder": object, "name": object, "caption": object}.get(name, np.int64),
            )
            for name in names
        }
