"""The report as a reader's browser sees it."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from distmetric.errors import InputError
from distmetric.reports import RunReport, write_run_report
from distmetric.reports import run_report as module

HOSTILE = '<script>alert("x")</script>&amp;$x$'


class Page(HTMLParser):
    """Collects tags with attributes, the text under headings, and checks that tags nest."""

    VOID = frozenset({"meta", "img", "source"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


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
        },
        config={"loss": {"name": HOSTILE, "margin": 0.2}},
        environment={"torch": HOSTILE},
        command=f"train {HOSTILE}",
        embeddings=generator.standard_normal((15, 4)).astype(np.float32),
        labels=labels,
        label_names=[HOSTILE, *"bcde"],
        images=generator.integers(0, 256, (15, 3, 8, 8), dtype=np.uint8),
    )


@pytest.fixture(scope="module", autouse=True)
def _few_examples():
    """Drawing is slow; what holds for two queries and two neighbors holds for more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHOWN_QUERIES", 2)
        patch.setattr(module, "SHOWN_NEIGHBORS", 2)
        yield


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("report")
    path = write_run_report(folder / "new" / "report.html", sample())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(html, page):
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"https?://|@import|url\(|javascript:", html)
    addresses = [
        attributes[name]
        for _, attributes in page.tags
        for name in ("src", "srcset", "href")
        if name in attributes
    ]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_every_image_opens_and_is_described_for_light_and_dark(page):
    images, dark = page.all("img"), page.all("source")
    assert len(images) == len(dark) == 2 + 3 + 1
    for image, source in zip(images, dark, strict=True):
        assert len(image["alt"]) > 20
        assert source["media"] == "(prefers-color-scheme: dark)"
        assert image["src"] != source["srcset"]
        for address in (image["src"], source["srcset"]):
            kind, content = address.split(";base64,")
            raw = base64.b64decode(content, validate=True)
            if kind == "data:image/png":
                Image.open(io.BytesIO(raw)).verify()
            else:
                assert ElementTree.fromstring(raw).tag.endswith("svg")


def test_headings_are_in_order_and_the_page_suits_a_phone(page):
    assert page.texts("h1") == [f"A run {HOSTILE}"]
    assert page.texts("h2") == [
        "Results",
        "Learning curves",
        "Retrieval examples",
        "Where the time goes",
        "What ran",
    ]
    assert page.texts("h3") == ["Easiest queries", "Random queries", "Hardest queries"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("html") == [{"lang": "en"}]
    assert any("2,500 steps · 15 evaluated images" in text for text in page.texts("p"))


def test_hostile_text_stays_text(html, page):
    assert "<script" not in html
    assert f"train {HOSTILE}" in page.texts("pre")
    assert any(HOSTILE in text and "margin: 0.2" in text for text in page.texts("pre"))
    assert HOSTILE in page.texts("td")
    assert any(HOSTILE in image["alt"] for image in page.all("img"))
    assert page.texts("title") == [f"A run {HOSTILE}"]


def test_headline_metrics_are_in_the_table(page):
    assert page.texts("th")[3:7] == ["Recall@1", "Recall@2", "MAP@R", "Queries"]
    assert [text for text in page.texts("td") if text[0].isdigit()] == [
        "93.75%",
        "100.00%",
        "50.00%",
        "1,234",
    ]
    assert all(attributes["scope"] in {"row", "col"} for attributes in page.all("th"))
    assert page.texts("summary") == ["Configuration"]


def test_grids_mark_the_true_neighbors(monkeypatch, tmp_path):
    calls = []
    draw = module.retrieval_grid
    monkeypatch.setattr(module, "retrieval_grid", lambda *args, **kw: calls.append(args) or draw(*args, **kw))
    report = replace(sample(), history={})
    write_run_report(tmp_path / "r.html", report)
    assert len(calls) == 3 * 2
    for images, queries, neighbors, correct, names, neighbor_names, _ in calls:
        assert images is report.images
        for query, row, marks, name in zip(queries, neighbors, correct, names, strict=True):
            distances = np.square(report.embeddings - report.embeddings[query]).sum(axis=1)
            distances[query] = np.inf
            assert row.tolist() == np.argsort(distances)[: len(row)].tolist()
            assert marks.tolist() == (report.labels[row] == report.labels[query]).tolist()
            assert name == report.label_names[report.labels[query]]
        assert neighbor_names[0][0] == report.label_names[report.labels[neighbors[0, 0]]]


def test_what_is_missing_is_left_out(tmp_path):
    page = Page(write_run_report(tmp_path / "r.html", RunReport("empty")).read_text())
    assert page.texts("h1") == ["empty"]
    assert not page.texts("h2")
    assert not page.all("img")


def test_a_run_without_two_of_any_class_has_no_examples(tmp_path):
    report = replace(sample(), labels=np.arange(15), label_names=(), history={})
    page = Page(write_run_report(tmp_path / "r.html", report).read_text())
    assert page.texts("h2") == ["Results", "What ran"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(14)}, "got 14 labels and 15 images"),
        ({"images": np.zeros((3, 1, 2, 2), np.uint8)}, "got 15 labels and 3 images"),
        ({"images": np.zeros((15, 2, 2), np.uint8)}, "images must be uint8"),
        ({"label_names": ["a", "b"]}, "labels run from 0 to 4 but there are 2 label_names"),
        ({"embeddings": np.full((15, 2), np.nan)}, "row 0 is not finite"),
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


def test_a_failed_write_keeps_the_old_report_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_run_report(path, RunReport("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    report = replace(sample(), images=None, history={"train/loss": [(0, 1.0), (9, 0.5)]})
    first = write_run_report(tmp_path / "a.html", report).read_bytes()
    assert write_run_report(tmp_path / "b.html", report).read_bytes() == first
