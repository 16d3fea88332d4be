"""How fast each layer learns: the deeper a block, the closer to the learning rate (Clark et al., 2020, section 4).

Told from the paths of weights, which are the same on every backend and after loading. The encoders of this library name
their blocks "block_0" or "stage_1_block_0"; what comes before the first block is a layer of its own.
"""

import re
from collections.abc import Sequence

_BLOCK = re.compile(r"(?:stage_(\d+)_)?block_(\d+)")
# Parts of an encoder that come after its last block; all others come before the first.
_AFTER_BLOCKS = frozenset({"norm_post", "norm_final", "pool"})


def learning_rate_factors(paths: Sequence[str], layer_decay: float) -> list[float]:
    """What the learning rate is multiplied by, for each weight.

    The last block of an encoder has 1, as has everything behind it: final normalisation, pool, projection head,
    temperature, and whatever else a model has beside encoders. The block before has `layer_decay`, and so on;
    embeddings, stem and positions have one power more than the first block. Blocks are counted among those that learn.

    Args:
        paths: of the weights that learn.
        layer_decay: float in (0, 1].

    Returns:
        One factor for each path.

    Raises:
        ValueError: no path has a block in it.
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
    """The path of the encoder, and the (stage, number) of its block; None, None outside of blocks."""
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
