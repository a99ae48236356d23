"""How a global batch is cut into one contiguous slice per rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def slice_sizes(size: int, world_size: int) -> list[int]:
    """Rows per rank: as equal as possible, the longer ones first."""
    return [size // world_size + (rank < size % world_size) for rank in range(world_size)]


def rank_slice(rows: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """This rank's part of the global batch; the parts in rank order are the batch."""
    sizes = slice_sizes(len(rows), world_size)
    start = sum(sizes[:rank])
    return rows[start : start + sizes[rank]]
