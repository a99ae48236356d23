"""Sums over all triplets: both ways to compute them are one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.functional import triplet_rows
from distmetric.losses import TripletLoss


def value_and_gradient(embeddings: torch.Tensor, labels: torch.Tensor, rank_from: int) -> list[torch.Tensor]:
    embeddings = embeddings.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplet_rows, "_RANK_FROM", rank_from)
        value = TripletLoss(0.7, "batch_all", reduction="nonzero_mean")(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    return [value.detach(), embeddings.grad]


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=40), seed=st.integers(0, 99), twins=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_ranking_the_negatives_once_is_a_pass_for_every_positive(labels, seed, twins) -> None:
    embeddings = torch.randn(
        len(labels), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    if twins:  # equal thresholds
        embeddings[1::2] = embeddings[: len(labels) // 2 * 2 : 2]
    ranked = value_and_gradient(embeddings, torch.tensor(labels), rank_from=0)
    one_by_one = value_and_gradient(embeddings, torch.tensor(labels), rank_from=10**9)
    torch.testing.assert_close(ranked, one_by_one, rtol=1e-10, atol=1e-12)
