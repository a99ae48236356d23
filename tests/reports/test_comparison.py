"""Runs side by side."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from distmetric.reports.comparison import (
    LETTERS,
    ComparedRun,
    overlaid,
    stacked_times,
    write_comparison,
)
from distmetric.reports.theme import LIGHT
from drawings import reaches
from html_page import Page, check_offline

HOSTILE = '<script>alert("x")</script>'


def run(name: str, recall: float, **changes) -> ComparedRun:
    record = {
        "step": 20,
        "metrics": {"recall_at_1": recall},
        "intervals": {"recall_at_1": [recall - 0.02, recall + 0.02]},
        "calibration": {"threshold": 1.0, "far": 0.001, "tar": 0.5},
        "histogram": {"edges": [0, 1, 2], "positive": [5, 1], "negative": [1, 5]},
    }
    values = {
        "name": name,
        "status": "finished",
        "step": 20,
        "metrics": {"recall_at_1": recall, "num_queries": 100.0, "made_up": 1.0},
        "history": {
            "eval/recall_at_1": [(10, recall / 2), (20, recall)],
            "train/loss": [(step, 1 / (1 + step)) for step in range(20)],
            "time/forward": [(1, 0.01)],
            "time/backward": [(1, recall / 10)],
        },
        "evaluations": [record],
        "config": {"name": name, "seed": 0, "loss.name": "triplet", "optim.lr": recall},
    }
    return ComparedRun(**{**values, **changes})


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    runs = [
        run("first", 0.75, link="../outputs/first/report.html"),
        run(HOSTILE, 0.875, config={"seed": 0, "loss.name": "circle", "loss.m": 0.25, "optim.lr": 0.875}),
        ComparedRun("broken", status="failed at step 3 of 20: the loss became nan", config={"seed": 0}),
    ]
    path = write_comparison(
        tmp_path_factory.mktemp("comparison") / "new" / "page.html", runs, f"All {HOSTILE}"
    )
    return Page(path.read_text(encoding="utf-8"))


def cells(page: Page, heading: str) -> list[list[str]]:
    """The rows of the first table of a section, as texts."""
    part = page.html.partition(f">{heading}</h2>")[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part.replace("<wbr>", ""))
    return [
        [re.sub(r"<[^>]+>", "|", cell) for cell in re.split(r"(?<=</t[hd]>)", row) if cell] for row in rows
    ]


def test_the_page_is_whole_and_safe(page) -> None:
    check_offline(page)
    assert page.texts("h1") == [f"All {HOSTILE}"]
    assert page.texts("h2") == [
        *("Runs", "Results", "What differs", "Learning curves", "Distances", "Where the time goes")
    ]
    assert [link["href"] for link in page.all("a") if "#" not in link["href"]] == [
        "../outputs/first/report.html"
    ]


def test_runs_are_told_truthfully(page) -> None:
    first, second, broken = cells(page, "Runs")
    assert "first" in first[1]
    assert [cell.strip("|") for cell in first[2:]] == ["finished", "20"]
    assert "script" in second[1]
    assert [cell.strip("|") for cell in broken] == [
        *("C", "broken", "failed at step 3 of 20: the loss became nan", "–")
    ]


def test_the_best_value_of_each_metric_is_marked_and_counts_are_not(page) -> None:
    recall, queries, made_up = cells(page, "Results")
    assert [cell.strip("|") for cell in recall] == [
        *("Recall@1", "75.00%|73.0–77.0%", "87.50% ★|85.5–89.5%", "–")
    ]
    assert [cell.strip("|") for cell in queries] == ["Queries", "100", "100", "–"]
    assert [cell.strip("|") for cell in made_up] == ["made_up", "1", "1", "–"]


def test_only_settings_that_differ_are_listed(page) -> None:
    assert [[cell.strip("|") for cell in row] for row in cells(page, "What differs")] == [
        ["loss.m", "–", "0.25", "–"],
        ["loss.name", "triplet", "circle", "–"],
        ["optim.lr", "0.75", "0.875", "–"],
    ]


def test_what_only_one_run_has_is_not_overlaid_and_the_rest_is(page) -> None:
    alts = [image["alt"] for image in page.all("img")]
    assert any(alt.startswith("Loss of the runs A, B") for alt in alts)
    assert any(alt.startswith("Retrieval quality: recall@1 of the runs A, B") for alt in alts)
    assert sum("Distances of pairs of run" in alt for alt in alts) == 2
    assert "In all: A 85 ms, B 97.5 ms" in alts[-1]


def test_curves_are_those_of_the_runs_with_their_letters_at_the_end() -> None:
    runs = [run("a", 0.5), ComparedRun("none"), run("c", 0.5), run("d", 0.75)]
    (axes,) = overlaid(runs, "eval/recall_at_1", "Recall", fraction=True).axes
    assert [line.get_label() for line in axes.lines] == ["A", "C", "D"]
    assert [line.get_color() for line in axes.lines] == [LIGHT.series[at] for at in (0, 2, 3)]
    assert axes.lines[2].get_xydata().tolist() == [[10, 0.375], [20, 0.75]]
    assert len({line.get_linestyle() for line in axes.lines}) > 1 or len({*map(str, axes.lines)}) == 3
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places.keys() == {"A", "C", "D"}
    assert places["C"] - places["A"] >= 0.069  # equal values, letters apart
    assert places["D"] > places["C"]


def test_untracked_runs_have_the_curves_of_their_records() -> None:
    untracked = replace(run("a", 0.5), history={})
    (axes,) = overlaid([untracked, untracked], "eval/recall_at_1", "Recall").axes
    assert axes.lines[0].get_xydata().tolist() == [[20, 0.5]]


def test_times_are_stacked() -> None:
    (axes,) = stacked_times([run("a", 0.5), ComparedRun("none"), run("c", 1.0)]).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([10, 10, 60, 110])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "C"]


def test_figures_have_all_their_letters_inside() -> None:
    runs = [run(letter, 0.5 + number / 100) for number, letter in enumerate(LETTERS)]
    assert reaches(stacked_times(runs)) <= 0
    assert reaches(overlaid(runs, "train/loss", "Loss")) <= 0


def test_runs_without_anything_make_a_page_all_the_same(tmp_path) -> None:
    page = Page(write_comparison(tmp_path / "p.html", [ComparedRun("a"), ComparedRun("b")]).read_text())
    assert "None of the runs has an evaluation yet." in page.words
    assert "The settings of the runs are the same." in page.words
    assert not page.all("img")


def test_more_runs_than_letters_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="11 runs are too many"):
        write_comparison(tmp_path / "p.html", [ComparedRun(str(number)) for number in np.arange(11)])
