"""The tracked run around a training: a new one, or that of the run which is resumed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from distmetric import __version__
from distmetric.cluster.run_folder import data_name
from distmetric.cluster.run_note import Outcome, run_note
from distmetric.config.decode import leaves
from distmetric.config.jobs import ExportJob
from distmetric.config.schema import CatalogDataConfig, Config, MLflowConfig
from distmetric.errors import ResourceError
from distmetric.inference.export import export_checkpoint
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.evaluations import read_evaluations
from distmetric.training.run_folder import RunFolder


def open_tracking(config: Config, folder: RunFolder, tags: Mapping[str, str] | None = None) -> TrackedRun:
    """Open the run's tracking, or the one it had when it is resumed.

    Args:
        config: The whole run.
        folder: Its folder.
        tags: Of a new run, beside those that every run has.

    Raises:
        ResourceError: If the tracking server cannot be used, or a package for what it is to get is missing.
    """
    _check_packages(config)
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
            **_kinds(config),
            **(tags or {}),
        },
    )
    tracked.log_config(folder.config)
    location = config.data.path if isinstance(config.data, CatalogDataConfig) else config.data.name
    tracked.log_dataset(data_name(config), folder.fingerprint, location)
    tracked.describe(run_note(config, data_name(config), folder.location))
    return tracked


def close_tracking(config: Config, tracked: TrackedRun, result: Mapping[str, Any]) -> str | None:
    """Tell the outcome: the best checkpoint's metrics as "best/...", its version in the registry, and a new note.

    Args:
        config: The whole run.
        tracked: Its tracking, of a run that has ended well.
        result: run_dir, checkpoint, step, metrics and report, as a `FitResult` has them.

    Returns:
        The URI of the registered model; None where `tracking.register` asks for none.

    Raises:
        ResourceError: If the tracking server does not take it. Nothing of the run is lost by that.
    """
    if tracked.run_id is None:
        return None
    best = read_checkpoint(result["checkpoint"])
    tracker = tracked.tracker()
    known = {name: value for name, value in best.metrics.items() if not name.startswith("num_")}
    tracker.log(best.step, {f"best/{name}": value for name, value in {**known, "step": best.step}.items()})
    tracker.flush()
    tracker.close()
    registered = _register(config, best.location)
    uri = None if registered is None else registered["uri"]
    records = {record["step"]: record for record in read_evaluations(result["run_dir"])}
    record = records.get(best.step, {})
    outcome = Outcome(
        checkpoint=best.location,
        best_step=best.step,
        steps=result["step"],
        metrics=best.metrics,
        intervals=record.get("intervals") or {},
        threshold=(record.get("calibration") or {}).get("threshold"),
        report=result["report"],
        registered=None if registered is None else f"`{uri}` {registered['note']}".strip(),
    )
    tracked.describe(run_note(config, data_name(config), result["run_dir"], outcome))
    return uri


def _register(config: Config, checkpoint: str) -> dict[str, Any] | None:
    name = config.tracking.register if isinstance(config.tracking, MLflowConfig) else None
    if name is None:
        return None
    found = export_checkpoint(
        ExportJob(checkpoint=checkpoint, formats=["mlflow"], register=name, alias="best")
    )
    registered: dict[str, Any] = found["registered"]
    return registered


def _kinds(config: Config) -> dict[str, str]:
    """What tells runs apart in a list, by short names for its columns and filters."""
    packages = ("torch", "ray", "mlflow", "numpy")
    return {
        "data": data_name(config),
        "model": config.model.name,
        "loss": config.loss.name,
        "miner": config.miner.name,
        "sampler": config.sampler.name,
        "world_size": str(config.trainer.num_workers),
        "device": "gpu" if config.trainer.use_gpu else "cpu",
        "versions": ", ".join(
            [*(f"{name} {version(name)}" for name in packages), f"python {platform.python_version()}"]
        ),
    }


def _check_packages(config: Config) -> None:
    """See before the training that what comes during and after it is possible."""
    if not isinstance(config.tracking, MLflowConfig):
        return
    wanted = {"safetensors": config.tracking.register, "psutil": config.tracking.system_metrics}
    settings = {
        "safetensors": (f"tracking.register={config.tracking.register}", "'distmetric[export]'"),
        "psutil": ("tracking.system_metrics=true", "psutil"),
    }
    for package, needed in wanted.items():
        if needed and find_spec(package) is None:
            setting, install = settings[package]
            raise ResourceError(f"{setting} needs the package {package}: pip install {install}")
