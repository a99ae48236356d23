"""A run on real Ray that fails: said in one line, with its exit code, and marked so in MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from catalogs import write_catalog
from distmetric.cluster import fit as fit_module
from distmetric.cluster.fit import FitResult, checked
from distmetric.config.compose import load
from distmetric.config.decode import decode
from distmetric.config.jobs import StudyJob
from distmetric.config.schema import Config
from distmetric.config.study_plan import plan_study
from distmetric.errors import InputError, ResourceError
from distmetric.inference import run_report
from drivers import start
from runs import FEW_GLYPHS, tiny_config

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.ray
def test_a_diverging_run_fails_once_truthfully_and_in_one_line(glyph_cache, tmp_path) -> None:
    overrides = [
        "debug=tiny",
        *FEW_GLYPHS,
        "optim=sgd",
        "optim.lr=1e38",
        "schedule.warmup_steps=0",
        "name=diverges",
    ]
    command = [sys.executable, "jobs/train.py", *overrides, f"output_dir={tmp_path}"]
    ran = subprocess.run(
        [*command, f"data.cache_dir={glyph_cache}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 4, ran.stderr[-3000:]
    assert ran.stdout == ""
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "lower optim.lr" in errors[0]
    assert "Traceback" not in ran.stderr
    (bad_batch,) = (tmp_path / "diverges" / "non_finite").iterdir()
    assert str(bad_batch) in errors[0]
    run = json.loads((tmp_path / "diverges" / "run.json").read_text())
    found = mlflow.MlflowClient(run["tracking_uri"]).get_run(run["run_id"])
    assert found.info.status == "FAILED"
    assert "lower optim.lr" in found.data.tags["distmetric.error"]
    assert found.data.tags["distmetric.notices"].startswith("non_finite at step 2: the run stopped: ")
    assert found.data.params["optim.lr"] == "1e+38"
    assert found.data.tags["distmetric.data_fingerprint"] == run["fingerprint"]


@pytest.mark.ray
def test_workers_say_nothing_of_what_their_libraries_do(glyph_cache, tmp_path) -> None:
    overrides = [
        *("debug=tiny", *FEW_GLYPHS, "train.steps=20", "report=false", "tracking=none"),
        *("sampler=hard_neighbors", "sampler.classes_per_batch=8", "sampler.samples_per_class=4"),
        *("sampler.round_steps=5", "sampler.warmup_steps=5"),
        *("index=inline", "index.refresh_steps=10"),  # workers load FAISS, which tells how it is loaded
    ]
    log = tmp_path / "log"
    driver = start(*overrides, f"output_dir={tmp_path}", f"data.cache_dir={glyph_cache}", log=log)
    driver.communicate(timeout=600)
    said = log.read_text()
    assert driver.returncode == 0, said[-3000:]
    assert [line for line in said.splitlines() if "Worker pid=" in line] == []


@pytest.mark.parametrize("error", [ResourceError("the disk is full"), InputError("an image is damaged")])
def test_a_report_that_cannot_be_made_costs_neither_the_training_nor_its_registered_model(
    error, glyph_cache, tmp_path, monkeypatch
) -> None:
    def refuse(*_) -> str:
        raise error

    done = []
    monkeypatch.setattr(run_report, "write_report", refuse)
    monkeypatch.setattr(fit_module, "close_tracking", lambda *_: done.append("registered"))
    monkeypatch.setattr(fit_module, "note_identity", lambda *_: done.append("noted"))
    tracked = SimpleNamespace(close=lambda: 0, run_id=None)
    signals = SimpleNamespace(at_once=nullcontext)
    result = FitResult("a", str(tmp_path), None, None, f"{tmp_path}/checkpoints/step_00000004", 4, 1.0, {})
    with pytest.raises(type(error)) as told:
        fit_module._closed(tiny_config(glyph_cache), None, tracked, result, signals)
    assert done == ["registered", "noted"]
    assert str(told.value) == (
        f"the training has ended well, with its best checkpoint in {result.checkpoint}, but there is no report: "
        f"{error}; then resume={tmp_path} makes it"
    )


@pytest.mark.parametrize("name", ["losses", "attributes", "gathering", "hardness", "staleness", "peers"])
def test_the_studies_that_come_along_take_data_of_ones_own(name, tmp_path) -> None:
    of_class = [(f"c{number:03}", "train" if number < 64 else "test") for number in range(66)]
    rows = [(b"image", *of) for of in of_class for _ in range(4)]
    own = {"attributes": [{"drawer": str(number % 4)} for number in range(len(rows))]}
    write_catalog(tmp_path / "own.arrow", rows, **(own if name == "attributes" else {}))
    train = f"experiment: omniglot, data.path: {tmp_path}/own.arrow"
    if name == "attributes":
        train += ", model.attributes: [drawer]"
    job = load(
        "study",
        StudyJob,
        [f"study={name}", "study.seeds=[0]", f"train={{{train}}}", "allow_custom_targets=true"],
    )
    for trial in plan_study(job).trials.trials:
        checked(decode(Config, {**trial.config, "output_dir": str(tmp_path)}))
