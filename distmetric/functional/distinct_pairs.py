"""Listed pairs without repetitions: a list of triplets names the same pair many times."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct_pairs(rows: Tensor, columns: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Each pair once, as losses need it that sum over sets of columns.

    Args:
        rows: (P,) int64 anchors.
        columns: (P,) int64 columns.
        num_columns: N, above every column.

    Returns:
        Two int64 tensors of equal length, sorted by row and column. Cost: P if the pairs are sorted and distinct
        already, as most miners list them, and P log P otherwise.
    """
    keys = rows * num_columns + columns
    if bool((keys[1:] > keys[:-1]).all()):
        return rows, columns
    keys = torch.unique(keys)
    return keys // num_columns, keys % num_columns
