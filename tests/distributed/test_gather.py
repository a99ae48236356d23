"""The differentiable gather: what it gives every rank, and what comes back to the owners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distmetric.distributed import Replica, gather
from distmetric.distributed.parallel import average_buffers
from distmetric.samplers import slice_sizes
from processes import run_ranks

SIZES = {1: [[13]], 2: [[8, 5], [12, 1]], 3: [[5, 4, 4], [9, 3, 1], [0, 6, 7]]}
CASES = [(world, sizes) for world, cases in SIZES.items() for sizes in cases]


def gather_round_trip(replica: Replica, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    size = sizes[replica.rank]
    rows = (torch.arange(size * 2.0).view(size, 2) + 100 * replica.rank).requires_grad_()
    gathered = gather(rows, replica)
    # Every rank weighs all rows, by its own factor: the sum of the factors must come back to each owner.
    (gathered * (replica.rank + 1)).sum().backward()
    return gathered.detach().numpy(), rows.grad.numpy()


@pytest.mark.parametrize(("world_size", "sizes"), CASES, ids=str)
def test_gather_concatenates_in_rank_order_and_sums_what_comes_back(
    world_size: int, sizes: list[int]
) -> None:
    results = run_ranks(world_size, gather_round_trip, sizes)
    expected = np.concatenate(
        [np.arange(size * 2.0).reshape(size, 2) + 100 * rank for rank, size in enumerate(sizes)]
    )
    for (gathered, grad), size in zip(results, sizes, strict=True):
        np.testing.assert_array_equal(gathered, expected)
        np.testing.assert_array_equal(grad, np.full((size, 2), sum(range(world_size + 1))))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit rank 0"):
        gather(torch.zeros(3, 2), Replica(), sizes=[4])


def share_of_buffers(replica: Replica) -> list[float]:
    norm = nn.BatchNorm1d(2)
    norm.running_mean += replica.rank
    average_buffers(norm, replica)
    return norm.running_mean.tolist()


def test_average_buffers_makes_ranks_equal() -> None:
    assert run_ranks(2, share_of_buffers) == [[0.5, 0.5], [0.5, 0.5]]


def test_slices_of_a_batch_differ_by_one_row_at_most() -> None:
    assert slice_sizes(13, 3) == [5, 4, 4]
    assert slice_sizes(2, 3) == [1, 1, 0]
