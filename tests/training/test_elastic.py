"""More or fewer workers from one step to the next: the same run, up to the order of sums (float64, 1e-9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distmetric.config.schema import Config
from distmetric.distributed import Replica
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from processes import run_ranks
from runs import LeaveAt, ListTracker, tensors_of, tiny_config

STEPS = 12
STRETCHES = ((3, 5), (1, 7), (2, STEPS))
"""Workers, and the step up to which they train. Of 25 rows they have 9, 8, 8; 25; 13, 12."""

EXACT = (
    *("train.precision=float64", "model.norm=sync_batch", "model.widths=[8, 8]", "model.embedding_dim=16"),
    *("sampler.classes_per_batch=5", "sampler.samples_per_class=5"),
    *(
        f"train.steps={STEPS}",
        "train.log_every=3",
        "eval.every_steps=6",
        "eval.resamples=0",
        "checkpoint.every_steps=10",
    ),
)
HARD = (
    "sampler=hard_neighbors",
    "sampler.round_steps=2",
    "sampler.warmup_steps=0",
    "sampler.classes_per_batch=5",
)
INLINE = (*HARD, "sampler.samples_per_class=5", "index=inline", "index.refresh_steps=4")

Outcome = tuple[list[NDArray[np.float64]], dict[str, dict[int, float]]]


def stretch(replica: Replica, config: Config, run_dir: Path, until: int) -> Outcome:
    """Train from the newest checkpoint to a step; tensors of model and loss, and what was logged."""
    tracker, stop = ListTracker(), LeaveAt(until)
    worker = Worker(config, str(run_dir), tracker, replica, torch.device("cpu"), stop=stop)
    stop.worker = worker
    result = train(worker)
    assert (result.step, result.stopped) == (until, "" if until == STEPS else stop.reason())
    state = tensors_of(worker)
    names = {name for _, metrics in tracker.logged for name in metrics}
    return [tensor.double().numpy() for tensor in state], {name: tracker.series(name) for name in names}


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("loss=proxy_anchor", "optim=sgd"), id="loss_with_parameters"),
        pytest.param(("loss=cross_batch_memory", "loss.memory_size=60"), id="memory"),
        pytest.param(("loss=triplet", "miner=distance_weighted", "optim.clip_norm=0.5"), id="drawn_pairs"),
        pytest.param(("loss=triplet", *INLINE), id="hard_neighbors"),
        pytest.param(("loss=triplet", "model.norm=group", "train.chunk_size=8"), id="chunks"),
    ],
)
def test_changing_workers_at_a_step_changes_nothing(
    overrides: tuple[str, ...], glyph_cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(glyph_cache, *overrides[:1], *EXACT, *overrides[1:])
    weights, expected = stretch(Replica(), config, tmp_path / "whole", STEPS)
    history: dict[str, dict[int, float]] = {}
    for workers, until in STRETCHES:
        states = run_ranks(workers, stretch, config, tmp_path / "elastic", until)
        for name, series in states[0][1].items():
            assert not series.keys() & history.setdefault(name, {}).keys(), f"{name} was logged twice"
            history[name] |= series
    for ours, of_rank in zip(*(state[0] for state in states), strict=True):
        np.testing.assert_array_equal(ours, of_rank)
    for ours, whole in zip(states[0][0], weights, strict=True):
        np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-9)
    compared = (
        "train/loss",
        "train/gradient_norm",
        "train/active_fraction",
        "eval/recall_at_1",
        "eval/map_at_r",
    )
    for name in compared:
        assert list(history[name]) == list(expected[name])
        np.testing.assert_allclose(
            list(history[name].values()), list(expected[name].values()), rtol=0, atol=1e-9, err_msg=name
        )
    assert list(expected["train/loss"]) == list(range(1, STEPS + 1))
    sizes = [
        workers
        for (workers, until), first in zip(STRETCHES, (0, 5, 7), strict=True)
        for _ in range(first, until)
    ]
    assert list(history["train/world_size"].values()) == sizes
