"""Nearest and farthest of an identity by a side distance: plain loops, ties, block sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from distmetric.functional import JointBatch, Tuples, distances, identity_extremes
from distmetric.functional.distances import paired_distances
from distmetric.functional.within_identity import value_differences


def batch_of(labels: list[int]) -> JointBatch:
    return JointBatch.alone(torch.zeros(len(labels), 1), torch.tensor(labels, dtype=torch.int64))


def listed(found: Tuples) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    nearest = zip(found.anchors_of_positives.tolist(), found.positives.tolist(), strict=True)
    farthest = zip(found.anchors_of_negatives.tolist(), found.negatives.tolist(), strict=True)
    return set(nearest), set(farthest)


def expected(side, labels, side_distance) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    found = oracles.identity_extremes(side, labels, side_distance)
    return (
        {(a, j) for a, nearest, _ in found for j in nearest},
        {(a, j) for a, _, farthest in found for j in farthest},
    )


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2), st.integers(-1, 2)), max_size=16),
    st.sampled_from([paired_distances, value_differences]),
    st.integers(1, 2000),
)
@settings(max_examples=60, deadline=None)
def test_they_are_those_of_plain_loops_with_all_ties_for_any_block_size(rows, distance, block_bytes) -> None:
    # On a grid of a few points many distances tie.
    labels, side = [label for label, *_ in rows], [list(point) for _, *point in rows]
    as_tensor = torch.tensor(side, dtype=torch.int64).view(-1, 2)
    as_tensor = as_tensor.double() if distance is paired_distances else as_tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distances.BLOCK_BYTES, "cpu", block_bytes)
        found = identity_extremes(batch_of(labels), as_tensor, as_tensor, distance)
    loops = oracles.distance if distance is paired_distances else oracles.value_differences
    assert listed(found) == expected(side, labels, loops)
    for part in (found.anchors_of_positives, found.anchors_of_negatives):
        assert part.tolist() == sorted(part.tolist())


def test_other_columns_than_the_anchors_are_all_candidates() -> None:
    columns = torch.tensor([[0.0], [1.0], [5.0], [0.9]])
    batch = JointBatch(
        torch.zeros(2, 1), torch.tensor([7, 3]), torch.zeros(4, 1), torch.tensor([7, 7, 7, 8]), None
    )
    found = identity_extremes(batch, torch.tensor([[0.0], [0.0]]), columns)
    assert listed(found) == ({(0, 0)}, {(0, 2)})  # nobody has the second anchor's label


def test_an_unknown_value_is_half_a_difference_to_everything() -> None:
    first = torch.tensor([[0, 1], [0, -1], [-1, -1], [2, 1]])
    second = torch.tensor([[0, 2], [0, 1], [-1, 3], [0, -1]])
    assert value_differences(first, second).tolist() == [1.0, 0.5, 1.0, 1.5]


def test_no_gradient_goes_through_the_selection() -> None:
    side = torch.randn(6, 2, requires_grad=True)
    found = identity_extremes(batch_of([0, 0, 0, 1, 1, 1]), side, side)
    assert not any(part.requires_grad for part in (found.positives, found.negatives))
