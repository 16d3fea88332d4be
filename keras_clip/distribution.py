"""Collective operations over the replicas that share a global batch.

On TensorFlow under a `tf.distribute` strategy, and on torch in a process group, each replica holds its own part of the
batch, and the functions here communicate with the others. On JAX the trainer works on the global arrays, so there is
nothing to gather.

This module does not start processes and does not place data.
"""

import contextlib
import contextvars
import functools
from collections.abc import Sequence

import keras
from keras import ops

from keras_clip import compat
from keras_clip.types import Tensor

_is_alone = contextvars.ContextVar("is_alone", default=False)
# The rows of each torch process, in a step.
_batch_sizes = contextvars.ContextVar("batch_sizes", default=None)


@contextlib.contextmanager
def alone():
    """A context in which this replica counts as the only one: the functions of this module do not communicate."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@contextlib.contextmanager
def batch(rows: int | None):
    """A context of one step, in which torch processes exchange once how many rows of the batch each of them has.

    Inside, `gather`, `replica_offset`, `row_range` and `global_mean` take tensors of one entry for each of these rows,
    and exchange no sizes. It has no effect on other backends, where sizes are known or exchanged on the device.

    Args:
        rows: int. Rows of this replica; None: sizes are exchanged by each call, as outside of a step.
    """
    dist = _process_group()
    token = _batch_sizes.set(None if dist is None or rows is None else _exchange_sizes(rows, dist))
    try:
        yield
    finally:
        _batch_sizes.reset(token)


def _replica_context():
    """TensorFlow's replica context if there are several replicas, else None."""
    return None if _is_alone.get() else _strategy_context()


def _strategy_context():
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def _process_group():
    """`torch.distributed` if there are several processes, else None."""
    return None if _is_alone.get() else _initialized_group()


def _initialized_group():
    if keras.backend.backend() != "torch":
        return None
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else None


def replica_count() -> int:
    """Returns R, the number of replicas that share the global batch, inside a replica; 1 without a strategy."""
    context, group = _replica_context(), _process_group()
    if context is not None:
        return context.num_replicas_in_sync
    return group.get_world_size() if group is not None else 1


def gather(x: Tensor) -> Tensor:
    """Concatenates the tensors of all replicas along the first axis, in the order of their indices.

    The gradient with respect to a replica's part is the sum over replicas of their gradients for that part.

    Args:
        x: tensor (B, ...); B may differ between replicas.

    Returns:
        Tensor (sum of all B, ...).
    """
    context, group = _replica_context(), _process_group()
    if context is not None:
        joined = context.all_gather(x, axis=0)
        # `all_gather` drops the static shape.
        joined.set_shape((None, *x.shape[1:]))
        return joined
    return _gather_over_processes(x, group) if group is not None else x


def _gather_over_processes(x, dist):
    return _gather_function().apply(x, _sizes(len(x), dist), dist)


@functools.cache
def _gather_function():
    import torch

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, sizes, dist):
            ctx.sizes, ctx.dist = sizes, dist
            # Collectives take tensors of one size.
            padded = x.new_zeros((max(sizes), *x.shape[1:]))
            padded[: len(x)] = x
            parts = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(parts, padded)
            return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.contiguous().clone()
            ctx.dist.all_reduce(gradient)
            return gradient.split(ctx.sizes)[ctx.dist.get_rank()], None, None

    return Gather


def _sizes(size, dist):
    """The rows of each process, as `batch` knows them."""
    known = _batch_sizes.get()
    if known is None:
        return _exchange_sizes(size, dist)
    expected = known[dist.get_rank()]
    if size != expected:
        raise ValueError(
            f"In a training step, a tensor that is gathered must have the {expected} rows of this process's part of "
            f"the batch. Received: {size} rows. Gather other tensors in `with keras_clip.distribution.batch(None):`."
        )
    return known


def _exchange_sizes(size, dist):
    import torch

    # On the CPU where the processes can communicate there, since to read a size from a device waits for its work.
    device = "cpu" if "cpu:" in dist.get_backend_config() else torch.device("cuda", torch.cuda.current_device())
    own = torch.tensor([size], device=device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    return torch.cat(sizes).tolist()


def stack(x: Tensor) -> Tensor:
    """Stacks tensors of one shape of all replicas, without an exchange of sizes.

    The gradient is that of `gather`.

    Args:
        x: tensor of the same shape (...) on all replicas.

    Returns:
        Tensor (R, ...), in the order of the replicas.
    """
    group = _process_group()
    return (
        _gather_function().apply(x[None], [1] * group.get_world_size(), group) if group is not None else gather(x[None])
    )


def replica_offset(size: int | Tensor) -> Tensor | int:
    """Returns the number of rows on the replicas before this one, which has `size` rows.

    All replicas communicate their sizes, since the last batch of an epoch may be divided unequally; on torch once in a
    step (`batch`).

    Args:
        size: int or int scalar. Rows of this replica.

    Returns:
        int32 scalar, or int: on torch, and 0 without a strategy.
    """
    context, group = _replica_context(), _process_group()
    if context is None and group is None:
        return 0
    if group is not None:
        return sum(_sizes(int(size), group)[: group.get_rank()])
    sizes = gather(ops.reshape(ops.cast(size, "int32"), (1,)))
    return ops.sum(sizes[: context.replica_id_in_sync_group])


def total(x: Tensor) -> Tensor:
    """Returns the sum over replicas of a tensor of the same shape on all replicas, without a gradient."""
    x = ops.stop_gradient(x)
    context, group = _replica_context(), _process_group()
    if context is not None:
        import tensorflow as tf

        return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
    if group is not None:
        x = x.clone()
        group.all_reduce(x)
    return x


def global_mean(x: Tensor) -> Tensor:
    """The mean over the rows of all replicas, divided by R on each of R replicas.

    Its gradient is that of this replica's rows. So the sum over replicas is the mean of the global batch, with its
    gradient, also where replicas hold unequal numbers of rows.

    Args:
        x: float32 tensor (B,).

    Returns:
        float32 scalar.
    """
    group = _process_group()
    count = sum(_sizes(len(x), group)) if group is not None else total(ops.cast(ops.shape(x)[0], "float32"))
    mean, replicas = ops.sum(x) / count, replica_count()
    return mean if replicas == 1 else mean + ops.stop_gradient(total(mean) / replicas - mean)


def row_range(count: int | Tensor) -> tuple[int | Tensor, int | Tensor]:
    """Where the `count` rows of this replica begin in the global batch, and the number of rows there.

    Inside `alone`, where replicas do not communicate, all of them are taken to have the same number of rows.

    Args:
        count: int or int scalar. Rows of this replica.

    Returns:
        Two int32 scalars, or ints: 0 and `count` without a strategy.
    """
    context, group = _strategy_context(), _initialized_group()
    if context is None and group is None:
        return 0, count
    if not _is_alone.get():
        if group is not None:
            return replica_offset(count), sum(_sizes(int(count), group))
        return replica_offset(count), total(ops.cast(count, "int32"))
    if context is not None:
        return context.replica_id_in_sync_group * count, context.num_replicas_in_sync * count
    return group.get_rank() * count, group.get_world_size() * count


def sum_gradients(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns the sum over replicas of each gradient; None stays None.

    Call it before any operation that is not linear, such as clipping, to get the gradients of the global batch.
    """
    context, group = _replica_context(), _process_group()
    there = [gradient for gradient in gradients if gradient is not None]
    if context is not None and there:
        import tensorflow as tf

        there = context.all_reduce(tf.distribute.ReduceOp.SUM, there)
    elif group is not None:
        there = _sum_over_processes(there, group)
    summed = iter(there)
    return [None if gradient is None else next(summed) for gradient in gradients]


def _sum_over_processes(tensors, dist):
    """Sums tensors in few large messages, since a message has a latency above the transfer time of a small tensor."""
    import torch

    summed = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        summed += [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)]
    return summed


# Elements of a message: 100 MiB of float32.
_BUCKET = 25 * 2**20


def _buckets(tensors):
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def average(variables: Sequence[keras.Variable]) -> None:
    """Sets float variables of each torch process to their mean over processes; does nothing on other backends."""
    dist = _process_group()
    if dist is None or not variables:
        return
    values = _sum_over_processes([variable.value.detach() for variable in variables], dist)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value / dist.get_world_size())


def share_first(variables: Sequence[keras.Variable]) -> None:
    """Sets the variables of each torch process to those of the first; does nothing on other backends."""
    dist = _process_group()
    for variable in variables if dist is not None else ():
        value = variable.value.detach().clone()
        dist.broadcast(value, src=0)
        variable.assign(value)


def row_shards() -> int:
    """Returns the number of devices over which JAX shards the rows of a batch; 1 without `keras.distribution`."""
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))[distribution.batch_dim_name]


def map_row_shards(function, by_row, by_column):
    """Calls a function on each device of JAX with the rows that it has, without any exchange inside.

    XLA would otherwise choose the exchanges, and repeat them in every iteration of a loop.

    Args:
        function: `row_results, column_results = function(by_row, by_column)`; tuples of tensors, (rows, ...) and any.
        by_row: nested tuples of tensors (n, ...), n a multiple of `row_shards()`.
        by_column: nested tuples of tensors, of which every device gets all.

    Returns:
        The results of rows (n, ...), and those of columns with a leading axis: (row_shards(), ...).
    """
    import jax
    from jax.sharding import PartitionSpec

    distribution = keras.distribution.distribution()
    rows, whole = PartitionSpec(distribution.batch_dim_name), PartitionSpec()

    def call(by_row, by_column):
        row_results, column_results = function(by_row, by_column)
        return row_results, [x[None] for x in column_results]

    mesh = distribution.device_mesh.backend_mesh
    return jax.shard_map(call, mesh=mesh, in_specs=(rows, whole), out_specs=(rows, rows), check_vma=False)(
        by_row, by_column
    )


def replicate(x: Tensor) -> Tensor:
    """Replicates a tensor on every device of JAX; returns it unchanged on other backends.

    XLA would gather missing parts automatically, but in every iteration of a loop: call this before the loop.

    Args:
        x: tensor (n, ...) of the global batch.

    Returns:
        Tensor (n, ...).
    """
    if row_shards() == 1:
        return x
    mesh = keras.distribution.distribution().device_mesh
    layout = keras.distribution.TensorLayout([None] * len(x.shape), mesh)
    return keras.distribution.distribute_tensor(x, layout)


def strategy_of(model: keras.Model):
    """Returns the `tf.distribute` strategy of a model if it has several replicas, else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    strategy = compat.strategy_of_model(model)
    return strategy if strategy.num_replicas_in_sync > 1 else None


def is_multi_worker(strategy) -> bool:
    """Returns whether a `tf.distribute` strategy, or None, spans several worker processes."""
    if strategy is None:
        return False
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    jobs = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(jobs.get(job, ())) for job in ("chief", "worker")) > 1


def replicas_and_devices(model: keras.Model) -> tuple[int, int]:
    """Returns the number of parts of a global batch and of devices that compute a step, outside of a step.

    Args:
        model: Keras model.

    Returns:
        Two ints, which differ only under `keras.distribution.ModelParallel`.
    """
    strategy = strategy_of(model)
    if strategy is not None:
        return (strategy.num_replicas_in_sync,) * 2
    layout = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if layout is not None:
        return row_shards(), layout.device_mesh.devices.size
    return (replica_count(),) * 2
