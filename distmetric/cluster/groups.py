"""Groups of Ray workers that train a run one after the other, and what the driver's main thread does meanwhile."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from distmetric.cluster.elastic import RESIZE, ElasticTraining, worker_resources
from distmetric.cluster.failures import FailureJudge, cause_of
from distmetric.cluster.index_messages import IndexHandles
from distmetric.cluster.index_start import start_index, stop_index
from distmetric.cluster.preemption import Preemptions
from distmetric.cluster.progress_board import machines_of, shown_progress
from distmetric.cluster.session import cluster_address
from distmetric.cluster.stop import Listener, StopSignals
from distmetric.cluster.worker import train_worker
from distmetric.config.schema import Config
from distmetric.config.signals import attended
from distmetric.errors import StoppedError
from distmetric.progress import Progress
from distmetric.startup import StartUp
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.claim import Claim
from distmetric.training.saved_model import config_dict

_SILENT_S = 5.0  # rank 0 asks several times a second; one that is silent for so long will not stop in order

log = logging.getLogger(__name__)


def train_on_workers(
    config: Config, run_dir: str, signals: StopSignals, tracked: TrackedRun, startup: StartUp
) -> dict[str, Any]:
    """Train a run to its end on Ray workers; those that are lost are replaced.

    Args:
        config: The whole run.
        run_dir: Its folder.
        signals: What the driver is asked meanwhile.
        tracked: Told at once when the run is asked to stop, for this process may be given no time to tell it later.
        startup: What was done so far.

    Returns:
        checkpoint, step, seconds and metrics, as a `TrainResult` has them.

    Raises:
        StoppedError: If it was asked to stop; it has saved what it had reached.
        UserError: If it failed.
    """
    with shown_progress(Progress("steps", config.train.steps)) as board:
        # Before anything is started: what an earlier driver may have left running is to write no more from now on.
        owner = Claim(run_dir).owner
        index = start_index(config, run_dir, owner)
        try:
            startup.mark("index")
            groups = Groups(config, run_dir, board, index, owner, startup)
            try:
                outcome = attended(groups.train, Attendant(run_dir, board, signals, tracked))
            finally:
                groups.close()
        finally:
            stop_index(index)
    if reason := outcome.pop("stopped"):
        raise StoppedError(_stopped(run_dir, reason, outcome["step"]))
    return outcome


class LeanTrainer(TorchTrainer):
    """Ray's trainer without actors that it starts for every training, each of which loads half of Ray first.

    One hands out data sets of Ray's, of which there are none here. The other removes what a controller leaves that has
    died; it needs Ray's dashboard for that, which a private Ray does not have. A Ray that calls them something else
    starts them.
    """

    is_private = False
    """Whether Ray was started for this process alone."""

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback", *(("PlacementGroupCleanerCallback",) if self.is_private else ())}
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


class Groups:
    """The groups of a training: one, which Ray Train starts again where workers are lost, or elastic ones.

    Args:
        config: The whole run.
        run_dir: Its folder.
        board: Handle of the `ProgressBoard`.
        index: Handles of the actors of its index, or None.
        owner: Identity of the driver's claim to the folder.
        startup: What was done so far.
    """

    def __init__(
        self,
        config: Config,
        run_dir: str,
        board: Any,
        index: IndexHandles | None,
        owner: str,
        startup: StartUp,
    ) -> None:
        self._config, self._run_dir, self._board = config, run_dir, board
        self._payload = {
            "config": config_dict(config),
            "run_dir": run_dir,
            "board": board,
            "index": index,
            "owner": owner,
            "startup": {**startup.handed_over(), "step": newest_step(run_dir) or 0},
        }
        self._judge = FailureJudge()
        self._number = 0
        self._elastic = ElasticTraining(
            *(config.trainer, self._train_with, lambda number: machines_of(board, number)),
            *(self._ask_to_leave, lambda: newest_step(run_dir) or 0),
        )

    def close(self) -> None:
        """Have no other group follow the one that trains."""
        self._elastic.close()

    def train(self) -> dict[str, Any]:
        """Train until the end, or until the workers are asked to stop.

        Returns:
            The `TrainResult` as a dict.

        Raises:
            UserError: If it failed by a mistake, or workers failed too often.
            WorkerFailedError: If it failed by a bug.
        """
        trainer = self._config.trainer
        try:
            if trainer.is_elastic:
                return self._elastic.run()
            return self._train_with(trainer.max_workers, 1)
        except Exception as error:
            cause = cause_of(error, trainer, self._run_dir)
            if cause is error:
                raise
            raise cause from None

    def _train_with(self, workers: int, number: int) -> dict[str, Any]:
        trainer, self._number = self._config.trainer, number
        run = LeanTrainer(
            train_worker,
            train_loop_config={**self._payload, "group": number},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=trainer.use_gpu,
                resources_per_worker=worker_resources(trainer),
            ),
            torch_config=TorchConfig(
                # What the hosts exchange with each other must not wait for a GPU.
                backend="cpu:gloo,cuda:nccl" if trainer.use_gpu else "gloo",
                timeout_s=int(trainer.timeout_s),
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=self._run_dir,
                # Without the second limit Ray would try for ever to place workers that do not fit.
                failure_config=FailureConfig(
                    max_failures=0 if trainer.is_elastic else trainer.max_failures, controller_failure_limit=0
                ),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[self._judge],
            ),
        )
        run.is_private = not cluster_address(trainer)
        try:
            return dict(run.fit().return_value)
        except WorkerGroupError as error:
            # The judge in this group's controller is gone with it; this one has seen all groups.
            self._judge.after_exception(None, error.worker_failures)
            raise

    def _ask_to_leave(self) -> None:
        self._board.ask_leave.remote(self._number, RESIZE)


class Attendant:
    """What the main thread does while a training goes on: hands on the signal to stop, and looks after its machines.

    Args:
        run_dir: Folder of the run.
        board: Handle of the `ProgressBoard`.
        signals: What this process is asked.
        tracked: The run's tracking.
    """

    def __init__(self, run_dir: str, board: Any, signals: StopSignals, tracked: TrackedRun) -> None:
        self._run_dir, self._board, self._signals, self._tracked = run_dir, board, signals, tracked
        self._preemptions = Preemptions(board)
        self._answered: float | None = None

    def __call__(self) -> None:
        """Look once.

        Raises:
            StoppedError: If the training was asked to stop and has, or if nobody is at it who could.
        """
        if not (name := self._signals.name()):
            self._preemptions.look()
            return
        if self._answered is None:
            self._answered = time.monotonic()
            log.warning("%s: stopping; once more ends at once", name)
            self._signals.say(partial(self._mark, name))
        listener = self._ask(name)
        if listener is None:
            if time.monotonic() - self._answered > _SILENT_S:
                raise StoppedError(_stopped(self._run_dir, name))
        elif listener.state == "left":
            raise StoppedError(_stopped(self._run_dir, name, listener.step))
        elif listener.state != "training" or listener.silent_s > _SILENT_S:
            raise StoppedError(_stopped(self._run_dir, name))

    def _ask(self, name: str) -> Listener | None:
        """Have the board know, and who listens; None without an answer."""
        try:
            listener: Listener = ray.get(self._board.ask_stop.remote(name), timeout=_SILENT_S)
        except Exception as error:  # it is being started anew, or Ray is gone
            log.debug("nobody to be asked to stop: %s", error)
            return None
        self._answered = time.monotonic()
        return listener

    def _mark(self, name: str) -> None:
        """Say in the tracker what is going to be true: whoever sent the signal may not wait for the end."""
        try:
            self._tracked.end("KILLED", f"asked to stop on {name}; resume={self._run_dir}")
        except Exception as error:  # it is said again in the end
            log.debug("the tracker does not know yet that the run stops: %s", error)


def newest_step(run_dir: str) -> int | None:
    """Step of a run's newest complete checkpoint; None before the first."""
    return CheckpointStore(f"{run_dir}/checkpoints").newest_step()


def _stopped(run_dir: str, reason: str, step: int | None = None) -> str:
    """How a training was stopped; with no step, at the newest checkpoint there is."""
    if step is not None:
        return f"stopped at step {step} on {reason}: checkpoint saved; go on with resume={run_dir}"
    if newest := newest_step(run_dir):
        return f"stopped on {reason} while nobody trained: go on from step {newest} with resume={run_dir}"
    return f"stopped on {reason} before the first step: begin with resume={run_dir}"
