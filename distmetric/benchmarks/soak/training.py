"""The training that is disturbed: started, hit, resumed, and ended at last; what every fault has cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distmetric.benchmarks.soak.faults import STOPPED_CODE, WORKER, inject
from distmetric.benchmarks.soak.plan import Planned
from distmetric.benchmarks.soak.watch import IndexWatch
from distmetric.benchmarks.training_job import TrainingJob
from distmetric.errors import InputError, ResourceError
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.checkpoint_folder import IncompleteCheckpointError

_PATIENCE_S, _STARTS = 600.0, 5
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Hit:
    """A fault that was injected, and what came of it.

    Args:
        kind: Of `KINDS`.
        at_s: Seconds since the first step.
        step: About how far the training was, to within a round.
        survived: Whether the training went further than it had been.
        steps_lost: Steps that had to be done again, to within a round.
        seconds: Until the training was further than before.
        detail: What else there is to tell.
    """

    kind: str
    at_s: float
    step: int
    survived: bool
    steps_lost: int
    seconds: float
    detail: str = ""


class DisturbedTraining:
    """A run of jobs/train.py that faults are injected into.

    Args:
        settings: Overrides of the run, without its name and folder.
        folder: Where the run, its logs, and copies of its snapshots go.
        round_steps: Steps of a round, which is how exactly one knows how far the run is.

    Attributes:
        hits: Faults so far.
        mishaps: What happened unasked, such as a driver that ended by itself.
        corrupted: Checkpoints that were complete and not intact.
    """

    def __init__(self, settings: Sequence[str], folder: Path, round_steps: int) -> None:
        self._folder, self._round_steps = folder, round_steps
        self.run_dir = folder / "run"
        self.watch = IndexWatch(self.run_dir, folder / "index")
        self.store = CheckpointStore(str(self.run_dir / "checkpoints"))
        self.hits: list[Hit] = []
        self.mishaps: list[str] = []
        self.corrupted = set[str]()
        self.attempts = 0
        self._jobs: list[TrainingJob] = []
        self._start([*settings, f"output_dir={folder}", "name=run"])
        self._await_progress(-1, "start")
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.monotonic() - self._begun

    def disturb(self, faults: Iterator[Planned], seconds: float) -> None:
        """Inject faults until so many seconds have passed since the first step."""
        for planned in faults:
            if not self._undisturbed(min(planned.wait_s, seconds - self.seconds)):
                self._start_again()
            if self.seconds >= seconds:
                return
            self._hit(planned)

    def finish(self) -> int:
        """Ask the run to stop, and return the step that it has saved.

        Raises:
            ResourceError: If nothing was saved.
        """
        job = self._jobs[-1]
        job.look()
        with suppress(ProcessLookupError):
            job.driver.terminate()
        if (code := job.wait(_PATIENCE_S)) != STOPPED_CODE:
            self.mishaps.append(
                f"asked to stop at the end, it ended with exit code {code}: {job.last_words()}"
            )
        self.close()
        self._verify_checkpoints()
        newest = self.store.latest()
        if newest is None:
            raise ResourceError(f"the soak has left no checkpoint; see the logs in {self._folder}")
        return newest.step

    def close(self) -> None:
        """End whatever is left of the run."""
        for job in self._jobs:
            job.end()
        self.watch.close()

    def _hit(self, planned: Planned) -> None:
        job, started = self._jobs[-1], time.monotonic()
        at_s, step = self.seconds, self._reached()
        workers = {process.pid for process in job.find(WORKER)}
        before = self.watch.newest_round
        effect = inject(planned, job, self.run_dir)
        if not effect.is_injected:
            return
        self._verify_checkpoints()
        if effect.ended:
            saved = self._newest_saved()
            self._start([f"resume={self.run_dir}"])
            before, lost = self._after_workers_are_gone(job, saved)
        else:
            lost = self._lost_to_new_workers(workers, before)
        survived = self._goes_beyond(before + 1)
        spent = time.monotonic() - started
        detail = "; ".join(filter(None, (effect.failure, effect.detail)))
        if not survived:
            detail = "; ".join(filter(None, (detail, f"no progress after it: {self._jobs[-1].last_words()}")))
            self._start_again()
        is_sound = survived and not effect.failure
        self.hits.append(Hit(planned.kind, at_s, step, is_sound, lost, spent, detail))

    def _after_workers_are_gone(self, job: TrainingJob, saved: int) -> tuple[int, int]:
        """The newest round of an attempt that has ended, and how many of its steps were not saved."""
        deadline = time.monotonic() + _PATIENCE_S
        while job.find(WORKER) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)
        reached, saved = self._reached(), max(saved, self._newest_saved())
        return self.watch.newest_round, max(0, reached - saved)

    def _lost_to_new_workers(self, workers: set[int], before: int) -> int:
        """Steps lost where the driver lives: none if training goes on with the workers that there were."""
        reached, saved = self._reached(), self._newest_saved()
        self._goes_beyond(before)
        survivors = {process.pid for process in self._jobs[-1].find(WORKER)}
        return 0 if workers <= survivors else max(0, reached - saved)

    def _undisturbed(self, seconds: float) -> bool:
        """Let it train; False if its driver ends unasked."""
        deadline, job = time.monotonic() + seconds, self._jobs[-1]
        while time.monotonic() < deadline:
            if job.exit_code is not None:
                self.mishaps.append(f"the driver ended by itself, code {job.exit_code}: {job.last_words()}")
                return False
            job.look()
            time.sleep(_LOOK_EVERY_S)
        return True

    def _start(self, overrides: Sequence[str]) -> None:
        self.attempts += 1
        log = self._folder / f"attempt-{self.attempts:03d}.log"
        self._jobs.append(TrainingJob(overrides, log))

    def _start_again(self) -> None:
        self._jobs[-1].end()
        self._start([f"resume={self.run_dir}"])
        self._await_progress(self.watch.newest_round, "resume")

    def _await_progress(self, number: int, what: str) -> None:
        if not self._goes_beyond(number):
            words = self._jobs[-1].last_words()
            self.close()
            raise ResourceError(f"the training of the soak did not {what}: {words}")

    def _goes_beyond(self, number: int) -> bool:
        """Wait for a later round, as long as there is a driver; one that found the machine too busy starts again."""
        for _ in range(_STARTS):
            if self.watch.wait_beyond(number, _PATIENCE_S, lambda: self._jobs[-1].exit_code is not None):
                return True
            if self._jobs[-1].exit_code != ResourceError.exit_code or not self._newest_saved():
                return False
            self._start([f"resume={self.run_dir}"])
        return False

    def _reached(self) -> int:
        """Steps that have been done for sure: a round is noted one step before it begins."""
        return max(0, self.watch.newest_round * self._round_steps - 1)

    def _newest_saved(self) -> int:
        newest = self.store.latest()
        return 0 if newest is None else newest.step

    def _verify_checkpoints(self) -> None:
        """Read every checkpoint, whether the run goes on meanwhile or not."""
        for step in self.store.steps():
            try:
                self.store.at(step)
            except IncompleteCheckpointError:
                continue
            except InputError as error:
                if step in self.store.steps():  # and not being dropped
                    with suppress(IncompleteCheckpointError):
                        self._look_again(step, str(error))

    def _look_again(self, step: int, message: str) -> None:
        time.sleep(1.0)
        if step in self.store.steps():
            try:
                self.store.at(step)
            except IncompleteCheckpointError:
                raise
            except InputError:
                self.corrupted.add(message)
