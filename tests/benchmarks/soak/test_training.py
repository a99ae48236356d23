"""What is done to a training is counted truthfully; with a stand-in for the job, which starts in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distmetric.benchmarks import training_job
from distmetric.benchmarks.soak import training as training_module
from distmetric.benchmarks.soak.plan import Planned
from distmetric.benchmarks.soak.training import DisturbedTraining
from distmetric.errors import ResourceError
from distmetric.training.checkpoint import CheckpointStore

ROUND_STEPS, SAVED_EVERY = 5, 20


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_job, "_JOB", Path(__file__).with_name("stand_in.py"))
    monkeypatch.setattr(training_module, "_PATIENCE_S", 60.0)
    monkeypatch.setattr("distmetric.benchmarks.soak.faults._HELD_S", 0.3)


def disturbed(folder: Path, *kinds: str) -> tuple[DisturbedTraining, int]:
    """A training after these faults, and the step at which it was stopped."""

    def faults(training: DisturbedTraining) -> Iterator[Planned]:
        for kind in kinds:
            yield Planned(kind, 0.5, 0.5)
        yield Planned("stop", 0.5, 0.5)  # for which there is no time any more
        raise AssertionError("the time is over")

    training = DisturbedTraining((), folder / "soak", ROUND_STEPS)
    try:
        wanted = faults(training)
        for _ in kinds:
            training.disturb(iter([next(wanted)]), seconds=1000.0)
        training.disturb(wanted, seconds=training.seconds + 0.2)
        return training, training.finish()
    finally:
        training.close()


@pytest.mark.parametrize("kind", ["kill_worker", "kill_driver", "kill_everything"])
def test_who_is_killed_does_the_steps_since_the_checkpoint_again(kind: str, tmp_path: Path) -> None:
    training, steps = disturbed(tmp_path, kind)
    (hit,) = training.hits
    assert (hit.kind, hit.survived, hit.detail) == (kind, True, "")
    assert hit.steps_lost <= SAVED_EVERY + ROUND_STEPS
    assert 0 < hit.step < steps
    assert training.attempts == (1 if kind == "kill_worker" else 2)
    assert (training.mishaps, training.corrupted) == ([], set())
    assert [job.look() for job in training._jobs] == [set()] * training.attempts


@pytest.mark.parametrize("kind", ["kill_index_actor", "drop_pushes", "slow_disk", "stop"])
def test_what_ends_no_worker_and_what_saves_first_loses_nothing(kind: str, tmp_path: Path) -> None:
    training, _ = disturbed(tmp_path, kind)
    assert [(hit.survived, hit.steps_lost) for hit in training.hits] == [(True, 0)]
    assert training.attempts == (2 if kind == "stop" else 1)
    assert training.mishaps == []


def test_a_driver_that_ends_unasked_is_told_and_resumed(tmp_path: Path) -> None:
    training = DisturbedTraining(("fails_at=30",), tmp_path / "soak", ROUND_STEPS)
    try:
        training.disturb(iter([Planned("kill_index_actor", 1000.0, 0.0)]), seconds=1000.0)
        steps = training.finish()
    finally:
        training.close()
    assert [hit.kind for hit in training.hits] == ["kill_index_actor"]
    assert len(training.mishaps) == 1
    assert "the driver ended by itself, code 7" in training.mishaps[0]
    assert steps > 30
    assert training.attempts == 2


@pytest.mark.parametrize(("busy", "survived"), [(2, True), (1000, False)])
def test_a_driver_that_finds_the_machine_too_busy_is_started_again_and_not_for_ever(
    busy: int, survived: bool, tmp_path: Path
) -> None:
    training = DisturbedTraining((), tmp_path / "soak", ROUND_STEPS)
    try:
        training.disturb(
            iter([Planned("kill_index_actor", 0.5, 0.0)]), seconds=1000.0
        )  # until something is saved
        assert training.watch.wait_beyond(SAVED_EVERY // ROUND_STEPS + 1, 60.0)
        (training.run_dir / "busy").write_text(str(busy))
        hit = iter([Planned("kill_driver", 0.0, 0.0)])
        if survived:
            training.disturb(hit, seconds=1000.0)
            assert [hit.survived for hit in training.hits] == [True, True]
            assert training.attempts == 2 + busy
        else:
            with pytest.raises(ResourceError, match="the training of the soak did not resume"):
                training.disturb(hit, seconds=1000.0)
    finally:
        training.close()


def test_a_job_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('error: no room')")
    monkeypatch.setattr(training_job, "_JOB", tmp_path / "train.py")
    with pytest.raises(ResourceError, match=r"the training of the soak did not start: error: no room"):
        DisturbedTraining((), tmp_path / "soak", ROUND_STEPS)


def test_a_damaged_checkpoint_is_counted(tmp_path: Path) -> None:
    training, _ = disturbed(tmp_path)
    assert training.hits == []
    store = CheckpointStore(str(training.run_dir / "checkpoints"))
    file = training.run_dir / "checkpoints" / f"step_{store.steps()[0]:08d}" / "model.pt"
    file.write_bytes(file.read_bytes()[:-1])
    training._verify_checkpoints()
    (message,) = training.corrupted
    assert str(file) in message
