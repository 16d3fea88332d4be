"""A library of drawn scenes that colours and their names find, and no trained model: for tests and for the page.

    PYTHONPATH=.:tests python tests/colour_library.py --pictures 300 --port 8300

serves it, so that the page can be developed without a download or a training.
"""

import argparse
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
from picture_folders import age
from PIL import Image

import keras_clip
from keras_clip.data import OPENAI_MEAN, OPENAI_STD, synthetic
from keras_clip.search import PictureIndex, update_index
from keras_clip.search.server.library import Library

SIDE, WIDTH = 16, 24
FOLDERS = ("2024/sea", "2024/city at night", "2025", "")


@keras.saving.register_keras_serializable(package="tests")
class ColourShares(keras.layers.Layer):
    """Maps normalised images (B, H, W, 3) to the roots of the fractions of their pixels of each colour (B, 8)."""

    def __init__(self, **options):
        super().__init__(**options)
        self.built = True

    def call(self, images):
        palette = [*synthetic.COLOURS.values(), *synthetic.BACKGROUNDS.values()]
        palette = (np.array(palette) / 255 - OPENAI_MEAN) / OPENAI_STD
        distances = keras.ops.sum((images[..., None, :] - palette.astype("float32")) ** 2, -1)
        shares = keras.ops.mean(keras.ops.softmax(-8.0 * distances), (1, 2))
        return keras.ops.sqrt(shares[:, : len(synthetic.COLOURS)])

    def compute_output_shape(self, input_shape):
        return input_shape[0], len(synthetic.COLOURS)


class WordEncoder:
    """Embeds texts: a colour as a picture of it, each other word as a small step in a direction of its own."""

    def __init__(self, embedder):
        flat = np.stack([np.full((SIDE, SIDE, 3), rgb, np.uint8) for rgb in synthetic.COLOURS.values()])
        embeddings = np.asarray(embedder.predict_on_batch(flat))
        self._colours = dict(zip(synthetic.COLOURS, embeddings, strict=True))

    def predict_on_batch(self, texts):
        return np.stack([self._embedding(text) for text in texts]).astype("float32")

    def _embedding(self, text):
        vector = np.full(WIDTH, 0.01)
        for word in str(text).lower().split():
            step = np.random.default_rng(list(word.encode())).normal(size=WIDTH) * 0.02
            vector = vector + self._colours.get(word, step)
        return vector / np.linalg.norm(vector)


def build_clip():
    """Returns what a `Library` needs of a `CLIPModel`, and its image tower for `update_index`."""
    keras.utils.set_random_seed(0)
    embedder = keras_clip.ImageEmbedder(keras.Sequential([keras.Input((SIDE, SIDE, 3)), ColourShares()]), WIDTH)
    return SimpleNamespace(
        embed_dim=WIDTH,
        image_embedder=embedder,
        image_preprocessor=embedder.image_preprocessor,
        tokenizer=lambda texts, truncate: np.array(texts, object),
        text_embedder=WordEncoder(embedder),
        logit_scale=np.log(20.0),
        logit_bias=None,
    )


def draw_pictures(folder, count, size=48):
    """Draws scenes into sub-folders; each tenth is a copy of the one before it, and two in three have a caption."""
    for place in range(count):
        scene = synthetic.sample_scene(place - (place % 10 == 1))
        path = Path(folder) / FOLDERS[place % len(FOLDERS)] / f"{scene.kind.name.replace(' ', '_')}_{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = ((size * 3 // 2, size), (size, size), (size, size * 3 // 2))[place % 3]
        longest = max(width, height)
        top, left = (longest - height) // 2, (longest - width) // 2
        image = Image.fromarray(synthetic.draw(scene, longest)).crop((left, top, left + width, top + height))
        image.save(path, quality=90)
        os.utime(age(path), (1.7e9 + 86400 * 3 * place,) * 2)
        if place % 3:
            path.with_suffix(".txt").write_text(synthetic.caption(scene))


def build_library(folder, count=40, clip=None, size=48):
    """Draws pictures below a folder, indexes them, and returns the library."""
    clip = build_clip() if clip is None else clip
    draw_pictures(Path(folder) / "photos", count, size)
    update_index(Path(folder) / "index", Path(folder) / "photos", clip.image_embedder, progress=False)
    return Library(PictureIndex.open(Path(folder) / "index"), clip)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--port", type=int, default=8300)
    args = parser.parse_args(argv)
    import uvicorn

    from keras_clip.search.server import create_application

    with tempfile.TemporaryDirectory() as folder:
        library = build_library(folder, args.pictures, size=320)
        print(f"http://localhost:{args.port}/", flush=True)
        uvicorn.run(create_application(library), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
