"""The suite of the kernels: what it measures, what it shows, and that it says when there is no GPU."""

from __future__ import annotations

import pytest
import torch

from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.kernels import suite as module
from distmetric.benchmarks.kernels.measure import KernelMeasurement, KernelSpec, measure_kernels
from distmetric.benchmarks.kernels.suite import KernelSuite
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ResourceError
from distmetric.functional import fused_rows


def job(*overrides: str) -> BenchmarkJob:
    return load("benchmark", BenchmarkJob, ["suite=kernels", "tracking=none", *overrides])


def test_without_a_gpu_one_line_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"^suite=kernels needs a GPU, .* run it on one$"):
        KernelSuite().plan(job())


def test_cells_are_those_with_a_goal_or_the_sizes_that_are_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(module, "device_of", lambda job: "cuda")
    monkeypatch.setattr(module, "has_triton", lambda: True)
    specs = KernelSuite().plan(job())
    assert {(spec.work, spec.size) for spec in specs} == {
        ("batch_hard", 131_072),
        ("lifted", 65_536),
        ("supcon", 65_536),
    }
    assert {(spec.dim, spec.precision, spec.way) for spec in specs} == {
        (dim, precision, way)
        for dim in (128, 512)
        for precision in ("bfloat16", "float32")
        for way in ("kernels", "blocks")
    }
    assert {spec.size for spec in KernelSuite().plan(job("sizes=[4096]"))} == {4096}


@pytest.mark.parametrize("work", ["batch_hard", "lifted", "supcon"])
def test_a_cell_is_measured_here_by_blocks(work, monkeypatch) -> None:
    monkeypatch.setattr(fused_rows, "DEVICES", fused_rows.DEVICES)  # put back afterwards
    found = measure_kernels(KernelSpec(work, "blocks", 64, 16, "bfloat16", steps=2))
    assert fused_rows.DEVICES == ()
    assert found.value > 0
    assert len(found.seconds) == len(found.matmul_seconds) >= 2


def test_the_table_shows_the_share_of_the_matmuls_rate_and_the_goal() -> None:
    suite = KernelSuite()
    spec = KernelSpec("lifted", "kernels", 65_536, 128, "bfloat16", device="cuda")
    fine = Outcome(spec, "ok", ranks=[KernelMeasurement([0.6, 0.6], [0.1, 0.1], 0, 3 << 20, 1.0)])
    failed = Outcome(
        KernelSpec("supcon", "blocks", 64, 128, "float32", device="cuda"), "failed", "no such thing"
    )
    machine = dict.fromkeys(
        (
            "cpu",
            "cores",
            "threads",
            "gpu",
            "system",
            "python",
            "torch",
            "distmetric",
            "date",
            "commit",
            "command",
        ),
        1,
    )
    shown = suite.markdown(machine, [fine, failed], job())
    assert "| lifted | 65536 | 128 | bfloat16 | kernels | 600 ms | 50 % | 3 | 40 % in 2048 MiB |" in shown
    assert "| supcon | 64 | 128 | float32 | blocks | failed | – | – | – |" in shown
    assert "supcon by blocks, N = 64, D = 128, float32 failed: no such thing" in shown
    assert suite.summary(fine)["matmul_share"] == pytest.approx(0.5)
    assert suite.summary(failed) == {}
