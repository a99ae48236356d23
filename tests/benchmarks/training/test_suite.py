"""Which cells of the trainings there are, and what is refused before one is measured."""

from __future__ import annotations

import pytest

from distmetric.benchmarks.training.suite import TrainingSuite
from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ConfigError

plan = TrainingSuite().plan


def job(*overrides: str) -> BenchmarkJob:
    return load("benchmark", BenchmarkJob, ["suite=training", "tracking=none", *overrides])


def test_both_loops_are_measured_with_and_without_augmentation_on_any_number_of_processes() -> None:
    specs = [spec for spec in plan(job("sizes=[64]")) if spec.what == "beside"]
    assert [(spec.model, spec.processes, spec.augment) for spec in specs] == [
        (model, processes, augment)
        for model in ("conv", "resnet")
        for processes in (1, 2)
        for augment in ("none", "affine")
    ]
    assert {(spec.size, spec.threads) for spec in specs} == {(64, 1)}


def test_what_is_beside_the_step_comes_after() -> None:
    kinds = [spec.what for spec in plan(job("models=[conv]", "processes=[1]"))]
    assert kinds == ["beside", "beside", "tracking", "index", "startup"]
    without = [spec.what for spec in plan(job("models=[conv]", "processes=[1]", "startup=false"))]
    assert without == ["beside", "beside", "tracking"]


@pytest.mark.parametrize("size", ["8", "20"])
def test_a_batch_that_two_processes_cannot_share_by_classes_is_refused(size) -> None:
    with pytest.raises(ConfigError, match=f"sizes={size} must be a multiple of 8"):
        plan(job(f"sizes=[{size}]"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["models=[konv]"], "did you mean conv?"),
        (["suite=losses", "startup=false"], "startup belongs to suite=training"),
        (["suite=index", "processes=[1]"], "processes belongs to suite=losses or training or scaling"),
        (["cluster.dim=64"], "cluster belongs to suite=scaling"),
        (["processes=[0]"], "at least 1"),
        (["threads=2"], "threads is not for suite=training"),
        (["suite=scaling", "device=cpu"], "device is not for suite=scaling"),
    ],
)
def test_a_mistake_is_told_in_one_line(overrides, told, capsys) -> None:
    def main(arguments: list[str]) -> dict[str, object]:
        return {"cells": len(plan(load("benchmark", BenchmarkJob, arguments)))}

    assert run_command("benchmark", "", main, ["suite=training", "tracking=none", *overrides]) == 2
    assert told in capsys.readouterr().err
