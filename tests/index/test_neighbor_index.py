"""Neighbors by id: ties, exclusions, cosine, statistics, files, and mistakes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import InputError
from distmetric.index.class_statistics import class_statistics
from distmetric.index.config import SearchConfig
from distmetric.index.neighbor_index import NeighborIndex
from neighbor_oracle import grids, nearest_by_loops

TORCH = SearchConfig(backend="torch")
LINE = torch.tensor([[0.0], [1.0], [1.0], [5.0]])


@settings(deadline=None, max_examples=80)
@given(rows=grids(), queries=grids(8), k=st.integers(1, 20), seed=st.integers(0, 999))
@pytest.mark.parametrize("library", ["torch", "auto"])
def test_neighbors_are_those_of_plain_loops_ties_by_id(library, rows, queries, k, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(3 * len(rows), generator=generator)[: len(rows)]
    labels = torch.randint(-1, 3, (len(rows),), generator=generator)
    index = NeighborIndex.build(rows, labels, ids, search=SearchConfig(backend=library))
    own = torch.randint(-1, 3 * len(rows), (len(queries),), generator=generator)
    apart = torch.randint(-2, 4, (len(queries),), generator=generator)
    found = index.search(queries, k, exclude_ids=own, exclude_labels=apart)
    order = ids.argsort()

    def kept(query, place):
        return bool(own[query] != ids[order[place]]) and bool(apart[query] != labels[order[place]])

    expected = nearest_by_loops(rows[order].tolist(), queries.tolist(), k, kept)
    for i, pairs in enumerate(expected):
        count = len(pairs)
        at = order[[place for place, _ in pairs]] if pairs else torch.empty(0, dtype=torch.int64)
        assert found.ids[i].tolist() == ids[at].tolist() + [-1] * (k - count)
        assert found.labels[i].tolist() == labels[at].tolist() + [-1] * (k - count)
        assert found.squares[i].tolist() == [square for _, square in pairs] + [math.inf] * (k - count)
    assert torch.equal(found.distances, found.squares.sqrt().float())


def test_arrays_are_taken_as_tensors_are():
    rows, labels, ids = LINE.numpy(), np.array([0, 1, 1, 0], dtype=np.int32), np.array([9, 8, 7, 6])
    found = NeighborIndex.build(rows, labels, ids).search(rows[:1].astype(np.float16), 9)
    assert found.ids.tolist() == [[9, 7, 8, 6, *[-1] * 5]]
    assert found.labels.tolist() == [[0, 1, 1, 0, *[-1] * 5]]
    assert found.distances.tolist() == [[0.0, 1.0, 1.0, 5.0, *[math.inf] * 5]]


@pytest.mark.parametrize("library", ["torch", "auto"])
def test_cosine_distances_are_one_minus_the_cosine_in_its_order(library):
    rows, queries = torch.randn(300, 6, dtype=torch.float64) * 1e3, torch.randn(20, 6, dtype=torch.float64)
    index = NeighborIndex.build(
        rows, torch.zeros(300).long(), metric="cosine", search=SearchConfig(backend=library)
    )
    found = index.search(queries, 15)
    apart = 1 - torch.nn.functional.cosine_similarity(queries[:, None], rows, dim=2)
    assert torch.equal(found.ids, apart.argsort(dim=1)[:, :15])
    torch.testing.assert_close(found.distances, apart.sort(dim=1).values[:, :15].float())
    assert torch.equal(index.search(queries * 5e-7, 15).ids, found.ids)
    torch.testing.assert_close(index.embeddings.norm(dim=1), torch.ones(300, dtype=torch.float64))


def test_cosine_holds_for_the_largest_and_smallest_numbers():
    rows = torch.tensor([[3e38, 3e38], [1e-38, 0.0], [0.0, 1e-38]])
    found = NeighborIndex.build(rows, torch.arange(3), metric="cosine").search(rows[1:2], 3)
    assert found.ids.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(found.distances, torch.tensor([[0.0, 1 - math.sqrt(0.5), 1.0]]))


def test_statistics_and_nearest_classes_are_those_of_the_rows():
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0], [3.0, 0.0], [40.0, 0.0]])
    index = NeighborIndex.build(rows, torch.tensor([5, 5, -2, -2, 8]))
    assert index.statistics.labels.tolist() == [-2, 5, 8]
    assert index.statistics.counts.tolist() == [2, 2, 1]
    assert index.statistics.radius_rms.tolist() == [0.0, 1.0, 0.0]
    labels, distances = index.nearest_classes(3)
    assert labels.tolist() == [[5, 8, -1], [-2, 8, -1], [-2, 5, -1]]
    expected = torch.tensor([[5**0.5, 37.0], [5**0.5, 1522**0.5], [37.0, 1522**0.5]], dtype=torch.float64)
    torch.testing.assert_close(distances[:, :2], expected)
    assert distances[:, 2].tolist() == [math.inf] * 3
    with pytest.raises(InputError, match="k must be 1 or more, got 0"):
        index.nearest_classes(0)


def test_radii_around_given_centers():
    index = NeighborIndex.build(LINE, torch.tensor([3, 1, 1, 3]))
    centers = torch.tensor([[0.0], [9.0], [4.0]], dtype=torch.float64)
    largest, smallest = index.radii(torch.tensor([1, 2, 3]), centers)
    assert largest.tolist() == [1.0, -math.inf, 4.0]
    assert smallest.tolist() == [1.0, math.inf, 1.0]


def test_recall_of_an_exact_index_is_one_and_of_lists_what_it_is():
    rows = torch.randn(2000, 16)
    assert NeighborIndex.build(rows, torch.zeros(2000).long()).recall(5) == 1
    assert NeighborIndex.build(LINE, torch.zeros(4).long(), search=TORCH).recall(9, LINE) == 1
    pytest.importorskip("faiss")
    index = NeighborIndex.build(
        rows, torch.zeros(2000).long(), search=SearchConfig(kind="ivf", lists=50, probes=1)
    )
    queries = torch.randn(40, 16)
    found = index.search(queries, 10).ids
    exact = torch.cdist(queries, rows).argsort(dim=1)[:, :10]
    hits = sum(len({*a} & {*b}) for a, b in zip(found.tolist(), exact.tolist(), strict=True))
    assert 0.05 < hits / 400 < 0.9
    assert index.recall(10, queries) == hits / 400
    assert not index.exact
    assert index.name.endswith(f"recall@10 {index.recall(10):.2f}")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_saved_index_answers_as_before(tmp_path, metric, dtype, kind):
    rows = torch.randn(600, 5, dtype=dtype)
    ids, labels = torch.randperm(5000)[:600], torch.randint(0, 40, (600,))
    config = SearchConfig(kind=kind, lists=6, probes=2)
    index = NeighborIndex.build(rows, labels, ids, metric=metric, search=config)
    location = str(tmp_path / "deep" / "index.arrow")
    index.save(location)
    loaded = NeighborIndex.load(location)
    assert (loaded.name, loaded.metric, loaded.search_config, len(loaded)) == (
        index.name,
        metric,
        config,
        600,
    )
    for kwargs in ({}, {"exclude_ids": ids[:50], "exclude_labels": labels[:50]}):
        one, other = (each.search(rows[:50], 7, **kwargs) for each in (index, loaded))
        for name in ("ids", "distances", "labels", "squares"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(
        loaded.statistics.radius_max, class_statistics(index.embeddings, index.labels).radius_max
    )
    assert NeighborIndex.load(location, search=TORCH).name == "torch flat on cpu, exact"


def test_an_empty_index_can_be_saved_and_finds_nothing(tmp_path):
    index = NeighborIndex.build(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    index.save(str(tmp_path / "index.arrow"))
    for one in (index, NeighborIndex.load(str(tmp_path / "index.arrow"))):
        assert len(one) == len(one.statistics) == 0
        found = one.search(
            torch.zeros(2, 3), 2, exclude_ids=torch.zeros(2).long(), exclude_labels=torch.zeros(2).long()
        )
        assert found.ids.tolist() == [[-1, -1]] * 2
        assert one.nearest_classes(2)[0].shape == (0, 2)
        assert one.recall(3) == 1


def test_other_files_are_no_index(tmp_path):
    from distmetric.index.arrays import write_arrays

    with pytest.raises(InputError, match="does not exist"):
        NeighborIndex.load(str(tmp_path / "index.arrow"))
    write_arrays(str(tmp_path / "other.arrow"), {"a": np.zeros(3)}, {"format": 1})
    with pytest.raises(InputError, match="is no neighbor index of format 1"):
        NeighborIndex.load(str(tmp_path / "other.arrow"))
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1")
    with pytest.raises(InputError, match="is damaged or not one of ours"):
        NeighborIndex.load(str(tmp_path / "broken.arrow"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": torch.zeros(4)}, r"embeddings must have shape \(N, D\)"),
        ({"embeddings": torch.tensor([[1.0], [math.nan], [0.0], [0.0]])}, "embeddings row 1 is not finite"),
        ({"labels": torch.zeros(3).long()}, r"labels must have shape \(4,\)"),
        ({"labels": torch.zeros(4)}, "labels must be integers"),
        ({"ids": torch.tensor([1, 2, 3])}, r"ids must have shape \(4,\)"),
        ({"ids": torch.tensor([4, 2, 4, 1])}, "ids must be unique, 4 is there more than once"),
        ({"ids": torch.tensor([4, 2, -3, 1])}, "ids must be 0 or more, got -3"),
        ({"metric": "dot"}, "metric='dot' is not known: choose one of l2, cosine"),
        ({"metric": "cosine"}, "embeddings row 0 has length 0, which has no cosine; use metric=l2"),
    ],
)
def test_wrong_members_are_refused_in_one_line(changed, message):
    with pytest.raises(InputError, match=message):
        NeighborIndex.build(**{"embeddings": LINE, "labels": torch.zeros(4).long(), **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": torch.zeros(2, 3)}, "queries have 3 columns, the indexed embeddings 1"),
        ({"queries": torch.full((2, 1), math.inf)}, "queries row 0 is not finite"),
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"exclude_ids": torch.zeros(3).long()}, r"exclude_ids must have shape \(2,\)"),
        ({"exclude_labels": torch.zeros(2)}, "exclude_labels must be integers"),
        ({"queries": torch.zeros(2, 1)}, "queries row 0 has length 0"),
    ],
)
def test_wrong_queries_are_refused_in_one_line(changed, message):
    index = NeighborIndex.build(LINE + 1, torch.zeros(4).long(), metric="cosine")
    with pytest.raises(InputError, match=message):
        index.search(**{"queries": torch.ones(2, 1), "k": 1, **changed})
