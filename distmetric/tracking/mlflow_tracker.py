"""MLflow: the driver opens and ends the run, rank 0 logs into it; only this module and `registry` import mlflow."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from distmetric.errors import ResourceError
from distmetric.tracking.tracker import History

# Importing mlflow sets these to INFO; what they say is how a database is laid out.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# With a server MLflow would write to standard output, where results and nothing else belong.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_BATCH = 1000  # most metrics that one request may carry
_MAX_PARAM = 6000
_DIGEST = 12  # characters that pages have room for; at most 36
_FIX = "check tracking.uri or set tracking=none"
_NOTE, _ERROR, _RESUMED = "mlflow.note.content", "distmetric.error", "resumed"


def tracking_uri(uri: str | None, output_dir: str) -> str:
    """The tracking URI to use: the configured one, the environment's, or a database beside the runs.

    Raises:
        ResourceError: If there is none and the runs are not on a local disk.
    """
    if uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri or os.environ["MLFLOW_TRACKING_URI"]
    if "://" in output_dir:
        raise ResourceError(
            f"output_dir={output_dir} is not a local folder, so tracking needs a server: "
            "set tracking.uri=http://... or tracking=none"
        )
    folder = Path(output_dir).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def artifact_root(uri: str) -> str | None:
    """Where an experiment in a database keeps its artifacts: beside it; None leaves it to the server."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else (Path(path).absolute().parent / "artifacts").as_uri()


def find_experiment(client: Any, name: str, artifact_root: str | None) -> str:
    """Identity of an experiment, made if it is not there."""
    found = client.get_experiment_by_name(name)
    # Without the tag some versions of MLflow's pages take any experiment for one with language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(found.experiment_id if found else client.create_experiment(name, artifact_root, tags=kind))


class MLflowRun:
    """One run in MLflow, as the driver sees it.

    Args:
        uri: Tracking URI.
        run_id: The run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    @classmethod
    def create(
        cls,
        uri: str,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifact_root: str | None,
    ) -> MLflowRun:
        """Open a new run with its parameters and tags.

        Args:
            uri: Tracking URI.
            experiment: Name of the experiment; made if it is not there.
            name: Name of the run.
            params: Dotted keys and values of the configuration.
            tags: What else to know of the run.
            artifact_root: Where a new experiment keeps its artifacts; None leaves it to the server.

        Raises:
            ResourceError: If the server cannot be reached.
        """
        try:
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment_id = find_experiment(client, experiment, artifact_root)
            made = client.create_run(experiment_id, run_name=name, tags=dict(tags))
            pairs = [Param(key, _param(value)) for key, value in params.items()]
            for start in range(0, len(pairs), 100):
                client.log_batch(made.info.run_id, params=pairs[start : start + 100])
        except MlflowException as error:
            raise unreachable(uri, error) from None
        return cls(uri, made.info.run_id)

    def reopen(self) -> None:
        """Mark a run that ended as running again: without the reason it ended for, and with how often it was resumed.

        Raises:
            ResourceError: If the server cannot be reached or does not know the run.
        """
        try:
            tags = self._client.get_run(self.run_id).data.tags
            self._client.update_run(self.run_id, status="RUNNING")
            self._client.set_tag(self.run_id, _RESUMED, str(int(tags.get(_RESUMED, "0")) + 1))
            if _ERROR in tags:
                self._client.delete_tag(self.run_id, _ERROR)
        except MlflowException as error:
            raise unreachable(self.uri, error) from None

    def describe(self, note: str) -> None:
        """Set the Markdown text that the run's page begins with.

        Raises:
            ResourceError: If the server does not take it.
        """
        try:
            self._client.set_tag(self.run_id, _NOTE, note)
        except MlflowException as error:
            raise unreachable(self.uri, error) from None

    def log_dataset(self, name: str, digest: str, location: str) -> None:
        """Say what data the run works on."""
        data = Dataset(
            name=name, digest=digest[:_DIGEST], source_type="local", source=json.dumps({"uri": location})
        )
        self._client.log_inputs(self.run_id, [DatasetInput(data, [])])

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str]) -> None:
        """End the run truthfully."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._client.set_terminated(self.run_id, status)

    def log_artifact(self, path: str) -> None:
        """Attach a local file."""
        self._client.log_artifact(self.run_id, path)

    def log_artifacts(self, folder: str, name: str) -> None:
        """Attach the files of a local folder, as a folder of that name."""
        self._client.log_artifacts(self.run_id, folder, name)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Attach the whole configuration as config.json."""
        self._client.log_dict(self.run_id, dict(config), "config.json")

    def history(self) -> History:
        """All measurements by metric name, in order of steps.

        Raises:
            ResourceError: If the server cannot be reached or does not know the run.
        """
        try:
            names = self._client.get_run(self.run_id).data.metrics
            return {
                name: sorted((m.step, m.value) for m in self._client.get_metric_history(self.run_id, name))
                for name in sorted(names)
            }
        except MlflowException as error:
            raise unreachable(self.uri, error) from None

    def status(self) -> tuple[str, str]:
        """RUNNING, FINISHED, FAILED or KILLED, and the reason for the latter two as far as it is known.

        Raises:
            ResourceError: If the server cannot be reached or does not know the run.
        """
        try:
            run = self._client.get_run(self.run_id)
        except MlflowException as error:
            raise unreachable(self.uri, error) from None
        return run.info.status, run.data.tags.get(_ERROR, "")


class MLflowTracker:
    """Logs into a run from a background thread, never a step twice.

    A resumed run repeats the steps after its checkpoint; what MLflow has of them already is not sent again.

    Args:
        uri: Tracking URI.
        run_id: The run.
        system_metrics: Whether to log the load of this machine too, every ten seconds, as "system/...".
    """

    def __init__(self, uri: str, run_id: str, system_metrics: bool = False) -> None:
        run = MLflowRun(uri, run_id)
        self._client, self._run_id = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri), run_id
        self._logged = {name: points[-1][0] for name, points in run.history().items()}
        self._queue: queue.Queue[list[Metric] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()
        self._system = _start_monitor(uri, run_id) if system_metrics else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        now = int(time.time() * 1000)
        fresh = {
            name: value
            for name, value in metrics.items()
            if step > self._logged.get(name, -1) and math.isfinite(value)
        }
        self._logged |= dict.fromkeys(fresh, step)
        self._queue.put([Metric(name, value, now, step) for name, value in fresh.items()])

    def flush(self) -> None:
        """See `Tracker.flush`.

        Raises:
            ResourceError: If the server did not take what was logged.
        """
        self._queue.join()
        if self._error is not None:
            raise ResourceError(
                f"MLflow did not take the run's metrics: {' '.join(str(self._error).split())}"
            )

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._system is not None:
            self._system.finish()
        self._queue.put(None)
        self._thread.join(timeout=60)

    def _send(self) -> None:
        while (first := self._queue.get()) is not None:
            batches = [first]
            while not self._queue.empty() and sum(map(len, batches)) < _BATCH // 2:
                more = self._queue.get()
                if more is None:
                    self._queue.put(None)
                    self._queue.task_done()
                    break
                batches.append(more)
            metrics = [metric for batch in batches for metric in batch]
            try:
                for start in range(0, len(metrics), _BATCH):
                    self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])
            except Exception as error:
                self._error = error
            finally:
                for _ in batches:
                    self._queue.task_done()
        self._queue.task_done()


def _start_monitor(uri: str, run_id: str) -> Any:
    # psutil, which this imports, is no requirement of MLflow.
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def _param(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _MAX_PARAM else f"{text[: _MAX_PARAM - 3]}..."


def unreachable(uri: str, error: Exception, fix: str = _FIX) -> ResourceError:
    """One line for a server that does not do what was asked."""
    reason = " ".join(str(error).split())[:300]
    return ResourceError(f"MLflow at {uri} cannot be used: {reason}; {fix}")
