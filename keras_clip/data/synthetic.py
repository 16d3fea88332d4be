"""Synthetic scenes with captions: unlimited data for experiments, identical on every machine.

A scene shows one to four equal shapes of one colour and size on a background, rendered as a shaded photo or as a sketch
on paper. Its class (`Kind`) has a name such as "two small red circles". One class in five is held out from training, so
that classifying its images requires compositional generalisation. Drawing requires NumPy alone.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

COUNTS = ("one", "two", "three", "four")
SIZES = ("small", "large")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 40),
    "purple": (130, 50, 170),
    "orange": (245, 135, 30),
    "pink": (250, 130, 180),
    "brown": (125, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
BACKGROUNDS = {"white": (236, 236, 232), "grey": (140, 142, 146), "dark": (42, 44, 52), "sandy": (206, 186, 148)}
POSITIONS = ("in the middle", "at the top", "at the bottom", "on the left", "on the right")
RENDITIONS = ("photo", "sketch")
_CENTRES = {
    "in the middle": (0.5, 0.5),
    "at the top": (0.3, 0.5),
    "at the bottom": (0.7, 0.5),
    "on the left": (0.5, 0.3),
    "on the right": (0.5, 0.7),
}
# One class in five is held out, by its position in the grid, so that every word occurs in the training classes.
_HELD_OUT = 5


@dataclass(frozen=True)
class Kind:
    """The class of a scene.

    Attributes:
        count: int, 1 to 4.
        size: one of `SIZES`.
        colour: one of `COLOURS`.
        shape: one of `SHAPES`.
    """

    count: int
    size: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        """The class name, such as "two small red circles"."""
        plural = "" if self.count == 1 else "es" if self.shape == "cross" else "s"
        return f"{COUNTS[self.count - 1]} {self.size} {self.colour} {self.shape}{plural}"


@dataclass(frozen=True)
class Scene:
    """The complete description of a synthetic image and its caption.

    Attributes:
        kind: class of the scene.
        position: position of the group, one of `POSITIONS`.
        background: one of `BACKGROUNDS`.
        rendition: "photo" or "sketch".
        seed: int. Seed of the details: exact positions, angles, light, paper, and the wording of the caption.
    """

    kind: Kind
    position: str
    background: str
    rendition: str
    seed: int


@functools.cache
def kinds(held_out: bool | None = None) -> tuple[Kind, ...]:
    """Returns the classes of scenes in a fixed order.

    Args:
        held_out: True: the 103 held-out classes. False: the 409 training classes. None: all 512.

    Returns:
        The classes.
    """
    grid = itertools.product(range(len(COUNTS)), range(len(SIZES)), range(len(COLOURS)), range(len(SHAPES)))
    chosen = []
    for count, size, colour, shape in grid:
        # Held-out classes form diagonals of the grid: any two words still occur together in training classes.
        is_held_out = (count + 2 * size + colour + 3 * shape) % _HELD_OUT == 0
        if held_out is None or is_held_out == held_out:
            chosen.append(Kind(count + 1, SIZES[size], tuple(COLOURS)[colour], SHAPES[shape]))
    return tuple(chosen)


def sample_scene(index: int, seed: int = 0, held_out: bool = False) -> Scene:
    """Samples the scene of an index, which depends on the arguments only.

    Args:
        index: int >= 0.
        seed: int >= 0. Different seeds sample different scenes.
        held_out: whether to sample from the held-out classes.

    Returns:
        A scene.
    """
    rng = np.random.default_rng((seed, index, int(held_out)))
    choices = kinds(held_out)
    return Scene(
        kind=choices[rng.integers(len(choices))],
        position=POSITIONS[rng.integers(len(POSITIONS))],
        background=tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        rendition=RENDITIONS[rng.integers(len(RENDITIONS))],
        seed=int(rng.integers(2**31)),
    )


def caption(scene: Scene) -> str:
    """Returns a natural sentence that describes the scene; equal scenes have equal captions.

    Args:
        scene: the scene to describe.

    Returns:
        A text such as "a photo of two small red circles on a dark background".
    """
    rng = np.random.default_rng((scene.seed, 1))
    name, background = scene.kind.name, scene.background
    paper = scene.rendition == "sketch"
    medium = rng.choice(
        ["a sketch of", "a drawing of", "a pencil sketch of"] if paper else ["a photo of", "a picture of"]
    )
    verb = "is" if scene.kind.count == 1 else "are"
    ground = "" if paper else f" on a {background} background"
    return str(
        rng.choice(
            [
                f"{medium} {name}",
                f"{medium} {name}{ground}",
                f"{medium} {name} {scene.position}",
                f"{name} {scene.position}",
                f"{name}{ground}",
                f"there {verb} {name} {scene.position}{ground}",
            ]
        )
    )


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """Generates the captions of the first scenes.

    Args:
        count: int >= 0.
        seed: int >= 0.

    Returns:
        An iterator over `count` texts.
    """
    return (caption(sample_scene(index, seed)) for index in range(count))


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the signed distance to the outline of a shape of radius one, negative inside; y points down."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75) - 0.25
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    if shape == "diamond":
        return np.abs(x) / 0.75 + np.abs(y) / 1.1 - 1
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.55
    if shape == "cross":
        arms = np.minimum(np.maximum(np.abs(x), 3 * np.abs(y)), np.maximum(3 * np.abs(x), np.abs(y)))
        return arms - 1
    angle, radius = np.arctan2(x, -y), np.hypot(x, y)
    if shape == "star":
        wedge = np.abs((angle / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * (2 * np.pi / 5)
        # The edge of a wedge runs from the tip (1, 0) to the inner corner at 36 degrees and 0.4.
        px, py = radius * np.cos(wedge), radius * np.sin(wedge)
        inner = 0.4 * np.cos(np.pi / 5), 0.4 * np.sin(np.pi / 5)
        nx, ny = inner[1], 1 - inner[0]
        return ((px - 1) * nx + py * ny) / np.hypot(nx, ny)
    # A heart: two round lobes above a tip.
    lobes = np.hypot(np.abs(x) - 0.45, y + 0.35) - 0.55
    tip = np.maximum(np.abs(x) * 0.8 + (y - 0.95) * 0.65, -y - 0.35)
    return np.minimum(lobes, tip)


def _centres_and_radius(scene: Scene, rng: np.random.Generator) -> tuple[list[tuple[float, float]], float]:
    """Returns centres (row, column) in [0, 1] and the common radius of the shapes, which do not touch each other."""
    count = scene.kind.count
    radius = 0.075 if scene.kind.size == "small" else 0.125
    step = 2.5 * radius
    layouts = {1: [[(0, 0)]], 2: [[(0, -0.5), (0, 0.5)], [(-0.5, 0), (0.5, 0)]]}
    layouts[3] = [[(-0.5, -0.5), (-0.5, 0.5), (0.5, 0)], [(0.5, -0.5), (0.5, 0.5), (-0.5, 0)]]
    layouts[4] = [[(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]]
    layout = layouts[count][rng.integers(len(layouts[count]))]
    centre = np.asarray(_CENTRES[scene.position]) + rng.uniform(-0.04, 0.04, 2)
    # Half the extent of the group, with a margin, so that no part of it leaves the image.
    half = step * np.abs(layout).max(axis=0) + 1.25 * radius
    row, column = np.clip(centre, half, 1 - half)
    return [(row + step * dy, column + step * dx) for dy, dx in layout], radius * rng.uniform(0.93, 1.05)


def draw(scene: Scene, image_size: int = 64) -> np.ndarray:
    """Draws a scene; equal scenes have equal pixels.

    Args:
        scene: the scene to draw.
        image_size: int >= 16, pixels.

    Returns:
        uint8 array (image_size, image_size, 3).

    Raises:
        ValueError: `image_size` is below 16.
    """
    if image_size < 16:
        raise ValueError(f"`image_size` must be at least 16. Received: image_size={image_size}.")
    rng = np.random.default_rng((scene.seed, 2))
    grid = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    rows, columns = grid[:, None], grid[None, :]
    centres, radius = _centres_and_radius(scene, rng)
    nearest = np.full((image_size, image_size), 9.0, np.float32)
    shade = np.zeros_like(nearest)
    for row, column in centres:
        angle = rng.uniform(-0.22, 0.22)
        y, x = (rows - row) / radius, (columns - column) / radius
        x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        distance = _distance(scene.kind.shape, x, y)
        shade = np.where(distance < nearest, np.clip(-0.5 * x - 0.7 * y, -1, 1), shade)
        nearest = np.minimum(nearest, distance)
    pixel = 1 / (image_size * radius)
    colour = np.asarray(COLOURS[scene.kind.colour], np.float32)
    if scene.rendition == "sketch":
        return _sketch(nearest, pixel, colour, rng)
    return _photo(scene, nearest, shade, pixel, colour, rng)


def _photo(scene, nearest, shade, pixel, colour, rng):
    size = len(nearest)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.uniform(-0.12, 0.12) * grid[:, None] + rng.uniform(-0.12, 0.12) * grid[None, :]
    ground = np.asarray(BACKGROUNDS[scene.background], np.float32) * rng.uniform(0.92, 1.05)
    offset = max(1, round(0.02 * size))
    shadow = np.roll(np.clip(0.5 - nearest / (4 * pixel), 0, 1), (offset, offset), (0, 1))
    picture = ground * (1 + light - 0.3 * shadow)[:, :, None]
    cover = np.clip(0.5 - nearest / pixel, 0, 1)[:, :, None]
    body = colour * rng.uniform(0.9, 1.05) * (1 + 0.18 * shade + light)[:, :, None]
    picture += cover * (body - picture)
    picture += rng.normal(0, rng.uniform(2, 7), picture.shape).astype(np.float32)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _sketch(nearest, pixel, colour, rng):
    size = len(nearest)
    paper = np.asarray((250, 247, 238), np.float32) * rng.uniform(0.95, 1.0)
    grid = np.arange(size, dtype=np.float32)
    hatching = 0.5 + 0.5 * np.sin((grid[:, None] + grid[None, :]) * (2 * np.pi / max(3.0, 0.07 * size)))
    inside = np.clip(0.5 - nearest / pixel, 0, 1) * (0.55 + 0.35 * hatching)
    picture = paper + inside[:, :, None] * (colour - paper)
    line = np.clip(1.1 - np.abs(nearest) / (1.2 * pixel), 0, 1) * rng.uniform(0.75, 0.95)
    picture += line[:, :, None] * (np.float32(40) - picture)
    picture += rng.normal(0, 2.5, (size, size, 1)).astype(np.float32)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def sample(index: int, image_size: int = 64, seed: int = 0, held_out: bool = False) -> tuple[np.ndarray, str]:
    """Returns the image and the caption of `sample_scene(index, seed, held_out)`.

    Args:
        index: int >= 0.
        image_size: int, pixels.
        seed: int >= 0.
        held_out: whether to sample from the held-out classes.

    Returns:
        uint8 array (image_size, image_size, 3), and a text.
    """
    scene = sample_scene(index, seed, held_out)
    return draw(scene, image_size), caption(scene)


def held_out_set(per_kind: int = 2, image_size: int = 64, seed: int = 1) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns labelled images of the held-out classes, with equal numbers of photos and sketches of each.

    Args:
        per_kind: int >= 1. Images per class and rendition.
        image_size: int, pixels.
        seed: int >= 0.

    Returns:
        uint8 images (B, image_size, image_size, 3), int labels (B,), and the K names of the held-out classes; even rows
        are photos, odd rows are sketches.
    """
    chosen = kinds(held_out=True)
    images, labels = [], []
    for label, kind in enumerate(chosen):
        for repeat in range(per_kind):
            scene = replace(sample_scene(label * per_kind + repeat, seed, held_out=True), kind=kind)
            for rendition in RENDITIONS:
                images.append(draw(replace(scene, rendition=rendition), image_size))
                labels.append(label)
    return np.stack(images), np.asarray(labels), [kind.name for kind in chosen]


def pairs(model: Any, batch_size: int = 256, steps: int = 100, seed: int = 0) -> Any:
    """Returns a dataset of synthetic pairs for `fit`, which are drawn in parallel when they are needed.

    Args:
        model: any object with `.tokenizer` and `.image_preprocessor`, such as a `CLIPModel`.
        batch_size: int >= 1.
        steps: int >= 1. Batches per epoch; every epoch has new pairs.
        seed: int >= 0.

    Returns:
        `tf.data.Dataset` of {"images": uint8 (B, H, W, 3), "token_ids": int32 (B, L)}, where L is `context_length`.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            'The input pipeline requires TensorFlow on every backend: pip install "keras_clip[tensorflow]".'
        ) from error
    size = model.image_preprocessor.sides[0]
    length = model.tokenizer.context_length
    epochs = itertools.count()

    def draw_batch(first):
        drawn = [sample(int(first) + i, size, seed) for i in range(batch_size)]
        token_ids = model.tokenizer([text for _, text in drawn], truncate=True)
        return np.stack([image for image, _ in drawn]), token_ids

    def to_batch(first):
        images, token_ids = tf.numpy_function(draw_batch, [first], (tf.uint8, tf.int32))
        images.set_shape((batch_size, size, size, 3))
        token_ids.set_shape((batch_size, length))
        return {"images": images, "token_ids": token_ids}

    def starts():
        epoch = next(epochs)
        for step in range(steps):
            yield (epoch * steps + step) * batch_size

    dataset = tf.data.Dataset.from_generator(starts, output_signature=tf.TensorSpec((), tf.int64))
    dataset = dataset.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
