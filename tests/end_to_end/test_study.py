"""A whole study on real Ray: its runs, its table, and that nothing of it is repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import mlflow
import pytest

from drivers import REPOSITORY, finished

SECONDS = 240


study = partial(finished, "study", seconds=SECONDS)


@pytest.mark.ray
@pytest.mark.timeout(2 * SECONDS + 20)
def test_a_study_compares_its_arms_and_repeats_nothing(glyph_cache, tmp_path) -> None:
    shared = {
        "debug": "tiny",
        "data.max_classes": 60,
        "data.cache_dir": glyph_cache,
        "model.widths": "[8, 8]",
        "model.embedding_dim": 16,
        "train.steps": 60,
        "eval.every_steps": 60,
    }
    result = study(
        f"train={{{', '.join(f'{key}: {value}' for key, value in shared.items())}}}",
        "study=custom",
        "study.question='Does it have to learn?'",
        "study.arms={learns: {optim.lr: 3e-3}, stays: {optim.lr: 1e-9}}",
        "study.seeds=[5]",
        "study.baseline=stays",
        "study.measures=[recall_at_1, train/loss]",
        f"output_dir={tmp_path}",
        "name=whether",
    )
    folder = tmp_path / "whether"
    assert result["folder"] == str(folder)
    assert result["runs"] == {"count": 2, "finished": 2}
    numbers = json.loads(Path(result["json"]).read_text())
    runs = {run["arm"]: run for run in numbers["runs"]}
    for arm, run in runs.items():
        record = json.loads((Path(run["run_dir"]) / "evaluations" / "step_00000060.json").read_text())
        assert run["values"]["recall_at_1"] == record["metrics"]["recall_at_1"], arm
        assert (
            run["seed"] == json.loads((Path(run["run_dir"]) / "run.json").read_text())["config"]["seed"] == 5
        )
    assert runs["learns"]["values"]["train/loss"] < runs["stays"]["values"]["train/loss"]
    text = Path(result["markdown"]).read_text()
    assert text.startswith("# Does it have to learn?")
    assert f"| learns | {runs['learns']['values']['recall_at_1']:.3f} |" in text
    assert Path(result["figure"]).read_text().startswith("<?xml")

    client = mlflow.MlflowClient(result["tracking_uri"])
    parent = client.get_run(result["run_id"])
    assert parent.data.tags["distmetric.kind"] == "study"
    assert {"study.md", "study.json", "study.svg"} <= {
        item.path for item in client.list_artifacts(result["run_id"])
    }
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert sorted(run.info.status for run in children) == ["FINISHED", "FINISHED"]

    again = study(f"resume={folder}")
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    assert json.loads(Path(again["json"]).read_text())["cells"] == numbers["cells"]
    for job in ("tune", "train"):
        command = [sys.executable, f"jobs/{job}.py", f"resume={folder}"]
        refused = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2, refused.stderr
