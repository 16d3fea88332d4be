"""A detector of altered copies, trained with this library's own parts (Radford et al., 2021, appendix C).

A small `ModifiedResNet` learns that an image and an altered copy of it belong together: the contrastive loss between
images and images, at a fixed temperature. Copies are cropped, turned, mirrored, recompressed and recoloured. Cosines of
its embeddings go into `overlap.nearest_vectors`.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_clip import distribution
from keras_clip.data.images import MAX_PIXELS, ImagePreprocessor, open_image
from keras_clip.encoders import ModifiedResNet
from keras_clip.evaluation.metrics.intervals import wilson_interval
from keras_clip.evaluation.studies.overlap import nearest_vectors, recall_at_precision
from keras_clip.losses import contrastive_loss
from keras_clip.model import ImageEmbedder

# Training decodes once, to this many pixels a side at most.
_KEPT_SIDE = 112


def _crop(image, rng, least, most):
    share, aspect = rng.uniform(least, most), math.exp(rng.uniform(-0.25, 0.25))
    width = min(image.width, max(1, round(math.sqrt(share * aspect) * image.width)))
    height = min(image.height, max(1, round(math.sqrt(share / aspect) * image.height)))
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def _tilt(image, rng, least, most):
    from PIL import Image

    angle = rng.uniform(least, most) * rng.choice([-1, 1])
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")


def _quarter_turns(image, rng):
    from PIL import Image

    turn = Image.Transpose
    return image.transpose((turn.ROTATE_90, turn.ROTATE_180, turn.ROTATE_270)[rng.integers(3)])


def _mirror(image, rng):
    from PIL import Image

    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _recompress(image, rng, lowest, highest):
    from PIL import Image

    scale = rng.uniform(0.4, 1.0)
    sides = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    buffer = io.BytesIO()
    image.resize(sides, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=int(rng.integers(lowest, highest)))
    return Image.open(buffer).convert("RGB")


def _recolour(image, rng):
    from PIL import ImageEnhance

    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(0.6, 1.4))
    return image


def _rotate(image, rng):
    return _quarter_turns(image, rng) if rng.random() < 0.5 else _tilt(image, rng, 5, 20)


# What recall is measured on: each alone. (PIL image in RGB, generator) -> PIL image.
ALTERATIONS: dict[str, Callable] = {
    "cropped": lambda image, rng: _crop(image, rng, 0.5, 0.8),
    "rotated": _rotate,
    "flipped": _mirror,
    "recompressed": lambda image, rng: _recompress(image, rng, 10, 40),
}


def altered_copy(image: Any, rng: np.random.Generator) -> Any:
    """A copy as training shows it: several changes at once, at random, none of them at times.

    Args:
        image: PIL image in RGB.
        rng: generator.

    Returns:
        PIL image in RGB, of another size.
    """
    changes = (
        (0.7, lambda x, rng: _crop(x, rng, 0.4, 1.0)),
        (0.4, lambda x, rng: _tilt(x, rng, 0, 25)),
        (0.4, _quarter_turns),
        (0.4, _mirror),
        (0.6, _recolour),
        (0.5, lambda x, rng: _recompress(x, rng, 8, 60)),
    )
    for share, change in changes:
        if rng.random() < share:
            image = change(image, rng)
    return image


@keras.saving.register_keras_serializable(package="keras_clip")
class DuplicateDetector(keras.Model):
    """Images to embeddings that stay where they are when the image is altered.

    Args:
        image_size: int. Side of what it looks at, a multiple of 32; images are squeezed to it.
        blocks: four ints. Residual blocks of each stage of the `ModifiedResNet`.
        width: int. Channels of its stem.
        embed_dim: int. E.
        temperature: float > 0. Of the contrastive loss; it does not learn.

    Call arguments:
        inputs: images (B, H, W, 3), uint8 or normalised floats; or a dict of as many "images" and "copies" of them, as
            training takes it.
        training: bool.

    Returns:
        float32 embeddings (B, E) of unit length; of a dict (2 B, E), first those of the images.

    Raises:
        ValueError: an image size that is no multiple of 32, or a temperature that is not positive.
    """

    def __init__(
        self,
        image_size: int = 64,
        blocks: Sequence[int] = (1, 1, 1, 1),
        width: int = 16,
        embed_dim: int = 128,
        temperature: float = 0.07,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 < temperature < math.inf:
            raise ValueError(f"`temperature` must be positive and finite. Received: temperature={temperature}.")
        self.temperature = temperature
        encoder = ModifiedResNet(image_size, blocks, width, dtype=self.dtype_policy, name="encoder")
        self.embedder = ImageEmbedder(
            encoder,
            embed_dim,
            ImagePreprocessor(image_size, resize_mode="squash"),
            dtype=self.dtype_policy,
            name="embedder",
        )
        self.built = True

    def build(self, input_shape=None):
        """The parts are built by the constructor."""

    def call(self, inputs, training=False):
        if isinstance(inputs, dict):
            # One call: BatchNorm sees both kinds together.
            inputs = ops.concatenate([inputs["images"], inputs["copies"]], axis=0)
        return self.embedder(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        images, copies = ops.split(y_pred, 2, axis=0)
        losses = contrastive_loss(images, copies, -math.log(self.temperature))
        # Keras sums over replicas.
        return ops.mean(losses) / distribution.replica_count()

    def embed(self, images: Sequence[Any], batch_size: int = 256) -> np.ndarray:
        """Embeddings of images, decoded and squeezed a batch at a time.

        Args:
            images: paths, bytes, PIL images or uint8 arrays.
            batch_size: int.

        Returns:
            float32 array (N, E) of unit length.
        """
        from tqdm import tqdm

        preprocessor, parts = self.embedder.image_preprocessor, []
        for start in tqdm(range(0, len(images), batch_size), desc="Embedding images", delay=5, leave=False):
            pixels = preprocessor.to_uint8(list(images[start : start + batch_size]))
            parts.append(self.predict_on_batch(pixels))
        return np.concatenate(parts) if parts else np.zeros((0, self.embedder.embed_dim), np.float32)

    def get_config(self):
        encoder = self.embedder.encoder
        return {
            **super().get_config(),
            "image_size": encoder.image_size,
            "blocks": encoder.block_counts,
            "width": encoder.stem_width,
            "embed_dim": self.embedder.embed_dim,
            "temperature": self.temperature,
        }


class _Copies(keras.utils.PyDataset):
    """Batches of images and altered copies; the same seed gives the same ones on every backend."""

    def __init__(self, images, side, batch_size, steps, seed):
        super().__init__()
        self.images, self.batch_size, self.steps, self.seed = images, batch_size, steps, seed
        self.preprocessor = ImagePreprocessor(side, resize_mode="squash")

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        # Passes over whole batches: no image is twice in one, where it would be held to be another.
        pass_, batch = divmod(step, len(self.images) // self.batch_size)
        order = np.random.default_rng((self.seed, 0, pass_)).permutation(len(self.images))
        chosen = [self.images[row] for row in order[batch * self.batch_size :][: self.batch_size]]
        rng = np.random.default_rng((self.seed, 1, step))
        copies = [altered_copy(image, rng) for image in chosen]
        return ({"images": self.preprocessor.to_uint8(chosen), "copies": self.preprocessor.to_uint8(copies)},)


def train_duplicate_detector(
    images: Sequence[Any],
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    verbose: int | str = "auto",
    **sizes: Any,
) -> DuplicateDetector:
    """Trains a detector on images without labels, minutes of two CPU cores for a few thousand.

    Args:
        images: paths, bytes, PIL images or uint8 arrays, no two alike; kept in memory at 112 pixels a side.
        steps: int. Batches.
        batch_size: int >= 2, at most as many as there are images.
        learning_rate: float. The highest one.
        seed: int. Of the weights, the order and the copies.
        verbose: as of `keras.Model.fit`.
        sizes: arguments of `DuplicateDetector`.

    Returns:
        The trained detector.

    Raises:
        ValueError: fewer images than a batch has, or one that cannot be read.
    """
    if not 2 <= batch_size <= len(images):
        raise ValueError(
            "A batch must have two images or more, none of them twice. "
            f"Received: batch_size={batch_size}, {len(images)} images."
        )
    kept = []
    for i, image in enumerate(images):
        kept.append(open_image(image, f"images[{i}]", MAX_PIXELS))
        kept[-1].thumbnail((_KEPT_SIDE, _KEPT_SIDE))
    keras.utils.set_random_seed(seed)
    detector = DuplicateDetector(**sizes)
    warmup = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / warmup, steps, warmup_target=learning_rate, warmup_steps=warmup
    )
    detector.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4))
    data = _Copies(kept, detector.embedder.encoder.image_size, batch_size, steps, seed)
    detector.fit(data, epochs=1, shuffle=False, verbose=verbose)
    return detector


def recall_on_copies(
    vectors_of: Callable[[Sequence[Any]], np.ndarray], images: Sequence[Any], precision: float = 0.99, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How many altered copies a detector finds among images, where so few of its finds are wrong.

    A copy of each image is looked for twice: among all images, where only the image itself is a right find, and among
    all others, where every find is wrong.

    Args:
        vectors_of: N images to vectors (N, E) of unit length, such as `DuplicateDetector.embed`.
        images: paths, bytes, PIL images or uint8 arrays that the detector was not trained on, no two alike.
        precision: float in (0, 1].
        seed: int. Of the alterations.

    Returns:
        {alteration: {"recall", "low", "high" (Wilson, 95 %), "threshold", "nearest", "n"}}, for each of `ALTERATIONS`
        and, under one threshold, for "all" of them together; "nearest" is the share of the n copies that are nearer to
        their own image than to any other, whatever the precision.
    """
    originals = [open_image(image, f"images[{i}]", MAX_PIXELS) for i, image in enumerate(images)]
    index, places = vectors_of(originals), np.arange(len(originals))
    finds = {}
    for number, (name, alter) in enumerate(ALTERATIONS.items()):
        copies = [alter(image, np.random.default_rng((seed, number, i))) for i, image in enumerate(originals)]
        vectors = vectors_of(copies)
        found, place = nearest_vectors(vectors, index)
        wrong, _ = nearest_vectors(vectors, index, own=places)
        is_right = np.concatenate([place == places, np.zeros(len(places), bool)])
        finds[name] = np.concatenate([found, wrong]), is_right
    finds["all"] = tuple(map(np.concatenate, zip(*finds.values(), strict=True)))
    measured = {}
    for name, (similarities, is_right) in finds.items():
        n = len(similarities) // 2
        recall, threshold = recall_at_precision(similarities, is_right, n, precision)
        low, high = wilson_interval(round(recall * n), n)
        measured[name] = {"recall": recall, "low": low, "high": high, "threshold": threshold}
        measured[name] |= {"nearest": float(is_right.sum() / n), "n": n}
    return measured
