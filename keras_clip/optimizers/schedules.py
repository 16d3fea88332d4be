"""The learning-rate schedule of the paper (Radford et al., 2021, section 2.5)."""

import keras


def schedule(
    learning_rate: float, warmup_steps: int, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a schedule of linear warm-up and cosine decay to zero, for any optimizer.

    Args:
        learning_rate: float > 0. The peak, reached after `warmup_steps`.
        warmup_steps: int >= 0.
        total_steps: int > `warmup_steps`. The step at which the rate is zero.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: no steps after the warm-up, or a learning rate that is not positive.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`total_steps` must be greater than `warmup_steps`. "
            f"Received: total_steps={total_steps}, warmup_steps={warmup_steps}."
        )
    if learning_rate <= 0:
        raise ValueError(f"`learning_rate` must be positive. Received: learning_rate={learning_rate}.")
    return keras.optimizers.schedules.CosineDecay(
        # The learning rate of the first step is not zero.
        initial_learning_rate=learning_rate / warmup_steps if warmup_steps else learning_rate,
        decay_steps=total_steps - warmup_steps,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
