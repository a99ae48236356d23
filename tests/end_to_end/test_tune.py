"""A whole search on real Ray: one trial finishes, one is stopped; resumed, neither is repeated."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import mlflow
import pytest

from distmetric.training.checkpoint import read_checkpoint
from drivers import finished

SECONDS = 600
STEPS = 1500  # so many that a trial is stopped, which takes a few seconds, well before the last one


tune = partial(finished, "tune", seconds=SECONDS)


@pytest.mark.ray
@pytest.mark.timeout(2 * SECONDS + 20)
def test_a_search_stops_what_is_behind_and_repeats_nothing(glyph_cache, tmp_path) -> None:
    shared = {
        "debug": "tiny",
        "data.max_classes": 60,
        "data.cache_dir": glyph_cache,
        "model.widths": [8, 8],
        "model.embedding_dim": 16,
        "train.steps": STEPS,
        "eval.every_steps": 60,
        "checkpoint.every_steps": STEPS,
    }
    result = tune(
        f"train={{{', '.join(f'{key}: {value}' for key, value in shared.items())}}}",
        "space={optim.lr: [3e-3, 1e-7]}",
        "scheduler=asha",
        "grace_steps=60",
        "reduction=2",
        "concurrent=1",
        "name=search",
        f"output_dir={tmp_path}",
    )
    folder = tmp_path / "search"
    assert result["trials"] == {"count": 2, "finished": 1, "stopped": 1, "failed": 0}
    assert result["folder"] == str(folder)
    best = result["best"]
    assert (best["trial"], best["overrides"]) == ("trial_000", ["optim.lr=0.003"])
    assert best["metrics"] == read_checkpoint(best["checkpoint"]).metrics
    assert best["metrics"]["recall_at_1"] > 0.65
    assert Path(best["report"]).stat().st_size > 10_000

    with open(result["table"], newline="") as stream:
        rows = {row["trial"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["trial_000", "trial_001"]
    assert [row["status"] for row in rows.values()] == ["finished", "stopped"]
    assert int(rows["trial_000"]["step"]) == STEPS
    assert 60 <= int(rows["trial_001"]["step"]) < STEPS

    client = mlflow.MlflowClient(result["tracking_uri"])
    parent = client.get_run(result["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/recall_at_1"] == best["metrics"]["recall_at_1"]
    assert {"trials.csv", "trials.json"} <= {item.path for item in client.list_artifacts(result["run_id"])}
    found = client.search_runs(
        [parent.info.experiment_id],
        f"tags.mlflow.parentRunId = '{result['run_id']}'",
        order_by=["start_time"],
    )
    assert [run.info.status for run in found] == ["FINISHED", "KILLED"]
    assert [run.data.tags["distmetric.tune.optim.lr"] for run in found] == ["0.003", "1e-07"]
    assert [run.info.run_id for run in found] == [row["run_id"] for row in rows.values()]
    assert found[1].data.tags["distmetric.error"] == "stopped by the scheduler of its search"

    again = tune(f"resume={folder}", "report=false")
    assert {**again["best"], "report": best["report"]} == best
    assert (again["trials"], again["run_id"]) == (result["trials"], result["run_id"])
    assert [client.get_run(run.info.run_id).info.end_time for run in found] == [
        run.info.end_time for run in found
    ]
    assert {path.name for path in folder.iterdir()} == {
        *("tune.json", "trials.json", "trials.csv", "history", *rows)
    }
