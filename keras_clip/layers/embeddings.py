"""The input layers of the encoders: pixel normalisation, and patch and token embeddings with learned positions."""

import keras
from keras import ops

from keras_clip.layers.adaptable import LoraEmbedding
from keras_clip.layers.composite import Composite
from keras_clip.layers.convolutions import PatchConv2D
from keras_clip.layers.initialisation import normal, uniform
from keras_clip.layers.input_shapes import check_images, check_images_shape, check_token_ids, check_vocabulary
from keras_clip.layers.pixel_range import check_pixel_range


@keras.saving.register_keras_serializable(package="keras_clip")
class PixelNormalization(keras.layers.Layer):
    """Normalises uint8 pixels by the mean and standard deviation of an image encoder.

    Pixels are transferred to the device as bytes, a quarter of their size as floats. Floating-point images are assumed
    to be normalised, as `ImagePreprocessor` returns them, and pass unchanged; values far outside of that
    range cause a warning.

    Args:
        mean: three floats in [0, 1]: mean of red, green and blue.
        std: three floats: standard deviation of red, green and blue.

    Call arguments:
        images: (B, H, W, 3), uint8 in [0, 255] or float.

    Returns:
        Images (B, H, W, 3) in the compute dtype: (images / 255 - mean) / std for uint8.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], **kwargs):
        super().__init__(**kwargs)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        # Reading a value waits for the device: only the first batch is looked at.
        self._is_range_checked = False

    def call(self, images):
        if "float" in keras.backend.standardize_dtype(images.dtype):
            self._is_range_checked = self._is_range_checked or check_pixel_range(images)
            return ops.cast(images, self.compute_dtype)
        # In float32 under a mixed policy too, since bfloat16 cannot distinguish all 256 levels.
        images = ops.cast(images, "float32") / 255.0
        images = (images - ops.convert_to_tensor(self.mean, "float32")) / ops.convert_to_tensor(self.std, "float32")
        return ops.cast(images, self.compute_dtype)

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, dtype=self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_clip")
class PatchEmbedding(Composite, keras.layers.Layer):
    """Splits images into patches, projects them linearly, prepends a class token and adds learned positions.

    Args:
        image_size: int or (height, width) in pixels. Multiples of `patch_size`.
        patch_size: int, in pixels.
        width: int. D.

    Call arguments:
        images: float tensor (B, H, W, 3).

    Returns:
        Tensor (B, 1 + N, D) in the compute dtype: the class token, then the patches in row-major order.

    Raises:
        ValueError: the image size is not a multiple of the patch size, or images of another size.
    """

    def __init__(self, image_size: int | tuple[int, int], patch_size: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size
        self.width = width
        self.sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        height, width_pixels = self.sides
        if patch_size < 1 or height % patch_size or width_pixels % patch_size or not height or not width_pixels:
            raise ValueError(
                "`image_size` must be a multiple of `patch_size`. "
                f"Received: image_size={image_size}, patch_size={patch_size}."
            )
        self.grid = (height // patch_size, width_pixels // patch_size)

    def build(self, images_shape=None):
        if self.built:
            return
        patch, width = self.patch_size, self.width
        self.projection = PatchConv2D(
            width,
            patch,
            strides=patch,
            use_bias=False,
            kernel_initializer=uniform(),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build((None, None, None, 3))
        self.class_embedding = self.add_weight(name="class_embedding", shape=(width,), initializer=normal(width**-0.5))
        rows, columns = self.grid
        self.positions = self.add_weight(
            name="positions", shape=(1 + rows * columns, width), initializer=normal(width**-0.5)
        )
        self.built = True

    def call(self, images):
        check_images(images, self.sides)
        rows, columns = self.grid
        # With the number of images, so that patches of one cannot become rows of several.
        patches = ops.reshape(self.projection(images), (ops.shape(images)[0], rows * columns, self.width))
        class_token = ops.broadcast_to(
            ops.cast(self.class_embedding, patches.dtype), (ops.shape(patches)[0], 1, self.width)
        )
        return ops.concatenate([class_token, patches], axis=1) + ops.cast(self.positions, patches.dtype)

    def compute_output_shape(self, images_shape):
        check_images_shape(images_shape, self.sides)
        return (images_shape[0], 1 + self.grid[0] * self.grid[1], self.width)


@keras.saving.register_keras_serializable(package="keras_clip")
class TokenEmbedding(Composite, keras.layers.Layer):
    """Looks up token embeddings and adds learned positions.

    Args:
        vocabulary_size: int. V.
        context_length: int. Maximum text length in tokens.
        width: int. D.

    Call arguments:
        token_ids: int tensor (B, L) with L at most `context_length`.

    Returns:
        Tensor (B, L, D) in the compute dtype.

    Raises:
        ValueError: texts are longer than `context_length`, or token ids are not (B, L) or, where they can be read, not
            of the vocabulary.
    """

    def __init__(self, vocabulary_size: int, context_length: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.width = width

    def build(self, token_ids_shape=None):
        if self.built:
            return
        self.tokens = LoraEmbedding(
            self.vocabulary_size,
            self.width,
            embeddings_initializer=normal(0.02),
            dtype=self.dtype_policy,
            name="tokens",
        )
        self.tokens.build((None, None))
        self.positions = self.add_weight(
            name="positions", shape=(self.context_length, self.width), initializer=normal(0.01)
        )
        self.built = True

    def call(self, token_ids):
        check_token_ids(token_ids, self.context_length)
        check_vocabulary(token_ids, self.vocabulary_size)
        positions = self.positions[: ops.shape(token_ids)[1]]
        return self.tokens(token_ids) + ops.cast(positions, self.compute_dtype)

    def compute_output_shape(self, token_ids_shape):
        return (*token_ids_shape, self.width)
