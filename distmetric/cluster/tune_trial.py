"""One trial of a search, as Ray Tune sees it: a training run whose evaluations are its results."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from distmetric.cluster.fit import fit  # sets Ray's environment, so before anything imports ray

# isort: split
import ray
from ray import tune

from distmetric.cluster.tracked import end_tracked
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.errors import UserError
from distmetric.training.evaluations import read_evaluations

_LOOK_EVERY_S = 1.0  # how late an evaluation may be known to the scheduler
_STOP_WITHIN_S = 60.0  # of an interrupted run, to end its workers and say so in the tracker

OUTCOME = "outcome"
"""Key of what a run left in the last result of its trial; a trial that was stopped has none."""


class TrialRun(tune.Trainable):
    """Starts a run in a process of its own, hands its evaluations to Tune, and ends it where Tune says so.

    The run gets a process to itself since it is stopped as by Ctrl-C in a terminal: what it started is ended by it, and
    its state in the tracker is true.
    """

    def setup(self, config: dict[str, Any], specs: Mapping[str, Any] | None = None) -> None:
        """Start the run.

        Args:
            config: "name" of the trial.
            specs: By name of a trial "config", "run_dir", "metric", "tags" and "command".
        """
        assert specs is not None
        self._spec = specs[config["name"]]
        self._seen = 0
        # A process that has been interrupted once is not used again; what a run starts is not confined to what Tune
        # reserved for this process, which is next to nothing.
        start = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy="DEFAULT")(run_trial)
        self._run = start.remote(*(self._spec[name] for name in ("config", "tags", "command")))
        self._outcome: dict[str, Any] | None = None

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation before the last one, or for the end of the run.

        Returns:
            The step and its metric; at the end also the outcome of the run.
        """
        while True:
            ready, _ = ray.wait([self._run], timeout=_LOOK_EVERY_S)
            records = read_evaluations(self._spec["run_dir"])
            if ready:
                self._outcome = self._ended()
                last = self._told(records[-1]) if records else {}
                return {**last, OUTCOME: self._outcome, "done": True}
            for record in records:
                # What comes with the last step is the outcome: there is nothing left to be stopped.
                if self._seen < record["step"] < self._spec["config"]["train"]["steps"]:
                    self._seen = record["step"]
                    return self._told(record)

    def _told(self, record: Mapping[str, Any]) -> dict[str, Any]:
        metric = self._spec["metric"]
        return {"step": record["step"], metric: record["metrics"][metric]}

    def cleanup(self) -> None:
        """End the run if it has not ended."""
        if self._outcome is not None:
            return
        ray.cancel(self._run, recursive=False)  # what it started is ended by itself, in order
        if not ray.wait([self._run], timeout=_STOP_WITHIN_S)[0]:
            ray.cancel(self._run, force=True)
        end_tracked(self._spec["run_dir"], "KILLED", "stopped by the scheduler of its search")

    def _ended(self) -> dict[str, Any]:
        try:
            return dict(ray.get(self._run))
        except Exception as error:  # its process is gone
            reason = " ".join(str(error).split())[:500]
            end_tracked(self._spec["run_dir"], "FAILED", reason)
            return {"error": f"{type(error).__name__}: {reason}"}


def run_trial(values: dict[str, Any], tags: Mapping[str, str], command: Sequence[str]) -> dict[str, Any]:
    """Train; in the main thread of a process, so that it can be interrupted.

    Args:
        values: The configuration.
        tags: Of the tracked run.
        command: What would train it alone, for the record.

    Returns:
        The `FitResult` as a dict, or {"error": one line}.
    """
    sys.argv = list(command)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):  # several runs cannot share one line
        try:
            return fit(decode(Config, values), tags).to_dict()
        except UserError as error:
            return {"error": " ".join(str(error).split())}
        except (KeyboardInterrupt, SystemExit):
            return {"error": "stopped"}
        except Exception as error:
            found = traceback.format_exc()
            reason = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    print(found, flush=True)
    return reason
