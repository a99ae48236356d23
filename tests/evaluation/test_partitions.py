"""Agreement of divisions against scikit-learn, enumeration of all permutations and plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from distmetric.errors import InputError
from distmetric.evaluation import (
    adjusted_mutual_information,
    normalized_mutual_information,
    pairwise_f1,
    partitions,
)
from distmetric.evaluation.partitions import contingency, expected_mutual_information, purity

both = st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 5)), min_size=1, max_size=40).map(
    lambda rows: tuple(np.array(side) for side in zip(*rows, strict=True))
)


@settings(deadline=None, max_examples=150)
@given(sides=both)
def test_information_equals_scikit_learn(sides):
    a, b = sides
    assert normalized_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)
    same = len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))
    # Of equal divisions scikit-learn gives a ratio of two roundings where all rows are alone.
    expected = 1.0 if same else adjusted_mutual_info_score(a, b)
    assert adjusted_mutual_information(a, b) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("chunk", [1 << 20, 50])
def test_thousands_of_classes_equal_scikit_learn(monkeypatch, chunk):
    monkeypatch.setattr(partitions, "_CHUNK", chunk)
    random = np.random.default_rng(0)
    a, b = np.arange(6000) // 4, random.integers(0, 1300, 6000)
    b[:3000] = a[:3000]
    expected = adjusted_mutual_info_score(a, b)
    assert 0.2 < expected < 0.8
    assert adjusted_mutual_information(a, b) == pytest.approx(expected, abs=1e-9)
    assert normalized_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)


@pytest.mark.parametrize(
    "sizes", [((2, 3), (1, 4)), ((3, 3), (2, 2, 2)), ((1, 1, 4), (3, 3)), ((5,), (2, 3))]
)
def test_expected_information_is_the_mean_over_all_divisions(sizes):
    a, b = (np.repeat(np.arange(len(side)), side) for side in sizes)
    N = len(a)
    values = []
    for order in itertools.permutations(range(N)):
        counts = np.zeros((len(sizes[0]), len(sizes[1])))
        np.add.at(counts, (a, b[list(order)]), 1)
        outer = np.outer(*sizes)
        values.append(
            sum(n / N * math.log(N * n / ab) for n, ab in zip(counts.flat, outer.flat, strict=True) if n)
        )
    found = expected_mutual_information(np.array(sizes[0]), np.array(sizes[1]))
    assert found == pytest.approx(math.fsum(values) / len(values), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(sides=both)
def test_pairs_and_purity_equal_plain_loops(sides):
    a, b = sides
    pairs = [(a[i] == a[j], b[i] == b[j]) for i in range(len(a)) for j in range(i)]
    both_same, same_class, same_cluster = (
        sum(x and y for x, y in pairs),
        sum(x for x, _ in pairs),
        sum(y for _, y in pairs),
    )
    precision = both_same / same_cluster if same_cluster else 1.0
    recall = both_same / same_class if same_class else 1.0
    f1, *rest = pairwise_f1(a, b)
    assert rest == [precision, recall]
    if same_class and same_cluster:
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall) if both_same else 0.0)
    most = sum(max(np.bincount(a[b == name] + 2)) for name in set(b.tolist()))
    assert purity(a, b) == most / len(a)


def test_the_table_is_sparse():
    table = contingency(np.arange(200_000), np.arange(200_000)[::-1].copy())
    assert len(table.counts) == 200_000
    assert table.is_match


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        (np.arange(3), np.arange(4), "of the same rows, one or more: 3, 4"),
        (np.arange(0), np.arange(0), "of the same rows, one or more: 0, 0"),
        (np.ones(3), np.arange(3), "labels must be integers"),
        (np.arange(3), np.ones((3, 1), int), r"clusters must be integers of shape \(N,\)"),
    ],
)
def test_mistakes_get_one_clear_line(labels, clusters, message):
    with pytest.raises(InputError, match=message):
        normalized_mutual_information(labels, clusters)
