"""A training that is asked to stop, or to save, at any moment: all ranks at one step, then as if never asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distmetric.distributed.replica import Replica
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.evaluations import read_evaluations
from distmetric.training.loop import TrainResult, train
from distmetric.training.stop import NoRequest, Wish, Wishes
from distmetric.training.worker import Worker
from processes import run_ranks
from runs import CPU, ListTracker, tensors_of, tiny_config

SMALL = ("model.widths=[8, 8]", "model.embedding_dim=16", "train.log_every=7")
STEPS = 20
HARD = (
    *("sampler=hard_neighbors", "index=inline", "index.refresh_steps=6", "sampler.round_steps=3"),
    *("sampler.warmup_steps=2", "sampler.back_off.patience=1", "sampler.back_off.distance_ratio=0.5"),
)


class AskedAt:
    """Asks for something the n-th time that it is asked, counted from 0."""

    def __init__(self, **wishes: Wish) -> None:
        self._wishes = {int(name.removeprefix("at_")): wish for name, wish in wishes.items()}
        self.asked = 0

    def wanted(self) -> Wish:
        wish = self._wishes.get(self.asked, "")
        self.asked += 1
        return wish

    def reason(self) -> str:
        return "SIGTERM" if "stop" in self._wishes.values() else ""


def trained(
    config: Any, run_dir: Path, stop: Any = None, replica: Replica | None = None
) -> tuple[Worker, TrainResult, ListTracker]:
    tracker = ListTracker()
    worker = Worker(config, str(run_dir), tracker, replica or Replica(), CPU, stop=stop)
    return worker, train(worker), tracker


def state_of(worker: Worker) -> list[NDArray[Any]]:
    """Weights and statistics, the optimizer's moments, and the loss's parameters, where the run stands."""
    optimizer = worker.optimizer.state_dict()["state"]
    moments = [value for each in optimizer.values() for value in each.values()]
    tensors = [*tensors_of(worker), *moments]
    return [torch.as_tensor(tensor).numpy().copy() for tensor in tensors]


def told(*trackers: ListTracker) -> dict[tuple[str, int], set[float]]:
    """(metric, step) -> its values, which are as many as were logged differently; no clocks."""
    values: dict[tuple[str, int], set[float]] = {}
    for tracker in trackers:
        for step, metrics in tracker.logged:
            for name, value in metrics.items():
                if not name.startswith("time/") and "seconds" not in name and "per_second" not in name:
                    values.setdefault((name, step), set()).add(value)
    return values


def assert_equal(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def of_rank(
    replica: Replica, cache: Path, run_dir: Path, overrides: tuple[str, ...], asks: list[dict]
) -> Any:
    """A run that is stopped as often as there are entries in `asks`; what it left, told, and where it stopped."""
    config = tiny_config(cache, *SMALL, *overrides)
    trackers, stops = [], []
    for ask in [*asks, {}]:
        stop = AskedAt(**ask) if replica.is_main else NoRequest()
        worker, result, tracker = trained(config, run_dir, stop, replica)
        trackers.append(tracker)
        stops.append((result.step, result.stopped))
    return state_of(worker), told(*trackers), stops, read_evaluations(str(run_dir))


@pytest.mark.parametrize(
    ("overrides", "moments"),
    [((), (0, 11, 25)), (HARD, (1, 5, 7, 12, 13, 18))],
    ids=["random", "hard"],
)
def test_stopped_at_any_moment_and_resumed_equals_never_stopped(
    overrides, moments, glyph_cache, tmp_path
) -> None:
    # Asked before each of 20 steps and three times in each of two evaluations.
    steps = [*range(10), 10, 10, 10, *range(10, 20), 20, 20, 20]
    whole = of_rank(Replica(), glyph_cache, tmp_path / "whole", overrides, [])
    assert whole[2] == [(STEPS, "")]
    for moment in moments:
        run_dir = tmp_path / f"at_{moment}"
        state, metrics, stops, evaluations = of_rank(
            Replica(), glyph_cache, run_dir, overrides, [{f"at_{moment}": "stop"}]
        )
        assert stops == [(steps[moment], "SIGTERM"), (STEPS, "")]
        assert_equal(state, whole[0])
        assert metrics == whole[1]
        assert evaluations == whole[3]


def test_a_run_that_is_stopped_again_and_again_equals_one_that_never_is(glyph_cache, tmp_path) -> None:
    whole = of_rank(Replica(), glyph_cache, tmp_path / "whole", HARD, [])
    often = of_rank(Replica(), glyph_cache, tmp_path / "often", HARD, [{"at_5": "stop"}] * 5)
    assert [step for step, _ in often[2]] == [5, 10, 12, 17, 20, 20]
    assert_equal(often[0], whole[0])
    assert often[1:2] + often[3:] == whole[1:2] + whole[3:]


def test_two_ranks_with_statistics_of_their_own_stop_at_one_step_and_go_on_as_if_never_asked(
    glyph_cache, tmp_path
) -> None:
    whole = run_ranks(2, of_rank, glyph_cache, tmp_path / "whole", HARD, [])
    # Heard one step after it was told: the numbers are exchanged meanwhile.
    asks = [{"at_2": "stop"}, {"at_8": "stop"}, {"at_1": "save", "at_5": "stop"}]
    stopped = run_ranks(2, of_rank, glyph_cache, tmp_path / "stopped", HARD, asks)
    assert [step for step, _ in stopped[0][2]] == [3, 10, 13, STEPS]
    assert [step for step, _ in stopped[1][2]] == [3, 10, 13, STEPS]
    for rank in range(2):
        assert_equal(stopped[rank][0], whole[rank][0])
    assert stopped[0][1] == whole[0][1]
    assert stopped[0][3] == whole[0][3]


def test_after_a_save_that_was_asked_for_the_run_goes_on_unchanged_and_from_there(
    glyph_cache, tmp_path
) -> None:
    config = tiny_config(glyph_cache, *SMALL, "checkpoint.keep_last=9")
    whole, _, _ = trained(config, tmp_path / "whole")
    worker, result, _ = trained(config, tmp_path / "saved", AskedAt(at_4="save", at_8="save"))
    assert (result.step, result.stopped) == (STEPS, "")
    assert_equal(state_of(worker), state_of(whole))
    store = CheckpointStore(str(tmp_path / "saved" / "checkpoints"), keep_last=9)
    assert store.steps() == [4, 8, 10, 20]
    for later in (8, 10, 20):
        store._drop(later)
    again, _, tracker = trained(config, tmp_path / "saved")
    assert min(tracker.series("train/loss")) == 5
    assert_equal(state_of(again), state_of(whole))


def test_a_stop_does_not_wait_for_the_rest_of_an_evaluation(glyph_cache, tmp_path) -> None:
    config = tiny_config(glyph_cache, *SMALL, "eval.batch_size=32")
    stop = AskedAt(at_12="stop")
    worker, result, tracker = trained(config, tmp_path, stop)
    assert len(worker.test_rows) > 3 * 32
    assert (result.step, result.stopped, stop.asked) == (10, "SIGTERM", 13)
    newest = CheckpointStore(str(tmp_path / "checkpoints")).latest()
    assert newest is not None
    assert (newest.step, newest.metrics) == (10, {})
    assert read_evaluations(str(tmp_path)) == []
    assert tracker.series("eval/recall_at_1") == {}
    _, _, resumed = trained(config, tmp_path)
    assert list(resumed.series("eval/recall_at_1")) == [10, 20]


def test_a_run_stopped_on_two_ranks_goes_on_with_one(glyph_cache, tmp_path) -> None:
    overrides = ("train.precision=float64", "model.norm=sync_batch")
    whole = of_rank(Replica(), glyph_cache, tmp_path / "whole", overrides, [])
    config = (glyph_cache, tmp_path / "moved", overrides)
    assert run_ranks(2, stopped_early, *config) == [13, 13]
    moved = of_rank(Replica(), *config, [])
    for (name, step), values in moved[1].items():
        assert step >= 13
        if name == "train/loss":
            assert values.pop() == pytest.approx(whole[1][name, step].pop(), abs=1e-9)


def stopped_early(replica: Replica, cache: Path, run_dir: Path, overrides: tuple[str, ...]) -> int:
    stop = AskedAt(at_15="stop") if replica.is_main else NoRequest()
    return trained(tiny_config(cache, *SMALL, *overrides), run_dir, stop, replica)[1].step


def test_what_a_single_rank_is_told_all_ranks_do(tmp_path) -> None:
    assert run_ranks(3, agreed_wishes) == [
        (["", "", "save", "stop", "stop"], "a signal to another rank"),
        (["", "", "save", "stop", "stop"], "a signal to another rank"),
        (["", "", "save", "stop", "stop"], "SIGTERM"),
    ]


def agreed_wishes(replica: Replica) -> tuple[list[Wish], str]:
    told = {1: AskedAt(at_1="save"), 2: AskedAt(at_2="stop")}
    wishes = Wishes(told.get(replica.rank, NoRequest()), replica)
    return [wishes.agree() for _ in range(5)], wishes.stopped
