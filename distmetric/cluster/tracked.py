"""The tracked run around a training: a new one, or that of the run which is resumed."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from distmetric import __version__
from distmetric.cluster.run_folder import data_name
from distmetric.cluster.run_note import Outcome, run_note
from distmetric.config.decode import leaves
from distmetric.config.jobs import ExportJob
from distmetric.config.schema import CatalogDataConfig, Config, MLflowConfig
from distmetric.errors import ResourceError, TakenOverError, UserError
from distmetric.secrets import masked
from distmetric.tracking.address import tracking_uri, without_credentials
from distmetric.tracking.journal import read_run_record
from distmetric.tracking.server import Server
from distmetric.tracking.tracked_run import TrackedRun, tracking_server
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.evaluations import read_evaluations
from distmetric.training.notices import Notices, read_notices
from distmetric.training.run_folder import RunFolder, read_run


def separate_tracking(config: Config) -> tuple[Config, Server | None]:
    """Take what is known of the tracking server out of a configuration, checked as far as can be without asking it.

    Returns:
        The configuration without the server's credentials, which may be kept and handed on; and the server, None for
        an untracked run.

    Raises:
        ConfigError: If `tracking.uri` or MLFLOW_TRACKING_URI cannot be the address of a server.
        ResourceError: If there is none and there has to be one, or a package for what it is to get is missing.
    """
    tracking, uri = config.tracking, check_tracking(config)
    if not isinstance(tracking, MLflowConfig) or uri is None:
        return config, None
    server = tracking_server(uri, tracking.experiment, config.output_dir)
    shown = None if tracking.uri is None else without_credentials(tracking.uri)
    return replace(config, tracking=replace(tracking, uri=shown)), server


def check_tracking(config: Config) -> str | None:
    """See that a configuration can be tracked, without MLflow, which takes seconds to load.

    Returns:
        The address of the tracking server; None for an untracked run.

    Raises:
        UserError: See `separate_tracking`.
    """
    if not isinstance(config.tracking, MLflowConfig):
        return None
    _check_packages(config.tracking)
    known = None if config.resume is None else read_run(config.resume).tracking_uri
    return tracking_uri(config.tracking.uri, config.output_dir, known)


def find_server(config: Config, known: str | None = None) -> Server | None:
    """The tracking server of a configuration, not yet asked; None for untracked runs.

    Args:
        config: Of a run. A database keeps artifacts beside the runs where these are on a local disk.
        known: Address where a run that is resumed was tracked.

    Raises:
        UserError: See `separate_tracking`.
    """
    if not isinstance(config.tracking, MLflowConfig):
        return None
    uri = tracking_uri(config.tracking.uri, config.output_dir, known)
    return tracking_server(uri, config.tracking.experiment, config.output_dir)


def end_tracked(run_dir: str, status: Literal["FAILED", "KILLED"], reason: str) -> None:
    """Say how a run has ended whose own process cannot.

    Args:
        run_dir: Its folder; nothing happens if it is not there.
        status: "FAILED" or "KILLED".
        reason: Why.
    """
    with suppress(UserError):
        folder = read_run(run_dir)
        TrackedRun(run_dir).end(status, reason)
        if folder.tracking_uri is not None:
            uri = tracking_uri(None, ".", folder.tracking_uri)
            experiment = folder.config["tracking"]["experiment"]
            TrackedRun.own(run_dir, tracking_server(uri, experiment, folder.location)).close()


def open_tracking(
    config: Config,
    folder: RunFolder,
    server: Server | None,
    tags: Mapping[str, str] | None = None,
    over: bool = False,
) -> TrackedRun:
    """Open the tracking of a new run, or of one that is resumed.

    Args:
        config: The whole run.
        folder: Its folder.
        server: Where it is tracked.
        tags: Of a new run, beside those that every run has.
        over: Whether the run is resumed only for what was left to do at its end.

    Raises:
        ResourceError: If the server answers and refuses. One that does not answer is a notice of the run.
    """
    tell = partial(Notices(folder.location).add, "tracking")
    if config.resume is not None and read_run_record(folder.location) is not None:
        opened = TrackedRun.own if over else TrackedRun.resume
        return opened(folder.location, server, tell)
    tracked = TrackedRun.create(
        folder.location,
        server,
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
        tell,
        fresh=config.resume is None,
    )
    attach_config(tracked, folder.config)
    location = config.data.path if isinstance(config.data, CatalogDataConfig) else config.data.name
    tracked.log_dataset(data_name(config), folder.fingerprint, location)
    tracked.describe(run_note(config, data_name(config), folder.location))
    return tracked


@contextmanager
def tagged_with_notices(tracked: TrackedRun, run_dir: str) -> Iterator[None]:
    """Show a run's notices among its tags when it has ended, however it has, unless another process has taken it."""
    try:
        yield
    except TakenOverError:
        raise
    except BaseException:
        with suppress(UserError):  # the run's own end matters more
            _tag(tracked, run_dir)
        raise
    _tag(tracked, run_dir)


def _tag(tracked: TrackedRun, run_dir: str) -> None:
    if notices := read_notices(run_dir):
        told = "; ".join(f"{one['kind']} at step {one['step']}: {one['message']}" for one in notices)
        tracked.tag("distmetric.notices", told)


def attach_config(tracked: TrackedRun, config: Mapping[str, Any]) -> None:
    """Attach a configuration as config.json."""
    tracked.log_text("config.json", json.dumps(masked(dict(config)), indent=2))


def note_identity(folder: RunFolder, tracked: TrackedRun) -> RunFolder:
    """Write into `run.json` where a run is tracked, where that is news."""
    if tracked.server is None:
        return folder
    found = replace(folder, tracking_uri=tracked.uri, run_id=tracked.run_id)
    if found != folder:
        found.write()
    return found


def close_tracking(config: Config, tracked: TrackedRun, result: Mapping[str, Any]) -> str | None:
    """Tell the outcome: the best checkpoint's metrics as "best/...", its version in the registry, and a new note.

    Args:
        config: The whole run.
        tracked: Its tracking, of a run that has ended well.
        result: run_dir, checkpoint, step, metrics and report, as a `FitResult` has them.

    Returns:
        The URI of the registered model; None where `tracking.register` asks for none.

    Raises:
        ResourceError: If the model could not be registered. Nothing is lost by that, and `resume` tries again.
    """
    best = read_checkpoint(result["checkpoint"])
    tracker = tracked.tracker()
    known = {name: value for name, value in best.metrics.items() if not name.startswith("num_")}
    tracker.log(best.step, {f"best/{name}": value for name, value in {**known, "step": best.step}.items()})
    tracker.flush()
    tracker.close()
    waiting = tracked.settle()  # a registered model is linked to what the server has of the run
    registered, failure = None, None
    try:
        registered = _register(config, tracked, best.location, waiting)
    except UserError as error:
        failure = error
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
    if failure is not None:
        tracked.settle()
        raise failure
    return uri


def _register(config: Config, tracked: TrackedRun, checkpoint: str, waiting: int) -> dict[str, Any] | None:
    name = config.tracking.register if isinstance(config.tracking, MLflowConfig) else None
    if name is None or tracked.server is None:
        return None
    from distmetric.inference.export import export_checkpoint  # not before a training that waits for it

    job = ExportJob(
        checkpoint=checkpoint,
        formats=["mlflow"],
        register=name,
        alias="best",
        allow_custom_targets=config.allow_custom_targets,
    )
    try:
        if waiting:
            raise ResourceError(f"MLflow at {tracked.uri} does not have the run yet")
        found = export_checkpoint(replace(job, tracking_uri=tracked.server.uri))
    except ResourceError as error:
        run_dir = checkpoint.rpartition("/checkpoints/")[0]
        raise ResourceError(
            f"tracking.register={name}: the model was not registered ({error}); the run is complete in {run_dir}, and "
            f"resume={run_dir} registers it"
        ) from None
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
        "world_size": config.trainer.workers(),
        "device": "gpu" if config.trainer.use_gpu else "cpu",
        "versions": ", ".join(
            [*(f"{name} {version(name)}" for name in packages), f"python {platform.python_version()}"]
        ),
    }


def _check_packages(tracking: MLflowConfig) -> None:
    """See before the training that what comes during and after it is possible."""
    wanted = {"safetensors": tracking.register, "psutil": tracking.system_metrics}
    settings = {
        "safetensors": (f"tracking.register={tracking.register}", "'distmetric[export]'"),
        "psutil": ("tracking.system_metrics=true", "psutil"),
    }
    for package, needed in wanted.items():
        if needed and find_spec(package) is None:
            setting, install = settings[package]
            raise ResourceError(f"{setting} needs the package {package}: pip install {install}")
