"""A map of the embeddings: two directions of largest variance, and a t-SNE of the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distmetric.reports.album import Album
from distmetric.reports.figures import legend_below
from distmetric.reports.history import Numbers
from distmetric.reports.page import Section
from distmetric.reports.theme import FIGURE_WIDTH, LIGHT, SMALL, Theme, single_axes

MAX_POINTS = 1200
COLORED = 10
"""Values that have a color of their own; all others are gray."""
MAX_ATTRIBUTES = 6
FEWEST = 12
"""Images that a map needs."""
MARKERS = "os^DvP*X<>"
"""Shapes beside the colors, for readers who do not see these."""
_ITERATIONS = 500


@dataclass(frozen=True)
class Projection:
    """Some embeddings in two dimensions.

    Attributes:
        rows: (n,) int64 which of them, ascending.
        pca: (n, 2) coordinates in the two directions of largest variance of all embeddings.
        explained: share of the variance of all embeddings in each of the two.
        tsne: (n, 2).
    """

    rows: NDArray[np.int64]
    pca: Numbers
    explained: tuple[float, float]
    tsne: Numbers


def project(embeddings: NDArray[np.floating], labels: NDArray[np.integer], seed: int) -> Projection | None:
    """Project a sample of the embeddings to the plane, by PCA and by t-SNE.

    Args:
        embeddings: (N, D) finite.
        labels: (N,) integer classes.
        seed: of the sample and of t-SNE.

    Returns:
        The projection; None where there is nothing to see: fewer than 12 rows, one dimension, or all rows equal.

    Cost: N D^2 for PCA; t-SNE (van der Maaten, "Accelerating t-SNE using tree-based algorithms", 2014) of at most
        1200 rows takes a few seconds.
    """
    # Importing it takes seconds, and every training imports this module.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(embeddings) < FEWEST or embeddings.shape[1] < 2:
        return None
    rows = sample(labels, seed)
    chosen = embeddings[rows].astype(np.float64)
    if len(rows) < FEWEST or np.ptp(chosen, axis=0).max() == 0:
        return None
    pca = PCA(2, svd_solver="covariance_eigh").fit(embeddings.astype(np.float64))
    first, second = pca.explained_variance_ratio_.tolist()
    neighbors = min(30.0, max(3.0, len(rows) / 10))
    tsne = TSNE(perplexity=neighbors, max_iter=_ITERATIONS, init="pca", random_state=seed)
    # Threads that wait for each other by spinning make it many times slower on a busy machine.
    with threadpool_limits(1):
        flat = tsne.fit_transform(chosen)
    return Projection(rows, pca.transform(chosen), (first, second), flat)


def sample(labels: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Which rows a map shows: whole classes in random order, as many as fit.

    Where not even ten fit, it is rows of all classes.

    Args:
        labels: (N,) integer classes.
        seed: of the order.

    Returns:
        (n,) int64, ascending; n is at most `MAX_POINTS`, and N where that is less.
    """
    random = np.random.default_rng(seed)
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = random.permutation(len(sizes))
    fitting = int((np.cumsum(sizes[order]) <= MAX_POINTS).sum())
    if fitting >= min(COLORED, len(sizes)):
        return np.flatnonzero(np.isin(group, order[:fitting]))
    return np.sort(random.permutation(len(labels))[:MAX_POINTS])


def projection_section(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    names: Sequence[str],
    attributes: Mapping[str, Sequence[str | None]],
    seed: int,
    album: Album,
) -> Section:
    """The section with the maps: both projections by class, and t-SNE by every attribute.

    Args:
        embeddings: (N, D) finite.
        labels: (N,) integer classes.
        names: (N,) name of every row's class.
        attributes: name -> (N,) values, None where unknown; those of a single value are passed over.
        seed: of the sample.
        album: where figures go.

    Returns:
        The section, without parts where there is nothing to see.
    """
    found = project(embeddings, labels, seed)
    if found is None:
        return Section("Map of the embeddings", "", ())
    rows = found.rows
    named = [names[row] for row in rows]
    parts = [
        _map(album, "pca", "PCA by class", found.pca, named, found.explained),
        _map(album, "tsne", "t-SNE by class", found.tsne, named),
    ]
    several = {
        name: chosen
        for name, values in attributes.items()
        if len(set(chosen := [values[row] for row in rows]) - {None}) > 1
    }
    for number, (name, values) in enumerate(list(several.items())[:MAX_ATTRIBUTES]):
        parts.append(_map(album, f"tsne_attribute_{number}", f"t-SNE by {name}", found.tsne, values))
    return Section(
        "Map of the embeddings",
        _lead(len(rows), len(embeddings), list(several)),
        [f'<div class="panels">{"".join(parts)}</div>'],
    )


def map_figure(
    points: Numbers,
    values: Sequence[str | None],
    title: str,
    explained: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw points of the plane, colored by the most frequent of some values.

    Args:
        points: (n, 2).
        values: (n,) what to color by; None is gray, and so is whatever is not among the ten most frequent.
        title: any text.
        explained: shares of variance of the two axes; axes without are not named.
        theme: colors.

    Returns:
        The figure; a legend names the colored values.
    """
    known = np.array(["" if value is None else f"={value}" for value in values])
    colored = _most_frequent(known)
    rest = ~np.isin(known, colored)
    below = 0.35 if explained else 0.1
    rows = -(-(len(colored) + int(rest.any())) // 2)
    figure, axes = single_axes(
        *(FIGURE_WIDTH, 3.9 + below + 0.2 * rows, theme, title),
        left=0.35 if explained else 0.15,
        bottom=0.15 + below + 0.2 * rows,
    )
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    if rest.any():
        label = "all others" if (known[rest] != "").any() else "unknown"
        axes.scatter(
            points[rest, 0], points[rest, 1], s=9, color=theme.muted, alpha=0.3, linewidth=0, label=label
        )
    size = float(np.clip(9000 / max(1, (~rest).sum()), 16, 40))
    for value, color, marker in zip(colored, theme.series, MARKERS, strict=False):
        at = known == value
        axes.scatter(
            points[at, 0],
            points[at, 1],
            s=size,
            color=color,
            marker=marker,
            alpha=0.85,
            edgecolor=theme.background,
            linewidth=0.4,
            label=_short(value[1:]),
        )
    if explained is not None:
        for number, (share, axis) in enumerate(zip(explained, (axes.xaxis, axes.yaxis), strict=True), 1):
            axis.set_label_text(
                f"direction {number}: {100 * share:.0f}% of the variance", color=theme.muted, fontsize=SMALL
            )
    legend_below(axes, theme, below=below, columns=2)
    return figure


def _map(
    album: Album,
    name: str,
    title: str,
    points: Numbers,
    values: Sequence[str | None],
    explained: tuple[float, float] | None = None,
) -> str:
    known = np.array(["" if value is None else f"={value}" for value in values])
    shown = ", ".join(value[1:] for value in _most_frequent(known))
    alt = f"{title}: {len(points):,} evaluated images as points in the plane; colored are {shown}."
    return album.dots(name, lambda theme: map_figure(points, values, title, explained, theme), alt)


def _most_frequent(known: NDArray[np.str_]) -> list[str]:
    """The values of most points, most first and ties by name, without the unknown one."""
    found, counts = np.unique(known[known != ""], return_counts=True)
    return [str(value) for value in found[np.lexsort((found, -counts))][:COLORED]]


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _lead(shown: int, total: int, attributes: Sequence[str]) -> str:
    which = "All evaluated images" if shown == total else f"{shown:,} of {total:,} evaluated images"
    left_out = attributes[MAX_ATTRIBUTES:]
    more = f" Not shown: {', '.join(left_out)}." if left_out else ""
    return (
        f"{which}, projected to the plane. PCA keeps the directions of largest variance; t-SNE keeps who is near to "
        f"whom, so that groups mean something and the distances between them do not.{more}"
    )
