"""The model registry through a real database: versions with what they are worth, and the best one's alias."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Metric

from distmetric.errors import InputError, ResourceError
from distmetric.tracking.mlflow_server import MLflowServer
from distmetric.tracking.registry import ModelRegistry, PackedModel
from model_cards import CARD


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> PackedModel:
    folder = tmp_path_factory.mktemp("packed") / "embedder"
    folder.mkdir()
    (folder / "weights").write_bytes(b"123")
    example = pd.DataFrame({"image": [b"bytes"]})
    return PackedModel(folder, "json", "image", example, ["distmetric==0.1.0", "torch==2.13.0"])


@pytest.fixture(scope="module")
def run(uri, tmp_path_factory) -> SimpleNamespace:
    server = MLflowServer(uri, "experiment", tmp_path_factory.mktemp("artifacts").as_uri())
    run_id = server.open({"name": "a run", "key": "k", "time": 1, "params": {}, "tags": {}}, None)
    server.tell(run_id, {"kind": "status", "status": "FINISHED", "time": 2})
    return SimpleNamespace(run_id=run_id)


def card(recall: float, weights: str, **changes):
    return replace(CARD, metrics={"recall_at_1": recall}, weights=weights, **changes)


def test_a_logged_model_says_what_it_takes_needs_and_is_worth(uri, client, packed, run) -> None:
    client.log_batch(
        run.run_id,
        metrics=[Metric("eval/recall_at_1", value, 1, step) for step, value in ((200, 0.2), (400, 0.3))],
    )
    before = client.get_metric_history(run.run_id, "eval/recall_at_1")
    location = ModelRegistry(uri, "unused").log(packed, CARD, run.run_id)
    logged = client.get_logged_model(location.removeprefix("models:/"))
    assert logged.status == "READY"
    assert (logged.source_run_id, logged.tags["threshold"]) == (run.run_id, "0.875")
    assert [(m.key, m.step, m.value) for m in logged.metrics] == [("eval/recall_at_1", 400, 0.3)]
    points = client.get_metric_history(run.run_id, "eval/recall_at_1")
    assert [(m.step, m.value) for m in points] == [(m.step, m.value) for m in before]
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert [output.model_id for output in found.outputs.model_outputs] == [logged.model_id]
    files = Path(logged.artifact_location.removeprefix("file://"))
    saved = mlflow.models.Model.load(files)
    assert saved.signature.inputs.to_dict() == [{"type": "binary", "name": "image", "required": True}]
    (output,) = saved.signature.outputs.to_dict()
    assert output["tensor-spec"] == {"dtype": "float32", "shape": (-1, 16)}
    requirements = (files / "requirements.txt").read_text().split()
    assert {"distmetric==0.1.0", "torch==2.13.0"} <= set(requirements)
    assert (files / "data" / "embedder" / "weights").read_bytes() == b"123"


def test_best_moves_only_to_a_better_version(uri, client, packed, run) -> None:
    registry = ModelRegistry(uri, "unused")

    def register(recall: float, weights: str, **changes):
        return registry.register("glyphs", packed, card(recall, weights, **changes), run.run_id, "best")

    def best() -> int:
        return int(client.get_model_version_by_alias("glyphs", "best").version)

    first = register(0.5, "a")
    assert (first.uri, first.version, first.alias, first.note) == ("models:/glyphs/1", 1, "best", "")
    worse = register(0.4, "b")
    assert (worse.version, worse.alias) == (2, None)
    assert worse.note == "alias best stays with version 1: recall_at_1 0.4000 is not above 0.5000"
    assert best() == 1
    elsewhere = register(0.9, "c", fingerprint="xyz")
    assert (elsewhere.version, elsewhere.alias, best()) == (3, None, 1)
    assert "another data (abc there, xyz here)" in elsewhere.note
    better = register(0.6, "d")
    assert (better.version, better.alias, best()) == (4, "best", 4)
    again = register(0.6, "d")
    assert (again.version, again.alias, again.note) == (4, "best", "these weights are registered already")
    assert len(client.search_model_versions("name='glyphs'")) == 4
    other = registry.register("glyphs", packed, card(0.1, "b"), run.run_id, "production")
    assert (other.version, other.alias) == (2, "production")
    moved = registry.register("glyphs", packed, card(0.1, "a"), run.run_id, "production")
    assert (moved.version, moved.alias) == (1, "production")


def test_a_version_carries_what_it_is_worth_and_links_to_its_run(uri, client, packed, run) -> None:
    registered = ModelRegistry(uri, "unused").register("worth", packed, CARD, run.run_id, None)
    version = client.get_model_version("worth", str(registered.version))
    assert version.tags == CARD.tags()
    assert (version.description, version.run_id) == (CARD.note(), run.run_id)
    assert not version.aliases
    (logged,) = [
        model
        for model in client.search_logged_models([client.get_run(run.run_id).info.experiment_id])
        if "worth" in model.tags.get("mlflow.modelVersions", "")
    ]
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "worth", "version": 1}]
    assert version.source == logged.artifact_location


def test_a_model_without_a_run_goes_into_the_experiment(uri, client, packed, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    registry = ModelRegistry(uri, "made for it")
    registered = registry.register("lonely", packed, CARD, None, None)
    assert client.get_model_version("lonely", str(registered.version)).run_id is None
    experiment = client.get_experiment_by_name("made for it")
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    assert (
        experiment.artifact_location == Path(uri.removeprefix("sqlite:///")).with_name("artifacts").as_uri()
    )
    assert list(tmp_path.iterdir()) == []  # MLflow's global tracking URI would leave a database here


def test_runs_are_known_or_not(uri, run) -> None:
    registry = ModelRegistry(uri, "unused")
    assert registry.knows(run.run_id)
    assert not registry.knows("0" * 32)
    assert not registry.knows(None)


def test_a_failed_upload_is_no_model(uri, client, packed, run) -> None:
    registry = ModelRegistry(uri, "unused")
    broken = replace(packed, folder=packed.folder / "gone")
    with pytest.raises(ResourceError, match=r"cannot (store the model|be used)"):
        registry.register("broken", broken, card(0.5, "e"), run.run_id, None)
    assert client.search_model_versions("name='broken'") == []
    models = client.search_logged_models([client.get_run(run.run_id).info.experiment_id])
    assert [model.status for model in models].count("FAILED") == 1


@pytest.mark.parametrize(("name", "alias"), [("a/b", None), ("fine", "v9")])
def test_names_that_mlflow_does_not_take_are_one_line(uri, packed, run, name, alias) -> None:
    with pytest.raises(
        InputError, match=rf"MLflow does not accept register={name} alias={alias}: "
    ) as caught:
        ModelRegistry(uri, "unused").register(name, packed, card(0.5, "f"), run.run_id, alias)
    assert "\n" not in str(caught.value)


def test_servers_and_databases_that_are_not_there_are_one_line(tmp_path) -> None:
    with pytest.raises(ResourceError, match=r"database .*/gone/mlflow.db is not there"):
        ModelRegistry(f"sqlite:///{tmp_path}/gone/mlflow.db", "x")
    with pytest.raises(
        ResourceError, match=r"MLflow at http://127.0.0.1:9 cannot be used: .*check tracking_uri"
    ):
        ModelRegistry("http://127.0.0.1:9", "x").knows("1")
