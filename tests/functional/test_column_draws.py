"""Columns drawn for the anchors of a block, against plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from distmetric.functional import distances
from distmetric.functional.column_draws import WeightedDraws, at_rank, draw_negatives
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs

LARGEST = 1 - 2.0**-53


def blocks(labels: list[int], column_labels: list[int] | None = None, rows: int = 4) -> Iterator[PairBlock]:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(len(labels), 3, dtype=torch.float64, generator=generator)
    label = torch.tensor(labels)
    batch = JointBatch.alone(anchors, label)
    if column_labels is not None:
        columns = torch.randn(len(column_labels), 3, dtype=torch.float64, generator=generator)
        batch = JointBatch(anchors, label, columns, torch.tensor(column_labels), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "MIN_BLOCK_ROWS", rows)
        patch.setitem(distances.BLOCK_BYTES, "cpu", 1)
        yield from SortedPairs(batch, "euclidean").blocks()


LABELS = [3, 0, 2, 2, 0, 1, 2, 0, 0, 5]


@pytest.mark.parametrize("column_labels", [None, [0, 9, 2, 2, 9, 1, 0]], ids=["alone", "reference"])
def test_negatives_are_counted_in_the_order_of_the_batch(column_labels) -> None:
    all_columns = LABELS if column_labels is None else column_labels
    for block in blocks(LABELS, column_labels):
        for i, row in enumerate(block.rows.tolist()):
            expected = [c for c, label in enumerate(all_columns) if label != LABELS[row]]
            numbers = [(j + 0.5) / len(expected) for j in range(len(expected))] + [0.0, LARGEST]
            drawn = draw_negatives(
                block, torch.tensor(numbers, dtype=torch.float64).expand(len(block.rows), -1)
            )
            assert drawn[i].tolist() == [*expected, expected[0], expected[-1]]


def test_columns_of_weight_zero_are_never_drawn_and_blocks_may_shrink() -> None:
    draws, sizes = WeightedDraws(), []
    for block in blocks(LABELS):
        sizes.append(len(block.rows))
        weights = torch.full((len(block.rows), 10), -torch.inf)
        # In the caller's order: columns 2 and 7, one to three; and no column at all for the block's first anchor.
        weights[:, block.columns == 2], weights[:, block.columns == 7] = -math.log(3), 0.0
        weights[0] = -torch.inf
        numbers = torch.tensor([0.0, 0.2499, 0.2501, LARGEST], dtype=torch.float64).expand(
            len(block.rows), -1
        )
        columns, found = draws.draw(weights, block, numbers, torch.empty_like(weights))
        assert found.tolist() == [False] + [True] * (len(block.rows) - 1)
        assert columns[1:].tolist() == [[2, 2, 7, 7]] * (len(block.rows) - 1)
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("largest", [1, 2, 40, 300, 999])
def test_ranks_are_those_of_sorted_rows(count, largest) -> None:
    values = torch.randn(7, 1000)
    ranks = torch.randint(0, largest, (7, count))
    assert torch.equal(at_rank(values, ranks), values.argsort(1).gather(1, ranks))
