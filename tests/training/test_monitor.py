"""What a step tells, against plain loops, and its mean over ranks."""

from __future__ import annotations

import pytest
import torch

import oracles
from distmetric.distributed import Replica
from distmetric.functional import JointBatch
from distmetric.training import monitor
from distmetric.training.ledger import PHASES, Ledger
from distmetric.training.monitor import Monitor, batch_statistics
from processes import run_ranks

CPU = torch.device("cpu")


def batch_of(embeddings: torch.Tensor, labels: torch.Tensor) -> JointBatch:
    return JointBatch.alone(embeddings, labels)


def test_statistics_equal_plain_loops() -> None:
    embeddings = torch.randn(12, 4, dtype=torch.float64)
    labels = torch.arange(12) % 4
    rows, names = embeddings.tolist(), labels.tolist()
    found = dict(zip(monitor._NAMES, batch_statistics(batch_of(embeddings, labels)).tolist(), strict=True))
    pairs = {
        "positive": [
            oracles.distance(rows[a], rows[p]) for a in range(12) for p in oracles.positives(names, a)
        ],
        "negative": [
            oracles.distance(rows[a], rows[n]) for a in range(12) for n in oracles.negatives(names, a)
        ],
    }
    for kind, distances in pairs.items():
        values = torch.tensor(distances, dtype=torch.float64)
        assert found[f"{kind}_distance_mean"] == pytest.approx(values.mean().item())
        for percent in (10, 50, 90):
            expected = torch.quantile(values, percent / 100).item()
            assert found[f"{kind}_distance_p{percent}"] == pytest.approx(expected)
    gaps = [
        min(oracles.distance(rows[a], rows[n]) for n in oracles.negatives(names, a))
        - max(oracles.distance(rows[a], rows[p]) for p in oracles.positives(names, a))
        for a in range(12)
    ]
    nearest = [
        min(oracles.distance(rows[a], rows[n]) for n in oracles.negatives(names, a)) for a in range(12)
    ]
    assert found["hardest_gap"] == pytest.approx(sum(gaps) / 12)
    assert found["nearest_negative_mean"] == pytest.approx(sum(nearest) / 12)
    assert found["embedding_norm_mean"] == pytest.approx(embeddings.norm(dim=1).mean().item())
    assert found["embedding_variance"] == pytest.approx(embeddings.var(0, correction=0).sum().item())


def test_collapse_shows() -> None:
    found = dict(
        zip(
            monitor._NAMES,
            batch_statistics(batch_of(torch.ones(8, 3), torch.arange(8) % 2)).tolist(),
            strict=True,
        )
    )
    assert found["embedding_variance"] == found["hardest_gap"] == found["negative_distance_mean"] == 0


def observe(watching: Monitor, step: int, loss: float, labels: list[int]) -> None:
    ledger = Ledger(CPU)
    with ledger("forward"):
        pass
    batch = batch_of(torch.randn(len(labels), 3), torch.tensor(labels))
    one = torch.tensor(1.0)
    watching.observe(step, batch, torch.tensor(loss), one, one, 0.1, ledger.close_step())


def test_a_batch_without_positives_leaves_their_distances_out() -> None:
    watching = Monitor(Replica(), 4)
    observe(watching, 0, 1.0, [0, 1, 2, 3])
    ((step, metrics),) = watching.flush()
    assert step == 0
    assert "train/positive_distance_mean" not in metrics
    assert "train/negative_distance_mean" in metrics
    assert {f"time/{phase}" for phase in PHASES} < set(metrics)
    assert watching.flush() == []


def test_what_the_loss_tells_is_logged_beside_the_rest_where_it_is_known() -> None:
    watching = Monitor(Replica(), 4)
    for step, drift in enumerate([float("nan"), 0.25]):
        times, batch = Ledger(CPU).close_step(), batch_of(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]))
        told = {"drift": torch.tensor(drift, dtype=torch.float64), "part/fill": torch.tensor(0.5)}
        one = torch.tensor(1.0)
        watching.observe(step, batch, one, one, one, 0.1, times, told)
    (_, first), (_, second) = watching.flush()
    assert "train/drift" not in first
    assert second["train/drift"] == 0.25
    assert first["train/part/fill"] == second["train/part/fill"] == 0.5
    assert {f"time/{phase}" for phase in PHASES} < set(first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out_of_its_step(bad) -> None:
    watching = Monitor(Replica(), 4)
    observe(watching, 7, 1.0, [0, 0, 1, 1])
    observe(watching, 8, bad, [0, 0, 1, 1])
    (_, before), (_, found) = watching.flush()
    assert set(before) - set(found) == {"train/loss"}


def rank_flush(replica: Replica) -> dict[str, float]:
    watching = Monitor(replica, 8)
    # Rank 1 has no positives: the mean of their distances is that of rank 0.
    observe(watching, 0, 1.0 + replica.rank, [0, 0, 1, 1] if replica.is_main else [0, 1, 2, 3])
    return watching.flush()[0][1]


def test_measurements_are_means_over_the_ranks_that_have_them() -> None:
    first, second = run_ranks(2, rank_flush)
    assert first["train/loss"] == second["train/loss"] == 1.5
    assert first["train/positive_distance_mean"] == second["train/positive_distance_mean"] > 0


def test_the_ledger_times_phases_and_starts_anew() -> None:
    ledger = Ledger(CPU)
    with ledger("data"):
        sum(range(10_000))
    seconds = dict(zip(PHASES, ledger.close_step().seconds(), strict=True))
    assert seconds["data"] > 0
    assert seconds["backward"] == 0
    assert ledger.close_step().seconds() == [0.0] * len(PHASES)
