"""Nearest rows without one row, and without one class, per query."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.index import labeled_search
from distmetric.index.config import SearchConfig
from distmetric.index.labeled_search import LabeledSearch
from distmetric.index.search import build_searcher
from neighbor_oracle import grids, listed, nearest_by_loops

TORCH = SearchConfig(backend="torch")


@st.composite
def labeled(draw):
    """Rows in classes of very different sizes, and the settings that decide how a class is left out."""
    rows = draw(grids(most=50))
    seed, classes = draw(st.integers(0, 2**20)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(len(rows), generator=generator) ** 3 * classes).long() * 7 - 7
    return rows, labels, draw(st.sampled_from([-500, 0, 256])), draw(st.sampled_from([1, 2**30]))


@settings(deadline=None, max_examples=120)
@given(data=labeled(), queries=grids(8), k=st.integers(1, 30), seed=st.integers(0, 99))
@pytest.mark.parametrize("library", ["torch", "auto"])
def test_excluded_rows_and_classes_are_left_out_as_by_plain_loops(library, data, queries, k, seed):
    rows, labels, hidden, block_bytes = data
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(-1, len(rows), (len(queries),), generator=generator)
    apart = torch.randint(-2, 7, (len(queries),), generator=generator) * 7  # some occur, some do not
    for without_rows, without_labels in ((None, None), (own, None), (None, apart), (own, apart)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(labeled_search, "_HIDDEN", hidden)
            search = LabeledSearch(rows, labels, SearchConfig(backend=library), block_bytes=block_bytes)
            found = search.search(queries, k, exclude_rows=without_rows, exclude_labels=without_labels)

        def kept(query, row, without_rows=without_rows, without_labels=without_labels):
            return (without_rows is None or without_rows[query] != row) and (
                without_labels is None or bool(without_labels[query] != labels[row])
            )

        expected = nearest_by_loops(rows.tolist(), queries.tolist(), k, kept)
        assert listed(found.rows, found.squares) == expected


def test_small_classes_are_searched_with_all_rows_and_a_large_one_without_its_own(monkeypatch):
    built = []

    def counted(rows, *args, **kwargs):
        built.append(len(rows))
        return build_searcher(rows, *args, **kwargs)

    monkeypatch.setattr(labeled_search, "build_searcher", counted)
    labels = torch.cat([torch.zeros(1000), torch.arange(1, 101).repeat_interleave(3)]).long()
    rows = torch.randn(1300, 8)
    search = LabeledSearch(rows, labels, TORCH)
    for _ in range(2):
        found = search.search(rows[::10], 5, exclude_labels=labels[::10])
    assert built == [300, 1300]
    assert bool((labels[found.rows] != labels[::10, None]).all())


def test_widths_follow_the_class_that_is_left_out(monkeypatch):
    labels = torch.cat([torch.zeros(100), torch.arange(1, 101).repeat_interleave(2)]).long()
    search = LabeledSearch(torch.randn(300, 4), labels, TORCH)
    widths = []
    original = search.searcher.search

    def counted(queries, k):
        widths.append((len(queries), k))
        return original(queries, k)

    monkeypatch.setattr(search.searcher, "search", counted)
    wanted = torch.tensor([0, 1, 2, 555])
    search.search(torch.randn(4, 4), 3, exclude_labels=wanted)
    assert sorted(widths) == [(1, 3), (1, 3 + 128), (2, 3 + 2)]


def test_no_rows_no_queries_and_one_class():
    empty = LabeledSearch(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    nobody = torch.zeros(3, dtype=torch.int64)
    found = empty.search(torch.zeros(3, 2), 2, exclude_rows=nobody, exclude_labels=nobody)
    assert found.rows.tolist() == [[-1, -1]] * 3
    alike = LabeledSearch(torch.randn(400, 2), torch.zeros(400, dtype=torch.int64), TORCH)
    assert alike.search(torch.zeros(3, 2), 2, exclude_labels=nobody).rows.tolist() == [[-1, -1]] * 3
    for labels in (None, nobody[:0]):
        assert alike.search(torch.empty(0, 2), 2, exclude_labels=labels).rows.shape == (0, 2)
