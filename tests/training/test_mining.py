"""Training with a miner: it is used, it follows the steps, and neither ranks nor interruptions change what it draws."""

from __future__ import annotations

import numpy as np
import pytest

from distmetric.config.compose import groups
from distmetric.distributed import Replica
from processes import run_ranks
from runs import ListTracker, run_once, tiny_config

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16", "loss.strategy=batch_all", "loss.margin=0.2")
DIAL = (
    *("miner=hardness", "miner.negatives=kth", "miner.k={start: 20, end: 1, end_step: 15}"),
    "miner.random_fraction=0.3",
)


def losses_of_a_run(replica: Replica, cache, run_dir, *overrides: str) -> dict[int, float]:
    exact = ("train.precision=float64", "model.norm=sync_batch", "sampler.classes_per_batch=7")
    config = tiny_config(cache, *SMALL, *exact, "train.steps=6", *overrides)
    _, _, tracker = run_once(config, run_dir, replica=replica)
    return tracker.series("train/loss")


@pytest.mark.parametrize("miner", [name for name in groups()["miner"] if name != "none"])
def test_every_miner_trains_and_two_ranks_equal_one(miner, glyph_cache, tmp_path) -> None:
    overrides = DIAL if miner == "hardness" else (f"miner={miner}",)
    one = losses_of_a_run(Replica(), glyph_cache, tmp_path / "one", *overrides)
    two = run_ranks(2, losses_of_a_run, glyph_cache, tmp_path / "two", *overrides)[0]
    unmined = losses_of_a_run(Replica(), glyph_cache, tmp_path / "unmined")
    assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-9)
    assert all(one[step] != pytest.approx(unmined[step], rel=1e-3) for step in one)


def test_a_miner_that_draws_goes_on_where_the_run_was_interrupted(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, "train.log_every=3", *SMALL, *DIAL)
    whole, _, tracker = run_once(config, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run_once(config, tmp_path / "resumed", ListTracker(fail_at=14))
    resumed, _, replayed = run_once(config, tmp_path / "resumed")
    losses = tracker.series("train/loss")
    assert whole.criterion.miner.step == config.train.steps - 1
    assert min(replayed.series("train/loss")) == 11
    assert replayed.series("train/loss") == {step: loss for step, loss in losses.items() if step >= 11}
    for ours, expected in zip(
        resumed.embedder.state_dict().values(), whole.embedder.state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy())
