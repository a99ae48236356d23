"""Planted label errors and near-duplicates are found and listed first; the rest is what plain loops say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.index.audit import Audit, audit, class_spreads
from distmetric.index.class_statistics import class_statistics
from distmetric.index.pruned_search import ClassBallIndex


def clusters(classes: int = 30, members: int = 12, dim: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(members)
    centers = 3 * torch.randn(classes, dim, generator=random)
    return centers[labels] + 0.3 * torch.randn(len(labels), dim, generator=random), labels


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_planted_findings_come_first(metric) -> None:
    rows, labels = clusters()
    labels[[5, 100]] = torch.tensor([20, 3])  # 5 lies in class 0, 100 in class 8
    rows[[200, 300]] = 30.0  # classes 16 and 25, exact copies of each other
    rows[[50, 260]] = -30.0  # classes 4 and 21, nearly
    rows[260, 0] += 0.02
    index = ClassBallIndex.build(rows, labels, metric=metric)
    found = audit(index, k=5)
    assert sorted(found.errors.rows.tolist()) == [5, 100]
    assert dict(zip(found.errors.rows.tolist(), found.errors.labels.tolist(), strict=True)) == {5: 0, 100: 8}
    assert found.errors.scores.tolist() == sorted(found.errors.scores.tolist(), reverse=True)
    assert float(found.errors.scores.min()) > 2
    assert found.duplicates.rows.tolist() == [200, 50]
    assert found.duplicates.others.tolist() == [300, 260]
    assert float(found.duplicates.distances[0]) == 0 == float(found.duplicates.ratios[0])
    assert 0 < float(found.duplicates.ratios[1]) < 0.1
    assert (found.pairs.rows.tolist()[:2], found.pairs.negatives.tolist()[:2]) == ([200, 300], [300, 200])


def test_clean_data_has_no_findings() -> None:
    found = audit(ClassBallIndex.build(*clusters()), k=5)
    assert len(found.errors.rows) == len(found.duplicates.rows) == 0
    assert len(found.pairs.rows) == 360 * 5


def plain(rows: Tensor, labels: Tensor, m: int, fraction: float, k: int) -> tuple[dict, dict]:
    """Label errors with score, and near-duplicates with ratio, by the definitions."""
    d = (rows[:, None].double() - rows.double()).norm(dim=2)
    size = len(rows)
    members = {int(a): [i for i in range(size) if labels[i] == a] for a in labels}
    spread = {
        a: math.sqrt(sum(float(d[i, j]) ** 2 for i in own for j in own) / (len(own) * (len(own) - 1)))
        for a, own in members.items()
        if len(own) > 1
    }
    usual = sorted(spread.values())[(len(spread) - 1) // 2] if spread else 0.0
    errors, duplicates = {}, {}
    for i in range(size):
        negatives = sorted((float(d[i, j]), j) for j in range(size) if labels[j] != labels[i])
        own = min(
            (float(d[i, j]) for j in range(size) if labels[j] == labels[i] and j != i), default=math.inf
        )
        first = negatives[:m]
        if len(first) == m and len({int(labels[j]) for _, j in first}) == 1 and first[-1][0] < own < math.inf:
            mean = sum(each for each, _ in first) / m
            errors[i] = (int(labels[first[0][1]]), own / mean if mean else math.inf)
        for apart, j in negatives[:k]:
            smaller = min(spread.get(int(labels[i]), usual), spread.get(int(labels[j]), usual))
            if apart <= fraction * smaller:
                duplicates[min(i, j), max(i, j)] = apart / smaller if apart else 0.0
    return errors, duplicates


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.7]), st.integers(1, 4))
def test_findings_are_those_of_plain_loops(seed, m, fraction, k) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (25,), generator=random)
    rows = labels[:, None] + torch.randn(25, 3, generator=random)
    if seed % 2:
        rows = rows.round()
    index = ClassBallIndex.build(rows, labels)
    if len(index.statistics) == 1:
        return
    found = audit(index, k=k, label_neighbors=m, duplicate_fraction=fraction)
    errors, duplicates = plain(rows, labels, m, fraction, k)
    assert dict(zip(found.errors.rows.tolist(), found.errors.labels.tolist(), strict=True)) == {
        row: label for row, (label, _) in errors.items()
    }
    for row, score in zip(found.errors.rows.tolist(), found.errors.scores.tolist(), strict=True):
        assert score == pytest.approx(errors[row][1])
    pairs = list(zip(found.duplicates.rows.tolist(), found.duplicates.others.tolist(), strict=True))
    assert sorted(pairs) == sorted(duplicates)
    assert found.duplicates.ratios.tolist() == pytest.approx([duplicates[pair] for pair in pairs])
    assert found.duplicates.ratios.tolist() == sorted(found.duplicates.ratios.tolist())


def test_top_lists_every_pair_once() -> None:
    index = ClassBallIndex.build(*clusters(4, 5))
    whole, top = audit(index, k=15), audit(index, k=15, top=30)
    assert len(whole.pairs.rows) == 20 * 15
    assert (whole.pairs.distances.diff() >= 0).all()
    assert len(top.pairs.rows) == 30
    pairs = {
        frozenset(pair) for pair in zip(top.pairs.rows.tolist(), top.pairs.negatives.tolist(), strict=True)
    }
    assert len(pairs) == 30
    assert torch.equal(top.pairs.distances, whole.pairs.distances[: 2 * 30 : 2])
    assert len(audit(index, k=15, top=10**6).pairs.rows) == 20 * 15 // 2


def test_ranks_and_positives_belong_to_the_rows() -> None:
    rows, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 2])
    found: Audit = audit(ClassBallIndex.build(rows, labels), k=2, label_neighbors=1)
    listed = list(zip(*(each.tolist() for each in vars(found.pairs).values()), strict=True))
    assert listed[:4] == [(1, 2, 1, 2), (2, 1, 1, 2), (0, 2, 1, 3), (2, 0, 2, 3)]
    assert listed[4:] == [(3, 2, 1, 4), (1, 3, 2, 6), (3, 1, 2, 6), (0, 3, 2, 7)]
    assert found.positives.tolist() == [1, 0, -1, -1]
    assert found.positive_distances.tolist() == [1, 1, -math.inf, -math.inf]
    assert len(found.errors.rows) == 0  # the only row of a class is not judged


def test_spread_of_a_lone_row_is_the_usual_one() -> None:
    rows = torch.tensor([[0.0], [2.0], [10.0], [14.0], [50.0]])
    assert class_spreads(class_statistics(rows, torch.tensor([0, 0, 1, 1, 2]))).tolist() == [2, 4, 2]
    assert class_spreads(class_statistics(rows, torch.arange(5))).tolist() == [0] * 5
