"""The metrics against plain loops: both protocols, ties, shards, lone classes, bounded memory."""

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from distmetric.errors import InputError
from distmetric.evaluation import RetrievalMetrics, evaluate, measure_names, nearest, query_measures
from memory_process import measured
from ranking_oracle import clusters, ranking, retrieval, without_whole_ranking

KS = (1, 2, 4, 8)

# Small multiples of 1/4 have exact squared distances, and so few values that most distances are tied.
coordinates = st.integers(-2, 2).map(lambda value: value / 4)


@st.composite
def labeled(draw, min_rows: int = 2, dimensions: int = 2) -> tuple[list[list[float]], list[int]]:
    size = draw(st.integers(min_rows, 24))
    row = st.lists(coordinates, min_size=dimensions, max_size=dimensions)
    rows = draw(st.lists(row, min_size=size, max_size=size))
    return rows, draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))


def oracle(*arguments, **options) -> dict[str, float]:
    return without_whole_ranking(retrieval(*arguments, **options))


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


LISTS = st.sampled_from([(1, 2, 4, 8), (3,), (1, 17, 20, 1000)])


@settings(deadline=None, max_examples=60)
@given(
    data=labeled(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    block_bytes=st.sampled_from([1, 20_000, 2**27]),
    ks=LISTS,
)
def test_leave_one_out_equals_plain_loops_with_many_ties(data, dtype, block_bytes, ks):
    rows, labels = data
    if len(set(labels)) == len(labels):
        labels[0] = labels[1]
    expected = retrieval(rows, labels, rows, labels, leave_one_out=True, ks=ks)
    rows, labels = torch.tensor(rows, dtype=dtype), torch.tensor(labels)
    found = evaluate(rows, labels, ks=ks, whole_ranking=True, block_bytes=block_bytes)
    assert_same(found.to_dict(), expected)
    found = evaluate(rows, labels, ks=ks, block_bytes=block_bytes)
    assert_same(found.to_dict(), without_whole_ranking(expected))


@settings(deadline=None, max_examples=60)
@given(queries=labeled(min_rows=1), gallery=labeled(min_rows=1), ks=LISTS)
def test_query_gallery_equals_plain_loops_with_many_ties(queries, gallery, ks):
    (rows, labels), (gallery_rows, gallery_labels) = queries, gallery
    labels[0] = gallery_labels[-1]
    expected = retrieval(rows, labels, gallery_rows, gallery_labels, leave_one_out=False, ks=ks)
    sides = {
        "gallery_embeddings": np.array(gallery_rows),
        "gallery_labels": np.array(gallery_labels),
        "ks": ks,
    }
    found = evaluate(np.array(rows), np.array(labels), whole_ranking=True, **sides)
    assert_same(found.to_dict(), expected)
    assert_same(
        evaluate(np.array(rows), np.array(labels), **sides).to_dict(), without_whole_ranking(expected)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arbitrary_floats_equal_plain_loops(dtype):
    rows, labels = clusters(num_classes=17, per_class=5, dim=13)
    rows = rows.to(dtype)
    expected = oracle(rows.tolist(), labels.tolist(), rows.tolist(), labels.tolist(), leave_one_out=True)
    assert 0.2 < expected["map_at_r"] < 0.9
    assert_same(evaluate(rows, labels).to_dict(), expected)


def test_duplicates_of_arbitrary_floats_are_ranked_by_index():
    """A kernel may score equal rows unequally where its edge columns begin; their order must not show it."""
    generator = torch.Generator().manual_seed(3)
    distinct = torch.nn.functional.normalize(torch.randn(9, 37, generator=generator), dim=1)
    pick = torch.randint(9, (101,), generator=generator)
    rows = distinct[pick]
    expected = [ranking(rows[i].tolist(), rows.tolist(), i)[:40] for i in range(0, 101, 4)]
    assert len({int(pick[j]) for j in expected[0]}) > 2
    for block_bytes in (1, 2**20, 2**27):
        found = nearest(rows, torch.arange(0, 101, 4), 40, block_bytes=block_bytes)
        assert found.tolist() == expected


def test_more_equal_distances_than_candidates_are_still_ranked_by_index():
    """Sign codes: thousands of ties across distinct rows, far beyond the first candidates looked at."""
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 2, (600, 12), generator=generator) * 2.0 - 1.0
    found = nearest(codes, torch.arange(0, 600, 40), 5).tolist()
    expected = [ranking(codes[i].tolist(), codes.tolist(), i)[:5] for i in range(0, 600, 40)]
    assert found == expected


def test_embeddings_close_together_far_from_the_origin_keep_their_order():
    rows, labels = clusters(num_classes=20, per_class=4, dim=8)
    shifted = (rows * 2**-6).round(decimals=3) + 1000.0
    expected = oracle(shifted.tolist(), labels.tolist(), shifted.tolist(), labels.tolist(), True)
    assert expected["recall_at_1"] < 1.0
    assert_same(evaluate(shifted, labels).to_dict(), expected)


def test_one_huge_outlier_changes_nothing_else():
    rows, labels = clusters(num_classes=20, per_class=4, dim=8)
    rows = torch.cat([rows, torch.full((1, 8), 1e30)])
    labels = torch.cat([labels, torch.tensor([99])])
    expected = oracle(rows.tolist(), labels.tolist(), rows.tolist(), labels.tolist(), leave_one_out=True)
    assert_same(evaluate(rows, labels).to_dict(), expected)


def test_a_collapsed_model_ranks_by_index():
    labels = torch.arange(30) % 3
    rows = [[0.1] * 4] * 30
    expected = oracle(rows, labels.tolist(), rows, labels.tolist(), leave_one_out=True)
    assert_same(evaluate(torch.tensor(rows), labels).to_dict(), expected)


@pytest.mark.parametrize("cuts", [(0, 74), (0, 1, 74), (0, 40, 41, 74), (0, 7, 7, 70, 74)])
def test_ragged_shards_add_up_to_the_whole(cuts):
    rows, labels = clusters(num_classes=23, per_class=3, dim=6)
    rows, labels = torch.cat([rows, rows[:5]]), torch.cat([labels, torch.arange(100, 105)])
    shards = [torch.arange(low, high) for low, high in itertools.pairwise(cuts)]
    assert sum(len(shard) for shard in shards) == len(rows)
    for whole_ranking in (False, True):
        options = {"ks": KS, "whole_ranking": whole_ranking}
        whole = query_measures(rows, labels, rows, labels, torch.arange(len(rows)), **options)
        parts = [query_measures(rows[own], labels[own], rows, labels, own, **options) for own in shards]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0, equal_nan=True)
        assert RetrievalMetrics.from_measures(torch.cat(parts), **options) == evaluate(
            rows, labels, **options
        )


def test_a_shard_without_queries_has_no_rows():
    rows, labels = clusters(num_classes=3, per_class=2, dim=2)
    empty = torch.arange(0)
    assert query_measures(rows[empty], labels[empty], rows, labels, empty, KS).shape == (0, 6)


def test_measures_are_those_of_each_query_under_their_names():
    """Neighbors of row 0: wrong, right, wrong, right; row 4 is alone in its class."""
    rows, labels = np.array([[0.0], [1.0], [2.0], [4.0], [3.0]]), np.array([0, 1, 0, 0, 2])
    names = measure_names((4, 1, 2), whole_ranking=True)
    assert names == (
        "recall_at_1",
        "recall_at_2",
        "recall_at_4",
        "map_at_r",
        "r_precision",
        "mean_average_precision",
        "mean_reciprocal_rank",
    )
    found = query_measures(rows, labels, rows, labels, np.arange(5), (4, 1, 2), whole_ranking=True)
    assert found[0].tolist() == [0.0, 1.0, 1.0, 0.25, 0.5, 0.5, 0.5]
    assert found[[1, 4]].isnan().all()
    assert not found[[0, 2, 3]].isnan().any()
    short = query_measures(rows, labels, rows, labels, np.arange(5), (4, 1, 2))
    assert torch.equal(short[[0, 2, 3]], found[[0, 2, 3], :5])


def test_permuting_and_renaming_classes_changes_nothing():
    rows, labels = clusters(num_classes=12, per_class=4, dim=5)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    expected = evaluate(rows, labels).to_dict()
    assert_same(evaluate(rows[order], 7 - 1000 * labels[order]).to_dict(), expected)


def test_recall_equals_scikit_learn():
    rows, labels = clusters(num_classes=150, per_class=4, dim=16)
    model = NearestNeighbors(n_neighbors=9, algorithm="brute").fit(rows.double().numpy())
    neighbors = model.kneighbors(return_distance=False)
    hits = labels.numpy()[neighbors] == labels.numpy()[:, None]
    found = evaluate(rows.numpy(), labels.numpy(), ks=(1, 5, 9))
    assert found.recall_at == {k: pytest.approx(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 9)}


def test_classes_of_very_different_sizes_in_small_blocks():
    sizes = torch.tensor([200, 40, 2, 2, 1])
    labels = torch.arange(5).repeat_interleave(sizes)
    rows = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(5)) + labels[:, None] * 0.5
    expected = oracle(rows.tolist(), labels.tolist(), rows.tolist(), labels.tolist(), leave_one_out=True)
    assert_same(evaluate(rows, labels, block_bytes=200_000).to_dict(), expected)


def test_lone_classes_are_counted_and_left_out_of_the_means():
    rows = np.array([[0.0], [1.0], [10.0], [11.0], [0.1]])
    metrics = evaluate(rows, np.array([0, 0, 1, 1, 2]), ks=(1, 2))
    assert (metrics.queries, metrics.lone_queries) == (4, 1)
    # The two queries of class 0 have the lone item as nearest neighbor, or second to it.
    assert metrics.recall_at == {1: 0.5, 2: 1.0}
    assert metrics.map_at_r == 0.5


def test_k_beyond_the_gallery_means_all_of_it():
    metrics = evaluate(np.array([[0.0], [1.0], [5.0]]), np.array([0, 1, 0]), ks=(1, 50))
    assert metrics.recall_at == {1: 0.0, 50: 1.0}


def test_large_k_is_found_by_rank_where_the_short_list_has_nothing():
    rows, labels = clusters(num_classes=60, per_class=3, dim=2)
    ks = (1, 10, 40, 100)
    expected = oracle(rows.tolist(), labels.tolist(), rows.tolist(), labels.tolist(), True, ks=ks)
    assert expected["recall_at_10"] < expected["recall_at_40"] < expected["recall_at_100"] < 1
    assert_same(evaluate(rows, labels, ks=ks).to_dict(), expected)


def test_one_class_only_is_all_found():
    rows = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    metrics = evaluate(rows, torch.zeros(150, dtype=torch.int64), whole_ranking=True).to_dict()
    assert metrics.pop("num_queries") == 150
    assert metrics.pop("num_lone_queries") == 0
    assert set(metrics.values()) == {1.0}


def test_values_of_a_known_ranking():
    """One query, neighbors right, wrong, right, wrong, right: R = 3, P(1) = 1, P(3) = 2/3."""
    metrics = evaluate(
        np.array([[0.0]]),
        np.array([1]),
        gallery_embeddings=np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]),
        gallery_labels=np.array([1, 0, 1, 0, 1]),
        ks=(2, 1, 2),
    )
    assert metrics.r_precision == pytest.approx(2 / 3)
    assert metrics.map_at_r == pytest.approx((1 + 2 / 3) / 3)
    assert list(metrics.to_dict()) == [
        "recall_at_1",
        "recall_at_2",
        "map_at_r",
        "r_precision",
        "num_queries",
        "num_lone_queries",
    ]


GOOD, CLASSES = np.zeros((4, 2)), np.array([0, 0, 1, 1])
BAD = np.array([[0.0, 0.0], [0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": BAD}, "row 2 is not finite"),
        ({"labels": CLASSES[:3]}, r"must have shape \(4,\).*got \(3,\)"),
        ({"labels": CLASSES + 0.5}, "must be integers"),
        ({"embeddings": GOOD[0]}, r"must have shape \(N, D\)"),
        ({"embeddings": GOOD * 1j}, "must be real numbers"),
        ({"embeddings": GOOD[:1], "labels": CLASSES[:1]}, "at least 2 embeddings, got 1"),
        ({"embeddings": GOOD[:0], "labels": CLASSES[:0]}, "at least 2 embeddings, got 0"),
        ({"labels": np.arange(4)}, "none of 4 queries has a relevant gallery item"),
        ({"ks": (1, 0)}, r"each at least 1, got \[1, 0\]"),
        ({"ks": ()}, "one or more k"),
        ({"gallery_embeddings": GOOD}, "together"),
        ({"gallery_embeddings": BAD, "gallery_labels": CLASSES}, "gallery embeddings row 2"),
        (
            {"gallery_embeddings": GOOD[:, :1], "gallery_labels": CLASSES},
            "2 dimensions but the gallery has 1",
        ),
        ({"gallery_embeddings": GOOD, "gallery_labels": CLASSES[1:]}, "gallery labels must have shape"),
        ({"gallery_embeddings": GOOD[:0], "gallery_labels": CLASSES[:0]}, "nothing to search"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        evaluate(**{"embeddings": GOOD, "labels": CLASSES, **arguments})
    assert "\n" not in str(caught.value)


def test_a_bad_query_index_or_table_of_measures_is_refused():
    with pytest.raises(InputError, match="query_index must have shape"):
        query_measures(GOOD, CLASSES, GOOD, CLASSES, torch.arange(3))
    with pytest.raises(InputError, match="from 0 to 3"):
        query_measures(GOOD, CLASSES, GOOD, CLASSES, torch.arange(1, 5))
    with pytest.raises(InputError, match="must have 6 columns"):
        RetrievalMetrics.from_measures(torch.ones(3, 5), KS)


def test_intervals_have_the_names_of_the_means_and_hold_them():
    rows, labels = clusters(num_classes=50, per_class=4, dim=6)
    found = evaluate(rows, labels, whole_ranking=True, resamples=200, seed=3)
    again = evaluate(rows, labels, whole_ranking=True, resamples=200, seed=3)
    assert found == again
    assert found.intervals != evaluate(rows, labels, whole_ranking=True, resamples=200, seed=4).intervals
    assert tuple(found.intervals) == measure_names(KS, whole_ranking=True)
    for name, (low, high) in found.intervals.items():
        assert 0 < low < found.to_dict()[name] < high <= 1
        assert high - low < 0.2
    plain = evaluate(rows, labels, resamples=200, seed=3)
    assert plain.intervals == {name: found.intervals[name] for name in measure_names(KS)}
    assert evaluate(rows, labels).intervals == {}


MEMORY = """
import torch
from distmetric.benchmarks.memory import PeakMemory, give_back_free
from distmetric.evaluation import evaluate, evaluate_reid
torch.set_num_threads(1)
N = 9000
generator = torch.Generator().manual_seed(0)
rows, cameras = torch.randn(N, 16, generator=generator), torch.randint(3, (N,), generator=generator)

def work(what, per_class, n):
    labels, options = torch.arange(n) // per_class, {"resamples": 2, "block_bytes": 2**24}
    if what == "reid":
        queries, gallery = slice(0, n, 5), (rows[:n], labels, cameras[:n])
        evaluate_reid(rows[queries], labels[queries], cameras[queries], *gallery, **options)
    else:
        evaluate(rows[:n], labels, whole_ranking=what == "whole", **options)

for what, per_class in [("plain", 4), ("whole", 4), ("reid", 8), ("whole", 50), ("reid", 50), ("plain", 500)]:
    work(what, per_class, 1000)
    give_back_free()
    peak = PeakMemory(torch.device("cpu"))
    work(what, per_class, N)
    print(what, per_class, peak.above_base() / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can set the peak of resident memory back")
def test_memory_stays_within_the_block():
    """All distances would take 324 MB and masks of them 81 MB; the block is 16 MiB, the gallery 0.6 MB."""
    peaks = [line.split() for line in measured(MEMORY)]
    assert len(peaks) == 6
    assert [peak for peak in peaks if not 1 < float(peak[2]) < 36] == []
