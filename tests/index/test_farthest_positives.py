"""Farthest rows of the same class against plain loops: ties by row, any block size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.index import farthest_positives as module
from distmetric.index.farthest_positives import farthest_positives


def oracle(rows, labels, count):
    """For every row the (row, squared distance) of the farthest of its class."""
    expected = []
    for i, x in enumerate(rows):
        others = [
            (-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)), j)
            for j, y in enumerate(rows)
            if j != i and labels[j] == labels[i]
        ]
        found = [(j, -square) for square, j in sorted(others)[:count]]
        expected.append(found + [(-1, -np.inf)] * (count - len(found)))
    return expected


def listed(embeddings, labels, count, block_bytes):
    found = {}
    for rows, neighbors, squares in farthest_positives(embeddings, labels, count, block_bytes=block_bytes):
        for row, *pairs in zip(rows.tolist(), neighbors.tolist(), squares.tolist(), strict=True):
            assert row not in found
            found[row] = list(zip(*pairs, strict=True))
    return [found[row] for row in range(len(labels))]


@settings(deadline=None, max_examples=80)
@given(
    data=st.data(),
    num_rows=st.integers(0, 40),
    classes=st.integers(1, 4),
    dim=st.integers(1, 3),
    reach=st.sampled_from([0, 1, 3, 50]),
    count=st.integers(1, 4),
    block_bytes=st.sampled_from([1, 5000, 2**20]),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_the_farthest_are_those_of_plain_loops(
    data, num_rows, classes, dim, reach, count, block_bytes, dtype
) -> None:
    number = st.integers(-reach, reach)
    rows = data.draw(
        st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=num_rows, max_size=num_rows)
    )
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=num_rows, max_size=num_rows))
    embeddings = torch.tensor(rows, dtype=dtype).view(num_rows, dim)
    wanted = torch.tensor(labels, dtype=torch.int64)
    assert listed(embeddings, wanted, count, block_bytes) == oracle(rows, labels, count)


@pytest.mark.parametrize("spread", [1.0, 1e-6])
def test_distances_by_differences_are_taken_of_a_shortlist_only(spread, monkeypatch) -> None:
    taken = []
    exact = module.listed_squares
    monkeypatch.setattr(module, "listed_squares", lambda *args: taken.append(args[2].numel()) or exact(*args))
    embeddings = 1 + spread * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(300, dtype=torch.int64)
    expected = (embeddings[:, None].double() - embeddings.double()).square().sum(dim=2)
    squares, neighbors = expected.fill_diagonal_(-torch.inf).sort(dim=1, descending=True, stable=True)
    found = listed(embeddings, labels, 3, 2**18)
    assert [[row for row, _ in pairs] for pairs in found] == neighbors[:, :3].tolist()
    torch.testing.assert_close(
        torch.tensor([[s for _, s in pairs] for pairs in found]), squares[:, :3].float()
    )
    assert sum(taken) <= 300 * (3 + 8) * 1.05
