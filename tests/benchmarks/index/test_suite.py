"""Which cells of the index there are, and which settings make none."""

from __future__ import annotations

import pytest

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.index.measure import IndexSpec
from distmetric.benchmarks.index.methods import METHODS
from distmetric.benchmarks.index.suite import IndexSuite
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ConfigError, InputError, ResourceError

plan = IndexSuite().plan


def job(*overrides: str) -> BenchmarkJob:
    settings = ["suite=index", "tracking=none", "device=cpu", "threads=2"]
    return load("benchmark", BenchmarkJob, [*settings, *overrides])


def test_every_method_is_measured_at_every_size() -> None:
    specs = plan(job("sizes=[300,200,300]", "k=7", "dim=16", "lists=9", "probes=3"))
    assert [(spec.size, spec.method) for spec in specs] == [
        (size, method) for size in (200, 300) for method in METHODS
    ]
    assert {(s.dim, s.k, s.lists, s.probes, s.threads, s.device) for s in specs} == {(16, 7, 9, 3, 2, "cpu")}
    assert all(spec.memory_limit_bytes is not None and spec.processes == 1 for spec in specs)


def test_k_is_at_most_the_number_of_other_rows() -> None:
    assert {spec.k for spec in plan(job("sizes=[20]", "k=50"))} == {19}


def test_with_a_gpu_there_are_cells_on_both_and_without_only_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    both = plan(job("device=auto", "sizes=[50]"))
    assert [spec.method for spec in both if spec.device == "cpu"] == list(METHODS)
    assert [spec.method for spec in both if spec.device == "cuda"] == [
        name for name, method in METHODS.items() if method.on_gpu
    ]
    assert {spec.device for spec in plan(job("device=cuda", "sizes=[50]"))} == {"cuda"}
    assert {spec.device for spec in plan(job("device=cpu", "sizes=[50]"))} == {"cpu"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert {spec.device for spec in plan(job("device=auto", "sizes=[50]"))} == {"cpu"}
    with pytest.raises(ResourceError, match="device=cuda needs a GPU"):
        plan(job("device=cuda"))


def test_what_fails_for_few_rows_is_not_tried_for_more() -> None:
    suite = IndexSuite()
    small, large = IndexSpec("torch", 100, 8), IndexSpec("torch", 1000, 8)
    late = Outcome(small, "timed out", "not done after 1 s")
    known = suite.known(large, [late])
    assert known is not None
    assert (known.spec, known.status, known.message) == (large, "timed out", "not done after 1 s")
    assert suite.known(IndexSpec("flat", 1000, 8), [late]) is None
    assert suite.known(IndexSpec("torch", 1000, 8, device="cuda"), [late]) is None
    assert suite.known(IndexSpec("torch", 50, 8), [late]) is None
    assert suite.known(large, [Outcome(small, "failed", "KeyError")]) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["methods=[flatt]"], "methods=flatt is not measured: did you mean flat?"),
        (["methods=[]"], "methods must not be an empty list"),
        (["sizes=[]"], "sizes must not be an empty list"),
        (["sizes=[4]"], "sizes=4 is too small: two classes need more than per_class=4 rows"),
        (["k=0"], "k=0 is too small: set it to 1 or more"),
        (["lists=0"], "lists=0 is too small: set it to 1 or more"),
        (["spread=-1"], "spread=-1.0 is wrong: give a number of 0 or more"),
        (["peers=false"], "peers belongs to suite=losses: leave it out with suite=index"),
        (["losses=[supcon]"], "losses belongs to suite=losses"),
        (["processes=[1]"], "processes belongs to suite=losses"),
        (["suite=losses", "k=3"], "k belongs to suite=index: leave it out with suite=losses"),
        (["suite=losses", "embeddings=x"], "embeddings belongs to suite=index"),
        (["embeddings=x", "sizes=[100]"], "sizes is that of embeddings=x: leave it out"),
        (
            ["tracking=mlflow", "tracking.register=x"],
            "tracking.register and tracking.system_metrics are for training runs",
        ),
        (["embeddings=x", "spread=0.2"], "spread is that of embeddings=x: leave it out"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(job(*overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path) -> None:
    with pytest.raises(InputError, match=r"embeddings=.*absent"):
        plan(job(f"embeddings={tmp_path / 'absent.parquet'}"))
