"""A near-duplicate detector, trained with the encoders and losses of this library (Radford et al., 2021, appendix C).

A small `ModifiedResNet` is trained on pairs of an image and an altered copy of it, with the contrastive loss at a fixed
temperature. The copies are cropped, rotated, flipped, recompressed and color-jittered. `similarity.nearest_vectors`
compares the embeddings.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_clip import distribution
from keras_clip.data.image_files import MAX_PIXELS, open_image
from keras_clip.data.images import ImagePreprocessor
from keras_clip.encoders import ModifiedResNet
from keras_clip.evaluation.metrics.intervals import clustered_interval
from keras_clip.evaluation.studies.overlap import recall_at_precision
from keras_clip.losses import contrastive_loss
from keras_clip.model import ImageEmbedder
from keras_clip.similarity import nearest_vectors

# Training images are decoded once and kept in memory at this size, in pixels per side at most.
_TRAINING_SIDE = 112


def _crop(image, rng, low, high):
    area, aspect = rng.uniform(low, high), math.exp(rng.uniform(-0.25, 0.25))
    width = min(image.width, max(1, round(math.sqrt(area * aspect) * image.width)))
    height = min(image.height, max(1, round(math.sqrt(area / aspect) * image.height)))
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def _rotate_by_angle(image, rng, low, high):
    from PIL import Image

    angle = rng.uniform(low, high) * rng.choice([-1, 1])
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")


def _rotate_by_quarters(image, rng):
    from PIL import Image

    turn = Image.Transpose
    return image.transpose((turn.ROTATE_90, turn.ROTATE_180, turn.ROTATE_270)[rng.integers(3)])


def _flip(image, rng):
    from PIL import Image

    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _recompress(image, rng, low, high):
    from PIL import Image

    scale = rng.uniform(0.4, 1.0)
    sides = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    buffer = io.BytesIO()
    image.resize(sides, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=int(rng.integers(low, high)))
    return open_image(buffer.getvalue(), "a copy", MAX_PIXELS)


def _jitter_color(image, rng):
    from PIL import ImageEnhance

    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(0.6, 1.4))
    return image


def _rotate(image, rng):
    return _rotate_by_quarters(image, rng) if rng.random() < 0.5 else _rotate_by_angle(image, rng, 5, 20)


# The alterations on which recall is measured, one at a time. (PIL image in RGB, generator) -> PIL image.
ALTERATIONS: dict[str, Callable] = {
    "cropped": lambda image, rng: _crop(image, rng, 0.5, 0.8),
    "rotated": _rotate,
    "flipped": _flip,
    "recompressed": lambda image, rng: _recompress(image, rng, 10, 40),
}


def altered_copy(image: Any, rng: np.random.Generator) -> Any:
    """Returns a randomly altered copy for training; several alterations, or none, may be applied at once.

    Args:
        image: PIL image in RGB.
        rng: random number generator.

    Returns:
        PIL image in RGB, whose size may differ.
    """
    alterations = (
        (0.7, lambda x, rng: _crop(x, rng, 0.4, 1.0)),
        (0.4, lambda x, rng: _rotate_by_angle(x, rng, 0, 25)),
        (0.4, _rotate_by_quarters),
        (0.4, _flip),
        (0.6, _jitter_color),
        (0.5, lambda x, rng: _recompress(x, rng, 8, 60)),
    )
    for probability, alter in alterations:
        if rng.random() < probability:
            image = alter(image, rng)
    return image


@keras.saving.register_keras_serializable(package="keras_clip")
class DuplicateDetector(keras.Model):
    """An image encoder whose embeddings are nearly invariant to alterations of the image.

    Args:
        image_size: int. Input size in pixels, a multiple of 32; images are resized to it without keeping their aspect.
        blocks: four ints. Number of residual blocks in each stage of the `ModifiedResNet`.
        width: int. Number of channels of its stem.
        embed_dim: int, E. Dimension of the embeddings.
        temperature: float > 0. Temperature of the contrastive loss; it is not trained.

    Call arguments:
        inputs: images (B, H, W, 3), uint8 or normalised floats; or for training a dict of "images" and their "copies",
            B each.
        training: bool.

    Returns:
        float32 embeddings (B, E) of unit length; for a dict (2 B, E), the embeddings of the images first.

    Raises:
        ValueError: an image size that is not a multiple of 32, or a temperature that is not positive.
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
        """Does nothing: the constructor builds all layers."""

    def call(self, inputs, training=False):
        if isinstance(inputs, dict):
            # One call of the encoder, so that batch normalization sees images and copies together.
            inputs = ops.concatenate([inputs["images"], inputs["copies"]], axis=0)
        return self.embedder(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        images, copies = ops.split(y_pred, 2, axis=0)
        losses = contrastive_loss(images, copies, -math.log(self.temperature))
        # Keras sums the losses of the replicas.
        return ops.mean(losses) / distribution.replica_count()

    def embed(self, images: Sequence[Any], batch_size: int = 256) -> np.ndarray:
        """Returns the embeddings of images, which are decoded and resized one batch at a time.

        Args:
            images: paths, bytes, PIL images or uint8 arrays.
            batch_size: int. Images per step of the encoder.

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
    """Batches of images and altered copies, which depend on the seed only and not on the backend."""

    def __init__(self, images, side, batch_size, steps, seed):
        super().__init__()
        self.images, self.batch_size, self.steps, self.seed = images, batch_size, steps, seed
        self.preprocessor = ImagePreprocessor(side, resize_mode="squash")

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        # An epoch consists of complete batches, so that no image occurs twice in a batch, as its own negative.
        epoch, batch = divmod(step, len(self.images) // self.batch_size)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.images))
        originals = [self.images[row] for row in order[batch * self.batch_size :][: self.batch_size]]
        rng = np.random.default_rng((self.seed, 1, step))
        copies = [altered_copy(image, rng) for image in originals]
        return ({"images": self.preprocessor.to_uint8(originals), "copies": self.preprocessor.to_uint8(copies)},)


def train_duplicate_detector(
    images: Sequence[Any],
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    verbose: int | str = "auto",
    **sizes: Any,
) -> DuplicateDetector:
    """Trains a detector on images without labels; a few thousand images take minutes on two CPU cores.

    Args:
        images: paths, bytes, PIL images or uint8 arrays without duplicates; kept in memory at 112 pixels per side.
        steps: int. Number of training steps.
        batch_size: int >= 2, at most the number of images.
        learning_rate: float. Peak learning rate, after warmup and before cosine decay.
        seed: int. Seed of the weights, the order of the images and the copies.
        verbose: as in `keras.Model.fit`.
        sizes: arguments of `DuplicateDetector`.

    Returns:
        The trained detector.

    Raises:
        ValueError: fewer images than `batch_size`, or an image that cannot be read.
    """
    if not 2 <= batch_size <= len(images):
        raise ValueError(
            f"Expected 2 <= batch_size <= number of images. Received: batch_size={batch_size}, {len(images)} images."
        )
    decoded = []
    for i, image in enumerate(images):
        decoded.append(open_image(image, f"images[{i}]", MAX_PIXELS))
        decoded[-1].thumbnail((_TRAINING_SIDE, _TRAINING_SIDE))
    keras.utils.set_random_seed(seed)
    detector = DuplicateDetector(**sizes)
    warmup = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / warmup, steps, warmup_target=learning_rate, warmup_steps=warmup
    )
    detector.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4))
    data = _Copies(decoded, detector.embedder.encoder.image_size, batch_size, steps, seed)
    detector.fit(data, epochs=1, shuffle=False, verbose=verbose)
    return detector


def recall_on_copies(
    vectors_of: Callable[[Sequence[Any]], np.ndarray], images: Sequence[Any], precision: float = 0.99, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Measures the recall of altered copies at a given precision.

    Each copy is searched twice: among all images, where the only true positive is the original image, and among all
    images but the original, where every match is a false positive.

    Args:
        vectors_of: function from N images to vectors (N, E) of unit length, such as `DuplicateDetector.embed`.
        images: paths, bytes, PIL images or uint8 arrays without duplicates, which the detector was not trained on.
        precision: float in (0, 1]. Minimum precision.
        seed: int. Seed of the alterations.

    Returns:
        {alteration: {"recall", "low", "high", "threshold", "nearest", "n"}}, for each of `ALTERATIONS` and, with a
        common threshold, for "all" of them together; "low" and "high" are the 95 % interval of the recall at this
        threshold, with images as the sampled units: the copies of one image are not independent. "nearest" is the
        fraction of the n copies whose nearest image is the original, at any similarity.
    """
    originals = [open_image(image, f"images[{i}]", MAX_PIXELS) for i, image in enumerate(images)]
    index, rows = vectors_of(originals), np.arange(len(originals))
    matches = {}
    for number, (name, alter) in enumerate(ALTERATIONS.items()):
        copies = [alter(image, np.random.default_rng((seed, number, i))) for i, image in enumerate(originals)]
        vectors = vectors_of(copies)
        similarity, nearest = nearest_vectors(vectors, index)
        false_similarity, _ = nearest_vectors(vectors, index, own=rows)
        is_right = np.concatenate([nearest == rows, np.zeros(len(rows), bool)])
        matches[name] = np.concatenate([similarity, false_similarity]), is_right
    matches["all"] = tuple(map(np.concatenate, zip(*matches.values(), strict=True)))
    measured = {}
    for name, (similarities, is_right) in matches.items():
        n = len(similarities) // 2
        recall, threshold = recall_at_precision(similarities, is_right, n, precision)
        is_found = (is_right & (similarities >= threshold)).reshape(-1, 2, len(rows))[:, 0].ravel()
        low, high = clustered_interval(is_found, np.tile(rows, n // len(rows)))
        measured[name] = {"recall": recall, "low": low, "high": high, "threshold": threshold}
        measured[name] |= {"nearest": float(is_right.sum() / n), "n": n}
    return measured
