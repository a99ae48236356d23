"""Heads whose classes are divided among the ranks are the heads of one process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distmetric.distributed import DistributedLoss, Replica, average_gradients, gather_batch
from distmetric.functional.class_rows import ClassScores, class_logsumexp
from distmetric.functional.class_sampling import kept_classes
from distmetric.functional.distances import unit_length
from distmetric.losses import (
    ArcFaceLoss,
    ArcFaceLossConfig,
    CentroidBoundLoss,
    CosFaceLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SoftTripleLossConfig,
    build_loss,
)
from distmetric.losses.build import LossContext
from distmetric.losses.class_loss import ClassLoss
from distmetric.losses.class_shards import ClassSharded, class_shard
from distmetric.miners import BatchHardMiner
from distmetric.training.optimizer import clip_gradients
from processes import run_ranks

LOSSES = {
    "soft_triple": lambda c, d: SoftTripleLoss(c, d, 3),
    "hard_triple": lambda c, d: SoftTripleLoss(c, d, 3, assignment="hard", tau=0.0),
    "arcface": ArcFaceLoss,
    "cosface": CosFaceLoss,
    "proxy_nca": ProxyNCALoss,
    "proxy_anchor": ProxyAnchorLoss,
}
NUM_CLASSES, DIM = 7, 5


COUNTS = [3, 1, 7, 2, 5, 4, 6]


def made(name: str) -> ClassSharded:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if name == "centroid_bound":
            return CentroidBoundLoss(NUM_CLASSES, DIM, class_counts=COUNTS).double()
        return LOSSES[name](NUM_CLASSES, DIM).double()


def joint_data(num_labels: int = NUM_CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(13, DIM, dtype=torch.float64, generator=generator)
    return rows, torch.arange(13) * 2 % num_labels


def steps(replica: Replica, sizes: list[int], sharded: bool, rate: float) -> dict[tuple, list[np.ndarray]]:
    """Value, gradient of own embeddings and of own class vectors, for every loss with and without a miner."""
    embeddings, labels = joint_data(NUM_CLASSES if rate == 1 else 3)
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    results = {}
    names = [*LOSSES, "centroid_bound"] if rate == 1 else LOSSES
    for name, mined, step in itertools.product(names, (False, True), range(1 if rate == 1 else 5)):
        if mined and name == "centroid_bound":
            continue
        loss = made(name)
        if isinstance(loss, ClassLoss):
            loss.sample_negatives(rate)
        if sharded:
            loss.shard(replica.rank, replica.world_size)
        criterion = DistributedLoss(loss, replica, BatchHardMiner() if mined else None)
        criterion.set_step(step)
        rows = embeddings[own].clone().requires_grad_()
        value, active = criterion.joint(gather_batch(rows, labels[own], replica, sizes))
        value.backward()
        average_gradients(criterion.parameters(), replica)
        results[name, mined, step] = [
            value.detach().numpy(),
            active.numpy(),
            rows.grad.numpy() / replica.world_size,
            loss.weight.grad.numpy() if isinstance(loss, ClassLoss) else loss.centroids.numpy(),
        ]
    return results


@pytest.mark.parametrize("rate", [1.0, 0.5], ids=["all classes", "sampled"])
@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "whole"])
@pytest.mark.parametrize("sizes", [[7, 6], [5, 0, 8]], ids=["two ranks", "three ranks, one without rows"])
def test_heads_on_many_ranks_equal_the_head_of_one_process(
    sizes: list[int], sharded: bool, rate: float
) -> None:
    whole = steps(Replica(), [13], False, rate)
    ranks = run_ranks(len(sizes), steps, sizes, sharded, rate)
    for key, (value, active, embeddings, weight) in whole.items():
        for found in ranks:
            np.testing.assert_allclose(found[key][0], value, rtol=1e-12, err_msg=str(key))
            np.testing.assert_allclose(found[key][1], active, err_msg=str(key))
        joined = np.concatenate([found[key][2] for found in ranks])
        np.testing.assert_allclose(joined, embeddings, rtol=1e-9, atol=1e-13, err_msg=str(key))
        joined = np.concatenate([found[key][3] for found in ranks if sharded or found is ranks[0]])
        np.testing.assert_allclose(joined, weight, rtol=1e-9, atol=1e-13, err_msg=str(key))


@pytest.mark.parametrize("name", LOSSES)
def test_a_sampled_loss_is_that_of_a_head_that_has_the_sampled_classes_only(name: str) -> None:
    rows, labels = joint_data(3)
    sizes = set()
    for step in range(6):
        loss = made(name)
        loss.sample_negatives(0.7)
        loss.set_step(step)
        kept = kept_classes(labels, range(NUM_CLASSES), NUM_CLASSES, 0.7, loss._key, step)
        sizes.add(len(kept))
        k = len(loss.weight) // NUM_CLASSES
        places = (kept[:, None] * k + torch.arange(k)).flatten()
        small = LOSSES[name](len(kept), DIM).double()
        small.weight = torch.nn.Parameter(loss.weight.detach()[places])
        embeddings = rows.clone().requires_grad_()
        others = rows.clone().requires_grad_()
        value = loss(embeddings, labels)
        expected = small(others, torch.searchsorted(kept, labels))
        value.backward()
        expected.backward()
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(embeddings.grad, others.grad)
        torch.testing.assert_close(loss.weight.grad[places], small.weight.grad)
        assert loss.weight.grad.count_nonzero() == small.weight.grad.count_nonzero()
    assert len(sizes) > 1


@pytest.mark.parametrize("name", LOSSES)
def test_all_classes_count_at_rate_1_and_in_evaluation(name: str) -> None:
    rows, labels = joint_data(3)
    expected = made(name)(rows, labels)
    for rate, training in ((1.0, True), (0.2, False)):
        loss = made(name).train(training)
        loss.sample_negatives(rate)
        assert torch.equal(loss(rows, labels), expected)
    loss = made(name)
    loss.sample_negatives(0.6)
    assert len({loss(rows, labels).item() for _ in range(8)}) > 1, "every step draws anew"


def test_a_rate_that_is_no_fraction_is_refused() -> None:
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"negative_sample_rate=.* is wrong"):
            made("arcface").sample_negatives(rate)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that is made; those on the device "meta" hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("world_size", [1, 5, 16])
@pytest.mark.parametrize("config", [ArcFaceLossConfig, SoftTripleLossConfig])
def test_what_a_class_starts_with_depends_on_nobody_and_no_rank_makes_the_vectors_of_all(
    config, world_size: int
) -> None:
    counts = [1] * 2_000
    whole = build_loss(config(), LossContext(counts, 16, seed=3))
    shards = []
    for rank in range(world_size):
        with Largest() as seen:
            context = LossContext(counts, 16, seed=3, rank=rank, world_size=world_size)
            shards.append(build_loss(config(sharded=True), context))
        if world_size > 8:
            assert seen.numel < 2.1 * whole.weight.numel() / 8
    assert torch.equal(torch.cat([shard.weight for shard in shards]), whole.weight)
    assert whole.weight.norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)
    assert abs(whole.weight.mean().item()) < 0.01
    assert not torch.equal(build_loss(config(), LossContext(counts, 16, seed=4)).weight, whole.weight)


def a_step_seen(replica: Replica, num_classes: int, size: int) -> tuple[int, int]:
    """The largest tensor of a rank that builds a head and takes a step, and the bytes of all that the head keeps."""
    with Largest() as seen:
        context = LossContext([1] * num_classes, size, rank=replica.rank, world_size=replica.world_size)
        criterion = DistributedLoss(build_loss(ArcFaceLossConfig(sharded=True), context), replica)
        optimizer = torch.optim.AdamW(criterion.parameters(), fused=True)
        rows = torch.randn(8, size, requires_grad=True)
        criterion(rows, torch.arange(8) + 100 * replica.rank, [8] * replica.world_size).backward()
        average_gradients(criterion.parameters(), replica)
        clip_gradients(criterion.parameters(), 1.0, replica)
        optimizer.step()
    (weight,) = criterion.parameters()
    kept = [weight, weight.grad, *(value for value in optimizer.state[weight].values() if value.ndim)]
    return seen.numel, sum(value.nbytes for value in kept)


def test_a_rank_has_memory_for_its_share_of_the_head_and_not_for_the_head() -> None:
    num_classes, size, ranks = 4096, 32, 4
    for largest, kept in run_ranks(ranks, a_step_seen, num_classes, size):
        assert largest <= num_classes * size / ranks
        assert (
            kept == 4 * 4 * num_classes * size / ranks
        )  # vectors, gradient, two moments; four bytes a number


@pytest.mark.parametrize("name", LOSSES)
def test_a_rank_holds_its_share_of_the_class_vectors(name: str) -> None:
    whole, shards = made(name), [made(name) for _ in range(3)]
    for rank, shard in enumerate(shards):
        shard.shard(rank, 3)
        assert not shard.has_all_classes
        assert len(shard.weight) == len(whole.weight) // NUM_CLASSES * len(class_shard(NUM_CLASSES, rank, 3))
    assert torch.equal(torch.cat([shard.weight for shard in shards]), whole.weight)
    whole.shard(0, 1)
    assert whole.has_all_classes


def test_fewer_classes_than_ranks_cannot_be_sharded() -> None:
    with pytest.raises(ValueError, match="7 classes cannot be divided among 8 ranks"):
        made("arcface").shard(0, 8)


@pytest.mark.parametrize("gamma", [None, 0.1])
@pytest.mark.parametrize("vectors", [1, 3])
def test_normalizers_of_a_share_of_the_classes_are_exact(gamma: float | None, vectors: int) -> None:
    scores = ClassScores(9.0, vectors, gamma)
    anchors = unit_length(torch.randn(6, DIM, dtype=torch.float64)).requires_grad_()
    weights = unit_length(torch.randn(4 * vectors, DIM, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 3, -2, 4, 9, 1])

    def plain(anchors, weights):
        logits = 9.0 * scores.of_listed((anchors @ weights.T).view(-1, vectors)).view(6, 4)
        elsewhere = torch.nn.functional.one_hot(labels.clamp(-1, 4) + 1, 6)[:, 1:5].bool()
        return logits.masked_fill(elsewhere, -torch.inf).logsumexp(1)

    torch.testing.assert_close(class_logsumexp(anchors, labels, weights, scores), plain(anchors, weights))
    upstream = torch.randn(6, dtype=torch.float64)
    ours = torch.autograd.grad(
        class_logsumexp(anchors, labels, weights, scores), (anchors, weights), upstream
    )
    theirs = torch.autograd.grad(plain(anchors, weights), (anchors, weights), upstream)
    torch.testing.assert_close(ours, theirs)


def test_the_only_class_has_no_normalizer_and_no_gradient() -> None:
    anchors = unit_length(torch.randn(3, DIM)).requires_grad_()
    weights = unit_length(torch.randn(1, DIM)).requires_grad_()
    logs = class_logsumexp(anchors, torch.zeros(3, dtype=torch.int64), weights, ClassScores(2.0))
    assert logs.tolist() == [-torch.inf] * 3
    gradients = torch.autograd.grad(logs, (anchors, weights), torch.zeros(3))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
