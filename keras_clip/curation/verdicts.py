"""What the verdicts of several passes say together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

_NOT_UTF8, _BLANK = "caption not UTF-8", "no caption"


def unusable_reasons(profile: "pyarrow.Table") -> Any:
    """Returns the reasons for which `image_text_pairs` skips a pair, by its names of them; null for other pairs.

    Args:
        profile: table with the columns `utf8_ok`, `blank` and `reason`.

    Returns:
        Array of str (N,).
    """
    from pyarrow import compute

    reason = compute.if_else(profile["utf8_ok"], profile["reason"], compute.coalesce(profile["reason"], _NOT_UTF8))
    return compute.if_else(profile["blank"], compute.coalesce(profile["reason"], _BLANK), reason)


def alive_rows(inputs: Mapping[str, "pyarrow.Table"], passes: Sequence[str]) -> np.ndarray:
    """Returns the rows that none of these passes rejects, int64 (N,).

    Args:
        inputs: the table of each pass. The profile rejects pairs that cannot be used, other passes those with a
            `reason`.
        passes: names of the passes.
    """
    import pyarrow.compute as pc

    alive = np.ones(next(iter(inputs.values())).num_rows, bool)
    for name in dict.fromkeys(passes):
        reasons = unusable_reasons(inputs[name]) if name == "profile" else inputs[name]["reason"]
        alive &= np.asarray(pc.is_null(reasons))
    return np.flatnonzero(alive)
