"""What the tables of a soak show, and that they tell of what went wrong."""

from __future__ import annotations

from dataclasses import replace

from distmetric.benchmarks.soak.equality import HistoryDifference
from distmetric.benchmarks.soak.suite import SoakResult
from distmetric.benchmarks.soak.table import markdown, summary
from distmetric.benchmarks.soak.training import Hit

MACHINE = {
    **dict.fromkeys(
        ("cpu", "system", "python", "torch", "distmetric", "ray", "date", "commit", "command"), "x"
    ),
    "cores": 2,
    "threads": 1,
    "gpu": "",
}
GOOD = SoakResult(
    seconds=60.0,
    attempts=2,
    steps=1234,
    hits=[
        Hit("kill_worker", 5.0, 40, True, 10, 8.0),
        Hit("kill_worker", 25.0, 90, True, 13, 10.0),
        Hit("stop", 40.0, 120, True, 0, 20.0),
    ],
    mishaps=[],
    corrupted=[],
    tensors=90,
    different=[],
    history=HistoryDifference(5000, 0, 0, 0),
    dropped_pushes=7,
    reference_seconds=12.0,
)


def test_kinds_are_summed_up_and_the_end_is_told() -> None:
    text = markdown(MACHINE, GOOD)
    assert "| `kill_worker` | 2 | 2 | 11.5 | 13 | 9 s | 10 s |" in text
    assert "| `stop` | 1 | 1 | 0.0 | 0 | 20 s | 20 s |" in text
    assert "| all | 3 | 3 | 7.7 | 13 | 12.7 s | 20 s |" in text
    assert "| final state equal to that of an uninterrupted run, bit for bit | yes |" in text
    assert "| records lost / different / too many | 0 / 0 / 0 |" in text
    assert "- `stop`: SIGTERM to the driver" in text
    assert "drop_pushes`:" not in text
    assert "**no**" not in text
    assert GOOD.is_sound
    assert summary(GOOD) == {
        "faults_injected": 3, "faults_survived": 3, "steps": 1234, "steps_lost": 23, "equal_state": 1.0,
        "equal_history": 1.0, "corrupted_checkpoints": 0, "lost_records": 0,
    }  # fmt: skip


def test_what_went_wrong_is_named() -> None:
    bad = replace(
        GOOD,
        hits=[
            *GOOD.hits,
            Hit("kill_driver", 50.0, 200, False, 0, 240.0, "no progress after it: error: no room"),
        ],
        mishaps=["the driver ended by itself, code 3: disk full"],
        corrupted=["step_00000040/model.pt is damaged"],
        different=["model.w"],
        history=HistoryDifference(5000, 1, 2, 3, "train/loss at step 7: 0.1 beside 0.2"),
    )
    text = markdown(MACHINE, bad)
    for words in (
        "| `kill_driver` | 1 | 0 |",
        "bit for bit | **no** |",
        "| history equal | **no** |",
        "| records lost / different / too many | 1 / 2 / 3 |",
        "- `kill_driver` at step 200 was not survived: no progress after it: error: no room",
        "- the driver ended by itself, code 3: disk full",
        "- step_00000040/model.pt is damaged",
        "- Not equal: model.w (1 in all)",
        "- In the history: train/loss at step 7: 0.1 beside 0.2",
    ):
        assert words in text
    assert not bad.is_sound
    assert not replace(GOOD, tensors=0).is_equal


def test_a_soak_without_faults_has_a_table_too() -> None:
    assert "| all |" not in markdown(MACHINE, replace(GOOD, hits=[]))
