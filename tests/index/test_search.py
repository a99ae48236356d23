"""Exact search in torch, and who is chosen to search."""

import logging
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import InputError, ResourceError
from distmetric.evaluation.gallery import build_gallery
from distmetric.evaluation.neighbors import _squared_distances
from distmetric.index import search as choice
from distmetric.index.config import SearchConfig
from distmetric.index.search import Found, build_searcher, measured_recall, say_once
from distmetric.index.torch_search import TorchSearcher, listed_squares, nearest_first
from neighbor_oracle import grids, hard_to_tell, listed, nearest_by_loops, nearest_by_matrix

TORCH = SearchConfig(backend="torch")


@pytest.fixture
def said(caplog):
    """The lines logged in a test, as if nothing had been said before."""
    say_once.cache_clear()
    caplog.set_level(logging.INFO, "distmetric")
    yield lambda: [record.getMessage() for record in caplog.records]
    say_once.cache_clear()


@settings(deadline=None, max_examples=150)
@given(rows=grids(), queries=grids(12), k=st.integers(1, 65))
def test_rows_and_distances_are_those_of_plain_loops_ties_by_row(rows, queries, k):
    found = TorchSearcher(rows).search(queries, k)
    assert listed(found.rows, found.squares) == nearest_by_loops(rows.tolist(), queries.tolist(), k)
    assert found.rows.shape == found.distances.shape == (len(queries), k)
    assert found.distances.dtype == torch.float32
    expected = [[math.sqrt(square) for square in row] for row in found.squares.tolist()]
    assert found.distances.tolist() == torch.tensor(expected).tolist()


@settings(deadline=None, max_examples=60)
@given(tables=hard_to_tell(), k=st.integers(1, 40))
def test_what_single_precision_cannot_tell_apart_is_told_apart(tables, k):
    rows, queries = tables
    found = TorchSearcher(rows).search(queries, k)
    expected, squares = nearest_by_matrix(rows, queries, k)
    assert torch.equal(found.rows[:, : expected.shape[1]], expected)
    assert torch.equal(found.squares[:, : expected.shape[1]], squares)


def test_block_sizes_and_threads_change_nothing():
    rows = torch.randn(3000, 24).round(decimals=1)
    results = []
    for threads, block_bytes in ((1, 2**12), (2, 2**20), (2, 2**28)):
        torch.set_num_threads(threads)
        results.append(TorchSearcher(rows, block_bytes=block_bytes).search(rows[:300], 20))
    for other in results[1:]:
        assert torch.equal(results[0].rows, other.rows)
        assert torch.equal(results[0].squares, other.squares)


def test_a_search_for_more_or_fewer_neighbors_does_not_depend_on_the_one_before(monkeypatch):
    prepared = []

    def counted(rows, count):
        prepared.append(count)
        return build_gallery(rows, count)

    rows = torch.randn(5000, 4).round(decimals=1)
    fresh = {k: TorchSearcher(rows).search(rows[:20], k) for k in (3, 60, 400, 5001)}
    monkeypatch.setattr("distmetric.index.torch_search.build_gallery", counted)
    searcher = TorchSearcher(rows)
    for k in (3, 60, 400, 60, 3, 5001):
        assert torch.equal(searcher.search(rows[:20], k).rows, fresh[k].rows)
    # One for up to 64, one for 400 that does for 60, and none in float64 for the few after the many.
    assert prepared == [64, 400, 64, 5000]


@pytest.mark.parametrize("dim", [1, 2, 5, 64])
def test_listed_squares_are_those_of_the_evaluation_to_the_last_bit(monkeypatch, dim):
    rows, queries = torch.randn(50, dim), torch.randn(20, dim, dtype=torch.float64)
    pairs = torch.randint(-1, 50, (20, 7))
    squares = listed_squares(rows, queries, pairs)
    expected = torch.stack([_squared_distances(queries, rows[one]) for one in pairs.T], dim=1)
    assert torch.equal(squares, expected.masked_fill(pairs < 0, torch.inf))
    monkeypatch.setattr("distmetric.index.torch_search._PAIR_VALUES", {"cpu": 1})
    assert torch.equal(squares, listed_squares(rows, queries, pairs))


def test_listed_rows_are_sorted_by_square_and_then_by_row():
    rows = torch.tensor([[5, 2, 9, -1, 1], [3, 2, 1, 0, 4]])
    squares = torch.tensor([[1.0, 1.0, 0.5, math.inf, 1.0], [4.0, 3.0, 2.0, 1.0, 0.0]]).double()
    found, apart = nearest_first(rows, squares)
    assert found.tolist() == [[9, 1, 2, 5, -1], [4, 0, 1, 2, 3]]
    assert apart.tolist() == [[0.5, 1.0, 1.0, 1.0, math.inf], [0.0, 1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("library", ["torch", "auto"])
def test_no_queries_no_rows_and_one_row(library):
    config = SearchConfig(backend=library)
    one = build_searcher(torch.ones(1, 3), config)
    assert one.search(torch.empty(0, 3), 2).rows.shape == (0, 2)
    found = one.search(torch.zeros(1, 3), 2)
    assert found.rows.tolist() == [[0, -1]]
    assert found.squares.tolist() == [[3.0, math.inf]]
    empty = build_searcher(torch.empty(0, 3), config).search(torch.zeros(2, 3), 2)
    assert empty.rows.tolist() == [[-1, -1]] * 2
    assert empty.distances.tolist() == [[math.inf] * 2] * 2


@pytest.mark.parametrize("library", ["torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_searched_as_it_came(library, dtype):
    rows = torch.randn(200, 8).to(dtype)
    found = build_searcher(rows, SearchConfig(backend=library)).search(rows[:30], 9)
    expected, squares = nearest_by_matrix(rows.double(), rows[:30].double(), 9)
    assert torch.equal(found.rows, expected)
    assert torch.equal(found.squares, squares)


def test_wrong_arguments_are_refused_in_one_line():
    searcher = build_searcher(torch.randn(5, 3), TORCH)
    with pytest.raises(InputError, match="queries have 4 columns, the indexed embeddings 3"):
        searcher.search(torch.zeros(1, 4), 1)
    with pytest.raises(InputError, match="queries row 1 is not finite"):
        searcher.search(torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]), 1)
    with pytest.raises(InputError, match="k must be 1 or more, got 0"):
        searcher.search(torch.zeros(1, 3), 0)
    with pytest.raises(InputError, match="embeddings row 0 is not finite"):
        build_searcher(torch.full((1, 2), math.inf))


def test_only_keeps_the_order_and_fills_up():
    found = Found.of(
        torch.tensor([[4, 2, 7, -1], [1, 0, 3, 2]]), torch.tensor([[1.0, 4, 9, math.inf], [0, 1, 4, 9]])
    )
    kept = torch.tensor([[False, True, True, True], [False, True, False, False]])
    some = found.only(kept, 2)
    assert some.rows.tolist() == [[2, 7], [0, -1]]
    assert some.distances.tolist() == [[2.0, 3.0], [1.0, math.inf]]


class Listing:
    """Finds what it is told to."""

    name, exact = "listing", False

    def __init__(self, rows, lists):
        self.rows, self.lists = rows, torch.tensor(lists)

    def search(self, queries, k):
        lists = self.lists[:, :k]
        return Found.of(lists, listed_squares(self.rows, queries, lists))


def test_recall_counts_what_is_no_farther_than_the_last_wanted_and_not_the_query_itself():
    rows = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [9.0]])
    # Of query 0: rows 1 and 2 are nearest; of query 4: rows 3 and 1.
    guess = Listing(rows, [[0, 2, 3], [4, 3, 0]])
    own = torch.tensor([0, 4])
    assert measured_recall(guess, TorchSearcher(rows), rows[own], 2, own) == 2 / 4
    # With k = 1 rows 1 and 2 are tied for query 0: either is right.
    assert measured_recall(guess, TorchSearcher(rows), rows[own], 1, own) == 2 / 2
    assert measured_recall(guess, TorchSearcher(rows), rows[own], 3) == 4 / 6
    lone = torch.zeros(1, 1)
    assert measured_recall(Listing(lone, [[0, -1]]), TorchSearcher(lone), lone, 1, torch.tensor([0])) == 1


def test_without_faiss_torch_searches_and_says_so_once(monkeypatch, said):
    monkeypatch.setitem(sys.modules, "faiss", None)
    names = {
        build_searcher(torch.randn(4, 2), SearchConfig(kind=kind)).name for kind in ("auto", "ivf", "flat")
    }
    assert names == {"torch flat on cpu, exact"}
    assert sum("FAISS is not installed" in line for line in said()) == 1


def test_faiss_asked_for_by_name_and_not_there_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ResourceError, match=r"index\.search\.backend=faiss: FAISS is not installed; pip install"
    ):
        build_searcher(torch.randn(4, 2), SearchConfig(backend="faiss"))


def test_faiss_that_cannot_be_imported_counts_as_absent(monkeypatch, said):
    def broken(name):
        raise OSError("libgomp.so.1: cannot\nopen shared object file")

    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(choice.importlib, "import_module", broken)
    assert build_searcher(torch.randn(4, 2)).name == "torch flat on cpu, exact"
    assert any("libgomp.so.1: cannot open shared object file" in line for line in said())


def test_a_gpu_asked_for_by_name_and_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ResourceError, match=r"index\.search\.device=cuda: torch sees no GPU here; give the index one"
    ):
        build_searcher(torch.randn(4, 2), SearchConfig(backend="torch", device="cuda"))


def test_without_a_gpu_the_cpu_searches_and_one_line_says_so(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for _ in range(2):
        assert build_searcher(torch.randn(4, 2), TORCH).name == "torch flat on cpu, exact"
    assert said() == ["no GPU for the index: torch searches on the CPU"]


def test_rows_that_do_not_fit_the_gpu_stay_on_the_cpu(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**20, 2**30))
    assert build_searcher(torch.randn(4, 2), TORCH).name == "torch flat on cpu, exact"
    assert said() == ["the index does not fit the free memory of the GPU: torch searches on the CPU"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_what_the_cpu_finds():
    rows = torch.randn(5000, 32).round(decimals=1)
    ours = build_searcher(rows, SearchConfig(backend="torch", device="cuda"))
    assert ours.name == "torch flat on cuda, exact"
    found, expected = ours.search(rows[:500], 30), TorchSearcher(rows).search(rows[:500], 30)
    assert found.rows.device.type == "cpu"
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.squares, expected.squares)
