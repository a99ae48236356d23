"""Cells of the data path and their table."""

from __future__ import annotations

import pytest

import machines
from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.data_path.measure import DataMeasurement, DataSpec
from distmetric.benchmarks.data_path.sets import SETS
from distmetric.benchmarks.data_path.suite import DataSuite
from distmetric.benchmarks.data_path.table import markdown, shown
from distmetric.benchmarks.run import metrics
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob
from distmetric.errors import ConfigError

MACHINE = machines.MACHINE | {
    "date": "2026-11-30 12:00 UTC",
    "command": "python jobs/benchmark.py suite=data",
    "pillow": "12.0",
}
# A batch of 100 images: 0.8 s of two cores, of which the loader makes 0.5 s.
FOUND = DataMeasurement([0.5, 0.6, 0.4], [0.4] * 3, 0, 1, 0.02, 0.08, 0.5, 0.2, 2048.0, 0.88)


def job(*overrides: str) -> BenchmarkJob:
    return load("benchmark", BenchmarkJob, ["suite=data", "tracking=none", "threads=2", *overrides])


def test_every_set_is_measured_on_one_core_and_on_all() -> None:
    specs = DataSuite().plan(job("prefetch=3", "steps=7"))
    assert [(s.images, s.threads) for s in specs] == [(name, cores) for name in SETS for cores in (1, 2)]
    assert {(s.size, s.prefetch, s.steps, s.processes) for s in specs} == {(256, 3, 7, 1)}
    assert len(DataSuite().plan(job("threads=1", "images=[glyphs]", "sizes=[64,8]"))) == 2


def test_the_numbers_of_a_cell_follow_from_each_other() -> None:
    outcome = Outcome(DataSpec("jpeg512", 100, threads=2), "ok", ranks=[FOUND], load=1.0)
    assert shown(outcome) == pytest.approx(
        {
            "plan_microseconds": 200,
            "read_microseconds": 800,
            "decode_microseconds": 5000,
            "augment_microseconds": 2000,
            "images_per_second_alone": 250,
            "images_per_second": 200,
            "share": 0.8,
            "times_cpu": 1.1,
            "encoded_kib": 2,
        }
    )
    assert metrics(DataSuite(), outcome)["jpeg512/2_cores/share"] == pytest.approx(0.8)
    late = Outcome(DataSpec("glyphs", 100), "timed out", "not done after 1 s")
    text = markdown(MACHINE, [outcome, late])
    line = "| 2 | 100 | 2.0 | 200 us | 800 us | 5000 us | 2000 us | 250 | 200 | 0.80 | 1.10 |"
    assert f"| jpeg512: JPEG 512 px to 224 {line}" in text
    assert "| glyphs: PNG 28 px | 1 | 100 | timed out | – |" in text
    assert "pillow 12.0" in text
    failed = Outcome(DataSpec("glyphs", 100), "failed", "KeyError: 3")
    assert "- glyphs, batches of 100, 1 core failed: KeyError: 3" in markdown(MACHINE, [failed])
    assert shown(failed) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["images=[jpeg]"], "images=jpeg is not measured: did you mean jpeg"),
        (["images=[]"], "images must not be an empty list"),
        (["sizes=[10]"], "sizes=10 is wrong: give multiples of 4 from 8 on"),
        (["prefetch=0"], "prefetch=0 is too small"),
        (["device=cpu"], "device is for what computes with embeddings"),
        (["suite=losses", "images=[glyphs]"], "images belongs to suite=data"),
        (["losses=[supcon]"], "losses belongs to suite=losses"),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[").replace("]", r"\]")):
        DataSuite().plan(job(*overrides))
