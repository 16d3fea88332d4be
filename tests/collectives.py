"""Counts the collectives of a step, and prints them as JSON: of a torch process, or of the loss on two JAX devices."""

import collections
import json
import os
import re

import keras
import numpy as np

from keras_clip import tiling


def count_torch():
    import torch
    import torch.distributed as dist
    from small_clip import BATCH, build, pairs, sgd

    dist.init_process_group("gloo", init_method="env://")
    calls, rank, counts = collections.Counter(), int(os.environ["RANK"]), {}

    def count(owner, name):
        original = getattr(owner, name)

        def counted(*args, **options):
            calls[name] += 1
            return original(*args, **options)

        setattr(owner, name, counted)

    for name in ("all_gather", "all_reduce", "broadcast"):
        count(dist, name)
    for name in ("tolist", "item", "__bool__", "__float__"):
        count(torch.Tensor, name)
    kinds = {
        "vit": ({}, {}),
        "sigmoid": ({"loss": "sigmoid"}, {}),
        "micro-batches": ({}, {"microbatch_size": 4}),
        "norm": ({"image_encoder": "convolution"}, {}),
        "resnet": ({"image_encoder": "resnet"}, {}),
    }
    for kind, (options, compile_options) in kinds.items():
        clip = build(**options)
        clip.compile(sgd(), **compile_options)
        batch = {key: value[rank * BATCH // 2 :][: BATCH // 2] for key, value in pairs(BATCH).items()}
        clip.train_on_batch(batch)
        calls.clear()
        clip.train_on_batch(batch)
        counts[kind] = dict(calls)
    dist.destroy_process_group()
    return counts


COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def collectives(program):
    """Returns {name: number} of the collectives of a compiled program, those in loops as "<name> in a loop"."""
    computations, name = {}, None
    for line in program.splitlines():
        begin = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if begin:
            name = begin.group(1)
        computations.setdefault(name, []).append(line)
    loops, waiting = set(), re.findall(r"(?:body|condition)=%?([\w.\-]+)", program)
    assert waiting
    while waiting:
        name = waiting.pop()
        if name not in loops:
            loops.add(name)
            called = "\n".join(computations[name])
            waiting += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", called)
    counts = collections.Counter()
    for name, lines in computations.items():
        for found in COLLECTIVE.findall("\n".join(lines)):
            counts[found + (" in a loop" if name in loops else "")] += 1
    return dict(counts)


def count_jax():
    import jax
    from jax import numpy as jnp

    tiling.TILE_ROWS, tiling.TILE_AREA = 6, 1
    scalar = jnp.float32(0)

    def contrastive(rows, columns):
        return jnp.sum(tiling.bidirectional_logsumexp(rows, columns, scalar, scalar)[0])

    def sigmoid(rows, columns):
        return jnp.sum(tiling.sum_of_softplus(rows, columns, scalar, scalar, scalar)[0])

    counts = {}
    with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
        mesh = keras.distribution.distribution().device_mesh
        layout = keras.distribution.TensorLayout(["batch", None], mesh)
        rows = keras.distribution.distribute_tensor(jnp.asarray(np.eye(24, 16, dtype="float32")), layout)
        for loss in (contrastive, sigmoid):
            for name, function in (("forward", loss), ("gradient", jax.grad(loss, (0, 1)))):
                program = jax.jit(function).lower(rows, rows).compile().as_text()
                counts[f"{loss.__name__} {name}"] = collectives(program)
    return counts


if __name__ == "__main__":
    print(json.dumps({"torch": count_torch, "jax": count_jax}[keras.backend.backend()]()))
