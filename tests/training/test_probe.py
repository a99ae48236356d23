"""How hard batches are, against plain loops, on one rank and on several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracles
from distmetric.distributed import Replica
from distmetric.training.probe import HardnessProbe
from processes import run_ranks

CPU = torch.device("cpu")
LABELS = np.arange(24) // 4
POINTS = 0.3 * torch.randn(24, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
POINTS[:, 0] += 0.8 * torch.from_numpy(LABELS)  # a class is near the one before and the one after it
HARD, RANDOM = np.array([0, 1, 4, 5, 8, 9, 12]), np.array([2, 3, 6, 7, 20, 21])
MARGIN = 0.4


def compare(replica: Replica) -> tuple[dict[str, float], list[tuple[list[int], list[list[float]]]]]:
    probe = HardnessProbe(lambda rows: POINTS[torch.from_numpy(rows)], LABELS, MARGIN, replica, CPU)
    metrics, embedded = probe.compare(HARD, RANDOM)
    return metrics, [(rows.tolist(), embeddings.tolist()) for rows, embeddings in embedded]


def expected(rows: np.ndarray, suffix: str) -> dict[str, float]:
    points, labels = POINTS[torch.from_numpy(rows)].tolist(), LABELS[rows].tolist()
    nearest, violating, negatives = [], 0, []
    for anchor in range(len(rows)):
        apart = [oracles.distance(points[anchor], points[n]) for n in oracles.negatives(labels, anchor)]
        together = [oracles.distance(points[anchor], points[p]) for p in oracles.positives(labels, anchor)]
        negatives += apart
        if together:
            nearest.append(min(apart))
            violating += min(apart) < max(together) + MARGIN
    return {
        f"hard/violating_fraction{suffix}": violating / len(nearest),
        f"hard/nearest_negative_distance{suffix}": sum(nearest) / len(nearest),
        f"hard/negative_distance{suffix}": sum(negatives) / len(negatives),
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_hardness_equals_plain_loops_on_any_number_of_ranks(ranks) -> None:
    results = [compare(Replica())] if ranks == 1 else run_ranks(ranks, compare)
    wanted = expected(HARD, "") | expected(RANDOM, "_random")
    for metrics, _ in results:
        assert metrics == pytest.approx(wanted)
    assert wanted["hard/violating_fraction"] != wanted["hard/violating_fraction_random"]


def test_what_was_embedded_is_handed_on_once_in_slices() -> None:
    results = run_ranks(2, compare)
    for which, plan in enumerate((HARD, RANDOM)):
        rows = [row for _, embedded in results for row in embedded[which][0]]
        points = [point for _, embedded in results for point in embedded[which][1]]
        assert rows == plan.tolist()
        assert points == POINTS[torch.from_numpy(plan)].tolist()
