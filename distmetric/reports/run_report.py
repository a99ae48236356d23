"""The report of a run: one HTML file that needs nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.errors import InputError
from distmetric.evaluation.inputs import as_embeddings
from distmetric.evaluation.neighbors import nearest
from distmetric.index.suspects import neighbor_distances
from distmetric.reports.album import Album
from distmetric.reports.confusion import confusion_section
from distmetric.reports.figures import panel_figure
from distmetric.reports.headline import headline_section, record_at
from distmetric.reports.histograms import distances_section
from distmetric.reports.history import History, Numbers, Record, last_step, series, with_evaluations
from distmetric.reports.notices import BadBatch, notices_section
from distmetric.reports.page import Cell, Section, details, document, table, write_page
from distmetric.reports.panels import INDEX_FACTS, INDEX_PANELS, TRAINING_PANELS, Panel
from distmetric.reports.projection import projection_section
from distmetric.reports.retrieval import retrieval_section
from distmetric.reports.step_times import phase_seconds, time_over_steps, time_split
from distmetric.reports.suspects import Coincidence, Named, coincidences_section, suspects_sections
from distmetric.reports.thumbnails import Images, pick

NEIGHBORS = 10
"""Nearest neighbors of every evaluated image that are looked at."""


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
        images: (N, C, H, W) uint8, gray or RGB; an array, or anything that reads rows of one when asked.
        seed: of the queries and of the classes that are drawn at random.
        step: of the checkpoint that metrics and embeddings are of.
        evaluations: records of the run's evaluations: step, metrics, intervals, calibration, histogram.
        attributes: name -> (N,) values of the evaluated images, None where unknown.
        paths: (N,) where the evaluated images came from.
        coincidences: pairs of the training set that the index takes for duplicates, closest first.
        num_coincidences: how many there are, where that is more than are given.
        notes: what has to be said before anything else, such as why the run failed.
        notices: of the run: kind, step and message, any text.
        bad_batches: of steps that were not taken, since a number of theirs was not finite; the first ones.
        num_bad_batches: how many there are, where that is more than are given.
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
    images: Images | None = None
    seed: int = 0
    step: int | None = None
    evaluations: Sequence[Record] = ()
    attributes: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    paths: Sequence[str] = ()
    coincidences: Sequence[Coincidence] = ()
    num_coincidences: int | None = None
    notes: Sequence[str] = ()
    notices: Sequence[Mapping[str, object]] = ()
    bad_batches: Sequence[BadBatch] = ()
    num_bad_batches: int | None = None


def write_run_report(path: str | Path, report: RunReport, figures: str | Path | None = None) -> Path:
    """Write a report as one self-contained HTML file: no network, no scripts, for any screen and for print.

    Where one section cannot be made for a reason that nobody foresaw, the page says so in its place, and when the
    page is written the error is raised all the same.

    Args:
        path: file to write; its folder is made, and a file that is there is replaced in one step, so that a
            reader sees the old report or the new one and a failure keeps the old one.
        report: the contents.
        figures: folder for the figures as files, SVG and PNG; none are written without.

    Returns:
        The path.

    Raises:
        InputError: when embeddings, labels, names, images, attributes and paths do not fit each other, or an embedding
            is not finite.

    Cost: about ten seconds for the drawings; N^2 D multiplications for the neighbors of all evaluated images.
    """
    page = _Page(report, Album(keep=figures is not None))
    sections: list[Section] = []
    failures: list[tuple[str, Exception]] = []
    for name, build in SECTIONS.items():
        try:
            sections += build(page)
        except Exception as error:  # a page without one section beats no page; raised again below
            failures.append((name, error))
    told = [
        f"The part on {name} could not be made: {type(error).__name__}: {' '.join(str(error).split())}"
        for name, error in failures
    ]
    written = write_page(
        Path(path), document(report.title, page.subtitle(), sections, [*report.notes, *told])
    )
    if figures is not None:
        page.album.save(Path(figures))
    if failures:
        failures[0][1].add_note(f"{path} was written without the part on {failures[0][0]}")
        raise failures[0][1]
    return written


class _Page:
    """A report under way: its contents, checked, and what several sections need."""

    def __init__(self, report: RunReport, album: Album) -> None:
        self.report, self.album = report, album
        self.history = with_evaluations(report.history, report.evaluations)
        self.embeddings: NDArray[np.floating] | None = None
        self.labels = np.empty(0, np.int64)
        self.names: list[str] = []
        if report.embeddings is not None and report.labels is not None:
            self._take(report.embeddings, report.labels)

    def _take(self, embeddings: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        report = self.report
        self.embeddings = as_embeddings(embeddings).numpy()
        self.labels = np.asarray(labels).astype(np.int64)
        _check_rows(report, len(self.embeddings), self.labels)
        self.names = [
            report.label_names[label] if report.label_names else f"class {label}"
            for label in self.labels.tolist()
        ]

    @property
    def rows(self) -> NDArray[np.floating] | None:
        """The embeddings, where there are at least two that differ."""
        if self.embeddings is None or len(self.embeddings) < 2 or self.collapsed:
            return None
        return self.embeddings

    @property
    def collapsed(self) -> bool:
        """Whether all of several embeddings are equal."""
        found = self.embeddings
        return found is not None and len(found) > 1 and bool((found == found[0]).all())

    @cached_property
    def neighbors(self) -> tuple[NDArray[np.int64], Numbers]:
        """The nearest other rows of every row, and their distances."""
        assert self.embeddings is not None
        rows = torch.from_numpy(self.embeddings)
        found = nearest(rows, torch.arange(len(rows)), min(NEIGHBORS, len(rows) - 1))
        return found.numpy(), neighbor_distances(rows, found).numpy()

    def subtitle(self) -> str:
        """One line on how much there is."""
        steps = last_step(self.history)
        parts = [f"{steps:,} steps"] if steps else []
        if self.embeddings is not None:
            shown, classes = len(self.embeddings), len(np.unique(self.labels))
            metrics = self.report.metrics
            total = int(metrics.get("num_queries", 0) + metrics.get("num_lone_queries", 0))
            of_total = f" of {total:,}" if total > shown else ""
            parts.append(f"{shown:,}{of_total} evaluated images, {classes:,} classes")
        return "Run report · " + " · ".join(parts) if parts else "Run report"


def _check_rows(report: RunReport, count: int, labels: NDArray[np.int64]) -> None:
    images = report.images
    if labels.shape != (count,) or (images is not None and len(images) != count):
        raise InputError(
            f"a report needs one label and one image for each of {count} embeddings, "
            f"got {len(labels)} labels and {'no' if images is None else len(images)} images"
        )
    if images is not None and count:
        pick(images, np.zeros(1, np.int64))
    if report.label_names and count and not 0 <= labels.min() <= labels.max() < len(report.label_names):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()} "
            f"but there are {len(report.label_names)} label_names"
        )
    others = {"paths": report.paths, **{f"attribute {name}": of for name, of in report.attributes.items()}}
    for name, values in others.items():
        if len(values) not in ((0, count) if name == "paths" else (count,)):
            raise InputError(f"{name} has {len(values)} values for {count} embeddings: give one for each")


def _notices(page: _Page) -> list[Section]:
    report, (_, skipped) = page.report, series(page.history, "train/skipped_steps")
    found = report.bad_batches
    total = len(found) if report.num_bad_batches is None else report.num_bad_batches
    left_out = int(skipped[-1]) if len(skipped) else 0
    return [notices_section(report.notices, left_out, found, total)]


def _headline(page: _Page) -> list[Section]:
    report = page.report
    found = [headline_section(report.metrics, record_at(report.evaluations, report.step), report.step)]
    if page.collapsed:
        lead = (
            "The embeddings of all evaluated images are equal, so that nothing can be told apart by them: the network "
            "has collapsed. A lower learning rate, a soft margin or easier batches help."
        )
        found.append(Section("Collapse", "", [f'<p class="note">{lead}</p>']))
    return found


def _curves(page: _Page) -> list[Section]:
    return [Section("Learning curves", "", _panels(page, TRAINING_PANELS))]


def _index(page: _Page) -> list[Section]:
    lead = (
        "Batches were planned from an index over the whole training set: how hard they were, and how old what "
        "the index knew was."
    )
    panels = _panels(page, INDEX_PANELS)
    facts = []
    for metric, told in INDEX_FACTS.items():
        _, values = series(page.history, metric)
        if len(values):
            facts.append((Cell(told), Cell(f"{values[-1]:,.5g}", kind="number")))
    if panels and facts:
        panels = [*panels, "<h3>The index at the end</h3>", table(("What", "How many"), facts)]
    found = page.report.coincidences
    total = len(found) if page.report.num_coincidences is None else page.report.num_coincidences
    return [Section("Hard batches and the index", lead, panels), coincidences_section(found, total)]


def _panels(page: _Page, panels: Sequence[Panel]) -> list[str]:
    charts = [
        page.album.chart(
            panel.file_name,
            partial(panel_figure, panel, page.history),
            f"{panel.title}: {panel.caption}",
            panel.caption,
        )
        for panel in panels
        if panel.has_data(page.history)
    ]
    return [f'<div class="panels">{"".join(charts)}</div>'] if charts else []


def _distances(page: _Page) -> list[Section]:
    return [distances_section(page.report.evaluations, page.album)]


def _retrieval(page: _Page) -> list[Section]:
    if page.rows is None or page.report.images is None:
        return []
    return [
        retrieval_section(
            page.rows,
            page.labels,
            *page.neighbors,
            page.report.images,
            page.names,
            page.report.seed,
            page.album,
        )
    ]


def _map(page: _Page) -> list[Section]:
    if page.rows is None:
        return []
    return [
        projection_section(
            page.rows, page.labels, page.names, page.report.attributes, page.report.seed, page.album
        )
    ]


def _confusions(page: _Page) -> list[Section]:
    if page.rows is None:
        return []
    neighbors, distances = page.neighbors
    nearest_one = neighbors[:, 0], distances[:, 0]
    return [confusion_section(page.labels, *nearest_one, page.names, page.report.images)]


def _suspects(page: _Page) -> list[Section]:
    if page.rows is None or page.report.images is None:
        return []
    named = Named(page.names, page.report.paths)
    return suspects_sections(page.rows, page.labels, *page.neighbors, page.report.images, named)


def _time(page: _Page) -> list[Section]:
    seconds = phase_seconds(page.history)
    if not seconds:
        return []
    told = ", ".join(f"{phase} {1000 * value:.3g} ms" for phase, value in seconds.items())
    charts = (
        page.album.chart(
            "time_split",
            partial(time_split, page.history),
            f"Median time of the parts of a step: {told}.",
            "Median time of each part of a training step.",
        ),
        page.album.chart(
            "time_over_steps",
            partial(time_over_steps, page.history),
            "Time of the parts of a step, on top of each other, over training steps.",
            "The same over training steps.",
        ),
    )
    return [Section("Where the time goes", "", [f'<div class="panels">{"".join(charts)}</div>'])]


def _what_ran(page: _Page) -> list[Section]:
    report, parts = page.report, []
    if report.command:
        parts.append(f'<div class="card"><pre>{escape(report.command)}</pre></div>')
    if report.environment:
        rows = [(Cell(name), Cell(str(value))) for name, value in report.environment.items()]
        parts.append(table(("Environment", "Version"), rows))
    if report.config:
        parts.append(details("Configuration", report.config))
    return [Section("What ran", "", parts)]


SECTIONS: dict[str, Callable[[_Page], list[Section]]] = {
    "notices": _notices,
    "results": _headline,
    "learning curves": _curves,
    "distances": _distances,
    "retrieval": _retrieval,
    "the map of embeddings": _map,
    "confused classes": _confusions,
    "suspected images": _suspects,
    "the index": _index,
    "times": _time,
    "what ran": _what_ran,
}
"""The page from top to bottom; a section without parts is left out."""
