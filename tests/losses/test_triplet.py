"""Triplet loss: published values, plateaus, strategies, what a miner chose."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners

from distmetric.losses import TripletLoss, TripletLossConfig
from losses.points import p6


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (TripletLoss(0.2), 0.854832),
        (TripletLoss("soft"), 1.125447),
        (TripletLoss(0.2, "batch_all"), 0.302400),
        (TripletLoss(0.2, "batch_all", reduction="nonzero_mean"), 0.777601),
        (TripletLoss("soft", "batch_all"), 0.567140),
    ],
    ids=repr,
)
def test_values_on_the_six_points(loss: TripletLoss, value: float) -> None:
    assert loss(*p6()).item() == pytest.approx(value, abs=1e-6)


def test_batch_all_counts_36_triplets_of_which_14_push() -> None:
    from distmetric.functional import JointBatch

    (term,) = TripletLoss(0.2, "batch_all").parts(JointBatch.alone(*p6()))
    assert (term.num_terms.item(), term.num_active.item()) == (36, 14)


def circle() -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.tensor([0.0, 20, 50, 30, 58, 130], dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1).requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(("strategy", "value"), [("semi_hard", 0.068230), ("semi_hard_nearest", 0.266172)])
def test_both_semi_hard_variants_on_the_circle(strategy, value: float) -> None:
    loss = TripletLoss(0.2, strategy, distance="squared_euclidean")
    assert loss(*circle()).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("margin", "plateau"), [(0.2, 0.2), ("soft", math.log(2))])
@pytest.mark.parametrize("strategy", ["batch_hard", "batch_all"])
def test_collapsed_embeddings_sit_at_the_plateau(margin, strategy, plateau: float) -> None:
    loss = TripletLoss(margin, strategy)
    assert loss(torch.ones(8, 4), torch.arange(8) % 4).item() == pytest.approx(plateau)


def test_chosen_triplets_are_those_of_the_field() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(30, 6, generator=generator), torch.arange(30) % 6
    for miner in (
        pml_miners.BatchHardMiner(),
        pml_miners.TripletMarginMiner(0.2, "semihard"),
        pml_miners.MultiSimilarityMiner(),
    ):
        indices = miner(embeddings, labels)
        theirs = pml_losses.TripletMarginLoss(0.1)(embeddings, labels, indices)
        ours = TripletLoss(0.1, normalize_embeddings=True, reduction="nonzero_mean")(
            embeddings, labels, indices
        )
        torch.testing.assert_close(ours, theirs)


def test_batch_hard_is_the_mined_loss_of_the_field() -> None:
    embeddings, labels = torch.randn(40, 6, dtype=torch.float64, requires_grad=True), torch.arange(40) % 8
    indices = pml_miners.BatchHardMiner()(embeddings, labels)
    theirs = pml_losses.TripletMarginLoss(0.3)(embeddings, labels, indices)
    ours = TripletLoss(0.3, normalize_embeddings=True, reduction="nonzero_mean")(embeddings, labels)
    torch.testing.assert_close(ours, theirs)
    for found, expected in zip(
        torch.autograd.grad(ours, embeddings), torch.autograd.grad(theirs, embeddings), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"margin=-0\.1"):
        TripletLoss(-0.1)
    with pytest.raises(ValueError, match="no semi-hard triplets"):
        TripletLossConfig(strategy="semi_hard", margin="soft")
    with pytest.raises(ValueError, match="strategy='hardest' is not known"):
        TripletLoss(0.2, "hardest")  # type: ignore[arg-type]
