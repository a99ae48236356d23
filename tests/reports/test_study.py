"""Tables and figures of studies say what was measured, and no more."""

from __future__ import annotations

import io
import math

from distmetric.reports.study import Entry, study_figure, study_tables

ENTRIES = [
    Entry("plain", "", "recall_at_1", 0.5, 0.4, 0.6, 3),
    Entry("b | c", "", "recall_at_1", 0.75, 0.7, 0.8, 3, (0.25, 0.2, 0.3)),
    Entry("unsure", "", "recall_at_1", 0.6, 0.3, 0.9, 2, (0.1, -0.2, 0.4)),
    Entry("failed", "", "recall_at_1", None),
]


def test_a_table_has_intervals_and_differences_that_are_bold_where_they_are_beyond_chance() -> None:
    assert study_tables(ENTRIES, 3, "plain").splitlines() == [
        "**Recall@1**",
        "",
        "| arm | mean (95 % interval) | minus plain |",
        "| --- | --- | --- |",
        "| plain | 0.500 (0.400–0.600) | – |",
        "| b \\| c | 0.750 (0.700–0.800) | **+0.25 (+0.2 to +0.3)** |",
        "| unsure | 0.600 (0.300–0.900), 2 of 3 runs | +0.1 (-0.2 to +0.4) |",
        "| failed | – | – |",
    ]


def test_variants_are_columns_and_measures_are_tables() -> None:
    entries = [
        Entry(arm, variant, measure, 0.5, 0.4, 0.6, 3)
        for variant in ("x", "y")
        for arm in ("a", "b")
        for measure in ("recall_at_1", "train/loss")
    ]
    text = study_tables(entries, 3)
    assert [line for line in text.splitlines() if line.startswith("| arm")] == ["| arm | x | y |"] * 2
    assert text.count("| a | 0.500 (0.400–0.600) | 0.500 (0.400–0.600) |") == 2


def test_one_seed_shows_its_number_alone() -> None:
    entries = [
        Entry("a", "", "recall_at_1", 0.5, -math.inf, math.inf, 1),
        Entry("b", "", "recall_at_1", 0.6, -math.inf, math.inf, 1, (0.1, -math.inf, math.inf)),
    ]
    assert study_tables(entries, 1, "a").splitlines()[-1] == "| b | 0.600 | +0.1 |"
    assert drawn(entries).startswith("<?xml")


def test_a_figure_names_arms_and_variants_and_may_be_empty() -> None:
    entries = [
        Entry(arm, v, "map_at_r", 0.5, 0.4, 0.6, 3) for v in ("one $x", "two") for arm in ("arm $a", "b")
    ]
    text = drawn(entries)
    for name in ("arm $a", "one $x", "two", "MAP@R"):
        assert f"<!-- {name} -->" in text
    assert "Nothing was measured" in drawn([Entry("a", "", "recall_at_1", None)])


def drawn(entries: list[Entry]) -> str:
    stream = io.StringIO()
    study_figure(entries).savefig(stream, format="svg")
    return stream.getvalue()
