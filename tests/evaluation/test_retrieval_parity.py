"""The metrics of one set of embeddings, by us and by others: pytorch-metric-learning, scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

from distmetric.evaluation import evaluate, query_measures
from ranking_oracle import clusters

SAME = {
    "precision_at_1": "recall_at_1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "map_at_r",
    "mean_average_precision": "mean_average_precision",
    "mean_reciprocal_rank": "mean_reciprocal_rank",
}


def peer(rows, labels, *reference) -> dict[str, float]:
    """k=None, the whole ranking; its search in float64, so that rounding decides no order."""
    calculator = AccuracyCalculator(
        include=tuple(SAME), k=None, knn_func=CustomKNN(LpDistance(normalize_embeddings=False), batch_size=64)
    )
    found = calculator.get_accuracy(rows, labels, *reference)
    return {SAME[name]: value for name, value in found.items()}


def uneven(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of 1 to 25 overlapping members, shuffled."""
    sizes = torch.tensor([25, 14, 14, 9, 5, 3, 2, 2, 1, 1])
    labels = torch.arange(len(sizes)).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(len(sizes), 6, generator=generator, dtype=torch.float64)[labels]
    rows = centers + torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(labels), generator=generator)
    return rows[order], labels[order]


@pytest.mark.parametrize("make", [lambda: clusters(40, 4, 8), lambda: uneven(0), lambda: uneven(1)])
def test_leave_one_out_equals_pytorch_metric_learning(make):
    rows, labels = make()
    found = evaluate(rows, labels, whole_ranking=True).to_dict()
    expected = peer(rows.double(), labels)
    assert 0.05 < expected["map_at_r"] < 0.9
    assert {name: found[name] for name in SAME.values()} == pytest.approx(expected, abs=1e-6)


def test_query_and_gallery_equal_pytorch_metric_learning():
    (queries, query_labels), (rows, labels) = uneven(2), uneven(3)
    query_labels = query_labels + 2  # the gallery lacks two classes of the queries
    queries, rows = queries[:50], rows[:90] + 0.5
    found = evaluate(
        queries, query_labels[:50], gallery_embeddings=rows, gallery_labels=labels[:90], whole_ranking=True
    ).to_dict()
    expected = peer(queries, query_labels[:50], rows, labels[:90])
    assert found["num_lone_queries"] > 0
    assert {name: found[name] for name in SAME.values()} == pytest.approx(expected, abs=1e-6)


def test_average_precision_and_reciprocal_rank_equal_scikit_learn():
    rows, labels = clusters(30, 5, 6)
    index = torch.arange(len(rows))
    found = query_measures(rows, labels, rows, labels, index, whole_ranking=True).numpy()
    distances = torch.cdist(rows.double(), rows.double()).numpy()
    for query in range(0, len(rows), 7):
        others = np.arange(len(rows)) != query
        right = labels.numpy()[others] == int(labels[query])
        score = -distances[query][others]
        assert found[query, -2] == pytest.approx(average_precision_score(right, score), abs=1e-12)
        # With the nearest right item as the only one, its precision is the reciprocal of its rank.
        nearest = np.where(right, score, -np.inf).argmax()
        only = np.arange(len(score)) == nearest
        assert found[query, -1] == pytest.approx(
            label_ranking_average_precision_score(only[None], score[None]), abs=1e-12
        )
