"""What a run has to tell stands before its results: notices, steps that were left out, and what was in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distmetric.reports.notices import BadBatch, notices_section
from distmetric.reports.run_report import RunReport, write_run_report
from html_page import Page

COLLAPSED = {"kind": "collapse", "step": 1200, "message": "the embeddings have collapsed; lower optim.lr"}
PICTURES = np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8)


def test_a_run_with_nothing_to_tell_has_no_such_section() -> None:
    assert not notices_section([], 0, [], 0).parts


def test_notices_come_first_with_their_steps(tmp_path: Path) -> None:
    report = RunReport("run", metrics={"recall_at_1": 0.5}, notices=[COLLAPSED])
    page = Page(write_run_report(tmp_path / "r.html", report).read_text())
    assert page.texts("h2") == ["Notices", "Results"]
    assert "1,200" in page.texts("th")
    assert COLLAPSED["message"] in page.texts("td")


def test_steps_that_were_left_out_are_counted(tmp_path: Path) -> None:
    for count, told in ((1, "1 step was left out"), (1500, "1,500 steps were left out")):
        history = {"train/skipped_steps": [(5, 0.0), (10, float(count))]}
        page = Page(write_run_report(tmp_path / "r.html", RunReport("run", history=history)).read_text())
        assert page.texts("h2")[0] == "Notices"
        assert told in page.words
    nothing = {"train/skipped_steps": [(5, 0.0)]}
    page = Page(write_run_report(tmp_path / "r.html", RunReport("run", history=nothing)).read_text())
    assert "Notices" not in page.texts("h2")


def test_batches_are_shown_with_what_was_wrong_and_their_images() -> None:
    bad = BadBatch("the loss became nan", 32, 2, ["alpha", "beta"], ["a.png", "b.png"], PICTURES)
    unknown = BadBatch("the gradient became inf", 32, 0, ["alpha"], ["a.png"])
    page = Page("".join(notices_section([], 2, [bad, unknown], 7).parts))
    for text in (
        *(
            "the loss became nan",
            "2 of 2 images with embeddings that were not finite",
            "a.png",
            "b.png",
        ),
        *("the gradient became inf", "1 of 32 images of the batch", "The first 2 of 7."),
    ):
        assert text in page.words
    assert [image["alt"] for image in page.all("img")] == ["image of alpha", "image of beta"]
