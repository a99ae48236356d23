"""The report as a reader's browser sees it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from distmetric.errors import InputError
from distmetric.reports import RunReport, retrieval, write_run_report
from distmetric.reports import page as page_module
from distmetric.reports import run_report as module
from distmetric.reports.notices import BadBatch
from distmetric.reports.suspects import Coincidence
from html_page import Page, check_offline

HOSTILE = '<script>alert("x")</script>&amp;$x$'


def record(step: int, recall: float) -> dict:
    return {
        "step": step,
        "metrics": {"recall_at_1": recall},
        "intervals": {"recall_at_1": [recall - 0.01, recall + 0.02]},
        "calibration": {
            "threshold": 0.8125,
            "target_far": 1e-3,
            "far": 9e-4,
            "tar": 0.75,
            "positives": 15,
            "negatives": 90,
        },
        "histogram": {"edges": [0.0, 0.5, 1.0, 1.5], "positive": [9, 5, 1], "negative": [1, 9, 80]},
    }


def sample() -> RunReport:
    generator = np.random.default_rng(0)
    labels = np.arange(5).repeat(3)
    return RunReport(
        title=f"A run {HOSTILE}",
        metrics={"recall_at_1": 0.9375, "recall_at_2": 1.0, "map_at_r": 0.5, "num_queries": 1234.0},
        history={
            "train/loss": [(0, 1.0), (2500, 0.5)],
            "eval/recall_at_1": [(0, 0.1), (2500, 0.9)],
            "time/forward": [(0, 0.02)],
            "index/version": [(0, 0.0), (100, 3.0)],
        },
        config={"loss": {"name": HOSTILE, "margin": 0.2}},
        environment={"torch": HOSTILE},
        command=f"train {HOSTILE}",
        embeddings=generator.standard_normal((15, 4)).astype(np.float32),
        labels=labels,
        label_names=[HOSTILE, *"bcde"],
        images=generator.integers(0, 256, (15, 3, 8, 8), dtype=np.uint8),
        step=2500,
        evaluations=[record(2500, 0.9375), record(0, 0.1)],
        attributes={f"hue {HOSTILE}": ["red", HOSTILE, None] * 5},
        paths=[f"photos/{number}/{HOSTILE}" for number in range(15)],
        coincidences=[
            Coincidence(
                (HOSTILE, "b"), ("x", "y"), np.zeros((2, 3, 8, 8), np.uint8), 0.1, 0.2, of_classes=True
            )
        ],
        notes=[f"It failed: {HOSTILE}"],
        notices=[{"kind": "collapse", "step": 1234, "message": f"It collapsed: {HOSTILE}"}],
        bad_batches=[
            BadBatch(
                f"the loss {HOSTILE}",
                40,
                2,
                [HOSTILE, "b"],
                ["x", HOSTILE],
                np.zeros((2, 3, 8, 8), np.uint8),
            )
        ],
    )


@pytest.fixture(scope="module", autouse=True)
def _few_examples():
    """Drawing is slow; what holds for two queries and two neighbors holds for more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SHOWN_QUERIES", 2)
        patch.setattr(retrieval, "SHOWN_NEIGHBORS", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_run_report(folder / "new" / "report.html", sample(), folder / "figures")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return folder


@pytest.fixture(scope="module")
def html(folder) -> str:
    return (folder / "new" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_nothing_is_loaded_from_elsewhere_nothing_runs_and_every_image_opens(page):
    check_offline(page)


def test_charts_are_there_in_light_and_dark(page):
    charts, dark = page.all("img"), page.all("source")
    described = [image for image in charts if len(image["alt"]) > 40]
    # Two curves, ridges and ROC, three maps, the index's version, two of times.
    assert len(dark) == 10
    assert len(described) >= len(dark)
    assert not {source["srcset"] for source in dark} & {image["src"] for image in charts}


def test_headings_are_in_order_and_the_page_suits_a_phone(page):
    assert page.texts("h1") == [f"A run {HOSTILE}"]
    headings = page.texts("h2")
    suspected = ("Suspected label errors", "Near-duplicates across classes")
    assert [heading for heading in headings if heading not in suspected] == [
        *(
            "Notices",
            "Results",
            "Learning curves",
            "Distances",
            "Retrieval examples",
            "Map of the embeddings",
        ),
        *("Confused classes", "Hard batches and the index", "Suspected duplicates in the training set"),
        *("Where the time goes", "What ran"),
    ]
    assert page.texts("h3") == [
        *(
            "Batches that were not finite",
            "Same or different?",
            "Easiest queries",
            "Random queries",
            "Hardest queries",
            "The index at the end",
        )
    ]
    assert page.texts("a") == headings
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("html") == [{"lang": "en"}]
    assert any("2,500 steps · 15 of 1,234 evaluated images, 5 classes" in text for text in page.texts("p"))


def test_hostile_text_stays_text(html, page):
    assert "<script" not in html
    assert f"train {HOSTILE}" in page.texts("pre")
    assert any(HOSTILE in text and "margin: 0.2" in text for text in page.texts("pre"))
    assert HOSTILE in page.texts("td")
    assert any(HOSTILE in image["alt"] for image in page.all("img"))
    assert page.texts("title") == [f"A run {HOSTILE}"]
    assert f"It failed: {HOSTILE}" in page.texts("p")


def test_headline_metrics_are_in_the_table_with_intervals_and_threshold(page):
    assert page.texts("th")[5:9] == ["Recall@1", "Recall@2", "MAP@R", "Queries"]
    numbers = [text for text in page.texts("td") if re.fullmatch(r"[\d.,]+%?", text)]
    assert numbers[:7] == ["93.75%", "100.00%", "50.00%", "1,234", "0.8125", "0.09%", "75.00%"]
    small = page.texts("small")
    assert "92.8–95.8%" in small
    assert "target 0.1%" in small
    assert "of 90 pairs of different classes" in small
    assert all(attributes["scope"] in {"row", "col"} for attributes in page.all("th"))
    assert page.texts("summary") == ["Configuration"]


def test_intervals_are_those_of_the_step_that_is_reported(tmp_path):
    report = RunReport("r", metrics={"recall_at_1": 0.5}, evaluations=[record(10, 0.5), record(20, 0.4)])
    shown = {
        step: Page(write_run_report(tmp_path / "r.html", replace(report, step=step)).read_text()).texts(
            "small"
        )
        for step in (10, 20, 30, None)
    }
    assert "49.0–52.0%" in shown[10]
    assert "39.0–42.0%" in shown[20]
    assert "39.0–42.0%" in shown[None]
    assert not any("–" in text for text in shown[30])


def test_what_the_index_did_is_told_in_numbers(page):
    assert "snapshots that batches were planned from 3" in page.words


def test_figures_are_files_too(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {
        *(
            "loss.svg",
            "retrieval_quality.svg",
            "distances.svg",
            "roc.svg",
            "index_version.svg",
            "time_split.svg",
        ),
        *("pca.png", "tsne.png", "tsne_attribute_0.png"),
        *("retrieval_easiest.png", "retrieval_random.png", "retrieval_hardest.png"),
    } <= names
    assert all(path.stat().st_size > 1000 for path in (folder / "figures").iterdir())


def test_examples_show_the_true_neighbors(monkeypatch, tmp_path):
    calls = []
    draw = retrieval.retrieval_grid
    monkeypatch.setattr(
        retrieval, "retrieval_grid", lambda *args, **kw: calls.append(args) or draw(*args, **kw)
    )
    report = replace(sample(), history={}, attributes={})
    page = Page(write_run_report(tmp_path / "r.html", report, tmp_path / "figures").read_text())
    assert len(calls) == 3
    alts = [image["alt"] for image in page.all("img")]
    for images, queries, neighbors, correct, names, neighbor_names in calls:
        for place, row, marks, name, called in zip(
            queries, neighbors, correct, names, neighbor_names, strict=True
        ):
            query = row_of(report, images[place])
            distances = np.square(report.embeddings - report.embeddings[query]).sum(axis=1)
            distances[query] = np.inf
            nearest = np.argsort(distances)[: len(row)]
            assert [row_of(report, images[each]) for each in row] == nearest.tolist()
            assert marks.tolist() == (report.labels[nearest] == report.labels[query]).tolist()
            assert name == report.label_names[report.labels[query]]
            assert called == [report.label_names[label] for label in report.labels[nearest]]
            at = alts.index(f"query: {name}")
            assert at >= 0
            for rank, (right, each) in enumerate(zip(marks, called, strict=True), 1):
                assert f"{'right' if right else 'wrong'}: neighbor {rank}, {each}" in alts


def row_of(report: RunReport, image: np.ndarray) -> int:
    return int(np.flatnonzero((report.images == image).all(axis=(1, 2, 3)))[0])


def test_a_query_that_found_nothing_says_where_the_first_right_one_is(tmp_path):
    """On a line, the rows of class 1 stand between those of class 0, and the other way round."""
    rows, labels = np.array([[0.0], [9.0], [4.0], [4.5], [5.0], [30.0]]), np.array([0, 0, 1, 1, 1, 1])
    images = np.zeros((6, 1, 4, 4), np.uint8)
    report = RunReport("r", embeddings=rows, labels=labels, images=images)
    words = Page(write_run_report(tmp_path / "r.html", report).read_text()).words
    assert "class 0 0 of 2 right; the first right one is number 4" in words


def test_images_are_read_only_as_far_as_they_are_shown(tmp_path):
    report = sample()
    asked: list[int] = []  # how many rows at a time

    class Reader:
        def __len__(self) -> int:
            return len(report.labels)

        def __getitem__(self, rows):
            asked.append(len(rows))
            return report.images[rows]

    first = write_run_report(tmp_path / "a.html", replace(report, history={})).read_bytes()
    second = write_run_report(tmp_path / "b.html", replace(report, history={}, images=Reader())).read_bytes()
    assert first == second
    assert max(asked) == 2 + 2 * 2  # two queries and what they found


def test_what_is_missing_is_left_out(tmp_path):
    page = Page(write_run_report(tmp_path / "r.html", RunReport("empty")).read_text())
    assert page.texts("h1") == ["empty"]
    assert not page.texts("h2")
    assert not page.all("img")


def test_a_run_without_two_of_any_class_has_no_examples(tmp_path):
    report = replace(sample(), labels=np.arange(15), label_names=(), history={}, evaluations=())
    page = Page(write_run_report(tmp_path / "r.html", report).read_text())
    assert "Retrieval examples" not in page.texts("h2")
    assert {"Results", "Confused classes", "What ran"} <= set(page.texts("h2"))


def test_a_collapsed_network_is_called_one(tmp_path):
    report = replace(sample(), embeddings=np.ones((15, 4), np.float32), history={}, evaluations=())
    page = Page(write_run_report(tmp_path / "r.html", report).read_text())
    assert "Collapse" in page.texts("h2")
    assert not {"Retrieval examples", "Map of the embeddings", "Confused classes"} & set(page.texts("h2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(14)}, "got 14 labels and 15 images"),
        ({"images": np.zeros((3, 1, 2, 2), np.uint8)}, "got 15 labels and 3 images"),
        ({"images": np.zeros((15, 2, 2), np.uint8)}, "images must be uint8"),
        ({"label_names": ["a", "b"]}, "labels run from 0 to 4 but there are 2 label_names"),
        ({"embeddings": np.full((15, 2), np.nan)}, "row 0 is not finite"),
        ({"paths": ["x"]}, "paths has 1 values for 15 embeddings"),
        ({"attributes": {"hue": []}}, "attribute hue has 0 values for 15 embeddings"),
    ],
)
def test_mistakes_get_one_clear_line_and_keep_the_old_report(change, message, tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(InputError, match=message) as caught:
        write_run_report(path, replace(sample(), history={}, **change))
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_section_that_fails_is_named_on_the_page_and_raised(monkeypatch, tmp_path):
    def fail(_):
        raise ZeroDivisionError("no <chance>")

    monkeypatch.setitem(module.SECTIONS, "confused classes", fail)
    with pytest.raises(ZeroDivisionError, match="no <chance>") as caught:
        write_run_report(tmp_path / "r.html", replace(sample(), history={}))
    assert any("without the part on confused classes" in note for note in caught.value.__notes__)
    page = Page((tmp_path / "r.html").read_text())
    assert "The part on confused classes could not be made: ZeroDivisionError: no <chance>" in page.texts("p")
    assert {"Results", "Retrieval examples", "What ran"} <= set(page.texts("h2"))


def test_a_failed_write_keeps_the_old_report_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(page_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_run_report(path, RunReport("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    report = replace(sample(), history={"train/loss": [(0, 1.0), (9, 0.5)]})
    first = write_run_report(tmp_path / "a.html", report).read_bytes()
    assert write_run_report(tmp_path / "b.html", report).read_bytes() == first
