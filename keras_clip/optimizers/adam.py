"""The paper's optimizer: Adam with decoupled weight decay, linear warm-up, cosine decay."""

import keras
from keras import ops

from keras_clip import compat
from keras_clip.optimizers import foreach
from keras_clip.optimizers.decay import is_decayed
from keras_clip.optimizers.layer_decay import learning_rate_factors
from keras_clip.optimizers.rounding import StepSeed, round_to_bfloat16
from keras_clip.optimizers.schedules import schedule


@keras.saving.register_keras_serializable(package="keras_clip")
class AdamW(compat.UpdateHooks, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that does not decay gains, biases and temperatures.

    Radford et al. (2021), section 2.5: "decoupled weight decay regularization applied to all weights that are not gains
    or biases". As in open_clip, weight decay applies to all variables with two or more axes that are not named as gain
    or bias: kernels, token embeddings, position tables. It does not apply to biases, gains of normalisations, the
    temperature and vectors such as the class token. The choice depends on the variable alone, so it is the same on
    every backend, and after saving and loading, where Keras' own `var_list` is lost.

    With `use_ema=True` it keeps a moving average of the weights, which replaces them when `fit` ends: to continue the
    training later, save the weights before. To evaluate the averages during `fit`,
    pass `keras.callbacks.SwapEMAWeights()` to `fit` or `evaluate`, before callbacks that save; never to `predict`,
    which leaves the averages in the model.

    Args:
        learning_rate: float, schedule or callable.
        layer_decay: float in (0, 1] or None. Layer-wise learning-rate decay: block i of an encoder of depth blocks
            learns with lr * layer_decay ** (depth - i), weight decay included; see
            `layer_decay.learning_rate_factors`. None: one rate for all layers.
        moments_dtype: "bfloat16" or None. Stores both moments in half the memory (section 2.5: "half-precision Adam
            statistics"). The arithmetic is in float32, and the rounding is unbiased and a function of the step. None:
            the dtype of the weights.
        options: other arguments of `keras.optimizers.AdamW`: `weight_decay`, `beta_1`, `clipnorm`, `use_ema` and so on.

    Raises:
        ValueError: a `layer_decay` out of range or, when the optimizer is built, with weights that have no blocks;
            another `moments_dtype`; `moments_dtype` together with `amsgrad`.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        *,
        layer_decay: float | None = None,
        moments_dtype: str | None = None,
        **options,
    ):
        super().__init__(learning_rate, **options)
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(
                "`layer_decay` must be in (0, 1], or None. "
                f"Received: layer_decay={layer_decay}. 0.65 to 0.9 are usual for fine-tuning."
            )
        if moments_dtype not in (None, "bfloat16") or (moments_dtype and self.amsgrad):
            raise ValueError(
                "`moments_dtype` must be 'bfloat16', without `amsgrad`, or None. "
                f"Received: moments_dtype={moments_dtype!r}, amsgrad={self.amsgrad}."
            )
        self.layer_decay = layer_decay
        self.moments_dtype = moments_dtype

    def build(self, variables):
        if self.built:
            return
        if self.layer_decay is not None:
            self._factors = tuple(learning_rate_factors([v.path for v in variables], self.layer_decay))
        # Variables are identified by index, because their copies on other replicas of TensorFlow have other paths.
        self._decayed = tuple(map(is_decayed, variables))
        super().build(variables)

    def add_variable(self, shape, initializer="zeros", dtype=None, aggregation="none", layout=None, name=None):
        if self.moments_dtype and str(name).endswith(("_momentum", "_velocity")):
            dtype = self.moments_dtype
        return super().add_variable(shape, initializer, dtype, aggregation, layout, name)

    def decays(self, variable):
        return self._decayed[compat.variable_index(self, variable)] and super().decays(variable)

    def decay_all(self, variables):
        # With layer-wise rates, the update itself applies weight decay. torch cannot multiply an empty list.
        if self.layer_decay is None and any(map(self.decays, variables)):
            super().decay_all(variables)

    def update_all(self, gradients, variables, learning_rate):
        if foreach.is_usable() and not self.amsgrad:
            foreach.step(self, gradients, variables, learning_rate)
        else:
            super().update_all(gradients, variables, learning_rate)

    def update_step(self, gradient, variable, learning_rate):
        if self.layer_decay is not None:
            learning_rate = learning_rate * self._factors[compat.variable_index(self, variable)]
            if self.weight_decay and self.decays(variable):
                self.assign_sub(variable, variable * ops.cast(self.weight_decay * learning_rate, variable.dtype))
        if self.moments_dtype is None:
            super().update_step(gradient, variable, learning_rate)
        else:
            self._update_rounded(gradient, variable, learning_rate)

    def _update_rounded(self, gradient, variable, learning_rate):
        index = compat.variable_index(self, variable)
        momentums, velocities = compat.adam_moments(self)
        step = ops.cast(self.iterations + 1, "float32")
        gradient = ops.cast(ops.convert_to_tensor(gradient), "float32")
        m, v = (ops.cast(moments[index], "float32") for moments in (momentums, velocities))
        m = m + (gradient - m) * (1 - self.beta_1)
        v = v + (ops.square(gradient) - v) * (1 - self.beta_2)
        noise = keras.random.uniform(variable.shape, dtype="float32", seed=StepSeed(self.iterations, index))
        self.assign(momentums[index], round_to_bfloat16(m, noise))
        self.assign(velocities[index], round_to_bfloat16(v, noise))
        correction = ops.sqrt(1 - ops.power(self.beta_2, step)) / (1 - ops.power(self.beta_1, step))
        update = ops.cast(learning_rate, "float32") * correction * m / (ops.sqrt(v) + self.epsilon)
        self.assign_sub(variable, ops.cast(update, variable.dtype))

    def get_config(self):
        return {**super().get_config(), "layer_decay": self.layer_decay, "moments_dtype": self.moments_dtype}


def adamw(
    model: keras.Model,
    learning_rate: float = 5e-4,
    warmup_steps: int = 2000,
    total_steps: int = 390_625,
    weight_decay: float = 0.2,
    beta_1: float = 0.9,
    beta_2: float = 0.98,
    epsilon: float = 1e-6,
    global_clipnorm: float | None = None,
    **options,
) -> AdamW:
    """Returns the optimizer of Radford et al. (2021), section 2.5 and tables 18 to 20.

    Its learning rate is `schedule(learning_rate, warmup_steps, total_steps)`, and its weight decay follows
    `decay_mask`. The defaults are those of the paper's ViT-B; `adamw(model, **recipe("rn50").optimizer)` has those of
    another model, and a recipe also those of a shorter run.

    Args:
        model: the model to train. Parts may be locked with `trainable = False` before or after this call.
        learning_rate: float > 0. The peak of the schedule.
        warmup_steps: int >= 0.
        total_steps: int > `warmup_steps`. Number of steps of the whole training.
        weight_decay: float >= 0. Per step, times the learning rate; `decay_mask` selects the weights.
        beta_1: float. Decay of the first moment.
        beta_2: float. Decay of the second moment.
        epsilon: float.
        global_clipnorm: float > 0 or None. Largest norm of the gradient of the global batch; None: no clipping.
        options: other arguments of `AdamW`: `layer_decay`, `moments_dtype`, `clipnorm`, `use_ema`, `ema_momentum`.

    Returns:
        An optimizer for `model.compile`.

    Raises:
        ValueError: see `schedule`; a model without trainable variables, or whose encoders `layer_decay` cannot
            identify.
    """
    require_trainable(model)
    if options.get("layer_decay") is not None:
        _check_encoders(model)
    return AdamW(
        schedule(learning_rate, warmup_steps, total_steps),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        global_clipnorm=global_clipnorm,
        **options,
    )


def require_trainable(model: keras.Model) -> None:
    """Raises a ValueError if a model has no trainable variables."""
    if not model.trainable_variables:
        raise ValueError(
            f"There is nothing to train. Received: model={model.name!r} without trainable variables. Set `trainable = "
            "True` on the parts to train, and build the model before its optimizer."
        )


def _check_encoders(model):
    """Raises a ValueError if two encoders have the same name, as layer-wise rates would then be wrong silently."""
    encoders = [getattr(model, name, None) for name in ("image_encoder", "text_encoder")]
    learning = [encoder for encoder in encoders if encoder is not None and encoder.trainable_variables]
    for encoder in learning:
        learning_rate_factors([variable.path for variable in encoder.trainable_variables], 1.0)
    if len({encoder.name for encoder in learning}) < len(learning):
        raise ValueError(
            "`layer_decay` identifies encoders by their names. "
            f"Received: two encoders named {learning[0].name!r}. Give them names of their own."
        )
