"""Kills updates of an index at random moments, while a reader looks on:

    PYTHONPATH=.:tests python tests/killed_updates.py FOLDER [ROUNDS] [SEED]

In each round some pictures come, change, move and go, an update starts and is killed by SIGKILL. After each kill the
index opens, nothing that was committed is lost, and every embedding is that of its picture; at the end one whole update
makes the index equal to the folder. A model of NumPy takes the place of the encoder, so that processes can be forked.
"""

import contextlib
import hashlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
from PIL import Image

from keras_clip.data.images import ImagePreprocessor
from keras_clip.search.pictures import compaction, encoding, updating
from keras_clip.search.pictures.index import PictureIndex
from keras_clip.search.pictures.indexed_model import IndexedModel

SIDE, DIMENSIONS = 8, 16


class Numpy:
    """An encoder whose embeddings are the first pixels of a picture."""

    image_preprocessor = ImagePreprocessor(SIDE)

    def predict_on_batch(self, pixels):
        rows = pixels.reshape(len(pixels), -1)[:, :DIMENSIONS].astype(np.float32) + 1
        return rows, rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Model(IndexedModel):
    def __init__(self):
        super().__init__("numpy")

    def embedder(self):
        return Numpy()

    def facts(self):
        widths = {"features": 0, "embeddings": DIMENSIONS}
        return {
            **{"model": "numpy", "model_parts": {}, "widths": widths},
            **{"loss": "contrastive", "logit_scale": 0.0, "logit_bias": None},
        }


def expected(path):
    return Numpy().predict_on_batch(Numpy.image_preprocessor.to_uint8([path]))[1][0]


def change(root, draws, count):
    """Adds, changes, moves and removes pictures."""
    files = sorted(root.rglob("*.png"))
    for _ in range(count):
        folder = root / draws.choice("abc")
        folder.mkdir(exist_ok=True)
        colours = np.random.default_rng(draws.randrange(10**6)).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(colours).save(folder / f"{draws.randrange(10**6)}.png")
    draws.shuffle(files)
    # At times two thirds, after which the index is compacted.
    gone = len(files) * 2 // 3 if draws.random() < 0.3 else min(4, len(files))
    for path in files[:gone]:
        path.unlink()
    for path in files[gone : gone + 4]:
        path.rename(path.with_name(f"moved {path.name[-40:]}"))
    for path in files[gone + 4 : gone + 8]:
        Image.new("RGB", (8, 8), tuple(draws.randrange(256) for _ in range(3))).save(path)


def check(folder, seen):
    """Checks an index after a kill; `seen` is what the reader saw last of it."""
    with PictureIndex.open(folder) as index:
        for id, row in zip(index.ids.tolist(), index.rows.tolist(), strict=True):
            np.testing.assert_allclose(np.linalg.norm(index.embeddings[row]), 1, atol=1e-5)
            picture = index.picture(id)
            if picture.path.exists() and hashlib.sha256(picture.path.read_bytes()).hexdigest() == picture.sha256:
                np.testing.assert_allclose(index.embeddings[row], expected(picture.path), atol=1e-6)
        assert index.version >= seen["version"], "a committed version is gone"
        if index.version == seen["version"]:
            assert index.ids.tolist() == seen["ids"], "a committed version has other pictures"


def look(folder, stop, seen, errors):
    """A reader in a thread: whatever it sees is whole."""
    index = None
    while not stop.is_set():
        try:
            if index is None:
                index = PictureIndex.open(folder)
            elif not index.refresh():
                time.sleep(0.002)
                continue
            np.testing.assert_allclose(np.linalg.norm(index.embeddings[index.rows], axis=1), 1, atol=1e-5)
            seen |= {"version": index.version, "ids": index.ids.tolist()}
        except FileNotFoundError:
            time.sleep(0.002)
        except BaseException as error:
            errors.append(error)
            return


def main(place, rounds=50, seed=0):
    place, rounds, draws = Path(place), int(rounds), random.Random(int(seed))
    root, folder = place / "pictures", place / "index"
    root.mkdir(parents=True)
    updating._PICTURES, compaction._FEWEST = 16, 32
    encoding.features_and_embeddings = lambda embedder: embedder
    killed, versions, errors, seen = 0, 0, [], {"version": -1, "ids": []}
    for number in range(rounds):
        change(root, draws, 60 if number < 3 else 16)
        process = os.fork()
        if not process:
            try:
                updating.Updater(folder, Model(), batch_size=4, progress=False).update(root)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        stop, before = threading.Event(), seen["version"]
        reader = threading.Thread(target=look, args=(folder, stop, seen, errors))
        reader.start()
        time.sleep(draws.uniform(0.0, 0.2))
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        stop.set()
        reader.join()
        assert not errors, errors
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        killed += os.WIFSIGNALED(status)
        versions += seen["version"] != before
        if seen["version"] >= 0 or (folder / "index.sqlite").exists():
            with contextlib.suppress(*([FileNotFoundError] if seen["version"] < 0 else [])):
                check(folder, seen)
    changes = updating.Updater(folder, Model(), batch_size=4, progress=False).update(root)
    assert not changes.broken, changes
    with PictureIndex.open(folder) as index:
        pictures = [index.picture(id) for id in index.ids]
        assert sorted(picture.path for picture in pictures) == sorted(root.rglob("*.png"))
        for picture, row in zip(pictures, index.rows, strict=True):
            np.testing.assert_allclose(index.embeddings[row], expected(picture.path), atol=1e-6)
            assert index.thumbnail(picture.id)
        # Nothing that is not needed is kept, except drafts of locks.
        left = {path.name.partition("-")[0] for path in folder.iterdir() if path.suffix != ".lock"}
        assert left == {"index.sqlite", "embeddings", "features", "thumbnails"}, left
        print(
            f"{killed} of {rounds} updates killed, {versions} of which had committed; {len(pictures)} pictures, "
            f"{index.generation} compactions"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
