"""Tables say what was measured, and what could not be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import machines
from distmetric.benchmarks.cell import Outcome
from distmetric.benchmarks.losses.measure import LossMeasurement, LossSpec
from distmetric.benchmarks.losses.suite import LossSuite
from distmetric.benchmarks.losses.table import markdown
from distmetric.benchmarks.run import metrics
from distmetric.benchmarks.table import summary, to_dict

MACHINE = machines.MACHINE | {"pytorch-metric-learning": "2.9.0"}
MIB = 1 << 20


def done(
    spec: LossSpec, seconds: float, matmul: float, mib: float, value: float = 0.5, load: float = 1.0
) -> Outcome:
    rank = LossMeasurement([seconds] * 3, [matmul] * 3, 0, int(mib * MIB), value)
    return Outcome(spec, "ok", ranks=[rank] * spec.processes, load=load)


def outcomes() -> list[Outcome]:
    ours = LossSpec("batch_hard", "ours", 1024, threads=2)
    peer = replace(ours, side="peer")
    lifted, peers_lifted = replace(ours, loss="lifted"), replace(peer, loss="lifted")
    classes = replace(ours, loss="proxy_anchor")
    found = [
        done(ours, 0.01, 0.002, 4),
        done(peer, 0.0345, 0.002, 100),
        Outcome(peers_lifted, "out of memory", "asked for 12 GiB"),
        done(lifted, 1.2345, 0.002, 8),
        done(replace(ours, size=64), 0.001, 0.0001, 0),
        Outcome(replace(peer, size=64), "timed out", "not done after 1 s"),
        done(classes, 123.4, 100, 2048),
    ]
    for each, seconds in ((ours, 0.02), (peer, 0.03)):
        alone = replace(each, threads=1)
        found += [done(alone, seconds, 0.004, 4), done(replace(alone, processes=2), seconds / 2.5, 0.004, 3)]
    return found


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_tables_have_a_row_per_loss_and_size_and_a_word_for_what_failed() -> None:
    assert rows(markdown(MACHINE, outcomes(), peers=True)) == [
        ["loss", "N", "M", "time", "x", "MiB", "PML: time", "x", "MiB", "speed-up", "memory"],
        ["---", *["---:"] * 10],
        ["batch_hard", "64", "64", "1 ms", "10.0", "0", "timed out", "–", "–", "–", "–"],
        ["batch_hard", "1024", "1024", "10 ms", "5.0", "4", "34.5 ms", "17.2", "100", "3.5x", "25.0x"],
        ["lifted", "1024", "1024", "1.23 s", "617.2", "8", "out of memory", "–", "–", "–", "–"],
        ["proxy_anchor", "1024", "2560", "123 s", "1.2", "2048", "–", "–", "–", "–", "–"],
        [
            *("loss", "N", "1 process", "2 processes", "x", "MiB"),
            *("PML: 1 process", "2 processes", "x", "MiB"),
        ],
        ["---", *["---:"] * 9],
        ["batch_hard", "1024", "20 ms", "8 ms", "0.40", "3, 3", "30 ms", "12 ms", "0.40", "3, 3"],
    ]


def test_without_peers_there_is_no_word_of_them() -> None:
    own = [outcome for outcome in outcomes() if outcome.spec.side == "ours"]
    text = markdown(MACHINE, own, peers=False)
    assert rows(text)[0] == ["loss", "N", "M", "time", "x", "MiB"]
    assert rows(text)[-1] == ["batch_hard", "1024", "20 ms", "8 ms", "0.40", "3, 3"]
    assert "2.9.0" not in text


def test_processes_alone_have_their_own_table_only() -> None:
    alone = LossSpec("supcon", "ours", 64)
    text = markdown(
        MACHINE, [done(alone, 1, 1, 1), done(replace(alone, processes=3), 0.5, 1, 1)], peers=False
    )
    assert [row[0] for row in rows(text)] == ["loss", "---", "supcon"]
    assert "## 3 processes" in text


def test_the_header_says_where_when_and_how() -> None:
    text = markdown(MACHINE | {"device": "cuda", "gpu": "Some GPU"}, [], peers=True)
    for each in (
        "Some CPU",
        "2 cores, threads used: 2",
        "Some GPU",
        "torch 2.13.0",
        "pytorch-metric-learning 2.9.0",
    ):
        assert each in text
    assert "2026-11-23 12:00 UTC; commit abc; `python jobs/benchmark.py`" in text


def test_notes_name_crashes_differing_losses_and_a_busy_machine() -> None:
    ours = LossSpec("circle", "ours", 64)
    broken = Outcome(replace(ours, loss="supcon", processes=2), "failed", "KeyError: 'x'", load=9.0)
    measured = [done(ours, 1, 1, 1, value=1.0), done(replace(ours, side="peer"), 1, 1, 1, value=1.01)]
    assert markdown(MACHINE, [*measured, broken], peers=True).splitlines()[-3:] == [
        "- The machine did other work too: its load average was up to 9.0, on 2 cores, before 1 of 3 cells. "
        "Ratios say more than times.",
        "- supcon, N = 64, 2 processes failed: KeyError: 'x'",
        "- circle, N = 64: the losses differ, 1 and 1.01 (pytorch-metric-learning)",
    ]
    measured[1] = done(replace(ours, side="peer"), 1, 1, 1, value=1.0001)
    assert "\n- " not in markdown(MACHINE, measured, peers=True)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_loss_that_is_nan_or_zero_is_told(value: float) -> None:
    ours = LossSpec("circle", "ours", 64)
    measured = [done(ours, 1, 1, 1, value=value), done(replace(ours, side="peer"), 1, 1, 1)]
    assert "the losses differ" in markdown(MACHINE, measured, peers=True)


def test_the_json_has_everything_raw() -> None:
    found = json.loads(
        json.dumps(to_dict(MACHINE, {"steps": 3}, ((each, summary(each)) for each in outcomes())))
    )
    assert found["machine"] == MACHINE
    assert found["settings"] == {"steps": 3}
    assert len(found["cells"]) == len(outcomes())
    first, third = found["cells"][0], found["cells"][2]
    assert first["spec"]["loss"] == "batch_hard"
    assert first["ranks"][0]["seconds"] == [0.01] * 3
    assert (first["median_seconds"], first["times_matmul"], first["peak_mib"]) == (0.01, 5.0, 4.0)
    assert (third["status"], third["message"], third["ranks"]) == ("out of memory", "asked for 12 GiB", [])
    assert "median_seconds" not in third


def test_metrics_are_those_of_cells_that_were_measured() -> None:
    found = outcomes()
    assert metrics(LossSuite(), found[0]) == {
        "batch_hard/ours_cpu_1x2/median_seconds": 0.01,
        "batch_hard/ours_cpu_1x2/times_matmul": 5.0,
        "batch_hard/ours_cpu_1x2/peak_mib": 4.0,
    }
    assert metrics(LossSuite(), found[2]) == {}
