"""The table says what was measured, what was predicted, and what was not run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import machines
from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.index.measure import IndexMeasurement, IndexSpec
from distmetric.benchmarks.index.predict import predict
from distmetric.benchmarks.index.suite import IndexSuite
from distmetric.benchmarks.index.table import IndexOutcome, markdown
from distmetric.benchmarks.run import metrics
from distmetric.benchmarks.table import to_dict
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.index import scale

MIB = 1 << 20
MACHINE = machines.MACHINE | {"command": "python jobs/benchmark.py suite=index", "faiss": "1.15.1"}


def job(*overrides: str) -> BenchmarkJob:
    return load("benchmark", BenchmarkJob, ["suite=index", "tracking=none", *overrides])


def found(**values: Any) -> IndexMeasurement:
    known: dict[str, Any] = {
        "seconds": [0.3] * 3,
        "matmul_seconds": [0.2] * 3,
        "base_bytes": 0,
        "peak_bytes": 12 * MIB,
        "k": 50,
        "build_seconds": 0.01,
        "backend": "faiss flat on cpu, exact",
        "recall": {"recall_at_10": 1.0, "recall_at_50": 0.987},
        "scanned": None,
        "fell_back": None,
        "num_classes": 500,
        "bytes_per_second": 2e10,
    }
    return IndexMeasurement(**known | values)


FLAT = Outcome(IndexSpec("flat", 2000, 128, threads=2), "ok", ranks=[found()], load=1.0)
BALLS = Outcome(
    replace(FLAT.spec, method="class_balls"),
    "ok",
    ranks=[found(k=1, recall={"recall_at_1": 1.0}, scanned=0.0421, fell_back=False, backend="class balls")],
)


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_a_row_per_cell_and_one_for_the_gpu_that_is_not_there() -> None:
    late = Outcome(replace(FLAT.spec, method="torch"), "timed out", "not done after 1 s")
    titles, _, flat, balls, torch_, gpu = rows(markdown(MACHINE, [FLAT, BALLS, late], job()))
    assert titles == [
        *("method", "device", "threads", "N", "D", "C", "k", "build", "time", "x", "predicted x"),
        *("recall@10", "recall@k", "scanned", "MiB", "predicted MiB"),
    ]
    said = predict(FLAT.spec, FLAT.ranks[0])
    assert said is not None
    assert flat == [
        *(
            "flat",
            "cpu",
            "2",
            "2000",
            "128",
            "500",
            "50",
            "10 ms",
            "300 ms",
            "1.50",
            f"{said.times_matmul:.2f}",
        ),
        *("1.000", "0.987", "–", "12", f"{said.num_bytes / MIB:.0f}"),
    ]
    assert balls[6:] == ["1", "10 ms", "300 ms", "1.50", "–", "–", "1.000", "0.042", "12", "–"]
    assert torch_[8:] == ["timed out", *["–"] * 7]
    assert gpu == ["all", "cuda", *["–"] * 6, "not run: no GPU", *["–"] * 7]


def test_why_the_gpu_was_not_used_is_told_and_a_gpu_that_was_is_not_denied() -> None:
    text = markdown(MACHINE, [FLAT], job("device=cpu"))
    assert "not run: device=cpu" in text
    there = MACHINE | {"device": "cuda", "gpu": "Some GPU"}
    without = Outcome(
        replace(FLAT.spec, device="cuda"), "not run", "FAISS has no GPU here: pip install faiss-gpu"
    )
    text = markdown(there, [FLAT, without], job())
    assert [row[1] for row in rows(text)[2:]] == ["cpu", "cuda"]
    assert "not run: FAISS has no GPU here: pip install faiss-gpu" in text
    assert "Some GPU" in text


def test_notes_name_who_worked_what_fell_back_and_what_crashed() -> None:
    gave_up = replace(BALLS, ranks=[replace(BALLS.ranks[0], fell_back=True)])
    crashed = Outcome(replace(FLAT.spec, method="ivf"), "failed", "KeyError: 'x'", load=9.0)
    assert markdown(MACHINE, [FLAT, gave_up, crashed], job()).splitlines()[-4:] == [
        "- The machine did other work too: its load average was up to 9.0, on 2 cores, before 1 of 2 cells. "
        "Ratios say more than times.",
        "- ivf, N = 2000, cpu failed: KeyError: 'x'",
        "- flat, N = 2000, cpu: faiss flat on cpu, exact",
        "- class_balls, N = 2000, cpu: class balls, which gave pruning up and compared with all rows",
    ]


def test_the_head_says_on_which_rows_and_with_which_faiss() -> None:
    text = markdown(MACHINE, [], job("spread=0.02", "per_class=8"))
    assert "unit vectors, 8 around each center, 0.02 from it per coordinate" in text
    assert "faiss 1.15.1" in text
    assert "Rows: some.parquet." in markdown(MACHINE, [], job("embeddings=some.parquet"))


def test_the_json_and_the_tracker_get_what_the_table_shows() -> None:
    suite = IndexSuite()
    raw = json.loads(
        json.dumps(to_dict(MACHINE, {}, ((each, suite.summary(each)) for each in (FLAT, BALLS))))
    )
    assert raw["cells"][0]["recall_at_50"] == 0.987
    assert raw["cells"][0]["ranks"][0]["backend"] == "faiss flat on cpu, exact"
    assert (raw["cells"][1]["scanned"], raw["cells"][1]["times_matmul"]) == (0.0421, pytest.approx(1.5))
    assert "predicted_mib" not in raw["cells"][1]
    named = metrics(suite, FLAT)
    assert named["flat/cpu_2/median_seconds"] == 0.3
    assert named["flat/cpu_2/recall_at_10"] == 1.0
    failed: IndexOutcome = Outcome(FLAT.spec, "failed", "x")
    assert metrics(suite, failed) == {}


def test_predictions_are_those_of_the_arithmetic_of_scale() -> None:
    spec = replace(FLAT.spec, method="ivf", lists=64, probes=8)
    said = predict(spec, found())
    assert said is not None
    product = 2 * 2000**2 * 128
    assert said.times_matmul == scale.search_operations(2000, 2000, 128, 50, "ivf", 64, 8) / product
    assert said.num_bytes >= scale.searcher_bytes(2000, 128, "ivf", 64)
    size = scale.IndexSize(rows=2000, classes=500, dim=128, neighbors=50)
    speed = scale.Speed(flops=product / 0.2, bytes_per_second=2e10)
    said = predict(replace(spec, method="snapshot"), found())
    assert said is not None
    assert said.times_matmul == pytest.approx(scale.build_seconds(size, speed).total / 0.2)
    with_rows = predict(replace(spec, method="row_snapshot"), found())
    assert with_rows is not None
    assert with_rows.times_matmul > said.times_matmul
    assert with_rows.num_bytes > said.num_bytes
    for method in ("faiss_l2", "torch", "class_balls"):
        assert predict(replace(spec, method=method), found()) is None
