"""Distances, positives and hardest pairs against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from distmetric.functional import (
    JointBatch,
    all_positive_pairs,
    distances,
    hardest_pairs,
    negative_logsumexp,
    paired_distances,
)
from distmetric.functional.distances import squared_distance_block

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=24)


def whole_batch(embeddings: torch.Tensor, labels: torch.Tensor) -> JointBatch:
    return JointBatch.alone(embeddings, labels)


def test_paired_distances_are_exact_where_the_gram_trick_is_not() -> None:
    a = torch.tensor([[1000.0, 1.0]])
    b = torch.tensor([[1000.0, 1.001]])
    assert paired_distances(a, b).item() == pytest.approx(0.001, rel=1e-3)


def test_paired_distances_of_coinciding_rows_have_zero_gradient() -> None:
    a = torch.ones(2, 3, requires_grad=True)
    paired_distances(a, torch.ones(2, 3)).sum().backward()
    assert torch.equal(a.grad, torch.zeros(2, 3))


def test_half_precision_is_compared_in_float32() -> None:
    a = torch.randn(4, 8, dtype=torch.bfloat16)
    assert paired_distances(a, a.flip(0)).dtype == torch.float32


def test_squared_distance_block_is_never_negative() -> None:
    a = torch.full((5, 64), 1e3) + torch.randn(5, 64) * 1e-4
    assert squared_distance_block(a, a).min() >= 0


@given(labels=LABELS, disjoint=st.booleans())
@settings(max_examples=60, deadline=None)
def test_positive_pairs_are_those_of_the_double_loop(labels: list[int], disjoint: bool) -> None:
    label = torch.tensor(labels)
    index = None if disjoint else torch.arange(len(labels))
    anchors, columns = all_positive_pairs(label, label, index)
    expected = {
        (i, j)
        for i in range(len(labels))
        for j in range(len(labels))
        if labels[i] == labels[j] and (disjoint or i != j)
    }
    found = list(zip(anchors.tolist(), columns.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected


@given(labels=LABELS, block_rows=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_hardest_pairs_for_any_block_size(labels: list[int], block_rows: int, seed: int) -> None:
    embeddings = torch.randn(
        len(labels), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", block_rows * len(labels) * 8)
        patch.setattr(distances, "MIN_BLOCK_ROWS", 1)
        found = hardest_pairs(whole_batch(embeddings, torch.tensor(labels)))
    rows = embeddings.tolist()
    for a in range(len(labels)):
        positive, negative = oracles.positives(labels, a), oracles.negatives(labels, a)
        assert found.valid[a].item() == bool(positive and negative)
        if positive and negative:
            assert found.positive[a] == max(positive, key=lambda j: oracles.distance(rows[a], rows[j]))
            assert found.negative[a] == min(negative, key=lambda j: oracles.distance(rows[a], rows[j]))


def test_an_anchor_is_never_its_own_positive_even_among_duplicates() -> None:
    embeddings = torch.zeros(4, 2)
    labels = torch.tensor([0, 0, 1, 1])
    found = hardest_pairs(whole_batch(embeddings, labels))
    assert found.valid.all()
    assert found.positive.tolist() == [1, 0, 3, 2]


@given(labels=LABELS, block_rows=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_negative_logsumexp_equals_dense_for_any_block_size(
    labels: list[int], block_rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), 3, dtype=torch.float64, generator=generator)
    label = torch.tensor(labels)
    weights = torch.randn(len(labels), dtype=torch.float64, generator=generator)
    blocked, dense = (embeddings.clone().requires_grad_() for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", block_rows * len(labels) * 8)
        patch.setattr(distances, "MIN_BLOCK_ROWS", 1)
        value = negative_logsumexp(JointBatch.alone(blocked, label), 0.7)
        has_negative = value > -torch.inf
        (value[has_negative] * weights[has_negative]).sum().backward()
    same = label[:, None] == label
    gaps = (dense[:, None] - dense[None]).square().sum(-1).masked_fill(same, 1.0).sqrt()
    expected = torch.logsumexp((0.7 - gaps).masked_fill(same, -torch.inf)[has_negative], 1)
    (expected * weights[has_negative]).sum().backward()
    assert torch.equal(has_negative, (~same).any(1))
    torch.testing.assert_close(value[has_negative], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(blocked.grad, dense.grad, rtol=1e-9, atol=1e-11)


def test_negative_logsumexp_gradient_is_finite_for_coinciding_negatives() -> None:
    embeddings = torch.zeros(4, 2, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    negative_logsumexp(JointBatch.alone(embeddings, labels), 1.0).sum().backward()
    assert torch.equal(embeddings.grad, torch.zeros(4, 2))
