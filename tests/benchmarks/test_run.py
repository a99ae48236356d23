"""The whole benchmark, small: what is left of it, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from distmetric.benchmarks import run as running
from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.losses.measure import LossMeasurement, LossSpec
from distmetric.benchmarks.run import run_benchmark
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob


def job(*overrides: str) -> BenchmarkJob:
    return load("benchmark", BenchmarkJob, ["tracking=none", "device=cpu", "threads=2", *overrides])


def test_what_the_peer_cannot_do_it_is_not_asked_for_again(monkeypatch, tmp_path) -> None:
    asked: list[LossSpec] = []

    def run(spec: LossSpec, timeout_s: float) -> Outcome:
        asked.append(spec)
        if spec.side == "peer" and spec.size == 64:
            return Outcome(spec, "timed out", "not done after 300 s")
        measured = LossMeasurement([0.1], [0.05], 0, 1, 0.5)
        return Outcome(spec, "ok", ranks=[measured] * spec.processes)

    monkeypatch.setattr(running, "run_fresh", run)
    result = run_benchmark(job("losses=[supcon]", "sizes=[64,128]", f"out={tmp_path}"))
    assert [(s.size, s.processes, s.threads) for s in asked if s.side == "peer"] == [
        (64, 1, 2), (128, 1, 2), (128, 1, 1), (128, 2, 1)
    ]  # fmt: skip
    assert result["statuses"] == {"ok": 9, "timed out": 3}
    text = Path(result["markdown"]).read_text(encoding="utf-8")
    assert text.count("timed out") == 3


def test_what_was_measured_before_an_interrupt_is_kept(monkeypatch, tmp_path) -> None:
    def run(spec: LossSpec, timeout_s: float) -> Outcome:
        if spec.size == 128:
            raise KeyboardInterrupt
        return Outcome(spec, "ok", ranks=[LossMeasurement([0.1], [0.05], 0, 1, 0.5)])

    monkeypatch.setattr(running, "run_fresh", run)
    settings = ("losses=[supcon]", "sizes=[64,128]", "processes=[1]", "peers=false", f"out={tmp_path}")
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(job(*settings, "tracking=mlflow"))
    (table,) = tmp_path.glob("*.md")
    assert "| supcon | 64 |" in table.read_text(encoding="utf-8")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run_info,) = client.search_runs([client.get_experiment_by_name("distmetric").experiment_id])
    assert run_info.info.status == "KILLED"


def test_a_small_benchmark_leaves_tables_raw_numbers_and_a_run(tmp_path) -> None:
    settings = ("losses=[contrastive]", "sizes=[64]", "processes=[1,2]", "threads=1", "steps=2")
    result = run_benchmark(job(*settings, "tracking=mlflow", f"out={tmp_path}"))
    assert (result["suite"], result["cells"], result["statuses"]) == ("losses", 4, {"ok": 4})
    assert json.loads(json.dumps(result)) == result
    text = Path(result["markdown"]).read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.startswith("| contrastive | 64 |")]) == 2
    assert "the losses differ" not in text
    raw = json.loads(Path(result["json"]).read_text(encoding="utf-8"))
    assert raw["settings"]["losses"] == ["contrastive"]
    assert [(cell["spec"]["side"], len(cell["ranks"])) for cell in raw["cells"]] == [
        ("ours", 1), ("peer", 1), ("ours", 2), ("peer", 2)
    ]  # fmt: skip
    assert all(len(rank["seconds"]) >= 2 for cell in raw["cells"] for rank in cell["ranks"])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["sizes"] == "[64]"
    (point,) = client.get_metric_history(result["run_id"], "contrastive/ours_cpu_2x1/median_seconds")
    assert (point.step, point.value) == (64, raw["cells"][2]["median_seconds"])
    artifacts = {each.path for each in client.list_artifacts(result["run_id"])}
    assert artifacts == {Path(result["markdown"]).name, Path(result["json"]).name}


def test_a_benchmark_out_of_time_is_a_result(tmp_path) -> None:
    settings = ("losses=[supcon]", "sizes=[64]", "processes=[1]", "peers=false", "timeout_s=0.1")
    result = run_benchmark(job(*settings, f"out={tmp_path}"))
    assert result["statuses"] == {"timed out": 1}
    assert result["run_id"] is None
    assert "| supcon | 64 | 64 | timed out |" in Path(result["markdown"]).read_text(encoding="utf-8")
