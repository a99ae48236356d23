"""Fixed-centroid bound: METHODS' values, the inequality it is named after, its minimum, and training with it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import oracles
from distmetric.functional.centroids import place_centroids, spacing
from distmetric.losses import CentroidBoundLoss, CentroidBoundLossConfig, build_loss
from distmetric.losses.build import LossContext
from losses.points import p6

P6_CENTROIDS = torch.tensor([[0.0, 0.5], [2.5, 1.0]], dtype=torch.float64)


def bound(
    centroids: torch.Tensor, counts: list[int] | None = None, reduction: str = "mean"
) -> CentroidBoundLoss:
    return CentroidBoundLoss(
        *centroids.shape,
        centroids=centroids,
        class_counts=counts,
        normalize_embeddings=False,
        reduction=reduction,
    )


def gradient_of(loss: nn.Module, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    embeddings = embeddings.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(embeddings, labels), embeddings)
    return gradient


def test_methods_values_for_balanced_classes() -> None:
    embeddings, labels = p6()
    summed = bound(P6_CENTROIDS, reduction="sum")(embeddings, labels).item()
    assert summed == pytest.approx(1.514351, abs=1e-6)
    assert 18 * summed == pytest.approx(27.258313, abs=1e-6)
    assert bound(P6_CENTROIDS)(embeddings, labels).item() == pytest.approx(1.514351 / 6, abs=1e-6)
    rows = embeddings.tolist()
    assert sum(oracles.triplet_gaps(rows, labels.tolist())) == pytest.approx(-21.805592, abs=1e-6)


def test_methods_value_for_unbalanced_classes() -> None:
    embeddings, labels = p6()[0], torch.tensor([0, 0, 0, 0, 1, 1])
    triplets = len(oracles.triplets(labels.tolist()))
    value = bound(P6_CENTROIDS, [4, 2])(embeddings, labels).item()
    assert 3 * triplets * value == pytest.approx(63.074852, abs=1e-6)


def test_weights_of_balanced_classes_are_none() -> None:
    centroids, embeddings = torch.randn(5, 3), torch.randn(15, 3, dtype=torch.float64)
    labels = torch.arange(15) % 5
    plain, weighted = (bound(centroids, counts)(embeddings, labels) for counts in (None, [7] * 5))
    torch.testing.assert_close(weighted, plain)


@given(
    labels=st.lists(st.integers(0, 3), min_size=3, max_size=14).filter(oracles.triplets),
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_triplets_of_a_data_set_stay_below_the_bound(labels: list[int], seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    embeddings = centroids[labels] + spread * torch.randn(
        len(labels), 3, dtype=torch.float64, generator=generator
    )
    counts = [labels.count(m) for m in range(4)]
    value = bound(centroids, counts)(embeddings, torch.tensor(labels)).item()
    rows = embeddings.tolist()
    bounds = oracles.triplet_gap_bounds(rows, labels, centroids.tolist())
    assert 3 * value == pytest.approx(oracles.mean(bounds), rel=1e-9, abs=1e-9)
    excess = 3 * value - oracles.mean(oracles.triplet_gaps(rows, labels))
    farthest = max(oracles.distance(row, centroids[y].tolist()) for row, y in zip(rows, labels, strict=True))
    assert -1e-9 <= excess <= 4 * farthest + 1e-9


@pytest.mark.parametrize(
    ("placement", "num_classes", "minimum"),
    [
        ("one_hot", 3, -0.471405),
        ("one_hot", 8, -math.sqrt(2) / 3),
        ("simplex", 9, -1.5 / 3),
        ("uniform", 12, None),
    ],
)
def test_the_minimum_lies_at_the_centroids(placement, num_classes: int, minimum: float | None) -> None:
    centroids, labels = place_centroids(num_classes, 8, placement), torch.arange(num_classes)
    loss = bound(centroids)
    least = loss(centroids, labels).item()
    # Equidistant or not, the mean over classes of the pushes is the mean distance of centroids.
    assert least == pytest.approx(-spacing(centroids).mean / 3, abs=1e-9)
    if minimum is not None:
        assert least == pytest.approx(minimum, abs=1e-6)
    for size in (1e-3, 0.1, 1.0, 10.0):
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            step = size * torch.randn(num_classes, 8, dtype=torch.float64, generator=generator)
            assert loss(centroids + step, labels).item() > least


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_its_centroid_an_embedding_is_pushed_but_not_pulled(dtype: torch.dtype) -> None:
    centroids = place_centroids(6, 4).to(dtype)
    found = gradient_of(bound(centroids, reduction="sum"), centroids, torch.arange(6))
    for y in range(6):
        others = torch.cat([centroids[:y], centroids[y + 1 :]])
        away = centroids[y] - others
        expected = -(away / away.norm(dim=1, keepdim=True)).sum(0) / 15
        torch.testing.assert_close(found[y], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-7, 1e-3])
def test_close_to_its_centroid_an_embedding_is_pulled_with_unit_force_in_float32(distance: float) -> None:
    centroids = place_centroids(8, 8, "one_hot").float()
    labels, axis = torch.arange(8), (centroids.argmax(1) + 1) % 8
    embeddings = centroids.clone()
    embeddings[labels, axis] = distance
    loss = bound(centroids, reduction="sum")
    pull = gradient_of(loss, embeddings, labels) - gradient_of(loss, centroids, labels)
    expected = nn.functional.one_hot(axis, 8).float()
    torch.testing.assert_close(pull, expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0, 100.0])
def test_the_gradient_does_not_fade(distance: float) -> None:
    centroids = place_centroids(10, 6)
    labels = torch.arange(10).repeat(20)
    directions = nn.functional.normalize(torch.randn(200, 6, dtype=torch.float64))
    found = gradient_of(bound(centroids, reduction="sum"), centroids[labels] + distance * directions, labels)
    norms = found.norm(dim=1)
    assert norms.min() >= 2 / 3 - 1e-9
    assert norms.max() <= 4 / 3 + 1e-9


def test_centroids_are_saved_and_never_trained() -> None:
    loss, other = (CentroidBoundLoss(20, 6, seed=seed) for seed in (1, 2))
    assert list(loss.parameters()) == []
    assert list(loss.state_dict()) == ["centroids"]
    assert loss.centroids.dtype == torch.float32
    assert not torch.equal(other.centroids, loss.centroids)
    other.load_state_dict(loss.state_dict())
    embeddings, labels = torch.randn(8, 6), torch.arange(8)
    assert torch.equal(other(embeddings, labels), loss(embeddings, labels))


def test_constant_centroids_cost_two_multiplications_instead_of_three() -> None:
    loss, embeddings = CentroidBoundLoss(33, 32), torch.randn(50, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss(embeddings, torch.arange(50) % 33).backward()
    product = 2 * 50 * 33 * 32
    assert 2 * product <= counter.get_total_flops() < 2.2 * product


def test_the_configuration_takes_classes_sizes_and_seed_from_the_run() -> None:
    context = LossContext(class_counts=[4, 2], embedding_size=2, seed=5)
    plain = build_loss(CentroidBoundLossConfig(placement="one_hot", reduction="sum"), context)
    assert repr(plain) == "CentroidBoundLoss(num_classes=2, embedding_size=2, placement='one_hot')"
    torch.testing.assert_close(plain.centroids, place_centroids(2, 2, "one_hot", 5).float())
    weighted = build_loss(
        CentroidBoundLossConfig(placement="one_hot", weighted=True, reduction="sum"), context
    )
    embeddings, labels = p6()[0], torch.tensor([0, 0, 0, 0, 1, 1])
    rows, centroids = embeddings.tolist(), plain.centroids.tolist()
    for loss, counts in ((plain, None), (weighted, [4, 2])):
        expected = 6 * oracles.centroid_bound(rows, labels.tolist(), centroids, counts)
        assert loss(embeddings, labels).item() == pytest.approx(expected)


def test_given_centroids_are_named_in_the_repr() -> None:
    assert (
        repr(bound(P6_CENTROIDS)) == "CentroidBoundLoss(num_classes=2, embedding_size=2, placement='given')"
    )


def test_what_has_no_meaning_is_refused() -> None:
    embeddings, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    loss = bound(P6_CENTROIDS)
    index = torch.tensor([0])
    with pytest.raises(ValueError, match="no indices_tuple of a miner"):
        loss(embeddings, labels, (index, index + 2, index + 1))
    with pytest.raises(ValueError, match="no ref_emb"):
        loss(embeddings, labels, ref_emb=embeddings, ref_labels=labels)
    with pytest.raises(ValueError, match="labels go from 0 to 2, but the loss was made with num_classes=2"):
        loss(embeddings, torch.tensor([0, 1, 2, 1]))
    with pytest.raises(ValueError, match=r"embeddings have length 3, but .* embedding_size=2"):
        loss(torch.randn(4, 3), labels)
    with pytest.raises(ValueError, match="give at least 2"):
        CentroidBoundLoss(1, 4)
    with pytest.raises(ValueError, match="at least 2"):
        CentroidBoundLoss(1, 2, centroids=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"\(2, 2\) is not \(3, 2\)"):
        CentroidBoundLoss(3, 2, centroids=P6_CENTROIDS)
    with pytest.raises(ValueError, match="class_counts has 3 classes, but num_classes=2"):
        bound(P6_CENTROIDS, [2, 2, 2])
    with pytest.raises(ValueError, match="no triplet"):
        bound(P6_CENTROIDS, [1, 1])


@pytest.mark.parametrize(("num_classes", "embedding_size"), [(4, 8), (12, 4)], ids=["simplex", "uniform"])
def test_training_gathers_every_class_at_its_centroid(num_classes: int, embedding_size: int) -> None:
    torch.manual_seed(0)
    labels = torch.arange(num_classes).repeat(8)
    inputs = torch.randn(num_classes, 16)[labels] + 0.05 * torch.randn(len(labels), 16)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, embedding_size))
    loss = CentroidBoundLoss(num_classes, embedding_size)
    before = loss.centroids.clone()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(model(inputs), labels)
        value.backward()
        optimizer.step()
        schedule.step()
    minimum = -spacing(loss.centroids).mean / 3
    assert minimum <= value.item() < minimum + 0.05
    embeddings = nn.functional.normalize(model(inputs).detach())
    distances = torch.cdist(embeddings, loss.centroids)
    assert torch.equal(distances.argmin(1), labels)
    assert distances.gather(1, labels[:, None]).mean() < 0.1
    assert torch.equal(loss.centroids, before)
