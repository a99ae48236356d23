"""What is read of the runs of a study, and how it becomes means, intervals and differences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distmetric.config.compose import load
from distmetric.config.jobs import StudyJob
from distmetric.inference.study_pages import study_pages
from distmetric.inference.study_results import MeasuredRun, measured, study_cells
from distmetric.tracking.journal import MEASURED, JournalWriter
from distmetric.training.evaluations import write_evaluation


def runs(values: dict[tuple[str, str], list[float | None]]) -> list[MeasuredRun]:
    return [
        MeasuredRun(arm, variant, seed, "finished", "", {} if value is None else {"recall": value})
        for (arm, variant), of in values.items()
        for seed, value in enumerate(of)
    ]


def test_a_run_is_measured_at_its_last_evaluation_and_over_the_last_quarter_of_its_steps(
    tmp_path: Path,
) -> None:
    run_dir = str(tmp_path / "run")
    for step, recall in ((10, 0.9), (20, 0.5)):
        histogram = {"edges": [0.0, 1.0, 2.0, 3.0], "positive": [3, 1, 0], "negative": [0, 0, 9]}
        write_evaluation(
            run_dir,
            {"step": step, "metrics": {"recall_at_1": recall}, "intervals": {}, "histogram": histogram},
        )
    writer = JournalWriter(run_dir, MEASURED)
    for step in range(1, 9):
        writer.write([{"kind": "metrics", "time": 0, "step": step, "metrics": {"train/loss": float(step)}}])
    found = measured(run_dir, ["recall_at_1", "train/loss", "positive_distance_variance", "nothing"])
    distances = np.array([0.5, 0.5, 0.5, 1.5])
    assert found == {
        "recall_at_1": 0.5,
        "train/loss": 7.5,
        "positive_distance_variance": pytest.approx(distances.var()),
    }


def test_a_run_that_left_nothing_has_no_measures(tmp_path: Path) -> None:
    assert measured(str(tmp_path), ["recall_at_1", "train/loss", "positive_distance_variance"]) == {}


def test_means_and_paired_differences_are_those_of_student() -> None:
    base, other = [0.5, 0.6, 0.7], [0.52, 0.61, 0.75]
    cells = study_cells(runs({("a", ""): base, ("b", ""): other}), ["recall"], "a")
    assert [(cell.arm, cell.difference is None) for cell in cells] == [("a", True), ("b", False)]
    for cell, values in zip(cells, (base, other), strict=True):
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert cell.value is not None
        assert (cell.value.mean, cell.value.low, cell.value.high) == pytest.approx(
            (np.mean(values), low, high)
        )
    expected = stats.ttest_rel(other, base).confidence_interval()
    found = cells[1].difference
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_only_seeds_that_both_have_make_a_difference_and_variants_are_kept_apart() -> None:
    values = {
        ("a", "x"): [1.0, None, 3.0],
        ("b", "x"): [2.0, 9.0, 5.0],
        ("a", "y"): [0.0, 0.0, 0.0],
        ("b", "y"): [None] * 3,
    }
    cells = {(cell.arm, cell.variant): cell for cell in study_cells(runs(values), ["recall"], "a")}
    assert cells["a", "x"].value.count == 2
    assert (cells["b", "x"].difference.mean, cells["b", "x"].difference.count) == (1.5, 2)
    assert cells["b", "y"].value is None
    assert cells["b", "y"].difference is None


def test_one_seed_has_no_interval() -> None:
    (cell,) = study_cells(runs({("a", ""): [0.5]}), ["recall"])
    assert (cell.value.mean, cell.value.low, cell.value.high) == (0.5, -math.inf, math.inf)


def test_the_pages_tell_the_question_the_command_and_what_failed() -> None:
    own = [
        "study.arms={plain: {}, other: {optim.lr: 0.5}}",
        "study.question='Which is it?'",
        "study.seeds=[0, 1]",
    ]
    job = load("study", StudyJob, [*own, "study.measures=[recall]", "train={debug: tiny}"])
    found = [
        *runs({("plain", ""): [0.5, 0.7]}),
        MeasuredRun("other", "", 0, "failed", "", {}, "it diverged"),
        MeasuredRun("other", "", 1, "waiting", "", {}),
    ]
    pages = study_pages(job, found, 1.0)
    lines = pages["study.md"].splitlines()
    assert lines[0] == "# Which is it?"
    assert lines[2] == '`python jobs/study.py study=custom "train={debug: tiny}"`'
    assert lines[-1] == "- other, seed 0: it diverged"
    numbers = json.loads(pages["study.json"])
    assert [run["status"] for run in numbers["runs"]] == ["finished", "finished", "failed", "waiting"]
    assert numbers["cells"][0]["value"]["mean"] == pytest.approx(0.6)


def test_the_numbers_are_json_that_any_reader_takes() -> None:
    own = [
        "study.arms={plain: {}, other: {optim.lr: 0.5}}",
        "study.measures=[recall]",
        "study.baseline=plain",
    ]
    found = runs({("plain", ""): [0.5], ("other", ""): [0.75]})
    pages = study_pages(load("study", StudyJob, own), found, 1.0)
    cells = json.loads(pages["study.json"], parse_constant=pytest.fail)["cells"]
    assert cells[0]["value"] == {"mean": 0.5, "low": None, "high": None, "count": 1}
    assert cells[1]["difference"] == {"mean": 0.25, "low": None, "high": None, "count": 1}
