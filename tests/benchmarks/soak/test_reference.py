"""The reference of a soak repeats a run from what the run has noted, and stops where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distmetric.benchmarks.soak.equality import compare_histories, different_parts, state_of
from distmetric.benchmarks.soak.reference import StopAt, train_reference
from distmetric.benchmarks.soak.watch import IndexWatch
from distmetric.config.decode import decode
from distmetric.distributed.replica import Replica
from distmetric.errors import ResourceError
from distmetric.index.config import StreamIndexConfig
from distmetric.tracking.journal import read_history
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.training.loop import train
from distmetric.training.saved_model import config_dict
from distmetric.training.worker import Worker
from runs import CPU, tiny_config

STEPS = 13
SETTINGS = (
    *("train.steps=1000", "train.log_every=5", "eval.every_steps=8", "checkpoint.every_steps=4"),
    *("model.widths=[8, 8]", "model.embedding_dim=16", "schedule=constant", "loss=proxy_anchor"),
    *("sampler=hard_neighbors", "sampler.classes_per_batch=6", "sampler.samples_per_class=4", "index=inline"),
    *(
        "sampler.round_steps=3",
        "sampler.warmup_steps=3",
        "index.refresh_steps=5",
        "sampler.hard_fraction=1.0",
    ),
)


@pytest.fixture(scope="module")
def run(glyph_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose snapshots were its own, stopped after some steps, and copies of these."""
    torch.set_num_threads(1)  # as the reference has
    folder = tmp_path_factory.mktemp("soak")
    watch = IndexWatch(folder / "run", folder / "index")
    stop = StopAt(STEPS)
    tracker = JournalTracker(str(folder / "run"))
    config = tiny_config(glyph_cache, *SETTINGS)
    stop.worker = Worker(config, str(folder / "run"), tracker, Replica(), CPU, stop=stop)
    assert train(stop.worker).stopped == f"step {STEPS}"
    tracker.close()
    watch.close()
    return folder


def test_the_reference_is_the_run(run: Path, glyph_cache: Path) -> None:
    config = config_dict(tiny_config(glyph_cache, *SETTINGS))
    # As in a soak, where snapshots come from an actor that the reference does not have.
    config["index"] = {**config_dict(tiny_config(glyph_cache))["index"], "name": "stream"}
    assert isinstance(decode(StreamIndexConfig, config["index"]), StreamIndexConfig)
    seconds = train_reference(config, STEPS, run / "reference", run / "index", timeout_s=100)
    assert 0 < seconds < 100
    ours, reference = (
        state_of(f"{run / name}/checkpoints/step_{STEPS:08d}") for name in ("run", "reference")
    )
    assert len(reference) > 30
    assert different_parts(ours, reference) == []
    histories = [read_history(str(run / name)) for name in ("run", "reference")]
    assert max(value for _, value in histories[1]["index/version"]) >= 2
    found = compare_histories(*histories, STEPS)
    assert found.is_none, found


def test_a_reference_that_fails_is_one_line(run: Path, glyph_cache: Path) -> None:
    config = config_dict(tiny_config(glyph_cache, *SETTINGS, "sampler.classes_per_batch=5000"))
    with pytest.raises(ResourceError, match=r"did not come to its end: exit codes \[1\]"):
        train_reference(config, STEPS, run / "failed", run / "index", timeout_s=100)
