"""Patch dropout in training (FLIP; Li et al., 2022)."""

import keras
from keras import ops

from keras_clip import distribution


@keras.saving.register_keras_serializable(package="keras_clip")
class PatchDropout(keras.layers.Layer):
    """Drops a random subset of the patches of each image in training, and none otherwise.

    Training on half of the patches is about twice as fast. The class token, row 0, is always kept, and the remaining
    patches keep their order.

    Args:
        rate: float in [0, 1). Fraction of the patches to drop.
        seed: int or None.

    Call arguments:
        x: tensor (B, 1 + N, D), class token first.
        training: bool.

    Returns:
        Tensor (B, 1 + M, D) with M = max(1, round((1 - rate) N)) in training; `x` otherwise.

    Raises:
        ValueError: `rate` outside [0, 1).
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}.")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def save_own_variables(self, store: dict) -> None:
        """Saves the state of the random generator, which Keras does not.

        Args:
            store: what the model is saved in.
        """
        store["seed_state"] = self.seed_generator.state

    def load_own_variables(self, store: dict) -> None:
        """Loads the state of the random generator; files of earlier versions have none.

        Args:
            store: what `save_own_variables` saved.
        """
        if "seed_state" in store.keys():
            self.seed_generator.state.assign(store["seed_state"])

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        patches = x.shape[1] - 1
        kept = max(1, round((1 - self.rate) * patches))
        # All replicas draw the same numbers, for the global batch, and each uses those of its own rows.
        rows = ops.shape(x)[0]
        start, rows_of_all = distribution.row_range(rows)
        keys = keras.random.uniform((rows_of_all, patches), seed=self.seed_generator)[start : start + rows]
        indices = ops.sort(ops.top_k(keys, kept, sorted=False)[1], axis=1)
        chosen = ops.take_along_axis(x[:, 1:], ops.expand_dims(ops.cast(indices, "int32"), -1), axis=1)
        return ops.concatenate([x[:, :1], chosen], axis=1)

    def compute_output_shape(self, x_shape):
        # The shape outside of training, as the number of kept patches depends on the argument `training`.
        return x_shape
