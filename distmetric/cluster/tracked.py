"""The tracked run around a training: a new one, or that of the run which is resumed."""

from __future__ import annotations

from distmetric import __version__
from distmetric.cluster.run_folder import RunFolder
from distmetric.config.decode import leaves
from distmetric.config.schema import Config, MLflowConfig
from distmetric.tracking.tracked_run import TrackedRun


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
    tracked = TrackedRun.create(
        config.tracking.uri,
        config.tracking.experiment,
        config.output_dir,
        folder.name,
        leaves(folder.config),
        {
            "distmetric.version": __version__,
            "distmetric.run_dir": folder.location,
            "distmetric.checkpoints": f"{folder.location}/checkpoints",
            "distmetric.data_fingerprint": folder.fingerprint,
        },
    )
    tracked.log_config(folder.config)
    return tracked
