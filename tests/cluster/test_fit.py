"""A run on real Ray that fails: said in one line, with its exit code, and marked so in MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from runs import FEW_GLYPHS

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.timeout(180)
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
        timeout=150,
    )
    assert ran.returncode == 4, ran.stderr[-3000:]
    assert ran.stdout == ""
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "lower optim.lr" in errors[0]
    assert "Traceback" not in ran.stderr
    run = json.loads((tmp_path / "diverges" / "run.json").read_text())
    found = mlflow.MlflowClient(run["tracking_uri"]).get_run(run["run_id"])
    assert found.info.status == "FAILED"
    assert "lower optim.lr" in found.data.tags["distmetric.error"]
    assert found.data.params["optim.lr"] == "1e+38"
    assert found.data.tags["distmetric.data_fingerprint"] == run["fingerprint"]
