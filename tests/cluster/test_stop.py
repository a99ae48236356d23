"""How a stop reaches rank 0, how the driver knows that it will be heeded, and when it leaves instead."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from distmetric.cluster import groups, preemption, stop
from distmetric.cluster.groups import Attendant
from distmetric.cluster.preemption import Preemptions
from distmetric.cluster.progress_board import ProgressBoard
from distmetric.cluster.stop import RemoteRequest, StopSignals
from distmetric.config.signals import Interrupted
from distmetric.errors import StoppedError
from distmetric.training.checkpoint import CheckpointStore


class Handle:
    """Of an actor whose calls are answered at once, here; `down` is what they fail with."""

    def __init__(self, actor: object) -> None:
        self.actor, self.down = actor, None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.actor, name)
        return SimpleNamespace(remote=lambda *arguments: lambda: self.answer(method, arguments))

    def answer(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.down is not None:
            raise self.down
        return method(*arguments)


@pytest.fixture(autouse=True)
def _calls_are_answered_here(monkeypatch) -> None:
    monkeypatch.setattr(ray, "get", lambda call, timeout: call())
    monkeypatch.setattr(stop, "_ASK_EVERY_S", 0.005)


@pytest.fixture
def desk() -> Handle:
    return Handle(ProgressBoard())


@pytest.fixture
def request_of(desk):
    made: list[RemoteRequest] = []

    def make(group: int) -> RemoteRequest:
        made.append(RemoteRequest(desk, group))
        until(lambda: desk.actor.listener().state in ("starting", "training"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_what_is_asked_of_the_desk_reaches_rank_0(desk, request_of) -> None:
    request = request_of(1)
    assert (request.wanted(), request.reason()) == ("", "")
    desk.actor.ask_stop("SIGTERM")
    until(lambda: request.wanted() == "stop")
    assert request.reason() == "SIGTERM"
    assert request.wanted() == "stop"


def test_each_save_that_is_asked_for_is_told_once_and_not_to_those_who_come_later(desk, request_of) -> None:
    desk.actor.ask_save("machine a goes")
    request = request_of(1)
    assert request.wanted() == ""  # it began with the newest checkpoint, after that was asked for
    desk.actor.ask_save("machine b goes")
    until(lambda: request.wanted() == "save")
    assert [request.wanted() for _ in range(5)] == [""] * 5


def test_only_the_group_that_is_meant_is_asked_to_leave(desk, request_of) -> None:
    first = request_of(1)
    desk.actor.ask_leave(1, "room for more workers")
    until(lambda: first.wanted() == "stop")
    first.close()
    assert request_of(2).wanted() == ""


def test_a_request_outlives_a_desk_that_is_started_anew_and_ends_a_training_nobody_waits_for(
    desk, request_of
) -> None:
    request = request_of(1)
    desk.down = GetTimeoutError("busy")
    desk.actor = ProgressBoard()
    desk.down = None
    desk.actor.ask_save("forgotten, since the new one counts from the start")
    until(lambda: desk.actor.listener().state == "training" or request.wanted() == "")
    desk.down = ActorDiedError()
    until(lambda: request.wanted() == "stop")
    assert "had started it" in request.reason()


def test_the_desk_knows_who_listens(desk, request_of) -> None:
    assert desk.actor.listener().state == "nobody"
    request = request_of(1)
    assert desk.actor.listener().state == "starting"
    request.wanted()
    until(lambda: desk.actor.listener().state == "training")
    request.leave(7)
    listener = desk.actor.ask_stop("SIGTERM")
    assert (listener.state, listener.step) == ("left", 7)
    time.sleep(0.01)
    assert desk.actor.listener().silent_s >= 0.01


class Tracked:
    """A tracked run that keeps how it was ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def end(self, status: str, reason: str) -> None:
        self.ends.append((status, reason))


@pytest.fixture
def attendant(desk, tmp_path, monkeypatch):
    signals, tracked = StopSignals(), Tracked()
    monkeypatch.setattr(preemption, "draining_machines", dict)
    made = Attendant(str(tmp_path), desk, signals, tracked)  # type: ignore[arg-type]
    return SimpleNamespace(look=made, signals=signals, tracked=tracked)


def test_the_driver_waits_for_a_training_that_hears_it_and_leaves_when_it_has_saved(
    desk, request_of, attendant, tmp_path
) -> None:
    request = request_of(1)
    request.wanted()
    until(lambda: desk.actor.listener().state == "training")
    attendant.look()  # nobody has asked for anything
    attendant.signals._handle(signal.SIGTERM)
    attendant.look()
    until(lambda: request.wanted() == "stop")
    attendant.look()
    until(lambda: attendant.tracked.ends)
    assert attendant.tracked.ends == [("KILLED", f"asked to stop on SIGTERM; resume={tmp_path}")]
    request.leave(12)
    with pytest.raises(StoppedError) as stopped:
        attendant.look()
    assert str(stopped.value) == (
        f"stopped at step 12 on SIGTERM: checkpoint saved; go on with resume={tmp_path}"
    )
    assert stopped.value.exit_code == 5


@pytest.mark.parametrize("state", ["nobody", "starting", "silent", "desk lost"])
def test_the_driver_leaves_at_once_where_nobody_could_save(
    state, desk, request_of, attendant, tmp_path, monkeypatch
) -> None:
    CheckpointStore(f"{tmp_path}/checkpoints").save(30, {}, {})
    monkeypatch.setattr(groups, "_SILENT_S", 0.05)
    if state in ("starting", "silent"):
        request = request_of(1)
        if state == "silent":
            request.wanted()
            until(lambda: desk.actor.listener().state == "training")
            request.close()
    if state == "desk lost":
        desk.down = GetTimeoutError("no answer")
    attendant.signals._handle(signal.SIGINT)
    with pytest.raises(StoppedError, match=r"on SIGINT while nobody trained: go on from step 30 with resume"):
        until(attendant.look)


def test_before_the_first_checkpoint_it_says_that_the_run_begins_anew(attendant, tmp_path) -> None:
    attendant.signals._handle(signal.SIGTERM)
    with pytest.raises(StoppedError, match=f"before the first step: begin with resume={tmp_path}"):
        attendant.look()


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(20)


def test_signals_wait_until_they_are_asked_for_but_not_where_nothing_can_be_lost() -> None:
    with StopSignals.heard() as signals:
        signals.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name() == "SIGTERM"
        with pytest.raises(Interrupted, match="SIGTERM"):
            signals.check()
        with pytest.raises(Interrupted), signals.at_once():
            pytest.fail("it came before")
    with StopSignals.heard() as signals, pytest.raises(Interrupted, match="SIGINT"), signals.at_once():
        interrupted()


def test_a_machine_that_is_to_go_asks_for_one_checkpoint_if_it_works_for_the_run(desk, monkeypatch) -> None:
    asked: list[str] = []
    desk.actor.ask_save = asked.append
    draining: dict[str, int] = {}
    monkeypatch.setattr(preemption, "draining_machines", lambda: draining)
    monkeypatch.setattr(preemption, "_LOOK_EVERY_S", 0.0)
    for rank, machine in enumerate(["a" * 56, "b" * 56]):
        desk.actor.join(1, rank, machine)
    # Calls that nobody waits for are made all the same.
    monkeypatch.setattr(
        Handle,
        "__getattr__",
        lambda self, name: SimpleNamespace(
            remote=lambda *arguments: (lambda found: lambda: found)(getattr(self.actor, name)(*arguments))
        ),
    )
    watch = Preemptions(desk)
    watch.look()
    draining["c" * 56] = 0
    watch.look()
    assert asked == []
    draining["b" * 56] = int((time.time() + 90) * 1000)
    watch.look()
    watch.look()
    assert len(asked) == 1
    assert asked[0].startswith("machine bbbbbbbb is to be taken away in ")
    draining["a" * 56] = 0
    watch.look()
    assert asked[1:] == ["machine aaaaaaaa is to be taken away"]


def test_trouble_with_the_list_of_machines_troubles_nobody(desk, monkeypatch) -> None:
    def trouble() -> dict[str, int]:
        raise RuntimeError("the control plane is busy")

    monkeypatch.setattr(preemption, "draining_machines", trouble)
    Preemptions(desk).look()
