"""`k_means` against scikit-learn's from the same centers, and what must hold of any clustering."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import (
    adjusted_mutual_information,
    cluster,
    normalized_mutual_information,
    pairwise_f1,
)
from distmetric.evaluation.clustering import _first_centers, _means, k_means
from distmetric.evaluation.distance_grid import on_grid
from distmetric.evaluation.partitions import purity
from pair_oracle import coordinates


def blobs(num: int, per_class: int, noise: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    centers = torch.randn(num, 5, generator=generator).repeat_interleave(per_class, dim=0)
    rows = centers + noise * torch.randn(len(centers), 5, generator=generator)
    order = torch.randperm(len(rows), generator=generator)
    return rows[order], torch.arange(num).repeat_interleave(per_class)[order]


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn_from_the_same_centers(seed):
    rows, _ = blobs(12, 30, noise=0.7)
    first = _first_centers(on_grid(rows).points, 12, seed)
    peer = KMeans(12, init=rows[first].double().numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=500)
    expected = peer.fit_predict(rows.double().numpy())
    found = k_means(rows, 12, seed=seed, iterations=500)
    assert np.array_equal(found.numbers.numpy(), expected)
    assert found.iterations > 3
    stopped = k_means(rows, 12, seed=seed, iterations=2)
    assert stopped.iterations == 2
    assert not torch.equal(stopped.numbers, found.numbers)


def test_clear_clusters_are_found():
    rows, labels = blobs(40, 6, noise=0.005)
    found = cluster(rows, labels)
    assert (found.nmi, found.ami, found.f1, found.precision, found.recall, found.purity) == (1.0,) * 6
    assert found.num_clusters == 40


def test_metrics_are_those_of_the_clusters():
    rows, labels = blobs(15, 12, noise=0.6)
    numbers = k_means(rows, 20, seed=3).numbers
    found = cluster(rows.numpy(), labels.numpy(), num_clusters=20, seed=3).to_dict()
    assert found["nmi"] == normalized_mutual_information(labels, numbers)
    assert found["ami"] == adjusted_mutual_information(labels, numbers)
    assert (found["f1"], found["precision"], found["recall"]) == pairwise_f1(labels, numbers)
    assert found["purity"] == purity(labels, numbers)
    assert found["num_clusters"] == 20
    assert 0.3 < found["ami"] < found["nmi"] < 1


def test_blocks_threads_and_seeds():
    rows, _ = blobs(12, 20, noise=0.8)
    whole = k_means(rows, 12, seed=1)
    torch.set_num_threads(2)
    for block_bytes in (1, 10_000):
        again = k_means(rows, 12, seed=1, block_bytes=block_bytes)
        assert torch.equal(again.numbers, whole.numbers)
        assert again.iterations == whole.iterations
    assert not torch.equal(k_means(rows, 12, seed=2).numbers, whole.numbers)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(coordinates, min_size=2, max_size=2), min_size=1, max_size=20),
    data=st.data(),
    seed=st.integers(0, 5),
)
def test_every_row_is_with_the_nearest_mean_and_no_cluster_is_lost(rows, data, seed):
    count = data.draw(st.integers(1, len(rows)))
    points = torch.tensor(rows, dtype=torch.float64)
    found = k_means(points, count, seed=seed, iterations=200)
    numbers = found.numbers
    assert int(numbers.min()) >= 0
    assert int(numbers.max()) < count
    distinct = len({tuple(row) for row in rows})
    if found.iterations < 200:  # it has come to rest
        assert len(numbers.unique()) == min(count, distinct)
        means = {int(n): points[numbers == n].mean(dim=0) for n in numbers.unique()}
        for row, number in zip(points, numbers.tolist(), strict=True):
            to = {n: float((row - mean).norm()) for n, mean in means.items()}
            assert to[number] <= min(to.values()) + 1e-6


def test_empty_clusters_begin_anew_at_the_farthest_rows():
    points = on_grid(torch.tensor([[0.0], [1.0], [5.0], [8.0]])).points
    distances = torch.tensor([0.0, 3.0, 9.0, 9.0], dtype=torch.float64)
    centers = _means(points, torch.tensor([0, 0, 3, 3]), distances, 5)
    for cluster_number, row in ((1, 2), (2, 3), (4, 1)):  # of rows equally far the first
        assert torch.equal(centers[cluster_number], points[row])
    assert torch.equal(centers[0, :1], (points[0, :1] + points[1, :1]) / 2)
    assert centers[0, 2] == centers[0, 0] ** 2


def test_first_centers_are_different_rows_as_long_as_there_are_any():
    rows = torch.cat([torch.zeros(50, 2), torch.eye(2), torch.full((50, 2), 9.0)])
    for seed in range(20):
        chosen = rows[_first_centers(on_grid(rows).points, 4, seed)]
        assert len(chosen.unique(dim=0)) == 4
        assert len(_first_centers(on_grid(rows).points, 6, seed)) == 6


def test_first_centers_are_drawn_by_squared_distance():
    """From 0 the rows at 1 and at 3 have chances 1 : 9; from 1, 0 and 3 have 1 : 4; from 3, 9 : 4."""
    points = on_grid(torch.tensor([[0.0], [1.0], [3.0]])).points
    drawn = [tuple(_first_centers(points, 2, seed).tolist()) for seed in range(3000)]
    for first, second, chance in ((0, 2, 0.9), (1, 2, 0.8), (2, 0, 9 / 13)):
        starts = [pair for pair in drawn if pair[0] == first]
        assert len(starts) == pytest.approx(1000, abs=120)
        assert sum(pair[1] == second for pair in starts) / len(starts) == pytest.approx(chance, abs=0.06)


GOOD, CLASSES = np.eye(4), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.zeros(4, int)}, "2 classes or more, got 1"),
        ({"num_clusters": 5}, "num_clusters must be from 1 to 4, the number of rows, got 5"),
        ({"num_clusters": 0}, "num_clusters must be from 1 to 4"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"embeddings": GOOD * np.nan}, "row 0 is not finite"),
        ({"labels": CLASSES[1:]}, r"must have shape \(4,\)"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        cluster(**{"embeddings": GOOD, "labels": CLASSES, **arguments})
    assert "\n" not in str(caught.value)
