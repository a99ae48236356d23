"""Batch-hard triplet and lifted structure: METHODS' numbers, plain loops, corner cases, memory."""

from __future__ import annotations

import math
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import oracles
from distmetric.functional import distances
from distmetric.losses import (
    LiftedStructureLoss,
    LiftedStructureLossConfig,
    TripletLoss,
    TripletLossConfig,
    build_loss,
)

P6 = [(0.0, 0.0), (1.0, 0.0), (0.0, 2.0), (3.0, 0.0), (3.0, 1.0), (1.0, 2.0)]
P6_LABELS = [0, 0, 0, 1, 1, 1]
ALL = [
    pytest.param(TripletLoss(0.2), lambda e, y: oracles.batch_hard(e, y, 0.2), id="triplet_hinge"),
    pytest.param(TripletLoss("soft"), lambda e, y: oracles.batch_hard(e, y, "soft"), id="triplet_soft"),
    pytest.param(LiftedStructureLoss(), oracles.lifted_structure, id="lifted"),
    pytest.param(
        LiftedStructureLoss(0.5, 0.1),
        lambda e, y: oracles.lifted_structure(e, y, 0.5, 0.1),
        id="lifted_margins",
    ),
]


def p6() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(P6, dtype=torch.float64, requires_grad=True), torch.tensor(P6_LABELS)


def test_published_values_of_the_triplet_loss() -> None:
    embeddings, labels = p6()
    assert TripletLoss(0.2)(embeddings, labels).item() == pytest.approx(0.854832, abs=1e-6)
    assert TripletLoss("soft")(embeddings, labels).item() == pytest.approx(1.125447, abs=1e-6)


def test_published_value_and_gradient_of_the_lifted_structure_loss() -> None:
    embeddings, labels = p6()
    loss = LiftedStructureLoss()(embeddings, labels)
    loss.backward()
    assert loss.item() == pytest.approx(3.438783, abs=1e-6)
    assert embeddings.grad[0].tolist() == pytest.approx([0.075640, -0.161554], abs=1e-6)


@pytest.mark.parametrize(("loss", "oracle"), ALL)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=14),
    seed=st.integers(0, 999),
    block_rows=st.integers(1, 14),
)
@settings(max_examples=30, deadline=None)
def test_losses_equal_plain_loops(loss, oracle, labels, seed, block_rows) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), 3, dtype=torch.float64, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", block_rows * len(labels) * 8)
        value = loss(embeddings, torch.tensor(labels)).item()
    assert value == pytest.approx(oracle(embeddings.tolist(), labels), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("loss", "oracle"), ALL)
def test_gradients_equal_finite_differences(loss, oracle) -> None:
    embeddings, labels = p6()
    offsets = 0.01 * torch.arange(12, dtype=torch.float64).view(6, 2)  # no ties, no kinks
    assert torch.autograd.gradcheck(lambda x: loss(x + offsets, labels), embeddings)


@pytest.mark.parametrize(("loss", "oracle"), ALL)
def test_the_order_of_the_batch_does_not_matter(loss, oracle) -> None:
    embeddings = torch.randn(24, 8, dtype=torch.float64)
    labels = torch.arange(24) % 6
    order = torch.randperm(24)
    torch.testing.assert_close(loss(embeddings, labels), loss(embeddings[order], labels[order]))


@pytest.mark.parametrize(("loss", "oracle"), ALL)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["one_class", "no_positives"])
def test_no_valid_pair_gives_zero_with_a_live_graph(loss, oracle, labels) -> None:
    embeddings = torch.randn(4, 3, requires_grad=True)
    value = loss(embeddings, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("loss", "plateau"),
    [(TripletLoss(0.2), 0.2), (TripletLoss("soft"), math.log(2)), (LiftedStructureLoss(), None)],
)
def test_collapsed_embeddings_sit_at_the_plateau_without_nan(loss, plateau) -> None:
    embeddings = torch.ones(8, 4, requires_grad=True)
    value = loss(embeddings, torch.arange(8) % 4)
    value.backward()
    if plateau is not None:
        assert value.item() == pytest.approx(plateau)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "oracle"), ALL)
def test_bfloat16_embeddings_are_compared_in_float32(loss, oracle) -> None:
    embeddings = torch.randn(12, 16).bfloat16()
    labels = torch.arange(12) % 3
    value = loss(embeddings, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(embeddings.float(), labels))


@pytest.mark.parametrize(("loss", "oracle"), ALL)
def test_a_reference_set_of_the_same_rows_counts_each_row_as_its_own_positive(loss, oracle) -> None:
    embeddings = torch.randn(6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # An anchor at distance 0 from its copy is never the farthest positive, so batch-hard does not notice.
    if isinstance(loss, TripletLoss):
        expected = loss(embeddings, labels)
        torch.testing.assert_close(loss(embeddings, labels, ref_emb=embeddings, ref_labels=labels), expected)
    else:
        doubled = loss(embeddings, labels, ref_emb=embeddings, ref_labels=labels)
        assert 0 < doubled < loss(embeddings, labels)  # six pairs at distance 0 join the mean


def test_reference_embeddings_need_their_labels() -> None:
    with pytest.raises(ValueError, match="belong together"):
        TripletLoss()(torch.randn(2, 2), torch.tensor([0, 1]), ref_emb=torch.randn(2, 2))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        TripletLoss()(torch.randn(2, 2), torch.tensor([0, 1, 1]))


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        TripletLoss(-0.1)


def test_configurations_build_their_loss() -> None:
    assert repr(build_loss(TripletLossConfig(margin=0.3))) == "TripletLoss(margin=0.3)"
    assert (
        repr(build_loss(LiftedStructureLossConfig())) == "LiftedStructureLoss(neg_margin=1.0, pos_margin=0.0)"
    )


@pytest.mark.parametrize("loss", [TripletLoss(), LiftedStructureLoss()], ids=repr)
def test_memory_is_linear_in_the_batch(loss: nn.Module) -> None:
    size = 8192
    embeddings = nn.functional.normalize(torch.randn(size, 32)).requires_grad_()
    labels = torch.arange(size) // 4
    loss(embeddings[:512], labels[:512]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(embeddings, labels).backward()
    extra_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert extra_mib < 100  # one float32 matrix of 8192 x 8192 would be 256 MiB
