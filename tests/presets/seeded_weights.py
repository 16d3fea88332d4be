"""Checkpoints whose values depend on their keys only, so that they can be made again without a peer."""

import math
import zlib

import numpy as np


def seeded(key, shape, scale=1.0):
    """Returns a float32 array of this shape, drawn from a normal distribution with this standard deviation."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    return np.asarray(scale * generator.standard_normal(tuple(shape), np.float32), np.float32)


def seeded_tensor(key, shape):
    """Returns a plausible tensor for this key of a checkpoint: weights, gains, statistics or counters."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key == "logit_scale":
        return np.full(shape, 3, np.float32)
    if key.endswith("running_var"):
        return 0.5 + np.abs(seeded(key, shape))
    if "embedding" in key or len(shape) < 2:
        is_gain = key.endswith("weight") and len(shape) == 1
        return seeded(key, shape, 0.1) + np.float32(is_gain)
    return seeded(key, shape, 1.5 / math.sqrt(math.prod(shape[1:])))
