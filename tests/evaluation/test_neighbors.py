"""`nearest`: order, exclusion of self, mistakes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import nearest, neighbors
from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.neighbors import _squared_distances, smallest

LINE = np.array([[0.0], [1.0], [3.0], [3.0], [7.0]])


def test_neighbors_come_nearest_first_without_self_and_ties_by_index():
    found = nearest(LINE, np.array([2, 3, 0, 4]), 3)
    assert found.tolist() == [[3, 1, 0], [2, 1, 0], [1, 2, 3], [2, 3, 1]]
    assert found.dtype == torch.int64


def test_no_queries_give_no_rows():
    assert nearest(LINE, np.array([], dtype=np.int64), 2).shape == (0, 2)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_folded_selection_finds_the_smallest(width):
    scores = torch.rand(7, 32 * 40, generator=torch.Generator().manual_seed(0))
    values, ids = smallest(scores, width)
    assert torch.equal(values, scores.sort(dim=1).values[:, :width])
    assert torch.equal(scores.gather(1, ids), values)


@pytest.mark.parametrize("dim", [1, 2, 3, 13, 64])
def test_exact_distances_do_not_depend_on_the_batch(dim):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 50, dim, generator=generator)
    whole = _squared_distances(left, right)
    torch.testing.assert_close(whole, (left.double() - right.double()).square().sum(dim=1))
    single = torch.cat([_squared_distances(left[i : i + 1], right[i : i + 1]) for i in range(50)])
    assert torch.equal(whole, single)


def dense_ranking(rows: Tensor, queries: Tensor, k: int) -> Tensor:
    distances = (rows[queries, None].double() - rows.double()).square().sum(dim=2)
    distances[torch.arange(len(queries)), queries] = torch.inf
    return distances.argsort(dim=1, stable=True)[:, :k]


def test_lower_precision_that_others_switched_on_does_not_reach_the_order():
    rows, queries = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40)
    expected = dense_ranking(rows, queries, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(rows, queries, 5), expected)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest(rows, queries, 5), expected)
        assert build_gallery(rows, 5).centered.dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("spread", "shift"), [(1.0, 0.0), (1.0, 300.0), (1e-3, 300.0), (2.0**80, 0.0), (2.0**-80, 0.0)]
)
def test_few_distances_are_computed_twice_wherever_the_embeddings_lie(monkeypatch, spread, shift):
    computed = []
    exact = neighbors._squared_distances
    monkeypatch.setattr(
        neighbors, "_squared_distances", lambda left, right: computed.append(len(left)) or exact(left, right)
    )
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)).double() * spread + shift
    rows, queries = rows.float(), torch.arange(40)
    assert torch.equal(nearest(rows, queries, 5), dense_ranking(rows, queries, 5))
    assert sum(computed) < 40 * 5


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(InputError, match="k must be from 1 to 4"):
        nearest(LINE, np.array([0]), k)


@pytest.mark.parametrize("query", [-1, 5])
def test_queries_must_be_rows(query):
    with pytest.raises(InputError, match="row indices from 0 to 4"):
        nearest(LINE, np.array([query]), 1)
