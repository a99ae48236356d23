"""A disk that fills up, or a folder that goes, in the middle of a training: said, and nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disks import disk_of, fill
from distmetric.errors import ResourceError
from distmetric.training.checkpoint import CheckpointStore
from runs import ListTracker, final_state, run_once, tiny_config

SMALL = (
    "model.widths=[8, 8]",
    "model.embedding_dim=16",
    "train.log_every=1",
    "train.steps=16",
    "eval.every_steps=8",
)
HARD = (
    *("sampler=hard_neighbors", "index=inline", "index.refresh_steps=4", "sampler.warmup_steps=0"),
    "sampler.round_steps=4",
)


class At(ListTracker):
    """Does something when a step is logged."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._at, self._act = step, act

    def log(self, step, metrics) -> None:
        super().log(step, metrics)
        if step == self._at and "train/loss" in metrics:
            self._act()


@pytest.mark.parametrize("hard", [(), HARD], ids=["random", "hard neighbors"])
@pytest.mark.parametrize("step", [6, 10])
def test_a_disk_that_fills_up_stops_the_run_which_goes_on_as_if_it_had_not(
    step, hard, glyph_cache, tmp_path
) -> None:
    config = tiny_config(glyph_cache, *SMALL, *hard, "checkpoint.every_steps=4")
    whole, losses = final_state(config, tmp_path / "whole")
    with disk_of(tmp_path / "disk", 4096) as disk:
        run_dir = disk / "run"
        with pytest.raises(
            ResourceError, match=r"cannot be written \(.*No space left on device.*resume the run"
        ) as told:
            run_once(config, run_dir, At(step, lambda: fill(disk)))
        assert "\n" not in str(told.value)
        store = CheckpointStore(f"{run_dir}/checkpoints")
        stood_at = store.latest().step
        assert stood_at == step // 4 * 4
        assert [path.name for path in run_dir.rglob("*.part")] == []
        (disk / "ballast").unlink()
        resumed, replayed = final_state(config, run_dir)
    for ours, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    expected = {at: loss for at, loss in losses.series("train/loss").items() if at > stood_at}
    assert replayed.series("train/loss") == expected


def test_a_full_disk_is_said_before_the_first_step(glyph_cache, small_disk) -> None:
    fill(small_disk)
    tracker = ListTracker()
    with pytest.raises(ResourceError, match="cannot be written"):
        run_once(tiny_config(glyph_cache, *SMALL), small_disk / "run", tracker)
    assert tracker.logged == []


def test_a_run_folder_that_is_removed_ends_the_run(glyph_cache, tmp_path) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(glyph_cache, *SMALL, "checkpoint.every_steps=4", "eval.every_steps=16")
    with pytest.raises(ResourceError, match="was removed while the run was going on"):
        run_once(config, run_dir, At(6, lambda: shutil.rmtree(run_dir)))
    assert not Path(run_dir, "checkpoints").exists()
