"""Every loss of conf/loss learns: a short run on a few glyphs, its loss falls and its recall rises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError
from distmetric.training.worker import Worker
from runs import LOSS_OF_OTHERS, ListTracker, run_once, tiny_config

CPU = torch.device("cpu")
LOSSES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml"))
STEPS = 40
# What a loss needs beside `loss=NAME`, as its docstring or its YAML says.
SETTINGS: dict[str, list[str]] = {
    # While a memory fills, the loss is over ever more pairs: a small one is full at once.
    "cross_batch_memory": ["loss.memory_size=64"],
    "custom": [*LOSS_OF_OTHERS],
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_short_run_learns(name: str, glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(
        glyph_cache,
        f"loss={name}",
        f"train.steps={STEPS}",
        "train.log_every=1",
        f"eval.every_steps={STEPS}",
        f"checkpoint.every_steps={STEPS}",
        *SETTINGS.get(name, []),
    )
    untrained = Worker(config, str(tmp_path / "untrained"), ListTracker(), Replica(), CPU)
    before = untrained._evaluate().metrics.recall_at[1]
    _, result, tracker = run_once(config, tmp_path / "trained")
    losses = list(tracker.series("train/loss").values())
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    print(
        f"{name}: loss {first:.4g} -> {last:.4g}, recall@1 {before:.3f} -> {result.metrics['recall_at_1']:.3f}"
    )
    assert last < first
    assert result.metrics["recall_at_1"] > before


def test_settings_that_do_not_fit_the_data_are_told_in_one_line(glyph_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(glyph_cache, "loss=centroid_bound", "loss.placement=one_hot")
    with pytest.raises(ConfigError, match=r"loss=centroid_bound with this data and model: .*one_hot"):
        Worker(config, str(tmp_path), ListTracker(), Replica(), CPU)
