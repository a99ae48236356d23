"""A report as Chromium shows it: on a phone and on a desk, in light and in dark, and without the world outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.support.wait import WebDriverWait

from browser import (
    DESKTOP,
    PHONE,
    background,
    bad_images,
    chromium,
    complaints,
    keep_screenshot,
    requests,
    show,
    wider_than_screen,
)
from distmetric.reports import RunReport, write_run_report
from distmetric.reports.notices import BadBatch
from distmetric.reports.suspects import Coincidence

STEPS = (100, 200, 300)
SECTIONS = [
    "Notices",
    "Results",
    "Learning curves",
    "Distances",
    "Retrieval examples",
    "Map of the embeddings",
    "Confused classes",
    "Suspected label errors",
    "Near-duplicates across classes",
    "Hard batches and the index",
    "Suspected duplicates in the training set",
    "Where the time goes",
    "What ran",
]


def sample() -> RunReport:
    """A run of 8 classes, with something in every section."""
    generator = np.random.default_rng(0)
    labels = np.arange(8).repeat(6)
    centers = generator.standard_normal((8, 16))
    embeddings = centers[labels] + 0.3 * generator.standard_normal((48, 16))
    embeddings[0] = centers[5]  # as if its label were wrong
    embeddings[6] = embeddings[12] + 1e-4  # the same image in two classes
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    curve = {step: 1 - 0.8 * np.exp(-step / 120) for step in range(1, 301, 5)}
    history = {
        "train/loss": [(step, 1 - 0.7 * value) for step, value in curve.items()],
        "train/active_fraction": [(step, 1 - 0.9 * value) for step, value in curve.items()],
        "eval/recall_at_1": [(step, curve[step - 4]) for step in STEPS],
        "eval/map_at_r": [(step, 0.6 * curve[step - 4]) for step in STEPS],
        "hard/violating_fraction": [(step, 0.5 * value) for step, value in curve.items()],
        "index/version": [(step, float(step // 50)) for step in curve],
        "index/staleness_median": [(step, float(step % 50)) for step in curve],
        **{f"time/{name}": [(step, 0.01) for step in curve] for name in ("data", "forward", "backward")},
    }
    edges = np.linspace(0, 2, 33)
    records = [
        {
            "step": step,
            "metrics": {"recall_at_1": curve[step - 4], "map_at_r": 0.6 * curve[step - 4]},
            "intervals": {"recall_at_1": [curve[step - 4] - 0.05, curve[step - 4] + 0.03]},
            "calibration": {
                "threshold": 0.8,
                "target_far": 1e-3,
                "far": 9e-4,
                "tar": 0.7,
                "positives": 120,
                "negatives": 1008,
            },
            "histogram": {
                "edges": edges.tolist(),
                "positive": np.histogram(generator.normal(0.9 - step / 1000, 0.2, 120), edges)[0].tolist(),
                "negative": np.histogram(generator.normal(1.3, 0.2, 1008), edges)[0].tolist(),
            },
        }
        for step in STEPS
    ]
    images = generator.integers(0, 256, (48, 1, 28, 28), dtype=np.uint8)
    twins = Coincidence(
        ("Character 1 of a long alphabet", "Character 2 of a long alphabet"),
        ("images/1/a.png", "images/2/b.png"),
        *(images[:2], 0.01, 0.05, False),
    )
    return RunReport(
        title="glyphs-triplet-a-name-as-long-as-names-of-runs-may-well-become-over-time",
        metrics={"recall_at_1": 0.934, "recall_at_2": 0.98, "map_at_r": 0.56, "num_queries": 48.0},
        history=history,
        config={"loss": {"name": "triplet", "margin": 0.2}, "data": {"path": "/data/" + "deep/" * 30}},
        environment={"torch": "2.13.0", "machine": "Linux x86_64, 2 CPUs"},
        command="python jobs/train.py " + " ".join(f"section.setting_{i}=value" for i in range(20)),
        embeddings=embeddings.astype(np.float32),
        labels=labels,
        label_names=[f"Character {i} of a long alphabet" for i in range(8)],
        images=images,
        step=300,
        evaluations=records,
        attributes={"alphabet": ["Latin" if label < 4 else "Greek" for label in labels]},
        paths=[f"images/{label}/{i}.png" for i, label in enumerate(labels)],
        coincidences=[twins],
        num_coincidences=3,
        notices=[
            {
                "kind": "non_finite",
                "step": 123,
                "message": "the loss became nan: its batch is in /runs/"
                + "deep/" * 30
                + "step_00000123.json",
            },
            {"kind": "collapse", "step": 200, "message": "the embeddings have collapsed; lower optim.lr"},
        ],
        bad_batches=[
            BadBatch(
                *("the loss became nan at step 123", 256, 6),
                names=["Character 1 of a long alphabet"] * 6,
                paths=["images/" + "deep/" * 30 + f"{i}.png" for i in range(6)],
                images=images[:6],
            ),
            BadBatch("the gradient became inf at step 124", 256, 0, ["a"], ["images/a.png"], images[7:8]),
        ],
        num_bad_batches=9,
        notes=["The run was stopped by the scheduler of its search: what follows is of its last checkpoint."],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    folder = tmp_path_factory.mktemp("browser")
    with chromium(folder) as driver:
        path = write_run_report(folder / "report.html", sample())
        driver.get(path.as_uri())
        # What is folded has to fit, too.
        driver.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        yield driver


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_is_drawn_and_fits(page, width: int, scheme: str) -> None:
    show(page, width, scheme)
    assert page.execute_script("return document.images.length") >= 8
    assert bad_images(page) == []
    assert wider_than_screen(page) == []
    height = page.execute_script("return document.documentElement.scrollHeight")
    show(page, width, scheme, height)  # all of it at once
    path = keep_screenshot(page, f"report-{width}-{scheme}")
    with Image.open(path) as picture:
        assert picture.size == (width, height)
        assert height > 2000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 500


def test_its_parts_are_there(page) -> None:
    headings = page.execute_script("return [...document.querySelectorAll('h2')].map(part => part.innerText)")
    assert headings == SECTIONS


def test_light_and_dark_differ_in_page_and_figures(page) -> None:
    show(page, DESKTOP, "light")
    light, light_figures = background(page), figures_of(page)
    show(page, DESKTOP, "dark")
    # The browser chooses other pictures when it gets to it.
    WebDriverWait(page, 60).until(
        lambda _: all(a != b for a, b in zip(light_figures, figures_of(page), strict=True))
    )
    assert sum(map(int, light[4:-1].split(","))) > 600
    assert sum(map(int, background(page)[4:-1].split(","))) < 150
    assert len(light_figures) >= 5


def figures_of(page) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('picture:has(source) img')].map(image => image.currentSrc)"
    )


def test_it_asks_for_nothing_and_nothing_is_logged(page) -> None:
    page.refresh()
    show(page, DESKTOP)
    assert requests(page) == []
    assert complaints(page) == []


def test_a_bad_page_is_seen_as_such(page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><html><body><img src='missing.png' alt='text'><img src='data:image/gif;base64,"
        "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7'><p class='long' style='width: 2000px'>x</p>"
        "<script>console.warn('beware'); fetch('http://example.com/')</script></body></html>"
    )
    try:
        page.get(bad.as_uri())
        show(page, PHONE)
        missing, undescribed = bad_images(page)
        assert missing.startswith("0 wide")
        assert undescribed.startswith("1 wide, alt ''")
        assert '<p class="long">' in wider_than_screen(page)
        assert any("example.com" in address for address in requests(page))
        logged = " ".join(complaints(page))
        assert all(text in logged for text in ("beware", "missing.png", "example.com"))
    finally:
        page.back()
