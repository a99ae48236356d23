"""Queries with what they found: the easiest ones, some at random, and the hardest."""

from collections.abc import Sequence
from functools import partial
from html import escape

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distmetric.reports.album import Album
from distmetric.reports.grid import retrieval_grid
from distmetric.reports.history import Numbers
from distmetric.reports.page import Section
from distmetric.reports.selection import select_queries
from distmetric.reports.theme import Theme
from distmetric.reports.thumbnails import Images, Pixels, pick, shot, thumbnail

SHOWN_QUERIES, SHOWN_NEIGHBORS = 4, 6


def retrieval_section(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.int64],
    neighbors: NDArray[np.int64],
    distances: Numbers,
    images: Images,
    names: Sequence[str],
    seed: int,
    album: Album,
) -> Section:
    """The section of retrieval examples.

    Args:
        embeddings: (N, D) finite.
        labels: (N,) classes.
        neighbors: (N, k) nearest other rows of every row.
        distances: (N, k) their distances.
        images: (N, C, H, W) uint8.
        names: (N,) name of every row's class.
        seed: of the random queries.
        album: where figures go.

    Returns:
        The section, without parts where no class has two images.
    """
    lead = (
        "Each query with its nearest neighbors, nearest first, and their distances. A check mark and a solid frame "
        "mean the same class, a cross and a dashed frame another one, whose name stands below. The hardest queries "
        "have the most wrong images before the first right one."
    )
    chosen = select_queries(embeddings, labels, SHOWN_QUERIES, seed)
    parts: list[str] = []
    kinds = {"Easiest": chosen.best, "Random": chosen.random, "Hardest": chosen.worst}
    for kind, queries in kinds.items():
        if not len(queries):
            continue
        found = neighbors[queries, :SHOWN_NEIGHBORS]
        apart = distances[queries, :SHOWN_NEIGHBORS]
        pixels = pick(images, np.concatenate([queries, found.ravel()]))
        correct = labels[found] == labels[queries, None]
        parts.append(f"<h3>{kind} queries</h3>")
        shown = pixels[len(queries) :].reshape(*found.shape, *pixels.shape[1:])
        for number, query in enumerate(queries):
            right = correct[number]
            depth = wrong_before_right(embeddings, labels, int(query))
            called = [names[row] for row in found[number]]
            parts.append(
                _query(names[query], pixels[number], shown[number], right, called, apart[number], depth)
            )
        album.extra(f"retrieval_{kind.lower()}", partial(_grid, pixels, found, correct, queries, names))
    return Section("Retrieval examples", lead, parts)


def wrong_before_right(embeddings: NDArray[np.floating], labels: NDArray[np.int64], query: int) -> int:
    """How many rows of other classes are nearer to a row than the nearest other one of its class; N D operations."""
    squares = np.square(embeddings.astype(np.float64) - embeddings[query]).sum(axis=1)
    same = labels == labels[query]
    same[query] = False
    return int((squares[labels != labels[query]] < squares[same].min()).sum())


def _query(
    name: str,
    query: Pixels,
    found: Pixels,
    right: NDArray[np.bool_],
    called: Sequence[str],
    distances: Numbers,
    depth: int,
) -> str:
    shots = [
        shot(
            *(image, f"neighbor {rank}, {each}"),
            f"{distance:.2f}" if good else f"{distance:.2f} {each}",
            right=bool(good),
        )
        for rank, (image, good, each, distance) in enumerate(
            zip(found, right, called, distances, strict=True), 1
        )
    ]
    asked = thumbnail(query, f"query: {name}")
    hits = f"{int(right.sum())} of {len(right)} right"
    if not right.any():
        hits += f"; the first right one is number {depth + 1:,}"
    return (
        f'<div class="finding query"><figure class="shot">{asked}</figure>'
        f'<div class="found">{"".join(shots)}</div><p>{escape(name)}<small>{hits}</small></p></div>'
    )


def _grid(
    pixels: Pixels,
    found: NDArray[np.int64],
    correct: NDArray[np.bool_],
    queries: NDArray[np.int64],
    names: Sequence[str],
    theme: Theme,
) -> Figure:
    """The same as one figure: the first images are the queries', then come the neighbors' of one after the other."""
    places = len(queries) + np.arange(found.size).reshape(found.shape)
    return retrieval_grid(
        pixels,
        np.arange(len(queries)),
        places,
        correct,
        [names[query] for query in queries],
        [[names[row] for row in rows] for rows in found],
        theme=theme,
    )
