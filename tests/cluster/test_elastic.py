"""Which group of workers follows which: room, growth, what counts as a failure, and that no group follows for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError, WorkerGroupError

from distmetric.cluster import elastic
from distmetric.cluster.elastic import RESIZE, ElasticTraining, worker_resources
from distmetric.config.schema import TrainerConfig
from distmetric.errors import ResourceError

FAILED = WorkerGroupError("rank 0 was killed", {0: RuntimeError("killed")})
DONE = {"step": 100, "stopped": ""}
LEFT = {"step": 50, "stopped": RESIZE}


class Cluster:
    """Room for so many workers, machines of which some are lost, and a run that writes checkpoints."""

    def __init__(self, room: int) -> None:
        self.room, self.lost, self.step = room, set[str](), 0
        self.asked: list[int] = []
        self.held = 0

    def ask(self, count: int) -> None:
        self.asked.append(count)
        self.held = count

    def ready(self) -> int:
        return min(self.held, self.room)

    def give_back(self) -> None:
        self.held = 0

    def nodes(self) -> list[dict[str, Any]]:
        names = {f"{letter}{number}" for letter in "abcdefgh" for number in range(10)}
        return [{"NodeID": name, "Alive": name not in self.lost} for name in names]


class Groups:
    """Plays the groups of a training: each entry trains, fails or is asked to leave."""

    def __init__(self, cluster: Cluster, *played: Callable[[], dict[str, Any]]) -> None:
        self.cluster, self.played = cluster, iter(played)
        self.sizes: list[int] = []
        self.asked_to_leave = threading.Event()
        self.have_begun = True

    def train(self, workers: int, number: int) -> dict[str, Any]:
        assert self.cluster.held == 0, "the workers' places are theirs"
        self.sizes.append(workers)
        assert number == len(self.sizes)
        self.asked_to_leave.clear()
        return next(self.played)()

    def machines(self, number: int) -> dict[int, str]:
        if not self.have_begun or number > len(self.sizes):
            return {}
        return {rank: f"{'abcd'[rank]}{number}" for rank in range(self.sizes[number - 1])}

    def run(self, **settings: Any) -> dict[str, Any]:
        trainer = TrainerConfig(**{"num_workers": [1, 2], "resize_check_s": 0.01, **settings})
        leave, saved = self.asked_to_leave.set, lambda: self.cluster.step
        return ElasticTraining(trainer, self.train, self.machines, leave, saved).run()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster(room=2)
    monkeypatch.setattr(elastic, "Places", lambda _: cluster)
    monkeypatch.setattr(elastic, "ray", SimpleNamespace(nodes=cluster.nodes))
    monkeypatch.setattr(elastic, "_LOOK_S", 0.002)
    monkeypatch.setattr(elastic, "_SETTLED_S", 0.02)
    monkeypatch.setattr(elastic, "_VERDICT_S", 1.0)
    yield cluster
    assert cluster.held == 0, "places are still held from others"


def fails(cluster: Cluster, saved: int = 0, lost: str = "", room: int | None = None) -> Callable[[], Any]:
    """A group that writes a checkpoint after so many steps, and fails, with machines that are lost."""

    def play() -> dict[str, Any]:
        while any(thread.name == "room-for-workers" for thread in threading.enumerate()):
            time.sleep(0.001)  # until it has heard where all the workers are
        cluster.step += saved
        cluster.lost |= {lost}
        cluster.room = cluster.room if room is None else room
        raise FAILED

    return play


def test_as_many_train_as_there_is_room_for(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    full = Groups(cluster, lambda: DONE)
    assert full.run() == DONE
    assert full.sizes == [2]
    assert caplog.messages == []  # as was asked for
    less = Groups(cluster, lambda: DONE)
    less.run(num_workers=[1, 4])
    assert less.sizes == [2]
    assert caplog.messages == ["beginning with 2 of 4 workers from step 0"]


def test_too_little_room_ends_in_one_line_and_not_in_waiting(cluster: Cluster) -> None:
    cluster.room = 1
    groups = Groups(cluster)
    with pytest.raises(ResourceError) as caught:
        groups.run(num_workers=[2, 3], start_timeout_s=0.05, cpus_per_worker=4.0, use_gpu=True)
    assert groups.sizes == []
    assert str(caught.value) == (
        "trainer.num_workers=[2, 3]: the cluster had room for 1 worker with 4 CPUs and a GPU each within "
        "trainer.start_timeout_s=0.05: set a smaller minimum or wait longer, then resume the run if it had begun"
    )


def test_a_lost_worker_is_done_without(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    groups = Groups(cluster, fails(cluster, saved=40, lost="b1", room=1), lambda: DONE)
    assert groups.run(max_failures=0) == DONE
    assert groups.sizes == [2, 1]
    assert caplog.messages == ["workers were lost: going on with 1 of 2 workers from step 40"]


def test_room_for_more_is_used_from_the_very_next_step(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.room = 1
    groups = Groups(cluster)

    def joined() -> dict[str, Any]:
        cluster.room = 2
        assert groups.asked_to_leave.wait(5)
        assert cluster.asked[-1] == 1
        cluster.step = 50
        return LEFT

    groups.played = iter([joined, lambda: DONE])
    assert groups.run() == DONE
    assert groups.sizes == [1, 2]
    assert caplog.messages[-1] == "there is room for more workers: going on with 2 of 2 workers from step 50"


def test_nobody_is_asked_to_leave_who_has_not_begun_or_is_complete(cluster: Cluster) -> None:
    groups = Groups(cluster)

    def waits() -> dict[str, Any]:
        assert not groups.asked_to_leave.wait(0.1)
        return DONE

    groups.played = iter([waits])
    groups.run()  # complete, though there is room for more
    cluster.room, groups.played, groups.have_begun = 1, iter([waits]), False
    groups.sizes.clear()
    asked = len(cluster.asked)
    groups.run()
    assert cluster.asked[asked:] == [2], "places were asked for before the group had its own"


def test_failures_end_the_run_when_there_were_too_many(cluster: Cluster) -> None:
    groups = Groups(cluster, *[fails(cluster, saved=1)] * 9)
    with pytest.raises(WorkerGroupError, match="rank 0 was killed"):
        groups.run(max_failures=3)
    assert groups.sizes == [2] * 4


def test_lost_machines_do_not_count_for_a_run_that_gets_on(cluster: Cluster) -> None:
    losses = [fails(cluster, saved=1, lost=f"{'ab'[number % 2]}{number}") for number in range(1, 9)]
    groups = Groups(cluster, *losses, lambda: DONE)
    assert groups.run(max_failures=0) == DONE
    assert len(groups.sizes) == 9


def test_lost_machines_count_for_a_run_that_never_gets_on(cluster: Cluster) -> None:
    groups = Groups(cluster, *[fails(cluster, lost=f"a{number}") for number in range(1, 9)])
    with pytest.raises(WorkerGroupError):
        groups.run(max_failures=2)
    assert groups.sizes == [2] * 3


def test_a_machine_that_other_runs_lose_excuses_nothing(cluster: Cluster) -> None:
    groups = Groups(cluster, *[fails(cluster, saved=1, lost="h1")] * 9)
    with pytest.raises(WorkerGroupError):
        groups.run(max_failures=1)
    assert groups.sizes == [2] * 2


def test_a_machine_that_is_missed_late_does_not_count_whatever_comes_after(cluster: Cluster) -> None:
    groups = Groups(cluster, fails(cluster, saved=1), fails(cluster), lambda: DONE)
    threading.Timer(0.3, cluster.lost.add, ("a1",)).start()
    assert groups.run(max_failures=1) == DONE


def test_a_busy_cluster_is_looked_at_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.room = 1
    groups = Groups(cluster)
    answers = iter([TimeoutError, TimeoutError])

    def busy() -> int:
        if error := next(answers, None):
            raise error
        return 1

    def trains() -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "ready", busy)
            assert groups.asked_to_leave.wait(5)
        return LEFT

    groups.played = iter([trains, lambda: DONE])
    assert groups.run() == DONE
    assert next(answers, None) is None


def test_a_machine_that_is_missed_late_does_not_count(cluster: Cluster) -> None:
    groups = Groups(cluster, fails(cluster, saved=1), lambda: DONE)
    threading.Timer(0.3, cluster.lost.add, ("a1",)).start()
    assert groups.run(max_failures=0) == DONE


@pytest.mark.parametrize(
    ("name", "groups_played"), [("WorkerGroupStartupTimeoutError", 3), ("PicklingError", 1)]
)
def test_only_what_may_pass_is_tried_again(cluster: Cluster, name: str, groups_played: int) -> None:
    def play() -> dict[str, Any]:
        raise ControllerError(type(name, (Exception,), {})("of the controller"))

    groups = Groups(cluster, *[play] * 9)
    with pytest.raises(ControllerError, match="of the controller"):
        groups.run(max_failures=2)
    assert len(groups.sizes) == groups_played


def test_a_worker_is_what_ray_reserves_for_it() -> None:
    assert worker_resources(TrainerConfig(cpus_per_worker=0.5)) == {"CPU": 0.5}
    assert worker_resources(TrainerConfig(cpus_per_worker=4, use_gpu=True)) == {"CPU": 4, "GPU": 1}
