"""A minute of training while faults are injected ends as if there had been none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from drivers import REPOSITORY

# With this seed the first three faults are those that cost no restart, so that a busy machine gets to them, too.
SEED = 74


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_minute_with_faults_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    settings = (
        "suite=soak",
        "seconds=60",
        "faults_per_minute=20",
        f"seed={SEED}",
        "tracking=none",
        f"out={tmp_path}",
    )
    ran = subprocess.run(
        [sys.executable, "jobs/benchmark.py", *settings],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    table = Path(found["markdown"]).read_text(encoding="utf-8")
    print(table)
    result = json.loads(Path(found["json"]).read_text(encoding="utf-8"))["result"]
    assert result["is_sound"], table
    assert found["faults_injected"] == found["faults_survived"] >= 3
    assert (found["equal_state"], found["equal_history"], found["lost_records"]) == (1.0, 1.0, 0)
    assert result["history"]["compared"] > 1000
    assert all(
        hit["steps_lost"] <= 20 + 5 for hit in result["hits"]
    )  # a checkpoint's steps, known to within a round
