"""A run in MLflow from its opening to its truthful end, and which code made it."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from distmetric.tracking.tracker import History, NullTracker, Tracker


class TrackedRun:
    """A run in MLflow, or nothing at all behind the same calls.

    Args:
        uri: Tracking URI, None for untracked.
        run_id: The run there.
    """

    def __init__(self, uri: str | None = None, run_id: str | None = None) -> None:
        self.uri, self.run_id = uri, run_id
        self._run = None
        if uri is not None and run_id is not None:
            from distmetric.tracking.mlflow_tracker import MLflowRun

            self._run = MLflowRun(uri, run_id)

    @classmethod
    def create(
        cls,
        uri: str | None,
        experiment: str,
        output_dir: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> TrackedRun:
        """Open a new run.

        Args:
            uri: Tracking URI; None for the environment's, else a database in `output_dir`.
            experiment: Name of the experiment; made if it is not there.
            output_dir: Where the outputs go, and the artifacts too where tracking is a local database.
            name: Name of the run.
            params: Dotted keys and values of the configuration.
            tags: What else to know of the run; the commit, the command and the user are added.

        Raises:
            ResourceError: If the tracking server cannot be used.
        """
        from distmetric.tracking.mlflow_tracker import MLflowRun, tracking_uri

        uri = tracking_uri(uri, output_dir)
        local = uri.startswith("sqlite:") and "://" not in output_dir
        artifacts = (Path(output_dir).expanduser().absolute() / "artifacts").as_uri() if local else None
        tags = {**_origin(), **tags}
        return cls(uri, MLflowRun.create(uri, experiment, name, params, tags, artifacts).run_id)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """End the run as finished, as failed after an exception, as killed after an interrupt."""
        try:
            yield
        except BaseException as error:
            if self._run is not None:
                interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
                reason = " ".join(str(error).split())[:5000]
                self._run.finish("KILLED" if interrupted else "FAILED", {"distmetric.error": reason})
            raise
        if self._run is not None:
            self._run.finish("FINISHED", {})

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> None:
        """End the run as it has ended, where the process that ran it cannot say so."""
        if self._run is not None:
            self._run.finish(status, {"distmetric.error": reason[:5000]} if reason else {})

    def reopen(self) -> None:
        """Mark the run as running again."""
        if self._run is not None:
            self._run.reopen()

    def tracker(self) -> Tracker:
        """What logs measurements into the run from this process."""
        if self.uri is None or self.run_id is None:
            return NullTracker()
        from distmetric.tracking.mlflow_tracker import MLflowTracker

        return MLflowTracker(self.uri, self.run_id)

    def describe(self, note: str) -> None:
        """Set the Markdown text that the run's page begins with."""
        if self._run is not None:
            self._run.describe(note)

    def log_dataset(self, name: str, digest: str, location: str) -> None:
        """Say what data the run works on."""
        if self._run is not None:
            self._run.log_dataset(name, digest, location)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Attach the configuration."""
        if self._run is not None:
            self._run.log_config(config)

    def log_artifact(self, path: str) -> None:
        """Attach a local file."""
        if self._run is not None:
            self._run.log_artifact(path)

    def log_artifacts(self, folder: str, name: str) -> None:
        """Attach the files of a local folder, as a folder of that name."""
        if self._run is not None:
            self._run.log_artifacts(folder, name)

    def history(self) -> History:
        """All measurements so far."""
        return {} if self._run is None else self._run.history()

    def status(self) -> tuple[str, str]:
        """RUNNING, FINISHED, FAILED or KILLED and the reason of a failure; empty texts for an untracked run."""
        return ("", "") if self._run is None else self._run.status()


def _origin() -> dict[str, str]:
    """Where a run comes from, under the names that MLflow's own pages show."""
    tags = {
        "mlflow.source.git.commit": git_revision(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError, ImportError):  # of a user without a name, as in many containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def git_revision() -> str:
    """Commit of the code that runs, with "+changes" where files differ from it.

    Outside a checkout, as in a submitted job, it is what DISTMETRIC_REVISION says, else "unknown".
    """
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("DISTMETRIC_REVISION", "unknown")
    return f"{commit}+changes" if changed else commit
