"""Train on Ray: check, open the run, start the workers, outlive their failures, close the run truthfully."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from distmetric.cluster.session import ray_session  # sets Ray's environment, so before anything imports ray

# isort: split
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from distmetric import __version__, errors
from distmetric.cluster.index_messages import IndexHandles
from distmetric.cluster.index_start import start_index, stop_index
from distmetric.cluster.progress_board import shown_progress
from distmetric.cluster.run_folder import new_run_location
from distmetric.cluster.tracked import close_tracking, open_tracking
from distmetric.cluster.worker import train_worker
from distmetric.config.decode import decode
from distmetric.config.schema import DEFAULT_CACHE, CatalogDataConfig, Config, TrainerConfig
from distmetric.config.validate import validate
from distmetric.inference.origin import command_line, environment
from distmetric.inference.run_report import write_report
from distmetric.locations import absolute
from distmetric.progress import Progress
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.run_folder import RunFolder, read_run
from distmetric.training.saved_model import config_dict
from distmetric.training.worker import build_sampler, known_attributes, open_data


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

    def to_dict(self) -> dict[str, Any]:
        """As plain containers, for one line of JSON."""
        return asdict(self)

    def where_to_look(self) -> str:
        """The address of the tracking server, or the command that starts one for a database."""
        uri = self.tracking_uri or ""
        return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def fit(config: Config, tags: Mapping[str, str] | None = None) -> FitResult:
    """Train on Ray workers until the last step, and report.

    Everything that can be checked is checked before anything is started. Workers that die are replaced, up to
    `trainer.max_failures` times, and training resumes from the newest intact checkpoint. With `config.resume` the
    run of that folder goes on, in the same MLflow run.

    Args:
        config: The whole run.
        tags: Of the tracked run, beside its own; for a new run only.

    Returns:
        What the run left.

    Raises:
        UserError: With one line that names the fix; the tracked run is marked as failed.
    """
    config, fingerprint = checked(config)
    with ray_session(config.trainer):
        folder, tracked = _open_run(config, fingerprint, tags or {})
        with tracked.watch():
            outcome = _train(config, folder)
            result = FitResult(folder.name, folder.location, folder.run_id, folder.tracking_uri, **outcome)
    if config.report:
        result = replace(result, report=write_report(config, result.run_dir, result.checkpoint, tracked))
    return replace(result, registered=close_tracking(config, tracked, result.to_dict()))


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
    catalog.rows(config.data.test_split)
    return config, catalog.fingerprint


def _open_run(config: Config, fingerprint: str, tags: Mapping[str, str]) -> tuple[RunFolder, TrackedRun]:
    if config.resume is not None:
        folder = read_run(config.resume)
        if folder.fingerprint != fingerprint:
            raise errors.InputError(
                f"the data has changed since {folder.location} was started: resume with the same catalog, "
                "or start a new run"
            )
        return folder, open_tracking(config, folder)
    name, location = new_run_location(config)
    folder = RunFolder(
        *(location, name, config_dict(config), fingerprint, __version__),
        command=command_line(),
        environment=environment(),
    )
    tracked = open_tracking(config, folder, tags)
    folder = replace(folder, tracking_uri=tracked.uri, run_id=tracked.run_id)
    folder.write()
    return folder, tracked


def _train(config: Config, folder: RunFolder) -> dict[str, Any]:
    with shown_progress(Progress("steps", config.train.steps)) as board:
        index = start_index(config, folder.location)
        try:
            return _train_with(index, board, config, folder)
        finally:
            stop_index(index)


def _train_with(index: IndexHandles | None, board: Any, config: Config, folder: RunFolder) -> dict[str, Any]:
    payload = {
        "config": config_dict(config),
        "run_dir": folder.location,
        "tracking_uri": folder.tracking_uri,
        "run_id": folder.run_id,
        "board": board,
        "index": index,
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=payload,
        scaling_config=_scaling(config.trainer),
        torch_config=TorchConfig(timeout_s=int(config.trainer.timeout_s)),
        run_config=RunConfig(
            name="ray",
            storage_path=folder.location,
            # Without the second limit Ray would try for ever to place workers that do not fit.
            failure_config=FailureConfig(
                max_failures=config.trainer.max_failures, controller_failure_limit=0
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except Exception as error:
        raise _explained(error, config.trainer) from error
    if "error" in outcome:
        raise getattr(errors, outcome["error"])(outcome["message"])
    return dict(outcome)


def _scaling(trainer: TrainerConfig) -> ScalingConfig:
    resources = {"CPU": trainer.cpus_per_worker}
    if trainer.use_gpu:
        resources["GPU"] = 1
    return ScalingConfig(
        num_workers=trainer.num_workers, use_gpu=trainer.use_gpu, resources_per_worker=resources
    )


def _explained(error: Exception, trainer: TrainerConfig) -> Exception:
    """A user's mistake where Ray's error is one, and the error itself otherwise."""
    if "WorkerGroupStartupTimeoutError" in repr(error) or "StartupTimeout" in str(error):
        gpus = " and as many GPUs" if trainer.use_gpu else ""
        return errors.ResourceError(
            f"trainer.num_workers={trainer.num_workers} workers with {trainer.cpus_per_worker:g} CPUs each{gpus} "
            f"were not placed within trainer.start_timeout_s={trainer.start_timeout_s:g}: the cluster is too small "
            "or busy; set fewer workers or wait longer"
        )
    return error


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
