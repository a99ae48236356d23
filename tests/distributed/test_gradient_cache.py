"""Gradients in chunks are those of the whole batch, at the memory of a chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distmetric.distributed import DistributedLoss, GradientCache, Replica, average_gradients, gather_batch
from distmetric.losses import LiftedStructureLoss, SoftTripleLoss, TripletLoss
from distmetric.miners import BatchHardMiner
from memory_process import measured
from processes import run_ranks

CPU = torch.device("cpu")


def trunk(norm: nn.Module | None = None, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Conv2d(1, 8, 3), norm or nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


def joint(model: nn.Module, batch: Tensor, chunk_size: int | None, loss=lambda f: f.pow(3).sum() ** 2):
    model.zero_grad()
    if chunk_size is None:
        value = loss(model(batch))
        value.backward()
    else:
        cache = GradientCache(lambda part: model(batch[part]), len(batch), chunk_size, model, CPU)
        value = loss(cache.rows)
        value.backward()
        cache.backward()
    return value.detach(), gradients(model)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 12, 50])
def test_chunks_of_any_size_give_the_gradient_of_the_whole_batch(chunk_size) -> None:
    model, batch = trunk(), images(12)
    whole, expected = joint(model, batch, None)
    value, found = joint(model, batch, chunk_size)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_gradients_add_to_those_that_are_there() -> None:
    model, batch = trunk(), images(6)
    _, once = joint(model, batch, 4)
    cache = GradientCache(lambda part: model(batch[part]), 6, 4, model, CPU)
    (cache.rows.pow(3).sum() ** 2).backward()
    cache.backward()
    torch.testing.assert_close(gradients(model), [2 * gradient for gradient in once])


def test_rows_are_divided_as_equally_as_the_chunk_size_allows() -> None:
    model, batch, parts = trunk(), images(10), []

    def encode(part: slice) -> Tensor:
        parts.append((part.stop - part.start, torch.is_grad_enabled()))
        return model(batch[part])

    cache = GradientCache(encode, 10, 4, model, CPU)
    cache.rows.sum().backward()
    cache.backward()
    assert parts == [(3, False), (3, False), (4, False), (3, True), (3, True), (4, True)]
    parts.clear()
    cache = GradientCache(encode, 10, 10, model, CPU)  # one chunk is computed once
    cache.rows.sum().backward()
    cache.backward()
    assert parts == [(10, True)]


def test_dropout_drops_the_same_in_both_passes_and_the_generator_goes_on_as_after_the_first() -> None:
    model, batch, seen = trunk(dropout=0.5), images(8), []
    model[3].register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach() == 0))
    torch.manual_seed(11)
    cache = GradientCache(lambda part: model(batch[part]), 8, 3, model, CPU)
    after = torch.get_rng_state()
    cache.rows.sum().backward()
    cache.backward()
    assert torch.equal(after, torch.get_rng_state())
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[1], seen[2])  # of 2, 3 and 3 rows


def test_running_statistics_move_once_per_chunk() -> None:
    model, batch = trunk(nn.BatchNorm2d(8)), images(8)
    joint(model, batch, 4)
    norm = model[1]
    assert norm.num_batches_tracked == 2
    other = trunk(nn.BatchNorm2d(8))
    for part in (batch[:4], batch[4:]):
        other(part)
    torch.testing.assert_close(norm.running_mean, other[1].running_mean)


def test_a_rank_without_rows_and_a_frozen_trunk_pass_nothing_on() -> None:
    model = trunk().requires_grad_(False)
    cache = GradientCache(lambda part: model(images(5)[part]), 5, 2, model, CPU)
    cache.rows.sum().backward()
    cache.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    empty = trunk()
    cache = GradientCache(lambda part: empty(images(5)[part]), 0, 2, empty, CPU)
    assert cache.rows.shape == (0, 6)
    cache.backward()


LOSSES = {
    "triplet": lambda: (TripletLoss(), BatchHardMiner()),
    "lifted_structure": lambda: (LiftedStructureLoss(), None),
    "soft_triple": lambda: (SoftTripleLoss(num_classes=4, embedding_size=6), None),
}


def of_ranks(replica: Replica, name: str, chunk_size: int | None, sizes: list[int]) -> list[np.ndarray]:
    """Gradients of the joint batch of 14 rows, divided as `sizes` says, in chunks or not."""
    torch.manual_seed(5)
    loss, miner = LOSSES[name]()
    model, criterion = trunk(), DistributedLoss(loss, replica, miner).double()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    batch, labels = images(14)[own], torch.arange(14)[own] % 4
    cache = None
    if chunk_size is not None:
        cache = GradientCache(lambda part: model(batch[part]), len(batch), chunk_size, model, CPU)
    rows = model(batch) if cache is None else cache.rows
    criterion.joint(gather_batch(rows, labels, replica, sizes))[0].backward()
    if cache is not None:
        cache.backward()
    average_gradients([*model.parameters(), *criterion.parameters()], replica)
    return [gradient.numpy() for gradient in gradients(model) + gradients(criterion)]


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_on_ragged_ranks_give_the_gradient_of_one_process(name) -> None:
    expected = of_ranks(Replica(), name, None, [14])
    # 8 and 6 rows in chunks of 3 are 3 and 2 chunks: ranks need not have equally many.
    for rank in run_ranks(2, of_ranks, name, 3, [8, 6]):
        for ours, single in zip(rank, expected, strict=True):
            np.testing.assert_allclose(ours, single, rtol=1e-9, atol=1e-12)


PEAKS = """
import torch
from torch import nn
from distmetric.benchmarks.memory import PeakMemory, give_back_free
from distmetric.distributed import GradientCache

torch.set_num_threads(1)
CPU = torch.device("cpu")
layers = [nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1)]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

def peak(count, chunk_size):
    give_back_free()
    memory = PeakMemory(CPU)
    # Drawn by chunk, as images are decoded and augmented by chunk: they are not what is measured.
    cache = GradientCache(
        lambda part: model(torch.full((part.stop - part.start, 1, 64, 64), 0.5)), count, chunk_size, model, CPU
    )
    cache.rows.pow(2).sum().backward()
    cache.backward()
    return memory.above_base()

peak(32, 32)  # what convolutions set up once
print(peak(64, 32), peak(256, 32), peak(256, 256))
"""


def test_memory_does_not_grow_with_the_batch() -> None:
    """Four times the rows in the same chunks: what is held beyond the rows themselves stays."""
    (line,) = measured(PEAKS)
    small, large, whole = map(int, line.split())
    assert large < 1.25 * small + (2 << 20)
    assert large < 0.4 * whole
