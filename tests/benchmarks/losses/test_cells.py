"""The cells compare like with like: the same data, the same settings, and therefore the same losses and gradients."""

from __future__ import annotations

import pytest
import torch

from distmetric import losses
from distmetric.benchmarks.losses.cells import CELLS, DIM, build, clustered, columns
from distmetric.benchmarks.losses.measure import LossSpec, Step
from distmetric.distributed.replica import Replica
from processes import run_ranks

CPU = torch.device("cpu")
SIZE = 64


def step_of(replica: Replica, loss: str, side: str) -> tuple[float, list[list[float]]]:
    """Value and gradient of the embeddings of a step, which is taken twice: the second finds nothing of the first."""
    step = Step(LossSpec(loss, side, SIZE), SIZE, replica, CPU)
    step()
    return step().item(), step.embeddings.grad.tolist()


def assert_close(found: list, expected: list, scale: float = 1.0) -> None:
    wanted = torch.tensor(expected)
    torch.testing.assert_close(
        torch.tensor(found) * scale, wanted, rtol=1e-4, atol=2e-6 * wanted.abs().max().item()
    )


@pytest.mark.parametrize("loss", CELLS)
def test_both_libraries_compute_the_same_thing(loss: str) -> None:
    value, gradient = step_of(Replica(), loss, "ours")
    peer_value, peer_gradient = step_of(Replica(), loss, "peer")
    assert value == pytest.approx(peer_value, rel=1e-5)
    assert_close(gradient, peer_gradient)
    assert value > 0  # so that there is something to do in backward


@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize("loss", ["batch_hard", "contrastive"])
def test_two_ranks_compute_the_loss_of_one(loss: str, side: str) -> None:
    value, gradient = step_of(Replica(), loss, side)
    found = run_ranks(2, step_of, loss, side)
    for rank, (rank_value, rank_gradient) in enumerate(found):
        assert rank_value == pytest.approx(value, rel=1e-5)
        assert_close(rank_gradient, gradient[rank::2], scale=0.5)  # of which DDP takes the mean over ranks


def test_ranks_average_the_gradients_of_class_vectors() -> None:
    alone = Step(LossSpec("arcface", "ours", SIZE), SIZE, Replica(), CPU)
    alone()
    expected = alone.criterion.weight.grad.tolist()
    for found in run_ranks(2, class_gradient):
        assert_close(found, expected)


def class_gradient(replica: Replica) -> list[list[float]]:
    step = Step(LossSpec("arcface", "ours", SIZE), SIZE, replica, CPU)
    step()
    return step.criterion.loss.weight.grad.tolist()


def test_a_batch_is_what_it_is_said_to_be() -> None:
    rows, labels = clustered(SIZE)
    assert rows.shape == (SIZE, DIM)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(SIZE))
    assert torch.equal(labels.bincount(), torch.full((SIZE // 4,), 4))
    assert not torch.equal(labels, labels.sort().values)
    again, past = clustered(SIZE), clustered(SIZE, seed=1)
    assert torch.equal(again[0], rows)
    assert not torch.equal(past[0], rows)
    distances = torch.cdist(rows, rows)
    same = labels[:, None] == labels
    assert distances[same & ~torch.eye(SIZE, dtype=torch.bool)].mean() < distances[~same].mean() - 0.2


@pytest.mark.parametrize("loss", CELLS)
def test_columns_are_what_embeddings_are_compared_with(loss: str) -> None:
    criterion = build(loss, "ours", SIZE, Replica())
    if isinstance(criterion, losses.CrossBatchMemory):
        assert columns(loss, SIZE) == criterion.memory_size
    else:
        assert columns(loss, SIZE) == next((len(each) for each in criterion.parameters()), SIZE)


@pytest.mark.parametrize("side", ["ours", "peer"])
def test_a_memory_is_full_before_the_first_step(side: str) -> None:
    loss = "cross_batch_memory_contrastive"
    memory = Step(LossSpec(loss, side, SIZE), SIZE, Replica(), CPU).criterion.embedding_memory
    torch.testing.assert_close(memory.norm(dim=1), torch.ones(4 * SIZE))
    assert len(memory.unique(dim=0)) == 4 * SIZE
