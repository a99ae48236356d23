"""Faults hit what they are meant to hit, in processes that stand in for those of Ray."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distmetric.benchmarks import training_job
from distmetric.benchmarks.soak.faults import INDEX, WORKER, Effect, inject
from distmetric.benchmarks.soak.plan import Planned
from distmetric.benchmarks.training_job import TrainingJob, alive
from distmetric.errors import ResourceError

# A driver with children whose titles are those of Ray's processes; it ends as it is told with SIGTERM.
DRIVER = """
import signal, subprocess, sys, time
code = int(sys.argv[1])
for title in sys.argv[2:]:
    subprocess.Popen(["bash", "-c", f"exec -a ray::{title} sleep 1000"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
print("started", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrainingJob]]:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text(DRIVER)
    monkeypatch.setattr(training_job, "_JOB", tmp_path / "jobs" / "train.py")
    started: list[TrainingJob] = []
    yield started
    for job in started:
        job.end()


def start(jobs: list[TrainingJob], tmp_path: Path, *titles: str, code: int = 5) -> TrainingJob:
    job = TrainingJob([str(code), *titles], tmp_path / f"{len(jobs)}.log")
    jobs.append(job)
    deadline = time.monotonic() + 240
    while len([each for title in (WORKER, INDEX) for each in job.find(title)]) < len(titles):
        assert time.monotonic() < deadline, job.last_words()
        time.sleep(0.02)
    while "started" not in job.last_words():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def planned(kind: str, draw: float = 0.0) -> Planned:
    return Planned(kind, 0.0, draw)


def test_one_of_the_workers_is_killed_as_drawn(jobs, tmp_path: Path) -> None:
    job = start(jobs, tmp_path, f"{WORKER}.run", f"{WORKER}.run", INDEX)
    first, second = job.find(WORKER)
    assert inject(planned("kill_worker", draw=0.7), job, tmp_path) == Effect()
    assert job.find(WORKER) == [first]
    assert not alive(second)
    assert len(job.find(INDEX)) == 1
    assert inject(planned("kill_index_actor"), job, tmp_path).is_injected
    assert not job.find(INDEX)
    assert not inject(planned("kill_index_actor"), job, tmp_path).is_injected
    assert job.exit_code is None


def test_the_driver_is_killed_alone_or_with_everything(jobs, tmp_path: Path) -> None:
    job = start(jobs, tmp_path, WORKER, INDEX)
    assert inject(planned("kill_driver"), job, tmp_path).ended
    assert job.exit_code == -signal.SIGKILL
    # Without their parent they are found all the same.
    assert len(job.find(WORKER)) == len(job.find(INDEX)) == 1
    job.end()
    assert job.look() == set()
    another = start(jobs, tmp_path, WORKER)
    assert inject(planned("kill_everything"), another, tmp_path).ended
    assert another.look() == set()


def test_a_driver_that_is_asked_to_stop_has_to_end_with_its_code(jobs, tmp_path: Path) -> None:
    assert inject(planned("stop"), start(jobs, tmp_path), tmp_path) == Effect(ended=True)
    failed = inject(planned("stop"), start(jobs, tmp_path, code=1), tmp_path)
    assert failed.ended
    assert "it ended with exit code 1: started" in failed.failure


def test_the_index_is_held_for_a_while_and_then_goes_on(jobs, tmp_path: Path, monkeypatch) -> None:
    job = start(jobs, tmp_path, INDEX)
    (index,) = job.find(INDEX)
    sleep, slept = time.sleep, list[float]()

    def until(holds: bool) -> None:
        """A signal takes effect when the process is next scheduled."""
        deadline = time.monotonic() + 240
        while (index.status() == psutil.STATUS_STOPPED) != holds:
            assert time.monotonic() < deadline, index.status()
            sleep(0.01)

    def look(seconds: float) -> None:
        slept.append(seconds)
        until(holds=True)

    monkeypatch.setattr("distmetric.benchmarks.soak.faults.time.sleep", look)
    assert inject(planned("drop_pushes"), job, tmp_path).is_injected
    assert len(slept) == 1
    assert slept[0] > 1
    until(holds=False)


def test_a_slow_disk_holds_workers_up_in_the_writing_of_a_checkpoint(
    jobs, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("distmetric.benchmarks.soak.faults._HELD_S", 0.5)
    monkeypatch.setattr("distmetric.benchmarks.soak.faults._HELD_IN_WRITE_S", 0.1)
    job, run_dir = start(jobs, tmp_path, WORKER), tmp_path / "run"
    checkpoint = run_dir / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.pt.part").write_bytes(b"half")
    assert int(inject(planned("slow_disk"), job, run_dir).detail.split()[-2]) >= 1
    (checkpoint / "manifest.json").write_text("{}")
    assert inject(planned("slow_disk"), job, run_dir).detail == "held up in the writing of 0 checkpoints"
    assert [path.name for path in tmp_path.glob("busy*")] == []
    assert all(alive(worker) for worker in job.find(WORKER))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_no_job_outlives_a_soak_that_was_killed(jobs, tmp_path: Path) -> None:
    start(jobs, tmp_path)  # writes the stand-in
    soak = f"""
import sys, time
from pathlib import Path
from distmetric.benchmarks import training_job
training_job._JOB = Path({str(tmp_path / "jobs" / "train.py")!r})
job = training_job.TrainingJob(["5"], Path({str(tmp_path / "soak.log")!r}))
while "started" not in job.last_words():
    time.sleep(0.02)
print(job.driver.pid, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", soak], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        driver = psutil.Process(int(killed.stdout.readline()))
        assert alive(driver)
        killed.kill()
    psutil.wait_procs([driver], timeout=240)
    assert not alive(driver)


def test_without_a_checkout_there_is_no_soak(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training_job, "_JOB", tmp_path / "train.py")
    with pytest.raises(ResourceError, match="run it in a checkout"):
        TrainingJob([], tmp_path / "log")


def test_what_was_killed_by_somebody_else_is_no_error(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(other.pid)
    other.wait()
    training_job.kill([process])
