"""Heads whose classes are divided among the ranks are the heads of one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.distributed import DistributedLoss, Replica, average_gradients, gather_batch
from distmetric.functional.class_rows import ClassScores, class_logsumexp
from distmetric.functional.distances import unit_length
from distmetric.losses import ArcFaceLoss, CosFaceLoss, ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss
from distmetric.losses.class_loss import ClassLoss, class_shard
from distmetric.miners import BatchHardMiner
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


def made(name: str) -> ClassLoss:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LOSSES[name](NUM_CLASSES, DIM).double()


def joint_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(13, DIM, dtype=torch.float64, generator=generator), torch.arange(13) % NUM_CLASSES


def steps(replica: Replica, sizes: list[int], sharded: bool) -> dict[tuple[str, bool], list[np.ndarray]]:
    """Value, gradient of own embeddings and of own class vectors, for every loss with and without a miner."""
    embeddings, labels = joint_data()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    results = {}
    for name in LOSSES:
        for mined in (False, True):
            loss = made(name)
            if sharded:
                loss.shard(replica.rank, replica.world_size)
            criterion = DistributedLoss(loss, replica, BatchHardMiner() if mined else None)
            rows = embeddings[own].clone().requires_grad_()
            value, active = criterion.joint(gather_batch(rows, labels[own], replica, sizes))
            value.backward()
            if sharded:
                loss.weight.grad /= replica.world_size
            else:
                average_gradients(criterion.parameters(), replica)
            results[name, mined] = [
                value.detach().numpy(),
                active.numpy(),
                rows.grad.numpy() / replica.world_size,
                loss.weight.grad.numpy(),
            ]
    return results


@pytest.mark.parametrize("sizes", [[7, 6], [5, 0, 8]], ids=["two ranks", "three ranks, one without rows"])
def test_sharded_heads_equal_the_head_of_one_process(sizes: list[int]) -> None:
    whole = steps(Replica(), [13], sharded=False)
    ranks = run_ranks(len(sizes), steps, sizes, True)
    for key, (value, active, embeddings, weight) in whole.items():
        for found in ranks:
            np.testing.assert_allclose(found[key][0], value, rtol=1e-12, err_msg=str(key))
            np.testing.assert_allclose(found[key][1], active, err_msg=str(key))
        for place, expected in ((2, embeddings), (3, weight)):
            joined = np.concatenate([found[key][place] for found in ranks])
            np.testing.assert_allclose(joined, expected, rtol=1e-9, atol=1e-13, err_msg=str(key))


@pytest.mark.parametrize("name", LOSSES)
def test_a_rank_holds_its_share_of_the_class_vectors(name: str) -> None:
    whole, shards = made(name), [made(name) for _ in range(3)]
    for rank, shard in enumerate(shards):
        shard.shard(rank, 3)
        assert shard.is_sharded
        assert len(shard.weight) == len(whole.weight) // NUM_CLASSES * len(class_shard(NUM_CLASSES, rank, 3))
    assert torch.equal(torch.cat([shard.weight for shard in shards]), whole.weight)
    whole.shard(0, 1)
    assert not whole.is_sharded


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
