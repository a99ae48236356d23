"""What becomes of a training whose workers fail: the first real cause is told, what may pass is tried again."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import ControllerError, UserCallback, WorkerGroupError

from distmetric.cluster.index_messages import in_one_line
from distmetric.config.schema import TrainerConfig
from distmetric.distributed.peers import is_lost_peer
from distmetric.errors import ResourceError, UserError, out_of_memory
from distmetric.training.memory import LOWER


class WorkerFailedError(Exception):
    """A bug that a worker met.

    Args:
        kind: Name of the exception's class.
        step: Steps that were done; -1 before the training began.
        text: The traceback.
    """

    def __init__(self, kind: str, step: int, text: str) -> None:
        super().__init__(kind, step, text)
        self.kind, self.step, self.text = kind, step, text

    def __str__(self) -> str:
        when = f"at step {self.step}" if self.step >= 0 else "before the first step"
        return f"a worker failed {when}:\n{self.text}"


class LostPeerError(Exception):
    """Another worker does not answer: that one knows why, or is dead."""


@contextmanager
def told_failures(step: Any) -> Iterator[None]:
    """Have what a worker fails with say enough to be judged in the process that decides what comes next.

    Args:
        step: Called for the number of steps done, -1 before the training began.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if shortage := out_of_memory(error, LOWER):
            raise shortage from None
        if is_lost_peer(error):
            raise LostPeerError(in_one_line(error)) from None
        raise WorkerFailedError(type(error).__name__, step(), traceback.format_exc()) from None


class FailureJudge(UserCallback):
    """Ends a training at once where trying again is in vain, whatever the other workers wait for.

    Ray Train asks it in its controller, which lives as long as the training, for every look at workers that failed.
    What it lets pass is tried again, up to `trainer.max_failures` times: workers that were lost, failing reads and
    writes, and a bug when it is met for the first time.
    """

    def __init__(self) -> None:
        self._met: set[tuple[str, int]] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Judge what the workers that failed have told, by rank.

        Raises:
            ControllerError: Of a user's mistake, or of a bug that was met at the same step before.
        """
        failures = [worker_exceptions[rank] for rank in sorted(worker_exceptions)]
        for mistake in failures:
            if isinstance(mistake, UserError):
                raise ControllerError(mistake)
        bugs = {(each.kind, each.step): each for each in failures if isinstance(each, WorkerFailedError)}
        for known in bugs.keys() & self._met:
            raise ControllerError(bugs[known])
        self._met |= bugs.keys()


def cause_of(error: Exception, trainer: TrainerConfig, run_dir: str) -> Exception:
    """What a training that failed is to be reported with.

    Args:
        error: What Ray Train failed with.
        trainer: Its settings.
        run_dir: Folder of the run.

    Returns:
        A user's mistake; the bug with its traceback; what was lost too often, or not found room for; or, where it is
        none of these, the error itself.
    """
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, UserError | WorkerFailedError):
            return cause
    # By its name: Ray has it in a module of its own, and this one's text says nothing of it.
    if type(getattr(error, "controller_failure", error)).__name__ == "WorkerGroupStartupTimeoutError":
        gpus = " and as many GPUs" if trainer.use_gpu else ""
        return ResourceError(
            f"trainer.num_workers={trainer.num_workers} workers with {trainer.cpus_per_worker:g} CPUs each{gpus} "
            f"were not placed within trainer.start_timeout_s={trainer.start_timeout_s:g}: the cluster is too small "
            "or busy; set fewer workers or wait longer"
        )
    if not isinstance(error, WorkerGroupError):
        return error
    failures = [error.worker_failures[rank] for rank in sorted(error.worker_failures)]
    bug = next((each for each in failures if isinstance(each, WorkerFailedError)), None)
    if bug is not None:
        return bug
    told = next((each for each in failures if not isinstance(each, LostPeerError)), failures[0])
    why = in_one_line(getattr(told, "health_check_failure", told))[:300]
    return ResourceError(
        f"workers failed more often than trainer.max_failures={trainer.max_failures} times, at last with: {why}; "
        f"see that they have memory and disk enough, then go on with resume={run_dir}"
    )
