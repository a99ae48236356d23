"""Train on Ray: check, open the run, start the workers, outlive their failures, close the run truthfully."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from distmetric.cluster.session import (  # sets Ray's environment, so before anything imports ray
    cluster_address,
    ray_session,
)

# isort: split
from distmetric import __version__, errors
from distmetric.cluster.groups import train_on_workers
from distmetric.cluster.run_folder import new_run_location
from distmetric.cluster.stop import StopSignals
from distmetric.cluster.tracked import (
    check_tracking,
    close_tracking,
    note_identity,
    open_tracking,
    separate_tracking,
    tagged_with_notices,
)
from distmetric.config.decode import decode
from distmetric.config.schema import DEFAULT_CACHE, CatalogDataConfig, Config
from distmetric.config.signals import Interrupted
from distmetric.config.validate import validate
from distmetric.data.splits import check_answerable
from distmetric.inference.origin import command_line, environment
from distmetric.locations import absolute, check_writable, reason
from distmetric.startup import StartUp
from distmetric.tracking.server import Server
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.memory import check_memory
from distmetric.training.notices import read_notices
from distmetric.training.resumption import finished
from distmetric.training.run_data import build_sampler, known_attributes, open_data, split_rows
from distmetric.training.run_folder import RunFolder, read_run
from distmetric.training.saved_model import config_dict


@dataclass(frozen=True)
class FitResult:
    """What a finished run leaves.

    Args:
        name: Name of the run.
        run_dir: Its folder.
        run_id: Its identity in the tracker; None without one.
        tracking_uri: Where it is tracked; None where it is not.
        checkpoint: Folder of the best checkpoint.
        step: Steps done.
        seconds: Time of the last uninterrupted stretch of training, evaluation included.
        metrics: Evaluation of the best checkpoint.
        report: Path of report.html, or None.
        registered: URI of the best checkpoint in MLflow's model registry, or None.
        undelivered: Records that the tracking server has not taken; they wait in the run's folder.
        notices: What the run has to tell of itself, such as steps that were left out.
    """

    name: str
    run_dir: str
    run_id: str | None
    tracking_uri: str | None
    checkpoint: str
    step: int
    seconds: float
    metrics: dict[str, float]
    report: str | None = None
    registered: str | None = None
    undelivered: int = 0
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain containers, for one line of JSON."""
        return asdict(self)

    def where_to_look(self) -> str:
        """The address of the tracking server, or the command that starts one for a database."""
        uri = self.tracking_uri or ""
        return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def fit(config: Config, tags: Mapping[str, str] | None = None, startup: StartUp | None = None) -> FitResult:
    """Train on Ray workers until the last step, and report.

    Everything that can be checked is checked before anything is started. Workers that die are replaced, up to
    `trainer.max_failures` times, and training resumes from the newest intact checkpoint. With `config.resume` the
    run of that folder goes on, in the same MLflow run; where it has done all its steps, what was left to do at its end
    is done: its report, its model in the registry, and what MLflow has not got of it.

    Called in the main thread, it hears SIGINT and SIGTERM from the moment on when Ray is started: with the first one
    the run saves and ends, which `resume` takes up; the second ends this process at once.

    Args:
        config: The whole run.
        tags: Of the tracked run, beside its own; for a new run only.
        startup: What this process has done before, for the measurements of the start; by default they begin here.

    Returns:
        What the run left.

    Raises:
        StoppedError: If it was asked to stop; the tracked run is marked as killed.
        Interrupted: If so before there was a run.
        UserError: With one line that names the fix; the tracked run is marked as failed.
    """
    startup = startup or StartUp()
    config, fingerprint = checked(config)
    check_tracking(config)
    done = finished(config, fingerprint)
    startup.mark("checks")
    with StopSignals.heard() as signals, ThreadPoolExecutor(1, "loads-mlflow") as ahead:
        separated = ahead.submit(
            separate_tracking, config
        )  # loads MLflow, which takes as long as to start Ray
        with nullcontext() if done else ray_session(config.trainer):
            signals.check()
            startup.mark("ray")
            config, server = separated.result()
            folder, tracked = _open_run(config, fingerprint, tags or {}, server, over=done is not None)
            startup.mark("tracking")
            with tracked.watch(), tagged_with_notices(tracked, folder.location):
                outcome = done or train_on_workers(config, folder.location, signals, tracked, startup)
                result = FitResult(folder.name, folder.location, tracked.run_id, tracked.uri, **outcome)
        return _closed(config, folder, tracked, result, signals)


def _closed(
    config: Config, folder: RunFolder, tracked: TrackedRun, result: FitResult, signals: StopSignals
) -> FitResult:
    """Do what is left to do when the training has ended: the report, the registered model, the tracker's last word.

    Raises:
        UserError: If there is no report; all else has been done, and what was trained is whole.
    """
    unreported: errors.UserError | None = None
    try:
        with signals.at_once():
            try:
                if config.report:
                    from distmetric.inference.run_report import write_report  # brings matplotlib

                    report = write_report(config, result.run_dir, result.checkpoint, tracked)
                    result = replace(result, report=report)
            except errors.UserError as error:
                unreported = error
            result = replace(result, registered=close_tracking(config, tracked, result.to_dict()))
    except Interrupted as signal:
        raise errors.StoppedError(
            f"stopped on {signal} after the last step, {result.step}: resume={result.run_dir} does what is left, the "
            "report above all"
        ) from None
    finally:
        undelivered = tracked.close()
        note_identity(folder, tracked)
    if unreported is not None:
        raise type(unreported)(
            f"the training has ended well, with its best checkpoint in {result.checkpoint}, but there is no report: "
            f"{unreported}; then resume={result.run_dir} makes it"
        )
    notices = [notice["message"] for notice in read_notices(result.run_dir)]
    return replace(result, run_id=tracked.run_id, undelivered=undelivered, notices=notices)


def checked(config: Config) -> tuple[Config, str]:
    """Check what can be checked before anything is started.

    Returns:
        The configuration with absolute paths, and the fingerprint of its data.

    Raises:
        UserError: For the first thing that is wrong with the settings, or with the data for them.
    """
    config = _with_absolute_paths(config)
    validate(config)
    catalog = open_data(config.data)
    build_sampler(config, catalog)
    known_attributes(config, catalog)
    split = config.data.test_split
    check_answerable(
        catalog.labels[split_rows(config, catalog, split)], f"{catalog.path}, data.test_split={split}"
    )
    if not cluster_address(config.trainer):  # or workers run on other machines
        check_memory(config, catalog)
    try:
        check_writable(config.resume or config.output_dir)
    except OSError as error:
        key = f"output_dir={config.output_dir}" if config.resume is None else f"resume={config.resume}"
        raise errors.ResourceError(
            f"{key} cannot be written to ({reason(error)}): free space, fix access, or name another folder"
        ) from None
    return config, catalog.fingerprint


def _open_run(
    config: Config, fingerprint: str, tags: Mapping[str, str], server: Server | None, over: bool
) -> tuple[RunFolder, TrackedRun]:
    if config.resume is not None:
        folder = read_run(config.resume)
        tracked = open_tracking(config, folder, server, over=over)
        return note_identity(folder, tracked), tracked
    name, location = new_run_location(config)
    folder = RunFolder(
        *(location, name, config_dict(config), fingerprint, __version__),
        command=command_line(),
        environment=environment(),
    )
    tracked = open_tracking(config, folder, server, tags)
    folder = replace(folder, tracking_uri=tracked.uri, run_id=tracked.run_id)
    folder.write()
    return folder, tracked


def _with_absolute_paths(config: Config) -> Config:
    """Ray's workers run in folders of their own: relative paths mean the driver's."""
    data = config.data
    if isinstance(data, CatalogDataConfig):
        data = replace(data, path=absolute(data.path))
    else:
        data = replace(data, cache_dir=absolute(data.cache_dir or DEFAULT_CACHE))
    output_dir = absolute(config.output_dir)
    if "/_ray_pkg_" in output_dir:
        raise errors.ConfigError(
            f"output_dir={config.output_dir} lies in the job's copy of the code, which Ray deletes: "
            "give an absolute path or a URI"
        )
    # Through `decode` so that values built by hand are checked as strictly as those from files.
    return decode(Config, config_dict(replace(config, data=data, output_dir=output_dir)))
