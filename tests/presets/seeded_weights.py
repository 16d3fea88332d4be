"""Checkpoints of which every number follows from its key, so that no peer is needed to make them again."""

import math
import zlib

import numpy as np


def seeded(key, shape, scale=1.0):
    """float32 array of this shape; normal, of this standard deviation."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    return np.asarray(scale * generator.standard_normal(tuple(shape), np.float32), np.float32)


def seeded_tensor(key, shape):
    """A plausible value for this key of a checkpoint; weights, gains, statistics and counters differ."""
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
