"""Trains small CLIPs as one device does, or as one of several replicas, and tells how far apart the results are.

    python replicas.py single <file.npz> <case> ...                  trains on one device; writes what came out
    python replicas.py <kind> <file.npz> <case> ...                  trains on several; prints each case's distance

The kinds are `KINDS`. Those of several processes find their place in the environment: WORLD_SIZE, RANK, MASTER_ADDR and
MASTER_PORT, as torchrun sets them.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

DEVICES = int(os.environ.get("DEVICES", 2))
RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
COORDINATOR = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '0')}"
BACKEND = os.environ["KERAS_BACKEND"]

if BACKEND == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)

import keras  # noqa: E402
import numpy as np  # noqa: E402
from small_clip import build, distance, pairs, train  # noqa: E402

from keras_clip import tiling  # noqa: E402
from keras_clip.layers import projection  # noqa: E402

BATCH = 24
SIZES = tiling.TILE_ROWS, tiling.TILE_AREA, projection.LOOP_MIN_ELEMENTS

# What to build and how to train it: "rows", "frozen", "epochs" and "optimizer" are for `run`, the rest for `compile`.
CASES = {
    "plain": ({}, {}),
    "sigmoid": ({"loss": "sigmoid"}, {}),
    "several tiles": ({"several_tiles": True}, {"rows": BATCH, "epochs": 1}),
    "micro-batches": ({}, {"microbatch_size": 4}),
    "uneven micro-batches": ({}, {"microbatch_size": 5}),
    # One step: what it rounds, the next ones amplify.
    "clipped together": (
        {},
        {"optimizer": {"global_clipnorm": 0.1, "learning_rate": 5.0}, "rows": BATCH, "epochs": 1},
    ),
    # Half of the weights are clipped. Were all cut down, what has no gradient but for rounding would stand out.
    "clipped one by one": ({}, {"optimizer": {"clipnorm": 2.0}, "epochs": 1}),
    "averaged weights": ({}, {"optimizer": {"use_ema": True, "ema_momentum": 0.5}}),
    "compiled": ({}, {"jit_compile": True}),
    "compiled micro-batches": ({}, {"jit_compile": True, "microbatch_size": 5}),
    "uneven last batch": ({}, {"rows": 41}),
    "frozen BatchNorm": ({"image_encoder": "resnet"}, {"frozen": True}),
    "BatchNorm": ({"image_encoder": "resnet"}, {"rows": BATCH, "epochs": 1}),
}


def run(name, is_single):
    build_options, options = (dict(part) for part in CASES[name])
    is_tiled = build_options.pop("several_tiles", False) and not is_single
    # With 6 rows on each device, columns take two tiles.
    tiling.TILE_ROWS, tiling.TILE_AREA, projection.LOOP_MIN_ELEMENTS = (6, 1, 1) if is_tiled else SIZES
    rows, epochs = options.pop("rows", 48), options.pop("epochs", 2)
    clip = build(**build_options)
    MODELS.append(clip)
    if options.pop("frozen", False):
        for layer in clip._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    optimizer = keras.optimizers.SGD(**{"learning_rate": 0.1, **options.pop("optimizer", {})})
    if is_single:
        options = {}
    data, batch = pairs(rows), BATCH
    if WORLD_SIZE > 1 and BACKEND != "tensorflow":
        batch = BATCH // WORLD_SIZE
        own = [i for i in range(rows) if i % BATCH // batch == RANK]
        data = {key: value[own] for key, value in data.items()}
    return train(clip, data, batch, epochs, optimizer, **options)


@contextlib.contextmanager
def single():
    yield


@contextlib.contextmanager
def mirrored():
    with tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(DEVICES)]).scope():
        yield


@contextlib.contextmanager
def multi_worker():
    hosts = [f"127.0.0.1:{int(os.environ['MASTER_PORT']) + i}" for i in range(WORLD_SIZE)]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": RANK}})
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        yield


@contextlib.contextmanager
def data_parallel():
    if WORLD_SIZE > 1:
        keras.distribution.initialize(COORDINATOR, WORLD_SIZE, RANK)
    assert len(keras.distribution.list_devices()) == DEVICES * WORLD_SIZE
    # Each process reads its own part.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    yield


@contextlib.contextmanager
def model_parallel():
    import keras_clip

    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((len(devices) // 2, 2), ("batch", "model"), devices)
    layout = keras_clip.training.layout_map(mesh)
    distribution = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)
    yield
    assert any("model" in str(v.value.sharding.spec) for v in MODELS[-1].trainable_variables)


@contextlib.contextmanager
def processes():
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method="env://")
    yield
    dist.destroy_process_group()


MODELS = []
KINDS = {f.__name__: f for f in (single, mirrored, multi_worker, data_parallel, model_parallel, processes)}


def main(kind, file, *names):
    is_single = kind == "single"
    file = Path(file)
    with KINDS[kind]():
        results = {name: run(name, is_single) for name in names}
    if is_single:
        flat = {}
        for name, (logs, before, after) in results.items():
            flat |= {f"{name}|logs|{key}": value for key, value in logs.items()}
            flat |= {f"{name}|before|{key}": value for key, value in before.items()}
            flat |= {f"{name}|after|{key}": value for key, value in after.items()}
        np.savez(file, **flat)
        return
    reference = np.load(file)
    for name, result in results.items():
        parts = {}
        for key in reference.files:
            case, part, rest = key.split("|", 2)
            if case == name:
                parts.setdefault(part, {})[rest] = reference[key]
        print(json.dumps({name: distance((parts["logs"], parts["before"], parts["after"]), result)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
