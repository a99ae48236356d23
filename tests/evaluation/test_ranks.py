"""Ranks of chosen items against a sort of all distances, by every way there is, whatever is equal or nearly so."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.evaluation import ranks as ranks_module
from distmetric.evaluation.copies import find_copies
from distmetric.evaluation.counting import count
from distmetric.evaluation.neighbors import _squared_distances
from distmetric.evaluation.ranks import ItemRanks
from distmetric.evaluation.relevance import MISSING


def ranks_by_sorting_distances(rows: Tensor, queries: Tensor, own: Tensor | None, items: Tensor) -> Tensor:
    found = torch.full_like(items, MISSING)
    for i, query in enumerate(queries):
        distances = _squared_distances(query.expand(len(rows), -1), rows)
        if own is not None:
            distances[own[i]] = torch.inf
        order = distances.argsort(stable=True).tolist()
        for slot, item in enumerate(items[i].tolist()):
            if item >= 0:
                found[i, slot] = order.index(item) + 1
    return found


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KINDS = {
    "arbitrary": lambda rows: rows,
    "on a grid": lambda rows: (rows * 2).round() / 4,
    "close together": lambda rows: rows * 1e-3 + 1000,
    "sign codes": lambda rows: rows.sign(),
    "collapsed": lambda rows: rows[:1].repeat(len(rows), 1),
    "copies": lambda rows: rows[torch.arange(len(rows)) % max(1, len(rows) // 7)],
    "many copies of one": lambda rows: torch.where(torch.arange(len(rows))[:, None] % 3 > 0, rows[:1], rows),
    "with an outlier": lambda rows: torch.cat([rows[:1] * 1e30, rows[1:]]),
    "of very different lengths": lambda rows: (
        rows * torch.logspace(-6, 6, len(rows), dtype=rows.dtype)[:, None]
    ),
}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_ranks_are_those_of_sorted_distances(data):
    n, dim = data.draw(st.sampled_from([1, 2, 25, 130, 400])), data.draw(st.sampled_from([1, 2, 9]))
    rows = KINDS[data.draw(st.sampled_from(sorted(KINDS)))](normal(n, dim, data.draw(st.integers(0, 99))))
    rows = rows.to(data.draw(st.sampled_from([torch.float32, torch.float64])))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    size, width = data.draw(st.sampled_from([1, 4])), data.draw(st.sampled_from([1, 4, 11, 20]))
    items = torch.randint(-1, n, (size, width), generator=generator)
    own = None
    if n > 1 and data.draw(st.booleans()):
        own = torch.randint(n, (size,), generator=generator)
        queries = rows[own]
        items.masked_fill_(items == own[:, None], -1)
    else:
        scale = data.draw(st.sampled_from([1.0, 1e4, 1e25, 1e-30]))
        queries = (torch.randn(size, dim, generator=generator) * scale).to(rows.dtype)
    expected = ranks_by_sorting_distances(rows, queries, own, items)
    for block_bytes in (1, 2**24):
        assert torch.equal(ItemRanks(rows, block_bytes).ranks(queries, own, items), expected)


@pytest.fixture
def ways(monkeypatch) -> Counter[str]:
    """How many queries each way of finding ranks was asked for."""
    asked: Counter[str] = Counter()

    def count_calls(name: str) -> None:
        way = getattr(ItemRanks, name)

        def counted(self, some, *rest):
            asked[name] += len(some.items)
            return way(self, some, *rest)

        monkeypatch.setattr(ItemRanks, name, counted)

    for name in ("_by_counting", "_by_sorting", "_by_all_distances"):
        count_calls(name)
    return asked


@pytest.mark.parametrize(
    ("kind", "width", "expected"),
    [
        ("arbitrary", 3, {"_by_counting"}),
        ("arbitrary", 30, {"_by_sorting"}),
        ("copies", 3, {"_by_counting"}),
        ("collapsed", 3, {"_by_counting"}),
        ("collapsed", 30, {"_by_sorting"}),
        ("close together", 3, {"_by_counting"}),
        ("sign codes", 3, {"_by_counting", "_by_sorting", "_by_all_distances"}),
        ("sign codes", 30, {"_by_sorting", "_by_all_distances"}),
        ("with an outlier", 3, {"_by_counting", "_by_sorting", "_by_all_distances"}),
    ],
)
def test_the_slow_ways_are_for_inputs_that_need_them(ways, kind, width, expected):
    rows = KINDS[kind](normal(2000, 16)).float()
    own = torch.arange(1, 40)
    items = own[:, None] + 40 * torch.arange(1, width + 1)
    found = ItemRanks(rows).ranks(rows[own], own, items)
    assert torch.equal(found, ranks_by_sorting_distances(rows, rows[own], own, items))
    assert set(ways) == expected


def test_few_distances_are_computed_for_arbitrary_rows(monkeypatch):
    """Of 200 queries with 3 items each among 4000 rows, what scores leave in doubt is less than one row an item."""
    computed = []
    exact = ItemRanks._squared_distances
    monkeypatch.setattr(
        ItemRanks,
        "_squared_distances",
        lambda self, queries, row, item: computed.append(len(row)) or exact(self, queries, row, item),
    )
    rows, own = normal(4000, 16).float(), torch.arange(200)
    ItemRanks(rows).ranks(rows[own], own, own[:, None] + torch.tensor([200, 400, 600]))
    assert sum(computed) < 200 * 3


def test_lower_precision_that_others_switched_on_does_not_reach_the_ranks():
    rows, own = normal(3000, 16).float(), torch.arange(20)
    items = own[:, None] + torch.tensor([100, 1000, 2000])
    expected = ranks_by_sorting_distances(rows, rows[own], own, items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ItemRanks(rows).ranks(rows[own], own, items), expected)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(ItemRanks(rows).ranks(rows[own], own, items), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("threads", [1, 3])
def test_ranks_do_not_depend_on_the_number_of_threads(threads):
    rows, own = KINDS["copies"](normal(500, 4)).float(), torch.arange(50)
    torch.set_num_threads(threads)
    for width in (2, 20):
        items = own[:, None] + 50 + 20 * torch.arange(width)
        found = ItemRanks(rows).ranks(rows[own], own, items)
        assert torch.equal(found, ranks_by_sorting_distances(rows, rows[own], own, items))


@pytest.mark.parametrize("columns", [32, 96, 255 * 8 * 4, 9600])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reach", [-3.5, 0.5])
def test_counts_and_lists_are_those_of_comparisons(columns, weighted, reach, monkeypatch):
    monkeypatch.setitem(ranks_module.count.__globals__["_FLAGS"], "cpu", 3 * columns)
    generator = torch.Generator().manual_seed(columns)
    values = torch.randn(8, columns, generator=generator)
    values[1] += 10
    low = reach + torch.randn(8, 3, generator=generator) / 4
    high = low + 8 / columns
    low[2, 1], high[2, 1] = -torch.inf, -torch.inf
    weights = torch.randint(1, 5, (columns,), generator=generator).double() if weighted else None
    found = count(values, low, high, weights, most=columns)
    under = values[:, None] < low[..., None]
    weight = torch.ones(columns) if weights is None else weights
    assert torch.equal(found.below, (under * weight).sum(dim=2).long())
    between = ~under & (values[:, None] <= high[..., None])
    listed = torch.stack([found.row, found.slot, found.column], dim=1).tolist()
    assert sorted(listed) == between.nonzero().tolist()
    assert not found.too_many.any()
    most = int(between.sum(dim=(1, 2)).median())
    some = count(values, low, high, weights, most)
    assert torch.equal(some.too_many, between.sum(dim=(1, 2)) > most)
    kept = ~some.too_many[some.row]
    listed = torch.stack([some.row, some.slot, some.column], dim=1)[kept].tolist()
    assert sorted(listed) == [each for each in between.nonzero().tolist() if not some.too_many[each[0]]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=20))
def test_copies_are_equal_rows(rows):
    copies = find_copies(torch.tensor(rows, dtype=torch.float32))
    distinct = [row for at, row in enumerate(rows) if row not in rows[:at]]
    assert [rows[at] for at in copies.members.tolist()] == distinct
    assert copies.column.tolist() == [distinct.index(row) for row in rows]
    every = torch.arange(len(distinct))
    assert copies.number(every).tolist() == [rows.count(row) for row in distinct]
    for item in range(len(rows)):
        assert copies.before(every, torch.full_like(every, item)).tolist() == [
            rows[:item].count(row) for row in distinct
        ]
