"""Layer-wise learning-rate decay: later blocks of an encoder have a higher rate (Clark et al., 2020, section 4).

The layer of a weight follows from its path, which is the same on every backend and after loading. The encoders of this
library name their blocks "block_0" or "stage_1_block_0"; everything before the first block is one layer.
"""

import re
from collections.abc import Sequence

_BLOCK = re.compile(r"(?:stage_(\d+)_)?block_(\d+)")
# Parts of an encoder that come after its last block; all others come before the first.
_AFTER_BLOCKS = frozenset({"norm_post", "norm_final", "pool"})


def learning_rate_factors(paths: Sequence[str], layer_decay: float) -> list[float]:
    """Returns the factor of the learning rate for each weight.

    The last block of an encoder has the factor 1, as do all later parts (final normalisation, pool, projection head,
    temperature) and all parts outside of encoders. The block before has `layer_decay`, and so on; embeddings, stem and
    positions have one power more than the first block. Only trainable blocks are counted.

    Args:
        paths: paths of the trainable weights.
        layer_decay: float in (0, 1].

    Returns:
        One factor for each path.

    Raises:
        ValueError: no path contains a block.
    """
    places = [_place(path) for path in paths]
    blocks = {}
    for encoder, block in places:
        if block is not None:
            blocks.setdefault(encoder, set()).add(block)
    if not blocks:
        raise ValueError(
            "`layer_decay` needs weights whose paths have blocks in them, such as 'vision_transformer/block_0/...'. "
            f"Received: {list(paths)[:3]}. Use encoders of keras_clip, or leave `layer_decay` at None."
        )
    depths = {encoder: {block: i for i, block in enumerate(sorted(found))} for encoder, found in blocks.items()}
    return [layer_decay ** _layers_above(path, *place, depths) for path, place in zip(paths, places, strict=True)]


def _place(path):
    """Returns the path of the encoder and the (stage, number) of its block; None, None outside of blocks."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if match := _BLOCK.fullmatch(part):
            return "/".join(parts[:i]), (int(match[1] or 0), int(match[2]))
    return None, None


def _layers_above(path, encoder, block, depths):
    if block is not None:
        return len(depths[encoder]) - 1 - depths[encoder][block]
    for encoder, found in depths.items():
        if encoder and path.startswith(f"{encoder}/"):
            part = path[len(encoder) + 1 :].split("/")[0]
            return 0 if part in _AFTER_BLOCKS else len(found)
    return 0
