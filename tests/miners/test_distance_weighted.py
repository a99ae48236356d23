"""Distance-weighted sampling: METHODS' number, the distribution, the cutoffs."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import miners as pml_miners

import oracles
from distmetric.miners import DistanceWeightedMiner
from distmetric.miners.distance_weighted import log_density


def at_distances(gaps: list[float], dim: int, members: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One class of equal unit vectors, and other classes of one vector each, that far away."""
    angles = 2 * torch.asin(torch.tensor(gaps, dtype=torch.float64) / 2)
    others = torch.zeros(len(gaps), dim, dtype=torch.float64)
    others[:, 0], others[:, 1] = angles.cos(), angles.sin()
    anchor = torch.zeros(1, dim, dtype=torch.float64)
    anchor[0, 0] = 1
    labels = torch.cat([torch.zeros(members, dtype=torch.int64), torch.arange(1, len(gaps) + 1)])
    return torch.cat([anchor.expand(members, -1), others]), labels


def test_published_value_of_the_density() -> None:
    near, far = log_density(torch.tensor([0.5, 1.4], dtype=torch.float64).square(), 128).tolist()
    assert near - far == pytest.approx(-91.68, abs=0.005)


def test_the_density_is_that_of_random_unit_vectors() -> None:
    dim, bins = 8, torch.linspace(0.6, 1.9, 14, dtype=torch.float64)
    pairs = torch.nn.functional.normalize(torch.randn(2, 200_000, dim, dtype=torch.float64), dim=2)
    counts = torch.histogram((pairs[0] - pairs[1]).norm(dim=1), bins).hist
    middles = (bins[1:] + bins[:-1]) / 2
    expected = log_density(middles.square(), dim).exp()
    assert (counts / counts.sum()).tolist() == pytest.approx((expected / expected.sum()).tolist(), abs=0.005)


@pytest.mark.parametrize("make", [DistanceWeightedMiner, pml_miners.DistanceWeightedMiner])
def test_negatives_are_drawn_by_weight_as_in_pytorch_metric_learning(make) -> None:
    gaps = [0.2, 0.4, 0.7, 0.9, 1.1, 1.3, 1.39, 1.41, 1.9]
    embeddings, labels = at_distances(gaps, dim=4, members=300)
    weights = oracles.distance_weights(embeddings.tolist(), labels.tolist(), 0)
    assert list(weights) == list(range(300, 307))
    anchors, positives, negatives = make()(embeddings, labels)
    assert (labels[anchors] == 0).all()
    assert (labels[positives] == 0).all()
    counts = torch.bincount(negatives - 300, minlength=9).double()
    assert counts[7:].tolist() == [0, 0]
    expected = torch.tensor(list(weights.values()), dtype=torch.float64)
    expected *= len(negatives) / expected.sum()
    assert ((counts[:7] - expected) ** 2 / expected).sum() < 22.5  # 99.9 percent, 6 degrees of freedom


def test_every_positive_pair_gets_one_triplet() -> None:
    embeddings, labels = at_distances([0.9, 1.2], dim=4, members=20)
    anchors, positives, _ = DistanceWeightedMiner()(embeddings, labels)
    found = sorted(zip(anchors.tolist(), positives.tolist(), strict=True))
    assert found == [(a, p) for a in range(20) for p in range(20) if a != p]


def test_where_all_negatives_are_too_far_there_are_no_triplets() -> None:
    embeddings, labels = at_distances([1.41, 1.5, 2.0], dim=16, members=5)
    assert [len(part) for part in DistanceWeightedMiner()(embeddings, labels)] == [0, 0, 0]
    assert len(DistanceWeightedMiner(nonzero_loss_cutoff=1.45)(embeddings, labels)[0]) == 20
    # Opposite points have an infinite weight, and are left out however far the cutoff.
    negatives = DistanceWeightedMiner(nonzero_loss_cutoff=3.0)(embeddings, labels)[2]
    assert set(negatives.tolist()) <= {5, 6}


@pytest.mark.parametrize("dim", [1, 2, 3, 512])
def test_any_dimension(dim) -> None:
    embeddings, labels = torch.randn(40, dim), torch.arange(40) % 4
    anchors, positives, negatives = DistanceWeightedMiner()(embeddings, labels)
    assert len(anchors)
    assert (labels[anchors] == labels[positives]).all()
    assert (labels[anchors] != labels[negatives]).all()


@pytest.mark.parametrize(("cutoff", "limit"), [(0.0, 1.4), (1.4, 1.4), (1.5, 1.4), (0.5, float("inf"))])
def test_wrong_cutoffs_are_refused(cutoff, limit) -> None:
    with pytest.raises(ValueError, match="the smaller one first"):
        DistanceWeightedMiner(cutoff, limit)
