"""The tracked run around a training: opened before it, ended truthfully after it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmetric import __version__
from distmetric.cluster.run_folder import RunFolder
from distmetric.config.decode import leaves
from distmetric.config.schema import Config, MLflowConfig
from distmetric.tracking.tracker import History


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

    def reopen(self) -> None:
        """Mark the run as running again."""
        if self._run is not None:
            self._run.reopen()

    def describe(self, folder: RunFolder) -> None:
        """Attach the configuration."""
        if self._run is not None:
            self._run.log_config(folder.config)

    def log_artifact(self, path: str) -> None:
        """Attach a local file."""
        if self._run is not None:
            self._run.log_artifact(path)

    def history(self) -> History:
        """All measurements so far."""
        return {} if self._run is None else self._run.history()


def open_tracking(config: Config, folder: RunFolder) -> TrackedRun:
    """Open the run's tracking, or the one it had when it is resumed.

    Raises:
        ResourceError: If the tracking server cannot be used.
    """
    if folder.run_id is not None:
        tracked = TrackedRun(folder.tracking_uri, folder.run_id)
        tracked.reopen()
        return tracked
    if not isinstance(config.tracking, MLflowConfig):
        return TrackedRun()
    from distmetric.tracking.mlflow_tracker import MLflowRun, tracking_uri

    uri = tracking_uri(config.tracking.uri, config.output_dir)
    local = uri.startswith("sqlite:")
    run = MLflowRun.create(
        uri,
        config.tracking.experiment,
        folder.name,
        leaves(folder.config),
        {
            "distmetric.version": __version__,
            "distmetric.run_dir": folder.location,
            "distmetric.checkpoints": f"{folder.location}/checkpoints",
            "distmetric.data_fingerprint": folder.fingerprint,
            "mlflow.source.git.commit": git_revision(),
        },
        (Path(config.output_dir) / "artifacts").as_uri()
        if local and "://" not in config.output_dir
        else None,
    )
    tracked = TrackedRun(uri, run.run_id)
    tracked.describe(folder)
    return tracked


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
