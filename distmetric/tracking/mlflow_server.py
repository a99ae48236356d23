"""MLflow behind the `Server` protocol; only this module and `registry` import mlflow."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from distmetric.errors import ResourceError
from distmetric.secrets import masked
from distmetric.tracking.address import database_path, without_credentials
from distmetric.tracking.server import NoAnswerError, Point, RefusedError, UnacceptableError

# Importing mlflow sets these to INFO; what they say is how a database is laid out. What goes wrong in a database comes
# to us as an exception, too.
for _name, _level in (
    *(("mlflow", logging.WARNING), ("alembic", logging.WARNING)),
    ("mlflow.store.db.utils", logging.CRITICAL),
):
    logging.getLogger(_name).setLevel(_level)

# With a server MLflow would write to standard output, where results and nothing else belong. What is sent to it is sent
# again by us, in order, where MLflow would try eight times for two minutes each.
for _variable, _value in (
    *(("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "60"),
):
    os.environ.setdefault(_variable, _value)

KEY_TAG = "distmetric.key"
"""Tag of a run with what identifies it before it has an identity in MLflow."""

_MAX_PARAM, _MAX_PARAMS = 6000, 100
_DIGEST = 12  # characters that pages have room for; at most 36
_FIX = "check tracking.uri or set tracking=none"
_REFUSED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND")
_UNACCEPTABLE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
# What is at the bottom of the exceptions that a request goes through.
_CAUSE = re.compile(r"\(Caused by \w+\([\"'](?:\w+\(.*?\): )?(.*)[\"']\)\)")
_SERVER_PATIENCE_S, _DATABASE_PATIENCE_S = 20.0, 120.0  # a new database has to be laid out first


def artifact_root(uri: str) -> str | None:
    """Where an experiment in a database keeps its artifacts: beside it; None leaves it to the server."""
    path = database_path(uri)
    return None if path is None else (path.absolute().parent / "artifacts").as_uri()


def find_experiment(client: Any, name: str, artifact_root: str | None) -> str:
    """Identity of an experiment, made if it is not there.

    Raises:
        RefusedError: If it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without the tag some versions of MLflow's pages take any experiment for one with language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_root, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody else has just made it
    if found.lifecycle_stage != "active":
        raise RefusedError(
            f"the experiment {name} was deleted there: bring it back with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or give another tracking.experiment"
        )
    return str(found.experiment_id)


class MLflowServer:
    """An MLflow server, or a database of MLflow's, that takes a run; see `Server`.

    Args:
        uri: Tracking URI, with credentials where it has some.
        experiment: Name of the experiment; made if it is not there.
        artifact_root: Where a new experiment keeps its artifacts; None leaves it to the server.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: str | None = None) -> None:
        self.uri, self.address = uri, without_credentials(uri)
        self.patience_s = _SERVER_PATIENCE_S if uri.startswith("http") else _DATABASE_PATIENCE_S
        self._experiment, self._artifact_root = experiment, artifact_root
        self._database = database_path(uri)
        self._client: Any = None

    def open(self, run: Mapping[str, Any], run_id: str | None) -> str:
        """See `Server.open`."""
        with _understood():
            client = self._connect(known=run_id is not None)
            if run_id is not None and (found := _existing(client, run_id)) is not None:
                if found.info.lifecycle_stage != "active":
                    raise RefusedError(
                        f"the run {run_id} was deleted there: bring it back with "
                        f"`mlflow runs restore --run-id {run_id}`"
                    )
                return run_id
            experiment = find_experiment(client, self._experiment, self._artifact_root)
            same = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{run['key']}'", max_results=1)
            if same:
                made = same[0]
            else:
                tags = {**run["tags"], KEY_TAG: run["key"]}
                made = client.create_run(experiment, start_time=run["time"], tags=tags, run_name=run["name"])
            pairs = [Param(key, _param(value)) for key, value in run["params"].items()]
            for start in range(0, len(pairs), _MAX_PARAMS):
                client.log_batch(made.info.run_id, params=pairs[start : start + _MAX_PARAMS])
            return str(made.info.run_id)

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """See `Server.log`."""
        metrics = [Metric(point.name, point.value, point.time, point.step) for point in points]
        with _understood():
            self._connect().log_batch(run_id, metrics=metrics)

    def tell(self, run_id: str, record: Mapping[str, Any]) -> None:
        """See `Server.tell`."""
        with _understood():
            client = self._connect()
            match record["kind"]:
                case "tags":
                    given = {name: value for name, value in record["tags"].items() if value is not None}
                    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in given.items()])
                    for name in record["tags"].keys() - given.keys():
                        with suppress(MlflowException):  # it may not have had the tag
                            client.delete_tag(run_id, name)
                case "dataset":
                    source = json.dumps({"uri": record["location"]})
                    data = Dataset(record["name"], record["digest"][:_DIGEST], "local", source)
                    client.log_inputs(run_id, [DatasetInput(data, [])])
                case "status" if record["status"] == "RUNNING":
                    client.update_run(run_id, status="RUNNING")
                case "status":
                    client.set_terminated(run_id, record["status"], end_time=record["time"])

    def attach(self, run_id: str, path: str, folder: str) -> None:
        """See `Server.attach`. Where artifacts are kept may be in trouble while the server is not."""
        try:
            self._connect().log_artifact(run_id, path, folder or None)
        except Exception as error:  # of whatever client the storage needs
            raise UnacceptableError(_reason(error)) from None

    def _connect(self, known: bool = True) -> Any:
        """The client.

        Raises:
            NoAnswerError: If the database is gone: by opening it, it would be made anew, and empty.
        """
        if self._database is not None:
            if known and not self._database.is_file():
                raise NoAnswerError("its database is not there")
            # A pool would keep connections to a database that was there before.
            os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        if self._client is None:
            self._client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client


def _existing(client: Any, run_id: str) -> Any:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            return None
        raise


@contextmanager
def _understood() -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into what it means."""
    try:
        yield
    except (NoAnswerError, RefusedError):
        raise
    except MlflowException as error:
        if error.error_code in _REFUSED:
            raise RefusedError(_reason(error)) from None
        if error.error_code in _UNACCEPTABLE:
            raise UnacceptableError(_reason(error)) from None
        raise NoAnswerError(_reason(error)) from None
    except Exception as error:  # of the database, of the network
        raise NoAnswerError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """What is wrong, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if cause := _CAUSE.search(text):
        text = cause[1]
    text = masked(text)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _param(value: str) -> str:
    return value if len(value) <= _MAX_PARAM else f"{value[: _MAX_PARAM - 3]}..."


def unreachable(uri: str, error: Exception, fix: str = _FIX) -> ResourceError:
    """One line for a server that does not do what was asked."""
    return ResourceError(f"MLflow at {without_credentials(uri)} cannot be used: {_reason(error)}; {fix}")


class Attachable:
    """A run in MLflow that files are attached to at once, by a process that does not own it.

    Args:
        uri: Tracking URI.
        run_id: The run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.run_id, self._server = run_id, MLflowServer(uri, "")

    def log_artifact(self, path: str) -> None:
        """Attach a local file.

        Raises:
            ServerError: If it cannot be.
        """
        self._server.attach(self.run_id, path, "")

    def log_artifacts(self, folder: str, name: str) -> None:
        """Attach the files of a local folder, as a folder of that name.

        Raises:
            ServerError: If one cannot be.
        """
        for path in sorted(Path(folder).iterdir()):
            self._server.attach(self.run_id, str(path), name)


class _Log(Protocol):
    """What a `SystemLoad` logs to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def next_step(self, prefix: str) -> int: ...


class SystemLoad:
    """Logs the load of this machine, every ten seconds or MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL, as "system/...".

    Args:
        tracker: Where to.
    """

    def __init__(self, tracker: _Log) -> None:
        # psutil, which these import, is no requirement of MLflow.
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._tracker = tracker
        self._every_s = float(MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or 10)
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(Exception):  # no GPU, or not what it takes to ask one
            self._monitors.append(GPUMonitor())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Log nothing more."""
        self._over.set()
        self._thread.join(timeout=60)

    def _watch(self) -> None:
        step = self._tracker.next_step("system/")
        while True:
            for monitor in self._monitors:
                monitor.collect_metrics()
            if self._over.wait(self._every_s):
                return
            found: dict[str, float] = {}
            for monitor in self._monitors:
                found |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._tracker.log(step, {f"system/{name}": value for name, value in found.items()})
            step += 1
