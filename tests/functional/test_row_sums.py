"""The pair engine: blocks hold the true distances and masks, and sums over rows have the dense gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.functional import (
    JointBatch,
    PairBlock,
    Row,
    SortedPairs,
    distances,
    listed_distances,
    paired_distances,
    row_values,
    sum_rows,
)
from distmetric.functional.distances import DISTANCES, Distance, unit_length

EVERY_DISTANCE = pytest.mark.parametrize("distance", DISTANCES)


def dense(anchors: torch.Tensor, columns: torch.Tensor, distance: Distance) -> torch.Tensor:
    rows = [paired_distances(anchor.expand_as(columns), columns, distance) for anchor in anchors]
    return torch.stack(rows)


def batches(labels: list[int], column_labels: list[int] | None, seed: int, distance: Distance) -> JointBatch:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(len(labels), 4, dtype=torch.float64, generator=generator)
    if distance == "cosine":
        anchors = unit_length(anchors)
    if column_labels is None:
        return JointBatch.alone(anchors.requires_grad_(), torch.tensor(labels))
    columns = torch.randn(len(column_labels), 4, dtype=torch.float64, generator=generator)
    columns = unit_length(columns) if distance == "cosine" else columns
    return JointBatch(
        anchors.requires_grad_(),
        torch.tensor(labels),
        columns.requires_grad_(),
        torch.tensor(column_labels),
        None,
    )


def softened(block: PairBlock) -> Row:
    """sum_k exp(-d_ik) over negatives, plus the sum of squares of the distances to positives."""
    values = torch.exp(-block.distances)
    block.fill_same_(values, 0.0)
    positives = block.positives_of(block.distances, 0.0)
    if block.gradient is not None:
        torch.neg(values, out=block.gradient)
        block.gradient[:, block.band] += 2 * positives
    return Row(values.sum(1) + positives.square().sum(1), block.num_positives, block.num_negatives)


def softened_dense(batch: JointBatch, distance: Distance) -> torch.Tensor:
    found = dense(batch.anchors, batch.columns, distance)
    same = batch.labels[:, None] == batch.column_labels
    own = torch.zeros_like(same)
    if batch.anchor_index is not None:
        own[torch.arange(len(own)), batch.anchor_index] = True
    near = found.masked_fill(~same | own, 0.0).square().sum(1)
    return torch.exp(-found).masked_fill(same, 0.0).sum(1) + near


LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@EVERY_DISTANCE
@given(
    labels=LABELS,
    column_labels=st.none() | st.lists(st.integers(1, 5), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    rows=st.integers(1, 12),
)
@settings(max_examples=40, deadline=None)
def test_sums_over_rows_are_dense_sums(distance: Distance, labels, column_labels, seed, rows) -> None:
    batch = batches(labels, column_labels, seed, distance)
    leaves = [batch.anchors] if column_labels is None else [batch.anchors, batch.columns]
    weights = torch.randn(len(labels), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", rows * len(batch.column_labels) * 8)
        patch.setattr(distances, "MIN_BLOCK_ROWS", 1)
        sums = sum_rows(batch, distance, softened)
        values = row_values(batch, distance, softened)
        found = [
            *torch.autograd.grad(sums.total, leaves),
            *torch.autograd.grad((values * weights).sum(), leaves),
        ]
    expected = softened_dense(batch, distance)
    wanted = [
        *torch.autograd.grad(expected.sum(), leaves, retain_graph=True),
        *torch.autograd.grad((expected * weights).sum(), leaves),
    ]
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(sums.total, expected.sum())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    same = batch.labels[:, None] == batch.column_labels
    positives = same.sum() - (len(labels) if column_labels is None else 0)
    assert (sums.num_terms.item(), sums.num_active.item()) == (positives.item(), (~same).sum().item())


@pytest.mark.parametrize("wanted", ["anchors", "columns"])
def test_a_gradient_that_only_one_side_wants_is_the_same(wanted: str) -> None:
    batch = batches([0, 1, 1, 2], [0, 0, 1, 2, 2], 0, "euclidean")
    leaf = getattr(batch, wanted)
    (expected,) = torch.autograd.grad(sum_rows(batch, "euclidean", softened).total, leaf)
    other = "columns" if wanted == "anchors" else "anchors"
    getattr(batch, other).requires_grad_(False)
    (found,) = torch.autograd.grad(sum_rows(batch, "euclidean", softened).total, leaf)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
def test_small_distances_are_exact_in_float32_wherever_the_origin_is(gap: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 32, generator=generator)
    near = rows + gap * unit_length(torch.randn(64, 32, generator=generator))
    embeddings = torch.cat([rows, near]) + offset
    batch = JointBatch.alone(embeddings, torch.arange(128) % 64)
    exact = (embeddings[:64].double() - embeddings[64:].double()).norm(dim=1)
    found = torch.empty(128)
    for block in SortedPairs(batch, "euclidean").blocks():
        found[block.rows] = block.positives_of(block.distances, 0.0).sum(1)
    # What the numbers themselves have lost at a large offset nobody can give back.
    torch.testing.assert_close(found[:64].double(), exact, rtol=2e-3, atol=0.0)


def test_products_stay_in_float32_under_autocast() -> None:
    batch = JointBatch.alone(torch.randn(40, 8).requires_grad_(), torch.arange(40) % 10)
    quiet = sum_rows(batch, "euclidean", softened).total
    (expected,) = torch.autograd.grad(quiet, batch.anchors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sum_rows(batch, "euclidean", softened).total
        (found,) = torch.autograd.grad(value, batch.anchors)
    assert torch.equal(value, quiet)
    assert torch.equal(found, expected)


def test_an_anchor_is_infinitely_far_from_itself_and_from_nobody_else() -> None:
    batch = JointBatch.alone(torch.ones(6, 3), torch.tensor([2, 0, 0, 1, 2, 2]))
    for block in SortedPairs(batch, "euclidean").blocks():
        own = block.rows[:, None] == block.columns
        assert torch.equal(block.distances.isinf(), own)
        assert torch.equal(block.distances[~own], torch.zeros(30))


@EVERY_DISTANCE
def test_listed_distances_are_the_dense_ones(distance: Distance) -> None:
    batch = batches([0, 1, 0, 1, 2], None, 1, distance)
    rows, columns = torch.tensor([0, 0, 3, 4, 4, 2]), torch.tensor([1, 1, 2, 0, 4, 3])
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = listed_distances(batch, rows, columns, distance)
    expected = paired_distances(batch.anchors[rows], batch.anchors[columns], distance)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), batch.anchors),
        torch.autograd.grad((expected * weights).sum(), batch.anchors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_listed_distances_go_through_their_pairs_in_pieces(monkeypatch) -> None:
    batch = batches([0] * 9, None, 0, "euclidean")
    rows, columns = torch.randint(9, (2, 100), generator=torch.Generator().manual_seed(0))
    whole = torch.autograd.grad(listed_distances(batch, rows, columns, "euclidean").sum(), batch.anchors)[0]
    monkeypatch.setitem(distances.BLOCK_BYTES, "cpu", 7 * 4 * 8)
    pieces = torch.autograd.grad(listed_distances(batch, rows, columns, "euclidean").sum(), batch.anchors)[0]
    torch.testing.assert_close(pieces, whole)


def sum_of_distances(block: PairBlock) -> Row:
    values = block.positives_of(block.distances, 0.0).sum(1)
    if block.gradient is not None:
        block.gradient.zero_()
        block.gradient[:, block.band] += block.positive
    return Row(values, block.num_positives, block.num_positives)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("per_class", [2, 32])
def test_gradients_of_near_duplicates_are_exact_in_float32(gap: float, per_class: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(256 // per_class, 16, generator=generator)
    labels = torch.arange(256) // per_class
    # Apart by `gap` in one dimension that is otherwise 0, which float32 can say.
    embeddings = torch.cat([centers[labels], gap * torch.randn(256, 1, generator=generator)], 1)
    found = embeddings.clone().requires_grad_()
    sum_rows(JointBatch.alone(found, labels), "euclidean", sum_of_distances).total.backward()
    exact = embeddings.double().requires_grad_()
    same = (labels[:, None] == labels) & ~torch.eye(256, dtype=torch.bool)
    rows, columns = same.nonzero().unbind(1)
    paired_distances(exact[rows], exact[columns]).sum().backward()
    assert (found.grad.double() - exact.grad).norm() < 1e-4 * exact.grad.norm()
