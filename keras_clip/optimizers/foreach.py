"""Updates all weights together by Adam on torch.

Keras has such an update for its own optimizer classes, but not for subclasses, which would update the weights one by
one with ten small kernels each. Without the two options of `keras_clip.training.AdamW` the result equals that of Keras
bit by bit.
"""

import itertools

import keras

from keras_clip import compat

# Elements that are updated at a time if moments have low precision, since the update holds them in float32.
_PART = 2**24


def is_usable() -> bool:
    """Returns whether the backend is torch."""
    return keras.backend.backend() == "torch"


def step(optimizer, gradients, variables, learning_rate) -> None:
    """Updates weights and moments; with layer-wise learning rates it also applies weight decay.

    Args:
        optimizer: `AdamW`, built.
        gradients: torch tensors.
        variables: Keras variables, one for each gradient.
        learning_rate: tensor or variable, ().
    """
    import torch

    indices = [compat.variable_index(optimizer, variable) for variable in variables]
    factors = [optimizer._factors[i] for i in indices] if optimizer.layer_decay is not None else None
    with torch.no_grad():
        if factors and optimizer.weight_decay:
            _decay(optimizer, variables, factors, learning_rate)
        values = [variable.value for variable in variables]
        moments = [[group[i].value for i in indices] for group in compat.adam_moments(optimizer)]
        rate = keras.ops.cast(learning_rate, values[0].dtype)
        local_step = keras.ops.cast(optimizer.iterations + 1, values[0].dtype)
        # Raises a tensor to the power of a tensor, as Keras does: other operations would round differently.
        powers = [
            keras.ops.power(keras.ops.cast(beta, values[0].dtype), local_step)
            for beta in (optimizer.beta_1, optimizer.beta_2)
        ]
        alpha = rate * keras.ops.sqrt(1 - powers[1]) / (1 - powers[0])
        update = _update if optimizer.moments_dtype is None else _update_rounded
        update(optimizer, values, gradients, *moments, alpha, factors)


def _decay(optimizer, variables, factors, learning_rate):
    groups = {}
    for variable, factor in zip(variables, factors, strict=True):
        if optimizer.decays(variable):
            groups.setdefault(factor, []).append(variable.value)
    for factor, values in groups.items():
        compat.list_operations().mul_(values, 1 - optimizer.weight_decay * factor * learning_rate)


def _update(optimizer, values, gradients, momentums, velocities, alpha, factors):
    lists = compat.list_operations()
    lists.mul_(momentums, optimizer.beta_1)
    lists.add_(momentums, gradients, alpha=1 - optimizer.beta_1)
    lists.mul_(velocities, optimizer.beta_2)
    lists.add_(velocities, lists.mul(gradients, gradients), alpha=1 - optimizer.beta_2)
    updates = lists.div(lists.mul(momentums, alpha), lists.add(lists.sqrt(velocities), optimizer.epsilon))
    if factors:
        lists.mul_(updates, factors)
    lists.add_(values, updates, alpha=-1)


def _update_rounded(optimizer, values, gradients, momentums, velocities, alpha, factors):
    import torch

    lists, device = compat.list_operations(), values[0].device
    # The seed is the step alone, so that a resumed training and all processes draw the same numbers.
    generator = torch.Generator(device).manual_seed(int(optimizer.iterations))
    for begin, end in _parts([value.numel() for value in values]):
        part = values[begin:end]
        m, v, g = (
            torch.cat([tensor.reshape(-1).float() for tensor in tensors[begin:end]])
            for tensors in (momentums, velocities, gradients)
        )
        m.lerp_(g, 1 - optimizer.beta_1)
        v.lerp_(g.square_(), 1 - optimizer.beta_2)
        updates = _as_parts(m * alpha / v.sqrt().add_(optimizer.epsilon), part)
        if factors:
            lists.mul_(updates, factors[begin:end])
        lists.sub_(part, [update.to(value.dtype) for update, value in zip(updates, part, strict=True)])
        noise = torch.randint(2**16, m.shape, dtype=torch.int32, device=device, generator=generator)
        for rounded, stored in ((m, momentums), (v, velocities)):
            # Stochastic rounding: the probability of a carry into the upper half is proportional to the lower half.
            rounded.view(torch.int32).add_(noise).bitwise_and_(-(2**16))
            lists.copy_(stored[begin:end], _as_parts(rounded, part))


def _parts(sizes):
    """Yields (begin, end) of consecutive weights with at most `_PART` elements together, or of one larger weight."""
    begin, total = 0, 0
    for end, size in enumerate(sizes):
        if total and total + size > _PART:
            yield begin, end
            begin, total = end, 0
        total += size
    yield begin, len(sizes)


def _as_parts(flat, like):
    ends = itertools.accumulate(tensor.numel() for tensor in like)
    return [flat[end - tensor.numel() : end].view(tensor.shape) for end, tensor in zip(ends, like, strict=True)]
