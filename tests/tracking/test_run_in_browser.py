"""A run as MLflow's own pages show it in Chromium: its names, its charts, its report."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from browser import (
    DESKTOP,
    chromium,
    complaints,
    end,
    free_port,
    keep_screenshot,
    requests,
    show,
    wait_until,
)
from distmetric.tracking.tracked_run import TrackedRun, tracking_server

NAME = "glyphs-triplet-shown"
STEPS = range(1, 41)
METRICS = ("train/loss", "eval/recall_at_1", "time/forward")
# What MLflow 3.17 logs on every page of a server of one's own, and why it does not matter here.
KNOWN = (
    "/ajax-api/2.0/mlflow/users/current - ",  # who is signed in: there is no signing in without its auth app
    "ResizeObserver loop completed with undelivered notifications",  # a notice that layout took two rounds
)


class Served(NamedTuple):
    address: str
    run: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tracked run behind MLflow's server, as `make ui` starts it."""
    folder = tmp_path_factory.mktemp("mlflow")
    tags = {"distmetric.run_dir": str(folder)}
    server = tracking_server(f"sqlite:///{folder}/mlflow.db", "distmetric", str(folder))
    tracked = TrackedRun.create(f"{folder}/run", server, NAME, {"optim.lr": 0.003, "seed": 0}, tags)
    (folder / "report.html").write_text("<!DOCTYPE html><html><body><h1>A report</h1></body></html>")
    with tracked.watch():
        tracker = tracked.tracker()
        for step in STEPS:
            tracker.log(step, {name: 1 / (step + place) for place, name in enumerate(METRICS)})
        tracker.close()
        tracked.log_artifact(str(folder / "report.html"))
    assert tracked.close() == 0
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", str(tracked.uri)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={
                **os.environ,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(server, address, folder / "log"), 150, "MLflow's server")
        experiment = tracked_experiment(tracked)
        yield Served(address, f"{address}/#/experiments/{experiment}/runs/{tracked.run_id}")
    finally:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(server.pid)
            family = {process, *process.children(recursive=True)}
            server.terminate()
            end(family)
        server.wait(timeout=60)


def tracked_experiment(tracked: TrackedRun) -> str:
    import mlflow

    return mlflow.MlflowClient(tracked.uri).get_run(tracked.run_id).info.experiment_id


def answers(server: subprocess.Popen, address: str, log: Path) -> bool:
    assert server.poll() is None, log.read_text()[-3000:]
    with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=60) as response:
        return response.status == 200
    return False


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        show(driver, DESKTOP)
        yield driver


def text_of(page) -> str:
    return page.execute_script("return document.body.innerText")


def visit(page, served: Served, view: str, *expected: str) -> None:
    """Open a view of the run, wait until all of these texts are on it, and look at what it asked for."""
    page.get("about:blank")
    page.get(f"{served.run}{view}")
    wait_until(
        lambda: all(text in text_of(page) for text in expected), what=f"{expected} at {page.current_url}"
    )
    assert [address for address in requests(page) if not address.startswith(f"{served.address}/")] == []


def test_the_run_page_names_the_run_and_what_it_measured(served: Served, page) -> None:
    visit(page, served, "", NAME, *METRICS, "optim.lr", "0.003")
    keep_screenshot(page, "mlflow-run")


def test_its_charts_are_drawn(served: Served, page) -> None:
    show(page, DESKTOP, height=2400)  # charts are drawn when they come into view
    visit(page, served, "/model-metrics", *(f"{NAME} ({name})" for name in METRICS))
    wait_until(lambda: len([each for each in lines_drawn(page) if each > 100]) == len(METRICS), what="lines")
    keep_screenshot(page, "mlflow-charts")


def test_its_report_opens(served: Served, page) -> None:
    show(page, DESKTOP)
    visit(page, served, "/artifacts/report.html", "report.html")
    wait_until(lambda: in_a_frame(page, "A report"), what="the report in its frame")
    keep_screenshot(page, "mlflow-report")


def test_nothing_severe_is_logged(served: Served, page) -> None:
    visit(page, served, "", NAME)
    logged = complaints(page)  # on all pages so far
    assert [text for text in logged if text.startswith("SEVERE") and not any(map(text.count, KNOWN))] == []


def lines_drawn(page) -> list[float]:
    """Of each of Plotly's charts the length of its longest curve, in pixels."""
    return page.execute_script(
        "return [...document.querySelectorAll('.js-plotly-plot')].map(chart => Math.max(0, "
        "...[...chart.querySelectorAll('.scatterlayer path.js-line')].map(line => line.getTotalLength())))"
    )


def in_a_frame(page, text: str) -> bool:
    for frame in page.find_elements("tag name", "iframe"):
        page.switch_to.frame(frame)
        try:
            if text in text_of(page):
                return True
        finally:
            page.switch_to.default_content()
    return False
