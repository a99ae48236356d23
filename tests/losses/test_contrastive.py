"""Contrastive loss: the values of Hadsell's form on one pair."""

from __future__ import annotations

import pytest
import torch

from distmetric.losses import ContrastiveLoss

PAIR = [[0.0, 0.0], [0.3, 0.4]]


def hadsell() -> ContrastiveLoss:
    return ContrastiveLoss(neg_margin=1.25, squared=True, normalize_embeddings=False)


def test_a_positive_pair_costs_half_its_squared_distance() -> None:
    embeddings = torch.tensor(PAIR, dtype=torch.float64)
    assert hadsell()(embeddings, torch.tensor([0, 0])).item() == pytest.approx(0.125, abs=1e-12)


def test_a_negative_pair_costs_half_the_square_of_what_it_lacks() -> None:
    embeddings = torch.tensor(PAIR, dtype=torch.float64, requires_grad=True)
    loss = hadsell()(embeddings, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(0.28125, abs=1e-12)
    # Both directions of the pair: the mean over two equal terms moves a by the gradient of one of them.
    assert embeddings.grad[0].tolist() == pytest.approx([0.45, 0.6], abs=1e-12)


def test_each_kind_of_pair_is_averaged_over_those_that_still_count() -> None:
    embeddings = torch.tensor([[0.0], [0.4], [0.9], [9.0]], dtype=torch.float64)
    loss = ContrastiveLoss(normalize_embeddings=False)
    # Positive 0.4; of the negatives only 0.9 (twice) and 0.5 (twice) are nearer than 1.
    assert loss(embeddings, torch.tensor([0, 0, 1, 2])).item() == pytest.approx(0.4 + (0.1 + 0.5) / 2)
