"""The pictures of a search: every query beside what was found, as a page and as one image."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distmetric.reports.grid import retrieval_grid
from distmetric.reports.page import Section, document
from distmetric.reports.theme import LIGHT, Theme
from distmetric.reports.thumbnails import shot

_TITLE = 14


@dataclass(frozen=True, eq=False)
class FoundPicture:
    """A neighbor.

    Attributes:
        image: (C, H, W) uint8.
        path: Where it is.
        label_name: Its class; "" where it has none.
        distance: From the query.
        verdict: Whether it is called the same; "" where nobody knows.
        correct: Whether it is of the query's class; None where that is no question.
    """

    image: NDArray[np.uint8]
    path: str
    label_name: str
    distance: float
    verdict: str
    correct: bool | None


@dataclass(frozen=True, eq=False)
class QueryPicture:
    """A query and its neighbors, nearest first.

    Attributes:
        image: (C, H, W) uint8.
        path: Where it is.
        label_name: Its class; "" where it has none.
        found: Up to k neighbors.
    """

    image: NDArray[np.uint8]
    path: str
    label_name: str
    found: Sequence[FoundPicture]


def search_page(
    subtitle: str, grid: Sequence[QueryPicture], *, about: str = "", notes: Sequence[str] = ()
) -> str:
    """One self-contained page.

    Args:
        subtitle: One line about the search.
        grid: Queries from top to bottom.
        about: What else is to be known about distances.
        notes: What went wrong.

    Returns:
        The HTML text.
    """
    parts = []
    for query in grid:
        kind = f" ({query.label_name})" if query.label_name else ""
        own = shot(query.image, f"query {query.path}{kind}", f"{file_name(query.path)}{kind}")
        found = "".join(
            shot(one.image, f"{rank}. {one.path}", _caption(one), right=one.correct)
            for rank, one in enumerate(query.found, 1)
        )
        parts.append(f'<div class="finding query">{own}<div class="found">{found}</div></div>')
    lead = f"Each query on the left, what is nearest to it on the right, nearest first, with the distance. {about}"
    sections = [Section("Queries and neighbors", lead.strip(), parts)]
    return document("Search results", subtitle, sections, notes)


def _caption(one: FoundPicture) -> str:
    kind = f" · {one.label_name}" if one.label_name else ""
    verdict = f" · {one.verdict}" if one.verdict else ""
    return f"{one.distance:.3f}{verdict} · {file_name(one.path)}{kind}"


def grid_png(grid: Sequence[QueryPicture], theme: Theme = LIGHT) -> bytes:
    """All queries with their neighbors as one picture, a row for each query.

    Args:
        grid: Queries from top to bottom; images of one size.
        theme: Colors.

    Returns:
        The PNG file. File names stand above the images, distances and verdicts below the names; frames tell right
        from wrong where classes are known.
    """
    Q, k = len(grid), max(1, max((len(query.found) for query in grid), default=1))
    images = np.stack(
        [image for query in grid for image in (query.image, *(one.image for one in query.found))]
    )
    neighbors = np.full((Q, k), -1, np.int64)
    correct, known = np.zeros((Q, k), np.bool_), np.zeros((Q, k), np.bool_)
    queries, at = np.zeros(Q, np.int64), 0
    for row, query in enumerate(grid):
        count = len(query.found)
        queries[row] = at
        neighbors[row, :count] = np.arange(at + 1, at + 1 + count)
        known[row, :count] = [one.correct is not None for one in query.found]
        correct[row, :count] = [bool(one.correct) for one in query.found]
        at += 1 + count
    titles = [
        [
            f"{short(file_name(one.path))}\n"
            + (f"{one.distance:.2f} {one.verdict}" if one.verdict else f"{one.distance:.3f}")
            for one in query.found
        ]
        for query in grid
    ]
    figure = retrieval_grid(
        images,
        queries,
        neighbors,
        correct,
        [short(file_name(query.path)) for query in grid],
        titles,
        theme,
        known=known,
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script the font lacks is drawn as boxes; the tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def file_name(path: str) -> str:
    """The last part of a path, or what there is."""
    return path.rstrip("/").rpartition("/")[2] or path


def short(name: str) -> str:
    """A file name that fits above a picture: its middle left out, since names of a folder often begin alike."""
    if len(name) <= _TITLE:
        return name
    end = _TITLE // 2 + 1
    return f"{name[: _TITLE - end - 1]}…{name[-end:]}"
