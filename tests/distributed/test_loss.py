"""The joint loss: W ranks have the value and the gradient of one process, trunk and loss parameters alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

from distmetric.distributed import DistributedLoss, Replica, average_gradients
from distmetric.distributed.parallel import parallel
from distmetric.functional import JointBatch
from distmetric.losses import ContrastiveLoss, LossTerm, MetricLoss, TripletLoss
from losses.cases import CASES, seeded
from processes import run_ranks

SPLITS = {1: [[13]], 2: [[8, 5], [12, 1]], 3: [[5, 4, 4], [9, 3, 1], [0, 6, 7]]}
ALL_SPLITS = [(world, sizes) for world, cases in SPLITS.items() for sizes in cases]


class ScaledTriplet(MetricLoss):
    """A loss with a parameter of its own and a regularizer that is the same on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))
        self.inner = TripletLoss("soft")

    def parts(self, batch: JointBatch) -> list[LossTerm]:
        (term,) = self.inner.parts(batch)
        zero = torch.zeros(())
        regularizer = LossTerm(self.scale.square(), torch.ones(()), zero, zero, weight=0.3)
        return [term._replace(total=term.total * self.scale.exp()), regularizer]


EXTRA = {
    "with_parameter": ScaledTriplet,
    "pml_contrastive": pml_losses.ContrastiveLoss,
    "pml_proxy_anchor": lambda: pml_losses.ProxyAnchorLoss(4, 4),
    "pml_cross_batch_memory": lambda: pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), 4, 64),
}
BY_NAME = {case.name: case for case in CASES}


def make_loss(name: str) -> nn.Module:
    if name in BY_NAME:
        return seeded(BY_NAME[name], 4, 4)
    torch.manual_seed(0)
    return EXTRA[name]().double()


def trunk() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(13, 6, dtype=torch.float64, generator=generator), torch.arange(13) % 4


def gradients(model: nn.Module, loss: nn.Module) -> list[np.ndarray]:
    parameters = [*model.parameters(), *loss.parameters()]
    return [(torch.zeros_like(p) if p.grad is None else p.grad).numpy() for p in parameters]


def rank_step(
    replica: Replica, name: str, sizes: list[int], miner: object = None
) -> tuple[float, list[np.ndarray]]:
    images, labels = data()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    model = trunk()
    wrapped = parallel(model, replica, torch.device("cpu"))
    criterion = DistributedLoss(make_loss(name), replica, miner)  # type: ignore[arg-type]
    loss = criterion(wrapped(images[own]), labels[own])
    loss.backward()
    average_gradients(criterion.parameters(), replica)
    return loss.item(), gradients(model, criterion)


def all_names(replica: Replica, sizes: list[int]) -> dict[str, tuple[float, list[np.ndarray]]]:
    return {name: rank_step(replica, name, sizes) for name in [*BY_NAME, *EXTRA]}


@pytest.mark.parametrize(("world_size", "sizes"), ALL_SPLITS, ids=str)
def test_world_size_invariance_of_every_loss(world_size: int, sizes: list[int]) -> None:
    images, labels = data()
    ranks = run_ranks(world_size, all_names, sizes)
    for name in [*BY_NAME, *EXTRA]:
        model, loss = trunk(), make_loss(name)
        value = loss(model(images), labels)
        value.backward()
        for results in ranks:
            rank_value, rank_gradients = results[name]
            assert rank_value == pytest.approx(value.item(), abs=1e-11), name
            assert rank_value == ranks[0][name][0], f"{name}: whether it is finite has to be one answer"
            for ours, single in zip(rank_gradients, gradients(model, loss), strict=True):
                np.testing.assert_allclose(ours, single, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", ["contrastive", "pml_contrastive"])
def test_a_miner_of_another_library_mines_the_joint_batch(name: str) -> None:
    images, labels = data()
    model, loss, miner = trunk(), make_loss(name), pml_miners.MultiSimilarityMiner()
    embeddings = model(images)
    value = loss(embeddings, labels, miner(embeddings, labels))
    value.backward()
    for rank_value, rank_gradients in run_ranks(3, rank_step, name, [9, 3, 1], miner):
        assert rank_value == pytest.approx(value.item(), abs=1e-11)
        for ours, single in zip(rank_gradients, gradients(model, loss), strict=True):
            np.testing.assert_allclose(ours, single, rtol=0, atol=1e-10)


class Noisy(nn.Module):
    """Draws random numbers of its own, as some losses elsewhere do."""

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, indices: object = None) -> torch.Tensor:
        return embeddings.sum() * torch.rand(())


def refusals(replica: Replica) -> list[str]:
    torch.manual_seed(replica.rank)
    images, labels = torch.randn(8, 4), torch.arange(8) // 2
    found = []
    for loss, miner in (
        (Noisy(), None),
        (ContrastiveLoss(), pml_miners.DistanceWeightedMiner()),
    ):
        with pytest.raises(ValueError, match="every rank something else") as caught:
            DistributedLoss(loss, replica, miner)(images, labels)
        found.append(str(caught.value))
    return found


def test_what_draws_its_own_random_numbers_is_refused_on_every_rank() -> None:
    for loss_message, miner_message in run_ranks(3, refusals):
        assert "loss Noisy" in loss_message
        assert "miner DistanceWeightedMiner" in miner_message


def test_a_loss_wrapped_by_another_library_is_refused() -> None:
    with pytest.raises(ValueError, match="wrapped for distributed training already"):
        DistributedLoss(DistributedLossWrapper(pml_losses.ContrastiveLoss()))


def active(replica: Replica) -> float:
    embeddings = torch.tensor([[0.0], [0.1], [5.0], [5.1]])[2 * replica.rank : 2 * replica.rank + 2]
    labels = torch.tensor([0, 0, 1, 1])[2 * replica.rank : 2 * replica.rank + 2]
    batch_loss = DistributedLoss(TripletLoss(4.85), replica)
    from distmetric.distributed.gather import gather_batch

    return batch_loss.joint(gather_batch(embeddings, labels, replica))[1].item()


def test_the_active_fraction_is_the_joint_batchs() -> None:
    # Gaps: 0.1 - 5.0, 0.1 - 4.9, 0.1 - 4.9, 0.1 - 5.0; with the margin two of the four stay above 0.
    assert run_ranks(2, active) == [0.5, 0.5]


PARTS = ["with_parameter", "supcon", "proxy_anchor", "pml_contrastive"]


def part_step(replica: Replica, name: str, parts: int) -> tuple[float, list[np.ndarray]]:
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.randn(24, 6, dtype=torch.float64, generator=generator), torch.arange(24) // 2 % 3
    rows = 24 // replica.world_size
    own = slice(replica.rank * rows, (replica.rank + 1) * rows)
    model = trunk()
    wrapped = parallel(model, replica, torch.device("cpu"))
    criterion = DistributedLoss(make_loss(name), replica, parts=parts)
    loss = criterion(wrapped(images[own]), labels[own])
    loss.backward()
    average_gradients(criterion.parameters(), replica)
    return loss.item(), gradients(model, criterion)


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_compared_within_themselves_give_the_mean_of_lone_losses(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.randn(24, 6, dtype=torch.float64, generator=generator), torch.arange(24) // 2 % 3
    model, loss = trunk(), make_loss(name)
    expected = torch.stack(
        [loss(model(images[first : first + 6]), labels[first : first + 6]) for first in range(0, 24, 6)]
    ).mean()
    expected.backward()
    wanted = gradients(model, loss)
    found = [part_step(Replica(), name, 4), *run_ranks(2, part_step, name, 4)]
    assert (
        part_step(Replica(), name, 1)[0] != pytest.approx(expected.item(), rel=1e-3) or name == "proxy_anchor"
    )
    for value, changes in found:
        assert value == pytest.approx(expected.item(), rel=1e-9)
        for ours, theirs in zip(changes, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="parts=3 cannot be divided among 2 ranks"):
        DistributedLoss(TripletLoss(), Replica(0, 2), parts=3)
    images, labels = data()
    with pytest.raises(ValueError, match="13 rows of a rank cannot be divided into 2 parts of one size"):
        DistributedLoss(TripletLoss(), Replica(), parts=2)(images, labels)
