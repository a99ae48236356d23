"""A cell of the index, in this process and in a fresh one, and the whole suite, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distmetric.benchmarks import timing
from distmetric.benchmarks.fresh_process import run_fresh
from distmetric.benchmarks.index import methods
from distmetric.benchmarks.index.measure import IndexSpec, measure_index
from distmetric.benchmarks.run import run_benchmark
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ResourceError


def test_a_cell_has_times_memory_recall_and_the_speeds_of_the_machine(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_WANTED_S", 0.0)
    found = measure_index(IndexSpec("torch", 300, 8, k=5, steps=2))
    assert len(found.seconds) == len(found.matmul_seconds) == 2
    assert min(*found.seconds, *found.matmul_seconds, found.build_seconds, found.bytes_per_second) > 0
    assert (found.k, found.num_classes, found.recall) == (5, 75, {"recall_at_5": 1.0})
    assert found.backend == "torch flat on cpu, exact"


def test_a_method_that_cannot_work_here_is_not_run(monkeypatch) -> None:
    def missing(rows: object, settings: object) -> methods.Work:
        raise ResourceError("no such thing")

    monkeypatch.setitem(methods.METHODS, "torch", methods.Method(missing))
    with pytest.raises(ResourceError):
        measure_index(IndexSpec("torch", 300, 8))


def test_a_fresh_process_says_what_it_lacks(monkeypatch, tmp_path) -> None:
    (tmp_path / "faiss.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_fresh(IndexSpec("faiss_l2", 300, 8, steps=1), timeout_s=200)
    assert outcome.status == "not run", outcome.message
    assert (outcome.message, outcome.ranks) == ("FAISS is not installed: pip install faiss-cpu", [])


def test_a_small_suite_leaves_a_table_with_what_was_not_run(tmp_path) -> None:
    settings = ["suite=index", "tracking=none", "device=cpu", "threads=1", "steps=1", f"out={tmp_path}"]
    cells = ["methods=[torch,class_balls,snapshot]", "sizes=[400]", "dim=8", "k=5"]
    result = run_benchmark(load("benchmark", BenchmarkJob, [*settings, *cells]))
    assert (result["suite"], result["statuses"]) == ("index", {"ok": 3})
    assert json.loads(json.dumps(result)) == result
    text = Path(result["markdown"]).read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| method", "| ---", "| torch", "| class_balls", "| snapshot", "| all"
    ]  # fmt: skip
    assert "not run: device=cpu" in text
    raw = json.loads(Path(result["json"]).read_text(encoding="utf-8"))
    assert [cell["spec"]["method"] for cell in raw["cells"]] == ["torch", "class_balls", "snapshot"]
    assert 0 < raw["cells"][1]["scanned"] <= 1.1
    assert raw["settings"]["methods"] == ["torch", "class_balls", "snapshot"]
