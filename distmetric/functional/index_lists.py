"""Lists of indices that grow block by block."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def collected(parts: Iterable[tuple[Tensor, ...]], count: int, like: Tensor) -> tuple[Tensor, ...]:
    """Concatenate what blocks give, one by one.

    Args:
        parts: For every block `count` int64 tensors of one dimension, of any lengths.
        count: How many lists there are, which also holds where there is no block.
        like: A tensor on their device.

    Returns:
        `count` int64 tensors. Cost: the lists, at most three times while they grow.
    """
    lists = [_Growing(like.device) for _ in range(count)]
    for part in parts:
        for whole, new in zip(lists, part, strict=True):
            whole.extend(new)
    return tuple(whole.tensor() for whole in lists)


class _Growing:
    """One tensor that doubles when it is full.

    Small tensors kept in a Python list instead would settle in the memory that the temporary tensors of a block leave
    behind, which then has no room for those of the next block: the heap would grow with every block.
    """

    def __init__(self, device: torch.device) -> None:
        self._values, self._size = torch.empty(0, dtype=torch.int64, device=device), 0

    def extend(self, new: Tensor) -> None:
        size = self._size + len(new)
        if size > len(self._values):
            larger = self._values.new_empty(max(size, 2 * len(self._values)))
            larger[: self._size] = self._values[: self._size]
            self._values = larger
        self._values[self._size : size] = new
        self._size = size

    def tensor(self) -> Tensor:
        return self._values[: self._size].clone()
