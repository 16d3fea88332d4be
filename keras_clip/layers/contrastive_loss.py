"""Temperature and loss in one layer, for functional models."""

import math

import keras
from keras import initializers

from keras_clip.layers.logit_scale import LARGEST_LOGIT_SCALE, add_logit_scale, check_temperature
from keras_clip.losses import PairLosses, contrastive_pairs, sigmoid_pairs
from keras_clip.types import Tensor

# Initial temperatures of the papers: Radford et al. (2021), section 2.5; Zhai et al. (2023), section 3.2.
TEMPERATURES = {"contrastive": 0.07, "sigmoid": 0.1}
# The sigmoid loss has no bound in its paper, and published models exceed that of CLIP, with 4.72. This bound, a
# temperature of 0.001, is for runs that diverge.
LARGEST_LOGIT_SCALES = {"contrastive": LARGEST_LOGIT_SCALE, "sigmoid": math.log(1000.0)}


@keras.saving.register_keras_serializable(package="keras_clip")
class ContrastiveLoss(keras.layers.Layer):
    """The loss of each pair against the global batch, with a learned temperature.

    A `keras.losses.Loss` cannot own trainable weights, so this is a layer. Make it the output of your model, and
    compile the model with a loss function that returns this output:

        loss = keras_clip.layers.ContrastiveLoss()(image_embeddings, text_embeddings)
        model = keras.Model([images, texts], loss)
        model.compile("adam", loss=lambda y_true, pair_losses: pair_losses)
        model.fit([images, texts], y=np.zeros(len(images)))

    The logit scale is at most ln 100 for "contrastive", and ln 1000 for "sigmoid".

    Under `tf.distribute.MirroredStrategy`, the pairs of each replica are contrasted with the pairs of all replicas.

    Args:
        kind: "contrastive" (CLIP) or "sigmoid" (SigLIP).
        temperature: float > 0 or None. Initial temperature; None: 0.07, or 0.1 for "sigmoid".
        bias: float or None. Initial bias of "sigmoid"; None: -10.

    Call arguments:
        image_embeddings: float tensor (B, E), unit length.
        text_embeddings: float tensor (B, E), unit length.

    Returns:
        float32 (B,), the loss of each pair.

    Raises:
        ValueError: an unknown kind, a temperature that is not positive, or a bias for "contrastive".
    """

    def __init__(
        self, kind: str = "contrastive", temperature: float | None = None, bias: float | None = None, **kwargs
    ):
        # Under a mixed policy Keras would round the embeddings to the compute dtype before `call`.
        super().__init__(autocast=False, **kwargs)
        if kind not in TEMPERATURES:
            raise ValueError(f"`kind` must be one of {', '.join(map(repr, TEMPERATURES))}. Received: kind={kind!r}.")
        if kind == "contrastive" and bias is not None:
            raise ValueError(f"Only kind='sigmoid' has a bias. Received: kind={kind!r}, bias={bias}.")
        self.kind = kind
        self.temperature = TEMPERATURES[kind] if temperature is None else temperature
        check_temperature(self.temperature)
        self.bias = bias
        self.logit_bias = None

    def build(self, image_embeddings_shape=None, text_embeddings_shape=None):
        if self.built:
            return
        self.logit_scale = add_logit_scale(self, self.temperature, LARGEST_LOGIT_SCALES[self.kind])
        if self.kind == "sigmoid":
            self.logit_bias = self.add_weight(
                name="logit_bias",
                shape=(),
                initializer=initializers.Constant(-10.0 if self.bias is None else self.bias),
                dtype="float32",
                autocast=False,
            )
        self.built = True

    def call(self, image_embeddings, text_embeddings):
        return self.loss_and_matches(image_embeddings, text_embeddings).loss

    def loss_and_matches(self, image_embeddings: Tensor, text_embeddings: Tensor) -> PairLosses:
        """Returns the loss of each pair, and which images and texts retrieve each other, from one pass.

        Args:
            image_embeddings: float tensor (B, E), unit length.
            text_embeddings: float tensor (B, E), unit length.

        Returns:
            `losses.PairLosses` of three float32 (B,).
        """
        if self.kind == "sigmoid":
            return sigmoid_pairs(image_embeddings, text_embeddings, self.logit_scale, self.logit_bias)
        return contrastive_pairs(image_embeddings, text_embeddings, self.logit_scale)

    def compute_output_spec(self, image_embeddings, text_embeddings):
        return keras.KerasTensor((image_embeddings.shape[0],), dtype="float32")
