"""The paper's optimizer: Adam with decoupled weight decay, linear warm-up, cosine decay."""

import keras

# By role, told from the last part of a variable's path, which is the same on every backend and after loading.
# A rule by rank alone would decay the biases of `keras.layers.MultiHeadAttention`, which have rank 2.
UNDECAYED = frozenset({"bias", "beta", "gamma", "scale", "alpha", "logit_scale", "logit_bias"})


@keras.saving.register_keras_serializable(package="keras_clip")
class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that decays weights and leaves gains, biases and temperatures alone.

    Radford et al. (2021), section 2.5: "decoupled weight decay regularization applied to all weights that are not gains
    or biases". Decayed are all variables of two or more axes that are not named as gain or bias: kernels, token
    embeddings, position tables. Not decayed: biases, gains of normalisations, the temperature and every vector, the
    class token among them. So does open_clip. The choice depends on the variable alone, so it is the same on every
    backend and after saving and loading, where Keras' own `var_list` is lost.

    Args:
        As `keras.optimizers.AdamW`.
    """

    def _use_weight_decay(self, variable):
        name = variable.name.split("/")[-1].split(":")[0]
        return len(variable.shape) >= 2 and name not in UNDECAYED and super()._use_weight_decay(variable)


def adamw(
    model: keras.Model,
    learning_rate: float = 5e-4,
    warmup_steps: int = 2000,
    total_steps: int = 390_625,
    weight_decay: float = 0.2,
    beta_1: float = 0.9,
    beta_2: float = 0.98,
    epsilon: float = 1e-6,
) -> AdamW:
    """The recipe of Radford et al. (2021), section 2.5 and tables 18 and 19.

    The learning rate rises linearly to `learning_rate` over `warmup_steps` and falls to zero along half a cosine at
    `total_steps`. The defaults are those of the paper's ViT-B; its ResNets take `beta_2=0.999, epsilon=1e-8`.

    Args:
        model: the model to train. Lock what shall not learn (`trainable = False`) before or after, as you like.
        learning_rate: float > 0. The highest one.
        warmup_steps: int >= 0.
        total_steps: int > `warmup_steps`. Steps of the whole training.
        weight_decay: float >= 0. Per step, times the learning rate; see `AdamW` for what is decayed.
        beta_1: float. Decay of the first moment.
        beta_2: float. Decay of the second moment.
        epsilon: float.

    Returns:
        An optimizer for `model.compile`.

    Raises:
        ValueError: steps that leave nothing after the warm-up, a learning rate that is not positive, or a model in
            which nothing can learn.
    """
    if not model.trainable_variables:
        raise ValueError(
            f"There is nothing to train. Received: model={model.name!r} without trainable variables. Set `trainable = "
            "True` on the parts that shall learn, and build the model before its optimizer."
        )
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`total_steps` must be greater than `warmup_steps`. "
            f"Received: total_steps={total_steps}, warmup_steps={warmup_steps}."
        )
    if learning_rate <= 0:
        raise ValueError(f"`learning_rate` must be positive. Received: learning_rate={learning_rate}.")
    first = learning_rate / warmup_steps if warmup_steps else learning_rate
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=first,
        decay_steps=total_steps - warmup_steps,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    return AdamW(learning_rate=schedule, weight_decay=weight_decay, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
