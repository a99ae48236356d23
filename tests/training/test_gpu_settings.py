"""train.channels_last and train.compile change how fast a training is, and not what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distmetric.distributed import Replica
from distmetric.models import compiled
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.loop import train
from distmetric.training.worker import Worker
from processes import run_ranks
from runs import CPU, ListTracker, final_state, run_once, tensors_of, tiny_config

SMALL = (
    *("model=resnet", "model.widths=[6, 8]", "model.blocks_per_stage=[1, 1]", "model.embedding_dim=16"),
    *("train.steps=6", "train.log_every=1", "eval.every_steps=3", "checkpoint.every_steps=3"),
)
CHUNKS = ("train.chunk_size=5", "model.norm=group")
EXACT = (*SMALL, "train.precision=float64")


def names_in(run_dir: Path) -> list[str]:
    return list(CheckpointStore(f"{run_dir}/checkpoints").latest().tensors("model"))


def test_channels_last_gives_the_same_training(glyph_cache, tmp_path) -> None:
    plain, tracker = final_state(tiny_config(glyph_cache, *EXACT), tmp_path / "plain")
    config = tiny_config(glyph_cache, *EXACT, "train.channels_last=true")
    worker, _, other = run_once(config, tmp_path / "last")
    convolutions = [each for each in worker.embedder.parameters() if each.ndim == 4 and min(each.shape) > 1]
    assert convolutions
    assert not any(each.is_contiguous() for each in convolutions)
    state = tensors_of(worker)
    for ours, theirs in zip(state, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    for name in ("train/loss", "eval/recall_at_1"):
        assert other.series(name) == pytest.approx(tracker.series(name), rel=1e-9)
    assert names_in(tmp_path / "last") == names_in(tmp_path / "plain")


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_a_run_goes_on_in_the_other_layout_as_if_nothing_had_been(optim, glyph_cache, tmp_path) -> None:
    plain, _ = final_state(tiny_config(glyph_cache, *EXACT, f"optim={optim}"), tmp_path / "plain")
    config = tiny_config(glyph_cache, *EXACT, f"optim={optim}", "train.channels_last=true")
    with pytest.raises(InterruptedError):
        run_once(
            tiny_config(glyph_cache, *EXACT, f"optim={optim}"), tmp_path / "turned", ListTracker(fail_at=5)
        )
    state, _ = final_state(config, tmp_path / "turned")
    for ours, theirs in zip(state, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.fixture
def plainly_compiled(monkeypatch) -> None:
    """torch.compile with its tracing, guards and graphs, but with torch's own kernels, which take no compiler."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")


@pytest.mark.usefixtures("plainly_compiled")
@pytest.mark.parametrize(
    "more", [(), ("sampler=hard_neighbors", "index=inline", "sampler.warmup_steps=1"), CHUNKS]
)
def test_a_compiled_training_is_the_same_and_survives_an_interruption(more, glyph_cache, tmp_path) -> None:
    plain, _ = final_state(tiny_config(glyph_cache, *SMALL, *more), tmp_path / "plain")
    config = tiny_config(glyph_cache, *SMALL, *more, "train.compile=true")
    state, _ = final_state(config, tmp_path / "compiled", fail_at=5)
    for ours, theirs in zip(state, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert names_in(tmp_path / "compiled") == names_in(tmp_path / "plain")


def weights(replica: Replica, cache: Path, run_dir: str, *overrides: str) -> list[np.ndarray]:
    worker = Worker(tiny_config(cache, *SMALL, *overrides), run_dir, ListTracker(), replica, CPU)
    train(worker)
    return [parameter.detach().numpy().copy() for parameter in worker.embedder.parameters()]


@pytest.mark.usefixtures("plainly_compiled")
def test_ranks_compile_too_and_synchronize_their_norms(glyph_cache, tmp_path) -> None:
    plain, ours = (
        run_ranks(
            2, weights, glyph_cache, str(tmp_path / name), "model.norm=sync_batch", f"train.compile={name}"
        )
        for name in ("false", "true")
    )
    for rank in range(2):
        for one, other in zip(ours[rank], plain[0], strict=True):
            np.testing.assert_array_equal(one, other)
