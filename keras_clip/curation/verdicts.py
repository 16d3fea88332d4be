"""What the verdicts of several passes say together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow


def alive_rows(inputs: Mapping[str, "pyarrow.Table"], passes: Sequence[str]) -> np.ndarray:
    """Returns the rows that none of these passes rejects, int64 (N,).

    Args:
        inputs: the table of each pass, with the column `reason`.
        passes: names of the passes.
    """
    import pyarrow.compute as pc

    alive = np.ones(next(iter(inputs.values())).num_rows, bool)
    for name in dict.fromkeys(passes):
        alive &= np.asarray(pc.is_null(inputs[name]["reason"]).combine_chunks())
    return np.flatnonzero(alive)
