"""Small trainings beside bare loops: both learn the same, in turn, and the training is not disturbed by it."""

from __future__ import annotations

import math

import pytest
import torch

from distmetric.benchmarks.training import beside, measure
from distmetric.benchmarks.training.beside import Turns
from distmetric.benchmarks.training.measure import TrainingSpec, configuration, measure_training
from distmetric.config.compose import load
from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.tracking.tracker import NullTracker
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from processes import run_ranks

TINY = ("model.widths=[8,8]", "model.embedding_dim=16", "train.log_every=2", "data.max_classes=60")


def make_small(patch: pytest.MonkeyPatch, cache: object) -> None:
    settings = (*measure._SETTINGS, *TINY, f"data.cache_dir={cache}")
    patch.setattr(measure, "_SETTINGS", settings)
    patch.setattr(beside, "_WANTED_S", 0.0)


@pytest.fixture
def _small(monkeypatch, glyph_cache) -> None:
    make_small(monkeypatch, glyph_cache)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("augment", ["none", "affine"])
def test_both_loops_learn_the_same(augment) -> None:
    found = measure_training(TrainingSpec("beside", "conv", augment, 16, steps=3))
    assert len(found.seconds) == len(found.bare_seconds) == len(found.cpu_seconds) == 3
    assert all(value > 0 for value in (*found.seconds, *found.bare_seconds, *found.bare_cpu_seconds))
    assert 0 < found.loss_difference < 1e-3
    assert found.parts["delivered"] == 0


def on_two_ranks(replica: Replica, cache: str) -> tuple[float, int]:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, cache)
        found = measure_training(TrainingSpec("beside", "conv", "affine", 16, processes=2, steps=2), replica)
    return found.loss_difference, len(found.bare_seconds)


def test_two_ranks_do_too(glyph_cache) -> None:
    for difference, turns in run_ranks(2, on_two_ranks, str(glyph_cache)):
        assert difference < 1e-3
        assert turns == 2


@pytest.mark.usefixtures("_small")
def test_what_is_told_is_delivered_and_counted() -> None:
    found = measure_training(TrainingSpec("tracking", "conv", "none", 16, steps=3))
    assert found.bare_seconds == []
    assert all(found.parts[name] > 0 for name in ("noted", "delivered"))


@pytest.mark.usefixtures("_small")
def test_a_training_in_turns_is_the_training_without(tmp_path) -> None:
    spec = TrainingSpec("beside", "conv", "affine", 16)
    weights = []
    for number, turns in enumerate((Turns(2), Turns(2, has_bare=False))):
        folder = tmp_path / str(number)
        config = load("config", Config, [*configuration(spec), f"output_dir={folder}"])
        worker = Worker(config, str(folder), NullTracker(), Replica(), torch.device("cpu"), stop=turns)
        turns.worker = worker
        result = train(worker)
        assert result.step == turns.steps + 2 * config.train.log_every  # and the warm-up
        weights.append(
            torch.cat([parameter.detach().flatten() for parameter in worker.embedder.parameters()])
        )
    assert torch.equal(*weights)
    assert len(turns.bare.wall) == 0


def test_starts_are_averaged_by_part(monkeypatch) -> None:
    from distmetric.benchmarks.training.startup import Start

    starts = [Start(3.0, 5.0, {"ray": 1.0, "workers": 2.0}), Start(5.0, 6.0, {"ray": 2.0, "workers": 3.0})]
    monkeypatch.setattr(measure, "measure_startup", lambda times: starts[:times])
    found = measure_training(TrainingSpec("startup", "conv", "none", 16, steps=2))
    assert (found.seconds, found.cpu_seconds) == ([3.0, 5.0], [5.0, 6.0])
    assert found.parts == {"ray": 1.5, "workers": 2.5}
    assert math.isclose(sum(found.parts.values()), sum(found.seconds) / 2)
