"""The differentiable gather, and the promise it exists for: W ranks have the gradient of one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distmetric.distributed import DistributedLoss, Replica, average_gradients, gather
from distmetric.distributed.parallel import average_buffers, parallel
from distmetric.losses import LiftedStructureLoss, PairLoss, TripletLoss
from distmetric.losses.base import LossParts
from distmetric.samplers import slice_sizes
from processes import run_ranks

SIZES = {1: [[13]], 2: [[8, 5], [12, 1]], 3: [[5, 4, 4], [9, 3, 1], [0, 6, 7]]}
CASES = [(world, sizes) for world, cases in SIZES.items() for sizes in cases]


class ScaledTriplet(PairLoss):
    """A loss with a parameter of its own, to see that its gradient is the true one too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))
        self.inner = TripletLoss("soft")

    def parts(self, batch) -> LossParts:
        parts = self.inner.parts(batch)
        return LossParts(parts.total * self.scale.exp(), parts.num_terms, parts.num_active)


LOSSES = {
    "triplet_hinge": lambda: TripletLoss(0.5),
    "triplet_soft": lambda: TripletLoss("soft"),
    "lifted": lambda: LiftedStructureLoss(),
    "with_parameter": ScaledTriplet,
}


def trunk() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(13, 6, dtype=torch.float64, generator=generator), torch.arange(13) % 4


def gradients(model: nn.Module, loss: nn.Module) -> list[np.ndarray]:
    return [p.grad.numpy() for p in [*model.parameters(), *loss.parameters()]]


def rank_gradients(replica: Replica, name: str, sizes: list[int]) -> tuple[float, list[np.ndarray]]:
    images, labels = data()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    model = trunk()
    wrapped = parallel(model, replica, torch.device("cpu"))
    criterion = DistributedLoss(LOSSES[name](), replica)
    loss = criterion(wrapped(images[own]), labels[own])
    loss.backward()
    average_gradients(criterion.parameters(), replica)
    return loss.item(), gradients(model, criterion)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("world_size", "sizes"), CASES, ids=str)
def test_world_size_invariance(name: str, world_size: int, sizes: list[int]) -> None:
    images, labels = data()
    model, loss = trunk(), LOSSES[name]()
    value = loss(model(images), labels)
    value.backward()
    for rank_value, rank_grads in run_ranks(world_size, rank_gradients, name, sizes):
        assert rank_value == pytest.approx(value.item(), abs=1e-12)
        for ours, single in zip(rank_grads, gradients(model, loss), strict=True):
            np.testing.assert_allclose(ours, single, rtol=0, atol=1e-10)


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
