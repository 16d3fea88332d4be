"""Trains a small CLIP with a custom loss: contrastive, with more weight on hard negatives.

    python examples/hard_negative_loss.py --epochs 3 --beta 0.5

The loss is that of Robinson et al. (2021), "Contrastive Learning with Hard Negative Samples", in both directions, as in
Radenovic et al. (2023). A negative j of pair i has the weight w_ij = (n - 1) exp(beta s_ij) / sum_k exp(beta s_ik),
where s are the logits and k runs over the n - 1 negatives; beta = 0 is CLIP's loss. Prints the loss after each epoch
and the zero-shot accuracy on drawings of unseen classes.
"""

import math

import terminal


def parse_args(argv=None):
    parser = terminal.Parser(__doc__)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--image-size", type=int, default=64, help="pixels; a multiple of 32")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    terminal.start(parse_args)

import keras
import numpy as np
from keras import ops

import keras_clip
from keras_clip import distribution, losses
from keras_clip.data import synthetic


@keras.saving.register_keras_serializable(package="examples")
class HardNegativeLoss(keras.layers.Layer):
    """Cross-entropy of each pair against reweighted negatives, with a learned temperature.

    Args:
        beta: float > 0. Concentration of the weights on hard negatives.
        temperature: float > 0. Initial temperature.
    """

    def __init__(self, beta=0.5, temperature=0.07, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if not 0 < beta < math.inf:
            raise ValueError(f"`beta` must be positive. Received: beta={beta}. For beta = 0 use loss='contrastive'.")
        self.beta, self.temperature = beta, temperature
        self.scale = keras_clip.layers.LogitScale(temperature)

    def build(self, image_embeddings_shape=None, text_embeddings_shape=None):
        if not self.built:
            self.scale.build()
            self.built = True

    @property
    def logit_scale(self):
        return self.scale.logit_scale

    def loss_and_matches(self, image_embeddings, text_embeddings):
        """Returns the loss (B,) of each pair, and which images and texts retrieve each other: `losses.PairLosses`."""
        embeddings = image_embeddings, text_embeddings
        log_scale = ops.convert_to_tensor(self.logit_scale)
        own = losses.positive_logits(*embeddings, log_scale)
        plain = losses.negatives_logsumexp(*embeddings, log_scale)
        # With these weights the sum over negatives of w exp(s) is (n - 1) sum exp((1 + beta) s) / sum exp(beta s).
        sharp = losses.negatives_logsumexp(*embeddings, log_scale + math.log(1 + self.beta))
        weights = losses.negatives_logsumexp(*embeddings, log_scale + math.log(self.beta))
        pairs = distribution.total(ops.cast(ops.shape(own)[0], "float32"))
        # A batch of one pair has no negatives and a loss of 0.
        count = ops.where(pairs > 1, ops.log(ops.maximum(pairs - 1, 1.0)), -1e30)
        by_image = ops.softplus(count + sharp.by_image - weights.by_image - own)
        by_text = ops.softplus(count + sharp.by_text - weights.by_text - own)
        return losses.with_matches((by_image + by_text) / 2, own, plain)

    def call(self, image_embeddings, text_embeddings):
        return self.loss_and_matches(image_embeddings, text_embeddings).loss


def main(argv=None):
    args = parse_args(argv)
    keras.utils.set_random_seed(args.seed)
    clip = keras_clip.CLIPModel(
        keras_clip.encoders.ModifiedResNet(args.image_size, (1, 1, 1, 1), width=16),
        keras_clip.encoders.TextTransformer(128, 2, 4, context_length=20),
        embed_dim=128,
        loss=HardNegativeLoss(args.beta),
    )
    images, captions = zip(*(synthetic.sample(i, args.image_size, args.seed) for i in range(args.pairs)), strict=True)
    pairs = {"images": np.stack(images), "token_ids": clip.tokenizer(list(captions))}
    steps = args.epochs * -(-args.pairs // 128)
    clip.compile(keras_clip.training.adamw(clip, 2e-3, warmup_steps=steps // 10, total_steps=steps))
    history = clip.fit(pairs, batch_size=128, epochs=args.epochs, verbose=0).history
    for epoch, loss in enumerate(history["loss"], 1):
        print(f"epoch {epoch}: loss {loss:.3f}")
    images, labels, names = synthetic.held_out_set(image_size=args.image_size)
    result = keras_clip.ZeroShotClassifier(clip, names, ["a drawing of {}"]).evaluate((images, labels), verbose=0)
    print(f"unseen classes: {result['top_1_accuracy']:.1%} of {len(images)} images, among {len(names)} names")
    return result


if __name__ == "__main__":
    terminal.run(main)
