"""The folder of a search: read as written, and its tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from distmetric.cluster.tune_folder import Result, TuneFolder, is_tuning, ranked, read_tuning
from distmetric.config.compose import load
from distmetric.config.jobs import TuneJob
from distmetric.errors import InputError

JOB = load("tune", TuneJob, ["space={optim.lr: {low: 1e-4, high: 1e-2}, loss: [triplet]}", "num_trials=2"])
DRAWN = [{"optim.lr": 0.5, "loss": "triplet"}, {"optim.lr": 0.25, "loss": "triplet"}]


def result(number: int, status: str, score: float | None = None, **more) -> Result:
    metrics = {} if score is None else {"recall_at_1": score, "map_at_r": 0.5}
    return Result(
        f"trial_{number:03}", status, {"optim.lr": 0.1 * number}, "/runs/x", metrics=metrics, **more
    )


@pytest.fixture
def folder(tmp_path: Path) -> TuneFolder:
    folder = TuneFolder(str(tmp_path / "search"), "search", JOB, DRAWN, "1", "sqlite:///x", "abc")
    folder.write()
    return folder


def test_a_folder_is_read_as_written(folder: TuneFolder) -> None:
    assert read_tuning(folder.location) == folder
    assert is_tuning(folder.location)
    assert not is_tuning(f"{folder.location}/nowhere")
    assert folder.results() == []


def test_results_are_read_as_written_in_the_order_of_trials(folder: TuneFolder) -> None:
    results = [result(1, "finished", 0.5, step=9, seconds=1.5), result(0, "failed", error='it, "failed"\n')]
    folder.write_results(results, "recall_at_1")
    assert folder.results() == results[::-1]
    assert {path.name for path in Path(folder.location).iterdir()} == {
        "tune.json",
        "trials.json",
        "trials.csv",
    }


def test_the_best_trial_comes_first_in_the_table(folder: TuneFolder) -> None:
    results = [
        result(0, "finished", 0.5, run_id="a"),
        result(1, "failed", error='it, "failed"'),
        result(2, "stopped", 0.75),
        result(3, "finished", 0.75),
    ]
    tables = folder.write_results(results, "recall_at_1")
    assert json.loads(tables["trials.json"])[0]["trial"] == "trial_000"
    with open(f"{folder.location}/trials.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["trial"] for row in rows] == ["trial_002", "trial_003", "trial_000", "trial_001"]
    assert rows[2]["optim.lr"] == "0.0"
    assert (rows[2]["recall_at_1"], rows[2]["run_id"]) == ("0.5", "a")
    assert (rows[3]["recall_at_1"], rows[3]["error"]) == ("", 'it, "failed"')
    assert [each.trial for each in ranked(results, "map_at_r")][-1] == "trial_001"


def test_what_is_not_a_search_is_refused_in_one_line(tmp_path: Path, folder: TuneFolder) -> None:
    with pytest.raises(InputError, match=r"is not the folder of a search: it has no tune.json"):
        read_tuning(str(tmp_path))
    Path(folder.location, "trials.json").write_text("[{}]")
    with pytest.raises(InputError, match=r"trials.json is damaged"):
        folder.results()
    for text in ("{", "{}", "[]", '{"job": {}}'):
        Path(folder.location, "tune.json").write_text(text)
        with pytest.raises(InputError, match=r"tune.json is damaged"):
            read_tuning(folder.location)
