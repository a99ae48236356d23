"""What MLflow's pages say of a run: its kind when it starts, its outcome when it ends, its best model."""

from __future__ import annotations

import shutil
from dataclasses import replace

import mlflow
import pandas as pd
import pytest
import torch

from distmetric.cluster import tracked as tracked_module
from distmetric.cluster.run_note import Outcome, run_note
from distmetric.cluster.tracked import close_tracking, note_identity, open_tracking, separate_tracking
from distmetric.config.jobs import ExportJob
from distmetric.config.schema import MLflowConfig
from distmetric.errors import ConfigError, InputError, ResourceError
from distmetric.inference.export import export_checkpoint
from distmetric.tracking.journal import TOLD, read_history, read_stream
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.tracked_run import TrackedRun
from distmetric.training.checkpoint import read_checkpoint
from distmetric.training.notices import read_notices
from distmetric.training.run_data import open_data
from distmetric.training.run_folder import RunFolder
from distmetric.training.saved_model import config_dict, load_embedder
from fake_server import AWAY, FakeServer
from runs import run_once, tiny_config


@pytest.fixture(scope="module")
def ended(glyph_cache, tmp_path_factory):
    """A run as `fit` leaves it: configuration, folder, tracked run, what was returned, and its tags at the start."""
    outputs = tmp_path_factory.mktemp("outputs")
    config = tiny_config(
        glyph_cache, "model.widths=[8, 8]", "model.embedding_dim=16", f"output_dir={outputs}"
    )
    config = replace(config, tracking=MLflowConfig(register="glyphs"))
    location = f"{outputs}/a-run"
    folder = RunFolder(location, "a-run", config_dict(config), open_data(config.data).fingerprint, "0.1.0")
    config, server = separate_tracking(config)
    tracked = open_tracking(config, folder, server, {"mine": "yes"})
    folder = note_identity(folder, tracked)
    client = mlflow.MlflowClient(tracked.uri)
    assert tracked.settle() == 0
    before = client.get_run(tracked.run_id)
    with tracked.watch():
        tracker = tracked.tracker()
        _, result, _ = run_once(config, outputs / "a-run", tracker)
        tracker.close()
    outcome = {
        "run_dir": location,
        "checkpoint": result.checkpoint,
        "step": result.step,
        "metrics": result.metrics,
        "report": f"{location}/report.html",
    }
    registered = close_tracking(config, tracked, outcome)
    assert tracked.close() == 0
    return config, folder, tracked, outcome, before, registered, client


def test_a_run_says_from_the_start_what_it_is(ended) -> None:
    config, folder, *_, before, _, _ = ended
    workers = str(config.trainer.num_workers)
    tags = before.data.tags
    kinds = ("data", "model", "loss", "miner", "sampler", "world_size", "device", "mine")
    assert [tags[kind] for kind in kinds] == [
        "glyphs",
        "conv",
        "triplet",
        "none",
        "pk",
        workers,
        "cpu",
        "yes",
    ]
    assert f"torch {torch.__version__}" in tags["versions"]
    assert tags["distmetric.run_dir"] == folder.location
    assert "**glyphs**: conv with 16 dimensions, loss triplet" in tags["mlflow.note.content"]
    assert f"checkpoints: `{folder.location}/checkpoints`" in tags["mlflow.note.content"]
    assert before.inputs.dataset_inputs[0].dataset.name == "glyphs"
    assert before.info.run_name == "a-run"


def test_an_ended_run_says_how_good_it_is_and_where_everything_lies(ended) -> None:
    _, folder, tracked, outcome, _, registered, client = ended
    found = client.get_run(tracked.run_id)
    assert found.info.status == "FINISHED"
    best = read_checkpoint(outcome["checkpoint"])
    logged = {name: value for name, value in found.data.metrics.items() if name.startswith("best/")}
    measured = {f"best/{name}": value for name, value in best.metrics.items() if not name.startswith("num_")}
    assert logged == measured | {"best/step": best.step}
    (point,) = client.get_metric_history(tracked.run_id, "best/recall_at_1")
    assert point.step == best.step
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith(f"### recall_at_1 {best.metrics['recall_at_1']:.3f}")
    for place in (outcome["checkpoint"], outcome["report"], registered, folder.location):
        assert f"`{place}`" in note


def test_the_best_checkpoint_is_registered_with_what_it_is_worth(ended) -> None:
    config, folder, tracked, outcome, _, registered, client = ended
    assert registered == "models:/glyphs/1"
    version = client.get_model_version_by_alias("glyphs", "best")
    best = read_checkpoint(outcome["checkpoint"])
    assert (int(version.version), version.run_id) == (1, tracked.run_id)
    assert version.tags["data_fingerprint"] == folder.fingerprint
    assert version.tags["protocol"] == f"retrieval, leave-one-out, split {config.data.test_split}"
    assert float(version.tags["recall_at_1"]) == best.metrics["recall_at_1"]
    assert float(version.tags["threshold"]) == best.meta["calibration"]["threshold"]
    assert (version.tags["step"], version.tags["run_name"]) == (str(best.step), "a-run")


def test_a_registered_model_embeds_encoded_images(ended) -> None:
    config, _, tracked, outcome, *_ = ended
    catalog = open_data(config.data)
    images = [bytes(catalog.image_bytes(row)) for row in range(5)]
    mlflow.set_tracking_uri(tracked.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/glyphs@best")
    finally:
        mlflow.set_tracking_uri(None)  # which also leaves the environment as it was
    found = model.predict(pd.DataFrame({"image": images}))
    embedder, _ = load_embedder(read_checkpoint(outcome["checkpoint"]))
    from distmetric.data.decode import decode_image

    pixels = torch.stack([torch.from_numpy(decode_image(image, 28, 1)) for image in images])
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), embedder(pixels), atol=1e-6)
    assert model.predict(model.input_example).shape == (1, 16)
    with pytest.raises(mlflow.MlflowException, match="image"):
        model.predict(pd.DataFrame({"picture": images}))


def test_another_checkpoint_of_the_run_is_registered_beside_it(ended, capsys) -> None:
    _, folder, tracked, outcome, *_, client = ended
    others = {f"{folder.location}/checkpoints/step_{step:08d}" for step in (10, 20)} - {outcome["checkpoint"]}
    job = ExportJob(checkpoint=others.pop(), formats=["mlflow"], register="glyphs", alias="best")
    result = export_checkpoint(job)
    assert (result["run_id"], result["tracking_uri"]) == (tracked.run_id, tracked.uri)
    assert (result["registered"]["version"], result["registered"]["alias"]) == (2, None)
    assert "alias best stays with version 1: recall_at_1" in result["registered"]["note"]
    assert capsys.readouterr().err.startswith("model:   models:/glyphs/2 (alias best stays with version 1: ")
    assert result["files"] == []
    again = export_checkpoint(replace(job, checkpoint=outcome["checkpoint"], register=None, alias=None))
    assert client.get_logged_model(again["model"].removeprefix("models:/")).source_run_id == tracked.run_id


def test_a_resumed_run_goes_on_and_ending_it_again_changes_nothing(ended) -> None:
    config, folder, tracked, outcome, _, registered, client = ended
    config, server = separate_tracking(replace(config, resume=folder.location))
    ended_at = client.get_run(tracked.run_id).info.end_time
    for over, resumed in ((True, None), (False, "1")):
        again = open_tracking(config, folder, server, over=over)
        assert again.settle() == 0
        found = client.get_run(again.run_id)
        assert (again.run_id, found.data.tags.get("resumed")) == (tracked.run_id, resumed)
        assert found.info.status == ("FINISHED" if over else "RUNNING")
        with again.watch():
            pass
        assert close_tracking(config, again, outcome) == registered
        assert again.close() == 0
        found = client.get_run(again.run_id)
        assert found.info.status == "FINISHED"
        assert (found.info.end_time == ended_at) == over
        assert note_identity(folder, again) == folder
    assert len(client.get_metric_history(tracked.run_id, "best/recall_at_1")) == 1


def test_the_folder_alone_has_the_whole_history(ended) -> None:
    _, folder, tracked, *_, client = ended
    history = read_history(folder.location)
    assert {name.partition("/")[0] for name in history} >= {"train", "time", "eval", "best"}
    for name in ("train/loss", "eval/recall_at_1", "best/recall_at_1", "time/forward"):
        points = client.get_metric_history(tracked.run_id, name)
        assert [(point.step, point.value) for point in points] == history[name]
    assert [step for step, _ in history["train/loss"]] == list(range(1, 21))


def test_a_model_that_could_not_be_registered_costs_the_exit_code_and_nothing_else(
    ended, monkeypatch
) -> None:
    config, folder, _, outcome, *_ = ended
    server = FakeServer()
    server.address = server.uri = "http://127.0.0.1:9"
    copy = f"{folder.location}-copy"
    shutil.copytree(folder.location, copy)
    outcome = {**outcome, "run_dir": copy, "checkpoint": outcome["checkpoint"].replace(folder.location, copy)}
    for error, reason in (
        (AWAY, "MLflow at http://127.0.0.1:9 does not have the run yet"),
        (None, "cannot be used: "),
    ):
        server.error = error
        tracked = TrackedRun.own(copy, server, lambda *_: None)
        with pytest.raises(ResourceError) as caught:
            close_tracking(config, tracked, outcome)
        tracked.close()
        assert str(caught.value).startswith("tracking.register=glyphs: the model was not registered (")
        assert reason in str(caught.value)
        assert str(caught.value).endswith(f"the run is complete in {copy}, and resume={copy} registers it")
        assert caught.value.exit_code == 3
    tags = [record["tags"] for record in read_stream(copy, TOLD) if record["kind"] == "tags"]
    notes = [each["mlflow.note.content"] for each in tags if "mlflow.note.content" in each]
    assert notes[-1].startswith("### recall_at_1 ")
    assert "registered" not in notes[-1]


def test_a_server_that_does_not_answer_is_a_notice_of_the_run(ended, glyph_cache, tmp_path) -> None:
    _, folder, *_ = ended
    config = replace(tiny_config(glyph_cache), tracking=MLflowConfig(uri="http://127.0.0.1:9"))
    folder = replace(folder, location=str(tmp_path / "run"), tracking_uri=None, run_id=None)
    config, server = separate_tracking(config)
    tracked = open_tracking(config, folder, server)
    tracked.close()
    first, second = read_notices(folder.location)
    assert (first["kind"], first["step"], tracked.run_id) == ("tracking", 0, None)
    assert first["message"].startswith("MLflow at http://127.0.0.1:9 does not answer (Failed to establish")
    assert second["message"].startswith(
        "MLflow at http://127.0.0.1:9 has not got all of the run; what it lacks is in "
    )
    assert note_identity(folder, tracked).tracking_uri == "http://127.0.0.1:9"


def test_a_run_that_was_begun_without_a_history_is_tracked_from_its_resumption_on(ended, tmp_path) -> None:
    config, folder, *_ = ended
    location = str(tmp_path / "old")
    folder = replace(folder, location=location)
    folder.write()
    tracker = JournalTracker(location)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    server = FakeServer()
    tracked = open_tracking(replace(config, resume=location), folder, server)
    assert tracked.close() == 0
    assert server.series("run-0") == {"train/loss": [(1, 1.0)]}
    assert server.runs["run-0"]["params"]["loss.name"] == "triplet"


def test_the_password_of_a_server_stays_in_the_process(ended, glyph_cache, tmp_path, monkeypatch) -> None:
    _, folder, *_ = ended
    uri = "http://me:correct-horse@127.0.0.1:9"
    config = tiny_config(glyph_cache, "tracking=mlflow", f"tracking.uri={uri}")
    config, server = separate_tracking(config)
    assert (server.uri, server.address) == (uri, "http://127.0.0.1:9")
    location = str(tmp_path / "run")
    folder = replace(folder, location=location, config=config_dict(config), tracking_uri=None, run_id=None)
    tracked = open_tracking(config, folder, server)
    tracked.close()
    note_identity(folder, tracked).write()
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"correct-horse" not in path.read_bytes(), path
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    resumed, server = separate_tracking(replace(config, resume=location))
    assert server.uri == uri
    assert "correct-horse" not in str(config_dict(resumed))


def test_an_address_that_cannot_be_one_is_refused_before_anything_is_started(glyph_cache, tmp_path) -> None:
    config = tiny_config(
        glyph_cache, "tracking=mlflow", "tracking.uri=localhost:5000", f"output_dir={tmp_path}"
    )
    with pytest.raises(
        ConfigError, match=r"^tracking.uri=localhost:5000 is wrong: did you mean http://localhost:5000\?"
    ):
        separate_tracking(config)
    assert list(tmp_path.iterdir()) == []


def test_without_tracking_nothing_is_told_and_exports_ask_where_to(ended, tmp_path, monkeypatch) -> None:
    config, folder, *_, outcome, _, _, _ = ended
    assert close_tracking(config, TrackedRun(), outcome) is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    location = str(tmp_path / "untracked")
    shutil.copytree(folder.location, location, ignore=shutil.ignore_patterns("history"))
    folder = replace(folder, location=location, tracking_uri=None, run_id=None)
    folder.write()
    job = ExportJob(
        checkpoint=outcome["checkpoint"].replace(outcome["run_dir"], location), formats=["mlflow"]
    )
    with pytest.raises(InputError, match=r"was not tracked: give tracking_uri"):
        export_checkpoint(job)
    replace(folder, tracking_uri=f"sqlite:///{tmp_path}/gone.db").write()
    with pytest.raises(InputError, match=r"gone.db, where this run was tracked, is not there"):
        export_checkpoint(job)
    assert [path.name for path in tmp_path.iterdir()] == ["untracked"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"register": "m"}, r"tracking.register=m needs the package safetensors: pip install 'distmetric"),
        (
            {"system_metrics": True},
            "tracking.system_metrics=true needs the package psutil: pip install psutil",
        ),
    ],
)
def test_what_will_be_missing_at_the_end_is_said_at_the_beginning(
    settings, message, ended, tmp_path, monkeypatch
) -> None:
    config, *_ = ended
    monkeypatch.setattr(tracked_module, "find_spec", lambda _: None)
    config = replace(config, tracking=MLflowConfig(**settings), output_dir=str(tmp_path))
    with pytest.raises(ResourceError, match=message):
        separate_tracking(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b"])
def test_names_that_cannot_be_registered_are_refused_before_training(name) -> None:
    with pytest.raises(ValueError, match="cannot name a model"):
        MLflowConfig(register=name)


def test_a_note_says_only_what_is_known(glyph_cache, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/train.py"])  # the note ends with the command
    config = tiny_config(glyph_cache)
    outcome = Outcome(
        checkpoint="/r/checkpoints/step_00000200",
        best_step=200,
        steps=1400,
        metrics={"recall_at_1": 0.90512, "num_queries": 7.0},
        intervals={"recall_at_1": [0.88, 0.93]},
        threshold=0.8125,
    )
    note = run_note(config, "glyphs", "/r", outcome)
    assert note.startswith("### recall_at_1 0.905 (95 %: 0.880 to 0.930)\n\nat step 200 of 1,400, ")
    assert "Same class: distance up to 0.812." in note
    assert "| recall_at_1 |\n| ---: |\n| 0.9051 |" in note
    assert "report" not in note
    bare = run_note(config, "glyphs", "/r", replace(outcome, metrics={}, intervals={}, threshold=None))
    assert bare.startswith("**glyphs**")
    assert "|" not in bare
