"""Which cells of the losses there are."""

from __future__ import annotations

import sys

import pytest

from distmetric.benchmarks.losses.cells import CELLS
from distmetric.benchmarks.losses.measure import LossSpec
from distmetric.benchmarks.losses.suite import LossSuite
from distmetric.benchmarks.memory import free_bytes
from distmetric.benchmarks.run import run_benchmark
from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ConfigError, ResourceError

GIB = 1 << 30
plan = LossSuite().plan


def job(*overrides: str) -> BenchmarkJob:
    return load("benchmark", BenchmarkJob, ["tracking=none", "device=cpu", "threads=2", *overrides])


def shapes(specs: list[LossSpec], loss: str) -> list[tuple[str, int, int]]:
    return [(spec.side, spec.processes, spec.threads) for spec in specs if spec.loss == loss]


def test_every_loss_is_measured_at_every_size_on_both_sides() -> None:
    specs = plan(job("processes=[1]", "sizes=[64,32,64]"))
    assert [spec.size for spec in specs] == [32] * 2 * len(CELLS) + [64] * 2 * len(CELLS)
    assert {(spec.loss, spec.size, spec.side) for spec in specs} == {
        (loss, size, side) for loss in CELLS for size in (32, 64) for side in ("ours", "peer")
    }
    assert {spec.threads for spec in specs} == {2}


def test_the_two_libraries_take_turns_at_being_first() -> None:
    specs = plan(job("processes=[1]", "sizes=[64]"))
    firsts = [first.side for first in specs[::2]]
    assert firsts[:4] == ["ours", "peer", "ours", "peer"]
    assert [one.loss for one in specs[::2]] == [two.loss for two in specs[1::2]] == list(CELLS)


def test_several_processes_are_compared_with_one_of_one_thread() -> None:
    specs = plan(job("processes=[1,2]", "sizes=[64]"))
    alone = [("ours", 1, 2), ("peer", 1, 2)]
    assert shapes(specs, "batch_hard") == [
        *alone, ("ours", 1, 1), ("peer", 1, 1), ("ours", 2, 1), ("peer", 2, 1)
    ]  # fmt: skip
    # Its wrappers have no exact counterpart for a loss with parameters.
    assert sorted(shapes(specs, "arcface")) == sorted([*alone, ("ours", 1, 1), ("ours", 2, 1)])
    # With one thread anyway it is one and the same cell.
    specs = plan(job("processes=[1,2]", "sizes=[64]", "threads=1", "losses=[arcface]"))
    assert shapes(specs, "arcface") == [("ours", 1, 1), ("peer", 1, 1), ("ours", 2, 1)]


def test_the_memory_limit_is_shared_by_the_processes() -> None:
    specs = plan(job("losses=[supcon]", "sizes=[64]", "memory_limit_gib=3"))
    assert {(spec.processes, spec.memory_limit_bytes) for spec in specs} == {(1, 3 * GIB), (2, 3 * GIB // 2)}
    free = free_bytes()
    assert all(
        0 < spec.memory_limit_bytes < 0.9 * free for spec in plan(job("losses=[supcon]", "sizes=[64]"))
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losses=[batch_hrad]"], "losses=batch_hrad is not measured: did you mean batch_hard?"),
        (["losses=[x]"], "losses=x is not measured: choose from batch_hard, batch_all"),
        (["losses=[]"], "must not be an empty list"),
        (["sizes=[100]"], "sizes=100 must be a multiple of 8 and at least 16"),
        (["sizes=[8]", "processes=[2]"], "sizes=8 must be a multiple of 8 and at least 16"),
        (["processes=[0]"], "at least 1"),
        (["timeout_s=0"], "above 0"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(job(*overrides))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there_is_told(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match="device=cuda needs a GPU"):
        plan(job("device=cuda"))
    assert {spec.device for spec in plan(job("device=auto"))} == {"cpu"}


def test_on_a_gpu_several_processes_are_still_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    specs = plan(job("device=auto", "threads=1", "losses=[batch_hard]", "sizes=[64]", "peers=false"))
    assert [(spec.device, spec.processes) for spec in specs] == [("cuda", 1), ("cpu", 1), ("cpu", 2)]
    assert specs[0].memory_limit_bytes is None
    assert specs[1].memory_limit_bytes is not None


def test_without_the_peer_there_is_one_line_that_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)

    def benchmark(overrides: list[str]) -> dict:
        return run_benchmark(load("benchmark", BenchmarkJob, overrides))

    assert run_command("benchmark", "doc", benchmark, ["tracking=none"]) == ResourceError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "pip install 'distmetric[bench]', or set peers=false" in err
    assert {spec.side for spec in plan(job("peers=false"))} == {"ours"}
