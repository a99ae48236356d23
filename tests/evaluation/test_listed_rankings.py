"""Lists that somebody else ranked: like our own rankings, as far as they go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import InputError
from distmetric.evaluation import evaluate, metrics_of_rankings, nearest
from ranking_oracle import clusters, mean_of, retrieval_of_hits


def test_whole_lists_are_worth_what_evaluate_says():
    rows, labels = clusters(20, 5, 6)
    every = torch.arange(len(rows))
    lists = nearest(rows, every, len(rows) - 1)
    expected = evaluate(rows, labels, whole_ranking=True, resamples=50, seed=2)
    options = {"query_index": every, "whole_ranking": True, "resamples": 50, "seed": 2}
    assert metrics_of_rankings(lists, labels, labels, **options) == expected
    # Lists that name the query itself first, as a search among all rows gives them.
    with_self = torch.cat([every[:, None], lists], dim=1)
    assert metrics_of_rankings(with_self.numpy(), labels, labels, **options) == expected


def test_lists_of_query_and_gallery_as_long_as_needed_suffice_but_for_the_whole_ranking():
    rows, labels = clusters(20, 5, 6)
    both = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    queries, gallery = both[:30], both[30:]
    expected = evaluate(
        rows[queries], labels[queries], gallery_embeddings=rows[gallery], gallery_labels=labels[gallery]
    )
    joined = torch.cat([rows[gallery], rows[queries]])
    lists = nearest(joined, torch.arange(70, 100), 99)
    lists = torch.stack([ids[ids < 70] for ids in lists])
    assert metrics_of_rankings(lists[:, :8], labels[queries], labels[gallery]) == expected


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_short_lists_equal_plain_loops(data):
    numbers = st.integers(0, 3)
    gallery_labels = data.draw(st.lists(numbers, min_size=1, max_size=12))
    labels = [gallery_labels[0], *data.draw(st.lists(numbers, max_size=6))]
    length = data.draw(st.integers(0, len(gallery_labels)))
    lists, measures = [], []
    for label in labels:
        listed = data.draw(st.permutations(range(len(gallery_labels))))[:length]
        known = data.draw(st.integers(0, length))
        lists.append([*listed[:known], *[-1] * (length - known)])
        if R := gallery_labels.count(label):
            hits = [gallery_labels[j] == label for j in listed[:known]]
            measures.append(retrieval_of_hits(hits, R, (1, 3)))
    expected = mean_of(measures, len(labels) - len(measures), "num_lone_queries")
    table = np.array(lists, dtype=np.int64).reshape(len(labels), length)
    found = metrics_of_rankings(
        table, np.array(labels), np.array(gallery_labels), ks=(1, 3), whole_ranking=True
    )
    assert found.to_dict() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (np.array([[0, 1], [2, 2]]), "row 1 names an item twice"),
        (np.array([[0, 1], [2, 3]]), "gallery indices from 0 to 2, or -1"),
        (np.array([[0, 1], [2, -2]]), "gallery indices from 0 to 2, or -1"),
        (np.array([[0.0, 1.0], [2.0, 0.0]]), "must be integers"),
        (np.array([0, 1]), r"shape \(Q, k\)"),
        (np.array([[0, 1]]), r"query labels must have shape \(1,\)"),
    ],
)
def test_mistakes_get_one_clear_line(lists, message):
    with pytest.raises(InputError, match=message) as caught:
        metrics_of_rankings(lists, np.array([0, 1]), np.array([0, 1, 1]))
    assert "\n" not in str(caught.value)
