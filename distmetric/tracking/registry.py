"""Models in MLflow: logged to a run, registered under a name, and one of them the best.

Nothing here depends on MLflow's current run or on its global tracking URI, or changes them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature

from distmetric.errors import InputError, ResourceError
from distmetric.secrets import masked
from distmetric.tracking.address import database_path, without_credentials
from distmetric.tracking.mlflow_server import artifact_root, find_experiment, unreachable
from distmetric.tracking.model_card import ModelCard, reason_to_stay
from distmetric.tracking.server import RefusedError

BEST = "best"


@dataclass(frozen=True)
class PackedModel:
    """A model as files, and how MLflow gets a predictor out of them.

    Args:
        folder: The files.
        loader_module: Has `_load_pyfunc(folder)`.
        column: Name of the input's column, of encoded images.
        example: A table with one such image.
        requirements: Packages for pip, all of them.
    """

    folder: Path
    loader_module: str
    column: str
    example: Any
    requirements: Sequence[str]


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Args:
        uri: What `mlflow.pyfunc.load_model` takes.
        name: Of the registered model.
        version: Its number.
        alias: The alias that was asked for, if this version has it now.
        note: Why it does not, or that the version was there before; else "".
    """

    uri: str
    name: str
    version: int
    alias: str | None
    note: str

    def __str__(self) -> str:
        having = f" is {self.alias}" if self.alias else ""
        return f"{self.uri}{having}{f' ({self.note})' if self.note else ''}"


class ModelRegistry:
    """Models of one tracking server.

    Args:
        uri: Its URI.
        experiment: Where models without a run are logged; made when it is needed.

    Raises:
        ResourceError: If it is a database that is not there, or the server cannot be used.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self._experiment = uri, experiment
        with self._explained():
            self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)

    def knows(self, run_id: str | None) -> bool:
        """Whether there is such a run, not deleted."""
        if run_id is None:
            return False
        with self._explained():
            try:
                return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def log(self, model: PackedModel, card: ModelCard, run_id: str | None) -> str:
        """Log a model, to a run where it has one.

        Returns:
            Its URI, "models:/m-...".

        Raises:
            ResourceError: If the server does not take it.
        """
        with self._explained():
            return f"models:/{self._log(model, card, run_id).model_id}"

    def register(
        self, name: str, model: PackedModel, card: ModelCard, run_id: str | None, alias: str | None
    ) -> Registered:
        """Log a model as the next version of a registered one.

        The same weights under the same name are not registered again. The alias "best" moves only to a version that is
        better than the one it has (`reason_to_stay`); any other is set.

        Args:
            name: Of the registered model; made if it is not there.
            model: The files.
            card: Becomes the version's tags and description.
            run_id: The run that it belongs to, or None.
            alias: To be given to the version, or None.

        Raises:
            InputError: If MLflow does not accept the name or the alias.
            ResourceError: If the server does not take the model.
        """
        with self._explained(f"register={name} alias={alias}"):
            self._make(name)
            found = self._client.search_model_versions(
                f"name='{name}' and tags.weights_sha256='{card.weights}'"
            )
            if found:
                version, note = found[0], "these weights are registered already"
            else:
                logged = self._log(model, card, run_id)
                version, note = self._version(name, logged, card, run_id), ""
            if alias is not None and (reason := self._set_alias(name, alias, version.version, card)):
                alias, note = None, reason
        return Registered(f"models:/{name}/{version.version}", name, int(version.version), alias, note)

    def _make(self, name: str) -> None:
        try:
            self._client.create_registered_model(name, description="Image embeddings, trained by distmetric.")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise

    def _version(self, name: str, logged: Any, card: ModelCard, run_id: str | None) -> Any:
        # For a model without a run, a database would look for the run through MLflow's global tracking URI.
        through_global = run_id is None and artifact_root(self.uri) is not None
        version = self._client.create_model_version(
            name,
            source=logged.artifact_location,
            run_id=run_id,
            tags=card.tags(),
            description=card.note(),
            model_id=None if through_global else logged.model_id,
        )
        # What links the pages of run and logged model to the registered one.
        link = json.dumps([{"name": name, "version": int(version.version)}])
        self._client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
        return version

    def _set_alias(self, name: str, alias: str, version: str, card: ModelCard) -> str | None:
        current = self._client.get_registered_model(name).aliases.get(alias)
        if alias == BEST and current is not None and str(current) != str(version):
            tags = self._client.get_model_version(name, current).tags
            if reason := reason_to_stay(card.tags(), tags):
                return f"alias {alias} stays with version {current}: {reason}"
        self._client.set_registered_model_alias(name, alias, version)
        return None

    def _log(self, model: PackedModel, card: ModelCard, run_id: str | None) -> Any:
        client = self._client
        if run_id is None:
            experiment = find_experiment(client, self._experiment, artifact_root(self.uri))
        else:
            experiment = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment,
            name=f"embedder-step-{card.step}",
            source_run_id=run_id,
            tags=card.tags(),
            params={"loss": card.loss, "model": card.model, "step": str(card.step)},
            model_type="embedder",
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                local = f"{folder}/model"
                mlflow.pyfunc.save_model(
                    local,
                    loader_module=model.loader_module,
                    data_path=str(model.folder),
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        run_id=run_id,
                        model_uuid=logged.model_id,
                        model_id=logged.model_id,
                    ),
                    signature=_signature(model.column, card.embedding_dim),
                    input_example=model.example,
                    pip_requirements=list(model.requirements),
                    metadata=card.tags(),
                )
                client.log_model_artifacts(logged.model_id, local)
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        client.finalize_logged_model(logged.model_id, "READY")
        if run_id is not None:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=card.step)])
            self._link_metrics(run_id, logged.model_id, card)
        return logged

    def _link_metrics(self, run_id: str, model_id: str, card: ModelCard) -> None:
        """Have MLflow list the run's evaluation at the model's step with the model: the same points once more."""
        linked = []
        for name in self._client.get_run(run_id).data.metrics:
            if name.startswith("eval/"):
                points = self._client.get_metric_history(run_id, name)
                linked += [
                    Metric(
                        point.key, point.value, point.timestamp, point.step, model_id=model_id, run_id=run_id
                    )
                    for point in points
                    if point.step == card.step
                ]
        self._client.log_batch(run_id, metrics=linked)

    @contextmanager
    def _explained(self, asked: str = "") -> Iterator[None]:
        """A user's mistake in one line, where MLflow has an exception."""
        path = database_path(self.uri)
        if path is not None and not path.parent.is_dir():
            raise ResourceError(
                f"MLflow's database {path} is not there: give tracking_uri=..., or run this where it is"
            )
        shown = without_credentials(self.uri)
        try:
            yield
        except RefusedError as error:
            raise unreachable(self.uri, error, "check tracking_uri") from None
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                reason = masked(" ".join(str(error).split()))[:300]
                raise InputError(f"MLflow does not accept {asked or shown}: {reason}") from None
            raise unreachable(self.uri, error, "check tracking_uri") from None
        except OSError as error:
            raise ResourceError(
                f"MLflow at {shown} cannot store the model: {masked(' '.join(str(error).split()))}; check where its "
                "artifacts are kept"
            ) from None


def _signature(column: str, embedding_dim: int) -> ModelSignature:
    image = {"type": "binary", "name": column, "required": True}
    embedding = {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, embedding_dim]}}
    return ModelSignature.from_dict({"inputs": json.dumps([image]), "outputs": json.dumps([embedding])})
