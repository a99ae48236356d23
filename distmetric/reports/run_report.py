"""The report of a run: one HTML file that needs nothing else."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distmetric.errors import InputError
from distmetric.evaluation import nearest
from distmetric.evaluation.inputs import as_embeddings
from distmetric.reports.figures import PANELS, History, panel_figure, phase_seconds, time_split
from distmetric.reports.grid import check_images, retrieval_grid
from distmetric.reports.page import details, document, picture, section, table
from distmetric.reports.selection import select_queries

SHOWN_QUERIES, SHOWN_NEIGHBORS = 4, 6


@dataclass(frozen=True)
class RunReport:
    """What a report is made of; whatever is left empty is left out of the page.

    Attributes:
        title: name of the run, any text.
        metrics: headline metrics, names as `RetrievalMetrics.to_dict` gives them.
        history: metric name -> (step, value) pairs with the tracker's names.
        config: the run's settings; mappings may be nested.
        environment: versions and hardware, name -> text.
        command: the command line that started the run.
        embeddings: (N, D) embeddings of the evaluated images, finite.
        labels: (N,) integer classes.
        label_names: name of class i at position i, any text; classes are numbered when empty.
        images: (N, C, H, W) uint8, gray or RGB.
        seed: of the queries drawn at random.
    """

    title: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: History = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    embeddings: NDArray[np.floating] | None = None
    labels: NDArray[np.integer] | None = None
    label_names: Sequence[str] = ()
    images: NDArray[np.uint8] | None = None
    seed: int = 0


def write_run_report(path: str | Path, report: RunReport) -> Path:
    """Write a report as one self-contained HTML file: no network, no scripts, for any screen and for print.

    Args:
        path: file to write; its folder is made, and a file that is there is replaced in one step, so that a
            reader sees the old report or the new one and a failure keeps the old one.
        report: the contents.

    Returns:
        The path.

    Raises:
        InputError: when embeddings, labels, names and images do not fit each other, or an embedding is not
            finite.

    Cost: a few seconds; the retrieval examples take min(N, 2048) * N * D multiplications.
    """
    path = Path(path)
    text = document(report.title, _subtitle(report), [build(report) for build in SECTIONS])
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files that only their owner may read; a report is for others.
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


ABOUT = {
    "recall_at_1": "queries whose nearest neighbor is of their class",
    "map_at_r": "ranking quality among the first R, R being the size of the class",
    "r_precision": "share of the first R neighbors that are of the query's class",
    "num_queries": "queries that have something to find",
    "num_lone_queries": "queries alone in their class, counted nowhere else",
}
NAMES = {
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "num_queries": "Queries",
    "num_lone_queries": "Lone queries",
}


def _subtitle(report: RunReport) -> str:
    steps = [step for series in report.history.values() for step, _ in series]
    parts = [f"{max(steps):,} steps"] if steps else []
    if report.embeddings is not None:
        parts.append(f"{len(report.embeddings):,} evaluated images")
    return "Run report · " + " · ".join(parts) if parts else "Run report"


def _headline(report: RunReport) -> str:
    if not report.metrics:
        return ""
    rows = [
        (_metric_name(key), _metric_text(key, value), _about(key)) for key, value in report.metrics.items()
    ]
    return section("Results", "", table(("Metric", "Value", "Meaning"), rows, kind="headline"))


def _metric_name(key: str) -> str:
    k = key.removeprefix("recall_at_")
    return NAMES.get(key, f"Recall@{k}" if k != key else key)


def _metric_text(key: str, value: float) -> str:
    if key.startswith("num_"):
        return f"{value:,.0f}"
    return f"{100 * value:.2f}%" if key.startswith("recall_at_") or key in NAMES else f"{value:.5g}"


def _about(key: str) -> str:
    k = key.removeprefix("recall_at_")
    return ABOUT.get(key, f"queries with one of their class among their {k} nearest" if k != key else "")


def _curves(report: RunReport) -> str:
    panels = [panel for panel in PANELS if panel.has_data(report.history)]
    if not panels:
        return ""
    figures = [
        picture(
            partial(panel_figure, panel, report.history), f"{panel.title}: {panel.caption}", panel.caption
        )
        for panel in panels
    ]
    return section("Learning curves", "", f'<div class="panels">{"".join(figures)}</div>')


def _retrieval(report: RunReport) -> str:
    if report.embeddings is None or report.labels is None or report.images is None:
        return ""
    embeddings = as_embeddings(report.embeddings).numpy()
    labels = np.asarray(report.labels)
    _check_examples(report, len(embeddings))
    k = min(SHOWN_NEIGHBORS, len(labels) - 1)
    if k < 1:
        return ""
    chosen = select_queries(embeddings, labels, SHOWN_QUERIES, report.seed)
    kinds = {"Easiest": chosen.best, "Random": chosen.random, "Hardest": chosen.worst}
    grids = [
        _grid(f"{kind} queries", report, queries, nearest(embeddings, queries, k).numpy())
        for kind, queries in kinds.items()
        if len(queries)
    ]
    lead = (
        "Each row starts with a query; its nearest neighbors follow. A check mark in the corner means the "
        "same class, a cross another one. The hardest queries have the most wrong images before the first "
        "right one."
    )
    return section("Retrieval examples", lead, *grids) if grids else ""


def _check_examples(report: RunReport, num_rows: int) -> None:
    labels, images = np.asarray(report.labels), np.asarray(report.images)
    check_images(images)
    if labels.shape != (num_rows,) or len(images) != num_rows:
        raise InputError(
            f"a report needs one label and one image for each of {num_rows} embeddings, "
            f"got {len(labels)} labels and {len(images)} images"
        )
    if report.label_names and not 0 <= labels.min() <= labels.max() < len(report.label_names):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()} "
            f"but there are {len(report.label_names)} label_names"
        )


def _grid(heading: str, report: RunReport, queries: NDArray[np.int64], neighbors: NDArray[np.int64]) -> str:
    labels, images = np.asarray(report.labels), np.asarray(report.images)
    correct = labels[neighbors] == labels[queries, None]
    names = [_label_name(report, label) for label in labels[queries]]
    draw = partial(
        retrieval_grid,
        images,
        queries,
        neighbors,
        correct,
        names,
        [[_label_name(report, label) for label in row] for row in labels[neighbors]],
    )
    told = ", ".join(f"{name}: {hits} right" for name, hits in zip(names, correct.sum(axis=1), strict=True))
    alt = f"{heading} with their {neighbors.shape[1]} nearest neighbors. {told}."
    return f"<h3>{escape(heading)}</h3>{picture(draw, alt, photos=True)}"


def _label_name(report: RunReport, label: int) -> str:
    return report.label_names[label] if report.label_names else f"class {label}"


def _time(report: RunReport) -> str:
    seconds = phase_seconds(report.history)
    if not seconds:
        return ""
    told = ", ".join(f"{phase} {1000 * value:.3g} ms" for phase, value in seconds.items())
    figure = picture(partial(time_split, report.history), f"Median time of the parts of a step: {told}.")
    return section("Where the time goes", "Median time of each part of a training step.", figure)


def _what_ran(report: RunReport) -> str:
    parts = []
    if report.command:
        parts.append(f'<div class="card"><pre>{escape(report.command)}</pre></div>')
    if report.environment:
        rows = [(name, str(value)) for name, value in report.environment.items()]
        parts.append(table(("Environment", "Version"), rows))
    if report.config:
        parts.append(details("Configuration", report.config))
    return section("What ran", "", *parts) if parts else ""


SECTIONS: tuple[Callable[[RunReport], str], ...] = (_headline, _curves, _retrieval, _time, _what_ran)
"""The page from top to bottom; a section without data is an empty text."""
