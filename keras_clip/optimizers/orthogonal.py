"""Muon for matrices with AdamW for all other weights (Jordan et al., 2024; Liu et al., 2025)."""

import keras

from keras_clip import compat
from keras_clip.optimizers.adam import require_trainable
from keras_clip.optimizers.decay import is_decayed
from keras_clip.optimizers.schedules import schedule

# Position tables and output projections: the authors of Muon recommend AdamW for embeddings and output layers.
EXCLUDED = ("positions", "image_projection", "text_projection", "output_words")


@keras.saving.register_keras_serializable(package="keras_clip")
class Muon(compat.UpdateHooks, keras.optimizers.Muon):
    """`keras.optimizers.Muon` whose weight decay follows `decay_mask`, also after saving and loading.

    Weights with two axes are updated by Muon, except embeddings and those whose path matches `exclude_layers`; all
    others are updated by AdamW.

    Args:
        learning_rate: float, schedule or callable.
        options: other arguments of `keras.optimizers.Muon`.
    """

    def __init__(self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3, **options):
        super().__init__(learning_rate, **options)

    def build(self, variables):
        if self.built:
            return
        # Variables are identified by index, because their copies on other replicas of TensorFlow have other paths.
        self._decayed = tuple(map(is_decayed, variables))
        super().build(variables)

    def decays(self, variable):
        return self._decayed[compat.variable_index(self, variable)] and super().decays(variable)


def muon(
    model: keras.Model,
    learning_rate: float = 5e-4,
    warmup_steps: int = 2000,
    total_steps: int = 390_625,
    weight_decay: float = 0.2,
    global_clipnorm: float | None = None,
    **options,
) -> Muon:
    """Returns Muon for the matrices inside the encoders with AdamW for all other weights, as an alternative to `adamw`.

    Embeddings, tables of positions, projection heads, convolutions, gains, biases and the logit scale are updated by
    AdamW, with the same schedule and the moments of the paper. Muon's updates are scaled to the size of AdamW's (Liu et
    al., 2025), so that one learning rate and one weight decay serve both.

    Args:
        model: the model to train.
        learning_rate: float > 0. The peak of the schedule.
        warmup_steps: int >= 0.
        total_steps: int > `warmup_steps`. Number of steps of the whole training.
        weight_decay: float >= 0. Per step, times the learning rate; `decay_mask` selects the weights.
        global_clipnorm: float > 0 or None. Largest norm of the gradient of the global batch; None: no clipping.
        options: other arguments of `keras.optimizers.Muon`, such as `momentum`, `ns_steps`, `exclude_layers`.

    Returns:
        An optimizer for `model.compile`.

    Raises:
        ValueError: see `schedule`; a model without trainable variables.
    """
    require_trainable(model)
    defaults = {
        "adam_weight_decay": weight_decay,
        "adam_beta_1": 0.9,
        "adam_beta_2": 0.98,
        "epsilon": 1e-6,
        "exclude_layers": list(EXCLUDED),
    }
    return Muon(
        schedule(learning_rate, warmup_steps, total_steps),
        weight_decay=weight_decay,
        global_clipnorm=global_clipnorm,
        **{**defaults, **options},
    )
