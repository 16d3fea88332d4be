"""Trains small CLIPs as one of several replicas, and prints the distance of each result from that of one device.

    python replicas.py <file.npz> <kind>/<devices>/<case> ...

`save_references` writes the file. The kinds are the keys of `KINDS`, the cases those of `CASES`. On JAX, one process
can run several kinds, over several numbers of devices; on TensorFlow, it can have only one strategy. The environment
variable DEVICES is the number of logical devices of the process. With several processes, WORLD_SIZE, RANK, MASTER_ADDR
and MASTER_PORT are set as torchrun sets them.
"""

import contextlib
import gc
import json
import os
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
from small_clip import BATCH, FEW_STEPS, ROWS, build, distance, freeze_norms, pairs, reference, sgd, train

from keras_clip import tiling
from keras_clip.layers import projection

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
COORDINATOR = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '0')}"
BACKEND = os.environ["KERAS_BACKEND"]
SIZES = tiling.TILE_ROWS, tiling.TILE_AREA, projection.LOOP_MIN_ELEMENTS

# This encoder compiles quickly, and micro-batches do not depend on the layers of an encoder. With micro-batches its
# BatchNorm is frozen, since in training mode it would use the moments of each micro-batch.
QUICK = {"image_encoder": "convolution"}

# {case: (arguments of `build`, options of the training)}. The options "rows", "epochs", "optimizer" and "is_frozen" are
# for `run`, the others for `compile`.
CASES = {
    "plain": ({}, {}),
    # The averaged weights include those of every step.
    "sigmoid, averaged weights": ({"loss": "sigmoid"}, {"optimizer": {"use_ema": True, "ema_momentum": 0.5}}),
    "several tiles": ({"several_tiles": True}, {"rows": BATCH, "epochs": 1}),
    "micro-batches": (QUICK, {"is_frozen": True, "microbatch_size": 4}),
    "uneven micro-batches": (QUICK, {"is_frozen": True, "microbatch_size": 5}),
    # One step only, because further steps would amplify its rounding errors.
    "clipped together": (
        {},
        {"optimizer": {"global_clipnorm": 0.1, "learning_rate": 5.0}, "rows": BATCH, "epochs": 1},
    ),
    # About half of the gradients are clipped. If all were, those that consist of rounding errors only would dominate.
    "clipped one by one": ({}, {"optimizer": {"clipnorm": 2.0}, "epochs": 1}),
    "compiled": ({}, {"jit_compile": True}),
    "compiled micro-batches": (QUICK, {"is_frozen": True, "jit_compile": True, "microbatch_size": 5}),
    "uneven last batch": ({}, {"rows": 41}),
    "frozen BatchNorm": (QUICK, {"is_frozen": True}),
    "BatchNorm": (QUICK, {"rows": BATCH, "epochs": 1}),
    "ResNet": ({"image_encoder": "resnet"}, {"rows": BATCH, "epochs": 1}),
    "patch dropout": ({"patch_dropout": 0.5}, {"rows": BATCH, "epochs": 1}),
    "bag of words": (
        {"is_predictor": True},
        {"optimizer": {"global_clipnorm": 0.1, "learning_rate": 5.0}, "rows": BATCH, "epochs": 1},
    ),
}


def split(case):
    """Returns the options of `build`, `run` and `compile`, and whether the loss has several tiles."""
    build_options, options = (dict(part) for part in CASES[case])
    is_tiled = build_options.pop("several_tiles", False)
    run_options = {key: options.pop(key) for key in ("rows", "epochs", "optimizer", "is_frozen") if key in options}
    return build_options, run_options, options, is_tiled


def save_references(file, cases):
    """Trains on one device, without micro-batches and with one tile, and writes the results."""
    flat = {}
    for case in cases:
        build_options, run_options, *_ = split(case)
        results = reference(**build_options, **run_options, compile_options=FEW_STEPS)
        for part, arrays in zip(("logs", "before", "after"), results, strict=True):
            flat |= {f"{case}|{part}|{key}": value for key, value in arrays.items()}
    np.savez(file, **flat)


def load_reference(file, case):
    parts = {"logs": {}, "before": {}, "after": {}}
    for key in file.files:
        of_case, part, rest = key.split("|", 2)
        if of_case == case:
            parts[part][rest] = file[key]
    return tuple(parts.values())


def run(case):
    """Returns the trained model and the results of `train`."""
    build_options, options, compile_options, is_tiled = split(case)
    # With tiles of 6 rows on each of two devices, the columns take two tiles.
    tiling.TILE_ROWS, tiling.TILE_AREA, projection.LOOP_MIN_ELEMENTS = (6, 1, 1) if is_tiled else SIZES
    clip = build(**build_options)
    if options.get("is_frozen"):
        freeze_norms(clip)
    rows, batch = options.get("rows", ROWS), BATCH
    data = pairs(rows)
    if WORLD_SIZE > 1 and BACKEND != "tensorflow":
        batch = BATCH // WORLD_SIZE
        own = [i for i in range(rows) if i % BATCH // batch == RANK]
        data = {key: value[own] for key, value in data.items()}
    optimizer = sgd(**options.get("optimizer", {}))
    return clip, train(clip, data, batch, options.get("epochs", 2), optimizer, **compile_options)


@contextlib.contextmanager
def mirrored(devices):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)]).scope():
        yield


@contextlib.contextmanager
def multi_worker(_):
    import tensorflow as tf

    hosts = [f"127.0.0.1:{int(os.environ['MASTER_PORT']) + i}" for i in range(WORLD_SIZE)]
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": RANK}})
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        yield


@contextlib.contextmanager
def data_parallel(devices):
    chosen = keras.distribution.list_devices()[: devices * WORLD_SIZE]
    assert len(chosen) == devices * WORLD_SIZE
    # Each process already reads only its own part.
    with keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False).scope():
        yield


@contextlib.contextmanager
def model_parallel(devices):
    import keras_clip

    chosen = keras.distribution.list_devices()[:devices]
    mesh = keras.distribution.DeviceMesh((len(chosen) // 2, 2), ("batch", "model"), chosen)
    layout = keras_clip.training.layout_map(mesh)
    with keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch").scope():
        yield


@contextlib.contextmanager
def processes(_):
    yield


KINDS = {f.__name__: f for f in (mirrored, multi_worker, data_parallel, model_parallel, processes)}


def check_weights(clip, kind):
    if kind == "model_parallel":
        assert any("model" in str(v.value.sharding.spec) for v in clip.trainable_variables)


@contextlib.contextmanager
def backend():
    """Sets up the devices and the communication of this process, once."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * int(os.environ["DEVICES"])
        tf.config.set_logical_device_configuration(cpu, devices)
        # Each graph runs for a few steps only, so TensorFlow does not spend time on optimizing it.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if BACKEND == "jax" and WORLD_SIZE > 1:
        keras.distribution.initialize(COORDINATOR, WORLD_SIZE, RANK)
    if BACKEND != "torch":
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method="env://")
    yield
    dist.destroy_process_group()


def main(file, *runs):
    # Otherwise each garbage collection scans all imported modules.
    gc.freeze()
    file, places = np.load(Path(file)), {}
    for run in runs:
        kind, devices, case = run.split("/")
        places.setdefault((kind, int(devices)), []).append(case)
    with backend():
        for (kind, devices), cases in places.items():
            # All cases share one strategy: a second one of TensorFlow would number its collectives like the first.
            with KINDS[kind](devices):
                for case in cases:
                    print(json.dumps({f"{kind}/{devices}/{case}": outcome(file, kind, case)}), flush=True)


def outcome(file, kind, case):
    """Returns the distance of the result from the reference, or the traceback."""
    try:
        clip, result = run(case)
        check_weights(clip, kind)
        return distance(load_reference(file, case), result)
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    main(*sys.argv[1:])
