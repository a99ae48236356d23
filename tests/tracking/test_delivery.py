"""From a run's folder to a server that dies, hangs, refuses and comes back: nothing lost, nothing twice, in order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import ConfigError, ResourceError, StoppedError
from distmetric.tracking import delivery as delivery_module
from distmetric.tracking.delivery import count_waiting, read_delivered
from distmetric.tracking.journal import read_history
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.server import NoAnswerError
from distmetric.tracking.tracked_run import TrackedRun
from fake_server import AWAY, FORBIDDEN, FakeServer
from runs import run_once, tiny_config

LOSS = "train/loss"


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch) -> None:
    for name in ("_LOOK_EVERY_S", "_FIRST_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(delivery_module, name, 0.01)
    monkeypatch.setattr(delivery_module, "_PATIENCE_IN_TROUBLE_S", 0.2)


class Told(list):
    """Lines that a run was told, with their steps."""

    def __call__(self, step: int, line: str) -> None:
        assert "\n" not in line
        self.append((step, line))

    @property
    def lines(self) -> list[str]:
        return [line for _, line in self]


def create(run_dir: Path, server: FakeServer | None, told: Told | None = None) -> TrackedRun:
    return TrackedRun.create(
        str(run_dir), server, "a-run", {"seed": 0}, {"loss": "triplet"}, Told() if told is None else told
    )


def lacks(run_dir: Path) -> str:
    """What a run is told whose server has not got all of it in the end."""
    return (
        f"MLflow at fake://server has not got all of the run; what it lacks is in {run_dir}/history: resume={run_dir} "
        "delivers it, whether the run has ended or not"
    )


def log(tracker, steps) -> None:
    for step in steps:
        tracker.log(step, {LOSS: 1 / step})
    tracker.flush()


def expected(steps) -> dict:
    return {LOSS: [(step, 1 / step) for step in steps]}


def test_a_run_is_brought_from_its_opening_to_its_end(tmp_path) -> None:
    server = FakeServer()
    run = create(tmp_path / "run", server)
    assert (run.run_id, run.uri) == ("run-0", "fake://server")
    with run.watch():
        tracker = run.tracker()
        log(tracker, range(1, 200))
        tracker.close()
        run.describe("**a note**")
        run.log_dataset("glyphs", "f" * 64, "/data")
        (tmp_path / "report.html").write_text("first")
        run.log_artifact(str(tmp_path / "report.html"))
    assert run.close() == 0
    assert server.series("run-0") == expected(range(1, 200)) == read_history(str(tmp_path / "run"))
    assert server.runs["run-0"]["params"] == {"seed": "0"}
    assert server.runs["run-0"]["tags"]["loss"] == "triplet"
    assert server.statuses("run-0") == ["RUNNING", "FINISHED"]
    assert server.attached["run-0"] == {"report.html": b"first"}
    assert not list((tmp_path / "run" / "history" / "attached").iterdir())
    assert server.callers == {"tracking"}


def test_a_server_that_is_not_there_costs_a_warning_and_gets_everything_later(tmp_path) -> None:
    server, told = FakeServer(), Told()
    server.error = AWAY
    run = create(tmp_path / "run", server, told)
    assert run.run_id is None
    tracker = run.tracker()
    log(tracker, range(1, 20))
    (told_first,) = told
    assert told_first == (
        0,
        "MLflow at fake://server does not answer (connection refused): the run goes on without it, and what it is to "
        f"get waits in {tmp_path}/run/history",
    )
    server.error = None
    run.settle()
    assert run.run_id == "run-0"
    assert server.series("run-0") == expected(range(1, 20))
    tracker.close()
    run.end("FINISHED")
    run.close()
    assert told.lines[1:] == ["MLflow at fake://server answers again and has what was waiting for it"]
    assert server.statuses("run-0") == ["RUNNING", "FINISHED"]


def test_what_never_got_through_is_counted_said_once_and_brought_when_the_run_is_opened_again(
    tmp_path,
) -> None:
    server, told = FakeServer(), Told()
    server.error = AWAY
    run_dir = tmp_path / "run"
    run = create(run_dir, server, told)
    with run.watch():
        log(run.tracker(), range(1, 11))
        (tmp_path / "loss.svg").write_text("<svg/>")
        run.log_artifact(str(tmp_path / "loss.svg"))
    waiting = run.close()
    assert (
        waiting == count_waiting(str(run_dir), server.address) == 10 + 4
    )  # run, RUNNING, loss.svg, FINISHED
    assert told.lines[1:] == [lacks(run_dir)]
    server.error = None
    later = Told()
    again = TrackedRun.own(str(run_dir), server, later)
    assert again.settle() == again.close() == 0
    assert later.lines == ["MLflow at fake://server has got all of the run since"]
    assert server.series("run-0") == expected(range(1, 11))
    assert server.statuses("run-0") == ["RUNNING", "FINISHED"]
    assert server.attached["run-0"] == {"loss.svg": b"<svg/>"}
    ended = [record["time"] for record in server.told["run-0"] if record["kind"] == "status"]
    assert ended[1] == max(ended)
    assert count_waiting(str(run_dir), server.address) == 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    script=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from(["fine", "away", "taken", "killed", "both"])),
        min_size=1,
        max_size=7,
    )
)
def test_any_outages_and_kills_leave_every_record_once_and_in_order(script, tmp_path_factory) -> None:
    """Outages that take nothing or take it silently; drivers and workers that are killed in the middle of them."""
    run_dir = tmp_path_factory.mktemp("run")
    server = FakeServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery_module, "BATCH", 7)
        run, step = create(run_dir, server), 0
        tracker = run.tracker()
        for steps, what in script:
            server.error = AWAY if what in ("away", "both") else None
            server.error_after = NoAnswerError("silence") if what == "taken" else None
            log(tracker, range(step + 1, step + steps + 1))
            step += steps
            run.settle()
            if what in ("killed", "both"):
                run._delivery.close()
                run._delivery._thread.join(timeout=300)  # of one that is dead nothing is on its way
                tracker._over.set()
                if what == "killed":  # before it could note how far it had come
                    (run_dir / "history" / "delivered.json").unlink(missing_ok=True)
                run, tracker = TrackedRun.resume(str(run_dir), server, Told()), JournalTracker(str(run_dir))
                log(tracker, range(max(1, step - 5), step + 1))  # replayed, with other values
        server.error = server.error_after = None
        tracker.close()
        run.end("FINISHED")
        assert run.close() == 0
        (run_id,) = server.runs
        assert server.series(run_id) == read_history(str(run_dir)) == expected(range(1, step + 1))
        assert server.statuses(run_id)[-1] == "FINISHED"


def test_training_takes_every_step_and_checkpoint_while_the_server_hangs(glyph_cache, tmp_path) -> None:
    """Counted by events, not by a clock: the server answers its first call only after the training is over."""
    server, told = FakeServer(patience_s=0.2), Told()
    server.hang()
    run_dir = tmp_path / "run"
    run = create(run_dir, server, told)
    assert server.asked.is_set()
    assert (server.calls, run.run_id) == (1, None)
    config = tiny_config(glyph_cache, "train.steps=10", "checkpoint.every_steps=5", "eval.every_steps=10")
    tracker = run.tracker()
    _, result, _ = run_once(config, run_dir, tracker)
    assert result.step == 10
    assert (run_dir / "checkpoints" / "step_00000010").is_dir()
    assert server.calls == 1, "the one call that hangs is all there ever was"
    assert server.callers == {"tracking"}
    assert [step for step, _ in read_history(str(run_dir))[LOSS]] == list(range(1, 11))
    assert told.lines[0].startswith("MLflow at fake://server does not answer (nothing within 0.2 s): ")
    server.go_on()
    server.patience_s = 60.0
    run.end("FINISHED")
    assert run.close() == 0
    assert server.series("run-0") == read_history(str(run_dir))
    tracker.close()


def test_waiting_for_a_server_that_hangs_ends(tmp_path) -> None:
    server, told = FakeServer(patience_s=0.2), Told()
    run = create(tmp_path / "run", server, told)
    assert run.settle() == 0
    server.hang()
    log(run.tracker(), range(1, 5))
    run.end("FINISHED")
    assert run.settle() == 4 + 1
    assert [line.partition(" (")[0] for line in told.lines] == [
        "MLflow at fake://server does not answer",
        lacks(tmp_path / "run"),
    ]
    server.go_on()
    server.patience_s = 60.0
    assert run.close() == 0
    assert server.statuses("run-0") == ["RUNNING", "FINISHED"]


def test_what_is_checkpointed_is_in_the_folder_before_whatever_the_server_does(tmp_path) -> None:
    server = FakeServer(patience_s=0.05)
    server.hang()
    run = create(tmp_path / "run", server)
    tracker = run.tracker()
    tracker.log(1, {LOSS: 1.0})
    assert read_history(str(tmp_path / "run")) == {}
    tracker.flush()
    assert read_history(str(tmp_path / "run")) == {LOSS: [(1, 1.0)]}
    server.go_on()
    tracker.close()
    run.close()


def test_a_server_that_refuses_at_the_start_is_a_mistake_and_leaves_nothing(tmp_path) -> None:
    server = FakeServer()
    server.error = FORBIDDEN
    with pytest.raises(
        ResourceError, match=r"^MLflow at fake://server cannot be used: 403: not you; check tracking\.uri"
    ):
        create(tmp_path / "run", server)
    assert not (tmp_path / "run").exists()


def test_a_server_that_refuses_in_the_middle_is_told_and_the_run_goes_on(tmp_path) -> None:
    server, told = FakeServer(), Told()
    run = create(tmp_path / "run", server, told)
    tracker = run.tracker()
    log(tracker, range(1, 4))
    run.settle()
    server.error = FORBIDDEN
    log(tracker, range(4, 7))
    run.settle()
    assert told == [
        (
            3,
            "MLflow at fake://server refuses what it is told (403: not you): the run goes on without it, and what it "
            f"is to get waits in {tmp_path}/run/history",
        ),
        (
            3,
            lacks(tmp_path / "run"),
        ),
    ]
    server.error = None
    tracker.close()
    run.end("FINISHED")
    assert run.close() == 0
    assert server.series("run-0") == expected(range(1, 7))


def test_one_thing_that_is_not_accepted_holds_nothing_else_up(tmp_path) -> None:
    server, told = FakeServer(), Told()
    server.unacceptable = {"train/odd", "attach", "dataset"}
    run = create(tmp_path / "run", server, told)
    tracker = run.tracker()
    for step in range(1, 6):
        tracker.log(step, {"train/odd": 1.0, LOSS: 1 / step})
    tracker.close()
    (tmp_path / "x.txt").write_text("x")
    run.log_artifact(str(tmp_path / "x.txt"))
    run.log_dataset("glyphs", "f", "/data")
    run.end("FINISHED")
    assert run.close() == 0
    assert server.series("run-0") == expected(range(1, 6))
    assert server.statuses("run-0") == ["RUNNING", "FINISHED"]
    assert told.lines == [
        "MLflow does not accept the metric train/odd, which it goes without: no such thing as train/odd",
        "MLflow does not accept x.txt of the run, which it goes without: its disk is full",
        "MLflow does not accept its dataset of the run, which it goes without: not that",
    ]
    assert (tmp_path / "run" / "history" / "attached" / "x.txt").read_text() == "x"


def test_a_server_that_has_lost_the_run_gets_all_of_it_again(tmp_path) -> None:
    server, told = FakeServer(), Told()
    run = create(tmp_path / "run", server, told)
    tracker = run.tracker()
    log(tracker, range(1, 4))
    run.settle()
    kept = server.runs.pop("run-0")
    server.runs["of-somebody-else"] = {"key": "other"}
    log(tracker, range(4, 6))
    run.settle()
    assert run.run_id == "run-1"
    assert server.series("run-1") == expected(range(1, 6))
    assert server.runs["run-1"] == kept
    assert told.lines == ["MLflow at fake://server did not know the run any more: it gets all of it again"]
    tracker.close()
    run.close()
    assert read_delivered(str(tmp_path / "run"))["run_id"] == "run-1"


def test_another_server_gets_all_of_it_and_the_first_one_is_left_alone(tmp_path) -> None:
    first, second = FakeServer(), FakeServer()
    second.address = "fake://elsewhere"
    run = create(tmp_path / "run", first)
    log(run.tracker(), range(1, 4))
    run.end("KILLED", "moved")
    run.close()
    calls = first.calls
    moved = TrackedRun.resume(str(tmp_path / "run"), second, Told())
    moved.end("FINISHED")
    moved.close()
    assert second.series("run-0") == first.series("run-0")
    assert second.statuses("run-0") == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert first.calls == calls


def test_a_driver_that_was_killed_leaves_a_running_run_that_the_next_resume_marks(tmp_path) -> None:
    server = FakeServer()
    killed = create(tmp_path / "run", server)
    killed.settle()
    killed._delivery.close()
    assert (server.statuses("run-0"), killed.status()) == (["RUNNING"], ("RUNNING", ""))
    for times in ("1", "2"):
        resumed = TrackedRun.resume(str(tmp_path / "run"), server, Told())
        resumed.settle()
        tags = [record["tags"] for record in server.told["run-0"] if record["kind"] == "tags"]
        assert tags[-1] == {"distmetric.error": None, "resumed": times}
        resumed._delivery.close()
    finished = TrackedRun.own(str(tmp_path / "run"), server)
    finished.end("FINISHED")
    before = len(server.told["run-0"])
    finished.end("FINISHED")
    finished.close()
    assert server.statuses("run-0")[-1] == "FINISHED"
    assert len(server.told["run-0"]) == before, "an end that is known is not told again"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a mistake"), "FAILED"),
        (RuntimeError("a bug"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (StoppedError("stopped by SIGTERM at step 3"), "KILLED"),
    ],
)
def test_the_end_is_told_truthfully_also_by_a_run_without_a_server(error, status, tmp_path) -> None:
    server = FakeServer()
    for run in (create(tmp_path / "tracked", server), create(tmp_path / "untracked", None)):
        with pytest.raises(type(error)), run.watch():
            raise error
        assert run.status() == (status, str(error))
    assert server.statuses("run-0") == ["RUNNING", status]


def test_a_run_without_a_server_keeps_its_history_and_can_be_tracked_later(tmp_path) -> None:
    run = create(tmp_path / "run", None)
    log(run.tracker(), range(1, 5))
    run.describe("a note")
    assert (run.run_id, run.uri, run.close()) == (None, None, 0)
    assert run.history() == expected(range(1, 5))
    server = FakeServer()
    TrackedRun.own(str(tmp_path / "run"), server).close()
    assert server.series("run-0") == expected(range(1, 5))


def test_nothing_is_kept_of_no_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = TrackedRun()
    with nothing.watch():
        tracker = nothing.tracker()
        tracker.log(1, {LOSS: 1.0})
        tracker.flush()
        nothing.describe("x")
        nothing.log_dataset("a", "b", "c")
        nothing.log_artifact("nowhere")
    assert (nothing.history(), nothing.status(), nothing.close()) == ({}, ("", ""), 0)
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_kept_nowhere(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "correct-horse-battery")
    server, told = FakeServer(), Told()
    run_dir = tmp_path / "run"
    params = {"data.path": "s3://key:correct-horse-battery@bucket"}
    run = TrackedRun.create(str(run_dir), server, "a", params, {"command": "x correct-horse-battery"}, told)
    run.describe("with correct-horse-battery")
    server.error = NoAnswerError("http://me:correct-horse-battery@host is away")
    run.settle()
    run.log_dataset("d", "f", "http://me:correct-horse-battery@host")
    run.end("FAILED", "correct-horse-battery was wrong")
    server.error = None
    run.close()
    everything = [str(server.runs), str(server.told), str(told)]
    everything += [path.read_text() for path in run_dir.rglob("*") if path.is_file()]
    assert any("***" in text for text in everything)
    assert not [text for text in everything if "correct-horse" in text]


def test_a_damaged_note_of_how_far_it_came_costs_sending_it_again(tmp_path) -> None:
    server = FakeServer()
    run = create(tmp_path / "run", server)
    log(run.tracker(), range(1, 5))
    run.end("FINISHED")
    run.close()
    note = tmp_path / "run" / "history" / "delivered.json"
    note.write_bytes(note.read_bytes()[:40])
    TrackedRun.own(str(tmp_path / "run"), server).close()
    assert list(server.runs) == ["run-0"]
    assert server.series("run-0") == expected(range(1, 5))
    assert server.statuses("run-0") == ["RUNNING", "FINISHED"]


def test_leftovers_of_a_run_that_never_was_are_not_taken_for_the_new_ones(tmp_path) -> None:
    left = create(tmp_path / "run", None)
    log(left.tracker(), range(1, 5))
    fresh = create(tmp_path / "run", FakeServer())
    log(fresh.tracker(), range(1, 3))
    assert fresh.history() == expected(range(1, 3))
    fresh.close()


def test_the_thread_ends_with_the_run(tmp_path) -> None:
    before = threading.active_count()
    run = create(tmp_path / "run", FakeServer())
    run.close()
    run._delivery._thread.join(timeout=240)
    assert threading.active_count() <= before
    assert run.close() == 0, "at once, since nobody is there to be waited for"
    failed = create(tmp_path / "failed", FakeServer())
    with pytest.raises(ZeroDivisionError), failed.watch():
        raise ZeroDivisionError
    failed._delivery._thread.join(timeout=240)
    assert threading.active_count() <= before
