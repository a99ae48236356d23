"""A search with Ray Tune: trials, each a whole training run, as many at once as there is room for."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

from distmetric.cluster.fit import checked  # sets Ray's environment, so before anything imports ray

# isort: split
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from distmetric import __version__
from distmetric.cluster.room import room_for
from distmetric.cluster.run_folder import load_resumable, new_run_location
from distmetric.cluster.session import cluster_address, ray_session
from distmetric.cluster.tracked import attach_config, close_tracking, find_server
from distmetric.cluster.tune_folder import Result, TuneFolder, is_tuning
from distmetric.cluster.tune_trial import TrialRun
from distmetric.cluster.tune_watch import TuneWatch
from distmetric.config.compose import to_override
from distmetric.config.decode import decode, leaves
from distmetric.config.schema import Config, MLflowConfig
from distmetric.config.tune_plan import Trial, TunePlan
from distmetric.errors import ConfigError, InputError, UserError
from distmetric.inference.run_report import write_report
from distmetric.locations import open_location
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.saved_model import config_dict

# A search keeps its own tables, is interrupted as every job is, and a run that failed has no metric. Each run has a
# handful of processes that need no CPU to themselves, which are not worth a warning.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_maximum_startup_concurrency": "16",
}


def tune_settings(plan: TunePlan, folder: TuneFolder | None = None) -> dict[str, Any]:
    """Train the trials of a plan that have not ended yet, and tell which one is the best.

    Every trial has its own run folder and, in the tracker, its own run below that of the search. A trial that fails
    ends alone.

    Args:
        plan: The trials.
        folder: Of the search, to continue it: trials that finished or were stopped are not repeated, others go on
            from their newest checkpoint.

    Returns:
        The best trial, how many ended how, and where everything is.

    Raises:
        UserError: If the trials cannot be started, or none has come to an evaluation.
    """
    started = time.monotonic()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    configs = {trial.name: _checked(plan, trial) for trial in plan.trials}
    largest = max(
        (each.trainer for each in configs.values()), key=lambda of: of.min_workers * of.cpus_per_worker
    )
    over = folder is not None and not TuneWatch(plan, folder, TrackedRun()).pending
    with nullcontext() if over else ray_session(largest):
        room = 0 if over else _room(plan, list(configs.values()))
        folder, tracked = _open(plan, configs, folder)
        with tracked.watch():
            watch = TuneWatch(plan, folder, tracked)
            try:
                _run(plan, configs, folder, watch, room)
            except BaseException:
                watch.interrupted()
                print(f"continue with: python jobs/{plan.kind}.py resume={folder.location}", file=sys.stderr)
                raise
            finally:
                watch.close()
            best = _best(watch)
        tracked.close()
    report, registered = _close(best, configs[best.trial], folder, plan.job.report)
    return {
        "best": {
            "trial": best.trial,
            "overrides": [to_override(key, value) for key, value in best.settings.items()],
            "metrics": best.metrics,
            "run_dir": best.run_dir,
            "run_id": best.run_id,
            "checkpoint": best.checkpoint,
            "report": report,
            "registered": registered,
        },
        "trials": {
            "count": len(watch.results),
            **dict.fromkeys(("finished", "stopped", "failed"), 0),
            **Counter(each.status for each in watch.results.values()),
        },
        "folder": folder.location,
        "table": f"{folder.location}/trials.csv",
        "run_id": tracked.run_id,
        "tracking_uri": folder.tracking_uri,
        "seconds": time.monotonic() - started,
    }


def _checked(plan: TunePlan, trial: Trial) -> Config:
    """The configuration of a trial, checked with its data; its name and folder are not yet decided."""
    try:
        return checked(decode(Config, {**trial.config, "output_dir": plan.job.output_dir}))[0]
    except UserError as error:
        raise type(error)(f"the trial with {' '.join(trial.overrides)} is impossible: {error}") from None


def _room(plan: TunePlan, configs: list[Config]) -> int:
    """How many trials to run at once.

    Raises:
        ConfigError: If a private Ray has less room than was asked for; a joined cluster may still grow.
    """
    machines = [each["Resources"] for each in ray.nodes() if each["Alive"]]
    room = min(room_for(config, machines) for config in configs)
    joined = cluster_address(configs[0].trainer)
    if plan.job.concurrent is not None:
        if plan.job.concurrent > room and not joined:
            raise ConfigError(
                f"concurrent={plan.job.concurrent} trials do not fit this machine: set concurrent={max(room, 1)}, or "
                "fewer trainer.num_workers or trainer.cpus_per_worker in train"
            )
        return plan.job.concurrent
    return max(room, 1)


def _open(
    plan: TunePlan, configs: Mapping[str, Config], folder: TuneFolder | None
) -> tuple[TuneFolder, TrackedRun]:
    job, config = plan.job, next(iter(configs.values()))
    server = find_server(config, None if folder is None else folder.tracking_uri)
    if folder is not None:
        return folder, TrackedRun.resume(folder.location, server)
    name = job.name or f"{plan.kind}-{new_run_location(config)[0]}"
    name, location = new_run_location(replace(config, name=name))
    if is_tuning(location):
        raise InputError(
            f"name={name} is taken: choose another name, or continue that search with resume={location}"
        )
    tags = {"distmetric.version": __version__, "distmetric.run_dir": location, "distmetric.kind": plan.kind}
    tracked = TrackedRun.create(location, server, name, leaves(asdict(job)), tags)
    attach_config(tracked, {**asdict(job), "trials": [trial.settings for trial in plan.trials]})
    folder = TuneFolder(
        location,
        name,
        job,
        [trial.settings for trial in plan.trials],
        __version__,
        tracked.uri,
        tracked.run_id,
        plan.study,
    )
    folder.write()
    return folder, tracked


def _run(
    plan: TunePlan, configs: Mapping[str, Config], folder: TuneFolder, watch: TuneWatch, room: int
) -> None:
    """Have Tune run what is left."""
    job, pending = plan.job, watch.pending
    if not pending:
        return
    specs = {trial.name: _spec(plan, trial, configs[trial.name], folder) for trial in pending}
    scheduler = FIFOScheduler()
    if job.scheduler == "asha":
        longest = max(config.train.steps for config in configs.values())
        scheduler = ASHAScheduler(
            time_attr="step",
            max_t=longest + 1,  # a trial ends by itself
            grace_period=min(
                job.grace_steps or min(each.eval.every_steps for each in configs.values()), longest
            ),
            reduction_factor=job.reduction,
        )
    kept = f"{folder.location}/tune"
    tuner = tune.Tuner(
        # Tune wants to reserve something: a byte. What a trial needs, its run reserves.
        tune.with_resources(tune.with_parameters(TrialRun, specs=specs), {"CPU": 0, "memory": 1}),
        param_space={"name": tune.grid_search(list(specs))},
        tune_config=tune.TuneConfig(
            metric=job.metric, mode="max", scheduler=scheduler, max_concurrent_trials=min(room, len(specs))
        ),
        run_config=tune.RunConfig(
            name=f"from_{time.strftime('%Y%m%d_%H%M%S')}",
            storage_path=kept,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs keep their own
            verbose=0,
            callbacks=[watch],
        ),
    )
    try:
        tuner.fit()
    finally:
        # What Tune keeps would let it resume; the tables and the folders of the runs do that here.
        with suppress(OSError):
            filesystem, path = open_location(kept)
            filesystem.delete_dir(path)


def _spec(plan: TunePlan, trial: Trial, config: Config, folder: TuneFolder) -> dict[str, Any]:
    run_dir = f"{folder.location}/{trial.name}"
    tags = {f"distmetric.tune.{text.partition('=')[0]}": text.partition("=")[2] for text in trial.overrides}
    tags["distmetric.trial"] = trial.name
    if folder.run_id is not None:
        tags["mlflow.parentRunId"] = folder.run_id
    try:
        values = load_resumable(run_dir)  # it was interrupted, or failed, when the search was
    except InputError:
        tracking = config.tracking
        if isinstance(tracking, MLflowConfig):
            # One model is registered: that of the best trial, when it is known.
            tracking = replace(tracking, uri=tracking.uri or folder.tracking_uri, register=None)
        values = config_dict(replace(config, name=trial.name, output_dir=folder.location, tracking=tracking))
    command = ["jobs/train.py", *plan.shared, *trial.overrides]
    return {"config": values, "run_dir": run_dir, "metric": plan.job.metric, "tags": tags, "command": command}


def _best(watch: TuneWatch) -> Result:
    if watch.best is None:
        errors = sorted({each.error for each in watch.results.values() if each.error})
        raise ConfigError(
            f"none of {len(watch.results)} trials ended well: {errors[0] if errors else 'none was evaluated'}"
        )
    return watch.best


def _close(
    best: Result, config: Config, folder: TuneFolder, wants_report: bool
) -> tuple[str | None, str | None]:
    """Do for the best trial's run what `fit` does at the end of a run: write its report, and register its model."""
    if best.checkpoint is None:
        return None, None
    tracked = TrackedRun.own(best.run_dir, find_server(config, folder.tracking_uri))
    try:
        report = write_report(config, best.run_dir, best.checkpoint, tracked) if wants_report else None
        return report, close_tracking(config, tracked, {**asdict(best), "report": report})
    finally:
        tracked.close()
