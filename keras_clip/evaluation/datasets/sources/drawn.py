"""Images that are drawn on request, without a download: scenes to count objects in, and rendered words to read."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from keras_clip.data import synthetic
from keras_clip.evaluation.datasets.labelled_images import LabelledImages


def counting_scenes(per_count: int = 50, image_size: int = 64, seed: int = 0, split: str = "test") -> LabelledImages:
    """Scenes of one to four equal shapes, labelled with their number; all else is sampled independently of it.

    Args:
        per_count: int >= 1. Images of each number.
        image_size: int, pixels.
        seed: int >= 0. Splits with different seeds have different scenes.
        split: name of the split.

    Returns:
        `LabelledImages` of the classes "one" to "four".

    Raises:
        ValueError: `per_count` below 1.
    """
    if per_count < 1:
        raise ValueError(f"`per_count` must be at least 1. Received: per_count={per_count}.")
    labels = [name for name in synthetic.COUNTS for _ in range(per_count)]
    read = functools.partial(_counted, per_count, image_size, seed)
    ids = [f"{seed}-{name}-{row:05d}" for name in synthetic.COUNTS for row in range(per_count)]
    return LabelledImages(read, labels, ids, list(synthetic.COUNTS), name="counting scenes", split=split)


def rendered_text(
    words: Sequence[str], per_word: int = 10, image_size: int = 64, seed: int = 0, split: str = "test"
) -> LabelledImages:
    """Words that Pillow renders in its own font, at random sizes, places, and colours of text and background.

    Args:
        words: K distinct texts, which are the classes.
        per_word: int >= 1. Images of each word.
        image_size: int, pixels.
        seed: int >= 0.
        split: name of the split.

    Returns:
        `LabelledImages` of the words.

    Raises:
        ValueError: `per_word` below 1, or fewer than two words.
    """
    words = list(words)
    if per_word < 1 or len(set(words)) < max(2, len(words)):
        raise ValueError(
            f"Expected distinct words, and per_word >= 1. Received: words={words[:5]}, per_word={per_word}."
        )
    labels = [word for word in words for _ in range(per_word)]
    read = functools.partial(_rendered, labels, image_size, seed)
    ids = [f"{seed}-{number:03d}-{row:03d}" for number in range(len(words)) for row in range(per_word)]
    return LabelledImages(read, labels, ids, words, name="rendered text", split=split)


def _counted(per_count: int, image_size: int, seed: int, start: int) -> Iterator[np.ndarray]:
    for index in range(start, len(synthetic.COUNTS) * per_count):
        number, row = divmod(index, per_count)
        # The same scenes for every number, so that the number is all that differs.
        scene = synthetic.sample_scene(row, seed)
        kind = dataclasses.replace(scene.kind, count=number + 1)
        yield synthetic.draw(dataclasses.replace(scene, kind=kind), image_size)


def _rendered(labels: Sequence[str], image_size: int, seed: int, start: int) -> Iterator[np.ndarray]:
    for index in range(start, len(labels)):
        yield _render(labels[index], image_size, np.random.default_rng((seed, index)))


def _render(text: str, size: int, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    ground = generator.integers(0, 256, 3)
    # Dark on light or light on dark.
    ink = np.where(ground.mean() > 127, generator.integers(0, 60, 3), generator.integers(196, 256, 3))
    image = Image.new("RGB", (size, size), tuple(ground.tolist()))
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=ImageFont.load_default(size=100))
    # The text fills half to all of the width, and never more than the height.
    scale = min(generator.uniform(0.5, 0.95) * size / (right - left), 0.9 * size / (bottom - top))
    font = ImageFont.load_default(size=max(6.0, 100 * scale))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    room = max(0, size - (right - left)), max(0, size - (bottom - top))
    place = [generator.uniform(0, space) - offset for space, offset in zip(room, (left, top), strict=True)]
    pen.text(place, text, fill=tuple(ink.tolist()), font=font)
    return np.asarray(image)
