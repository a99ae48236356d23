"""Shards answer as one index does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import InputError
from distmetric.index.config import SearchConfig
from distmetric.index.neighbor_index import NeighborIndex
from distmetric.index.sharded import ShardedIndex
from neighbor_oracle import grids, hard_to_tell

TORCH = SearchConfig(backend="torch")


def split(rows, labels, ids, shard_of, **kwargs):
    return ShardedIndex(
        [
            NeighborIndex.build(rows[shard_of == s], labels[shard_of == s], ids[shard_of == s], **kwargs)
            for s in range(3)
        ]
    )


def assert_same_neighbors(sharded, index, queries, k, **kwargs):
    one, other = index.search(queries, k, **kwargs), sharded.search(queries, k, **kwargs)
    for name in ("ids", "labels", "squares", "distances"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@st.composite
def assigned(draw, tables):
    """A table with ids, labels and shards: whole classes or any rows, evenly or hardly any in some."""
    rows, queries = draw(tables)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    ids = torch.randperm(2 * len(rows), generator=generator)[: len(rows)]
    labels = torch.randint(0, draw(st.integers(1, 9)), (len(rows),), generator=generator)
    of_class = (torch.rand(9, generator=generator) ** draw(st.sampled_from([1, 6])) * 3).long()
    of_row = (torch.rand(len(rows), generator=generator) ** draw(st.sampled_from([1, 6])) * 3).long()
    return rows, queries, labels, ids, of_class[labels] if draw(st.booleans()) else of_row


@settings(deadline=None, max_examples=100)
@given(table=assigned(st.tuples(grids(), grids(8))), k=st.integers(1, 30), seed=st.integers(0, 99))
@pytest.mark.parametrize("library", ["torch", "auto"])
def test_three_shards_find_what_one_index_finds(library, table, k, seed):
    rows, queries, labels, ids, shard_of = table
    config = SearchConfig(backend=library)
    sharded = split(rows, labels, ids, shard_of, search=config)
    index = NeighborIndex.build(rows, labels, ids, search=config)
    assert len(sharded) == len(index)
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(-1, 2 * len(rows), (len(queries),), generator=generator)
    apart = torch.randint(0, 10, (len(queries),), generator=generator)
    assert_same_neighbors(sharded, index, queries, k)
    assert_same_neighbors(sharded, index, queries, k, exclude_ids=own, exclude_labels=apart)


@settings(deadline=None, max_examples=50)
@given(table=assigned(hard_to_tell()), k=st.integers(1, 30))
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_distances_that_round_to_the_same_number_are_merged_in_their_true_order(metric, table, k):
    rows, queries, labels, ids, shard_of = table
    sharded = split(rows, labels, ids, shard_of, metric=metric, search=TORCH)
    index = NeighborIndex.build(rows, labels, ids, metric=metric, search=TORCH)
    assert_same_neighbors(sharded, index, queries, k)


@settings(deadline=None, max_examples=100)
@given(table=assigned(st.tuples(grids(), grids(1))))
def test_merged_statistics_are_those_of_one_index(table):
    rows, _, labels, ids, shard_of = table
    merged = split(rows, labels, ids, shard_of, search=TORCH).statistics
    whole = NeighborIndex.build(rows, labels, ids, search=TORCH).statistics
    assert torch.equal(merged.labels, whole.labels)
    assert torch.equal(merged.counts, whole.counts)
    for name in ("centroids", "radius_max", "radius_min", "radius_rms"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=1e-7)


def test_classes_that_lie_in_one_shard_keep_its_statistics_to_the_last_bit():
    rows, labels = torch.randn(90, 7), torch.arange(90) % 11
    merged = split(rows, labels, torch.arange(90), labels % 2, search=TORCH)
    whole = NeighborIndex.build(rows, labels, search=TORCH)
    for name, value in vars(whole.statistics).items():
        assert torch.equal(getattr(merged.statistics, name), value), name
    for one, other in zip(merged.nearest_classes(4), whole.nearest_classes(4), strict=True):
        assert torch.equal(one, other)


def test_a_class_is_measured_around_its_merged_center():
    rows, labels = torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.zeros(4).long()
    statistics = split(rows, labels, torch.arange(4), torch.tensor([0, 0, 2, 2])).statistics
    assert statistics.counts.tolist() == [4]
    assert statistics.centroids.tolist() == [[3.0]]
    assert (statistics.radius_max.item(), statistics.radius_min.item()) == (3.0, 2.0)
    assert statistics.radius_rms.item() == pytest.approx(6.5**0.5, abs=1e-12)


def test_no_shards_are_refused_and_empty_ones_are_not():
    with pytest.raises(InputError, match="one shard or more"):
        ShardedIndex([])
    nobody = torch.empty(0, dtype=torch.int64)
    sharded = split(torch.empty(0, 2), nobody, nobody, nobody)
    assert sharded.search(torch.zeros(1, 2), 3).ids.tolist() == [[-1, -1, -1]]
    assert len(sharded.statistics) == 0
