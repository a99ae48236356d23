"""Pictures of retrieval: each query beside its nearest neighbors, right ones and wrong ones marked."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from distmetric.errors import InputError
from distmetric.reports.theme import LIGHT, Theme, new_figure
from distmetric.reports.thumbnails import check_images

RIGHT_MARK, WRONG_MARK = "✓", "✗"
"""What tells right from wrong without color."""


def retrieval_grid(
    images: NDArray[np.uint8],
    queries: NDArray[np.int64],
    neighbors: NDArray[np.int64],
    correct: NDArray[np.bool_] | None,
    query_titles: Sequence[str] = (),
    neighbor_titles: Sequence[Sequence[str]] = (),
    theme: Theme = LIGHT,
    known: NDArray[np.bool_] | None = None,
) -> Figure:
    """Draw one row for each query: its image, then its nearest neighbors in order.

    A right neighbor has a green frame and a check mark, a wrong one an orange-red frame and a cross, and one of which
    nobody knows a gray frame.

    Args:
        images: (N, C, H, W) uint8, one channel (gray) or three (RGB).
        queries: (Q,) int64 indices into `images`.
        neighbors: (Q, k) int64 indices into `images`, nearest first; -1 where there is none.
        correct: (Q, k) bool, whether the neighbor is of the query's class; None where no class is known.
        query_titles: (Q,) texts above the queries; none when empty.
        neighbor_titles: (Q, k) texts above the neighbors, of one line or more; none when empty.
        theme: colors.
        known: (Q, k) bool, whether `correct` means anything there; None for everywhere.

    Returns:
        The figure, Q rows and 1 + k columns.

    Raises:
        InputError: when shapes do not fit each other, or images are not uint8 of one or three channels.

    Cost: decodes nothing and reads only the images it shows.
    """
    check_images(images)
    shape = neighbors.shape if correct is None else correct.shape
    if neighbors.ndim != 2 or len(queries) != len(neighbors) or shape != neighbors.shape:
        raise InputError(
            "queries, neighbors and correct must have shapes (Q,), (Q, k) and (Q, k), got "
            f"{queries.shape}, {neighbors.shape} and {shape}"
        )
    num_rows, k = neighbors.shape
    more_lines = 0.15 * max((text.count("\n") for texts in neighbor_titles for text in texts), default=0)
    width, height = 0.4 + 1.14 * (k + 1), (1.36 + more_lines) * max(num_rows, 1)
    figure = new_figure(width, height, theme)
    # Solving for a layout takes seconds with this many axes, and all of them are alike.
    figure.set_layout_engine("none")
    # The narrow second column keeps the query apart from what was found.
    grid = figure.add_gridspec(
        max(num_rows, 1),
        k + 2,
        width_ratios=[1, 0.08, *([1] * k)],
        left=0.08 / width,
        right=1 - 0.08 / width,
        bottom=0.06 / height,
        top=1 - (0.26 + more_lines) / height,
        wspace=0.08,
        hspace=0.28 + more_lines,
    )
    for row in range(num_rows):
        axes = figure.add_subplot(grid[row, 0])
        _draw_image(axes, images[queries[row]], query_titles[row] if query_titles else "query", theme)
        _frame(axes, theme.muted, 1.5)
        for column in np.flatnonzero(neighbors[row] >= 0).tolist():
            axes = figure.add_subplot(grid[row, column + 2])
            title = neighbor_titles[row][column] if neighbor_titles else ""
            _draw_image(axes, images[neighbors[row, column]], title, theme)
            if correct is None or not (known is None or known[row, column]):
                _frame(axes, theme.muted, 1.5)
            else:
                _mark(axes, bool(correct[row, column]), theme)
    return figure


def _draw_image(axes: Axes, image: NDArray[np.uint8], title: str, theme: Theme) -> None:
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    axes.imshow(
        pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if max(pixels.shape) < 64 else None
    )
    axes.set_xticks([])
    axes.set_yticks([])
    shown = "\n".join(line if len(line) <= 14 else line[:13] + "…" for line in title.split("\n"))
    axes.set_title(shown, fontsize=8.5, color=theme.text, pad=4, parse_math=False)


def _frame(axes: Axes, color: str, width: float) -> None:
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(width)


def _mark(axes: Axes, right: bool, theme: Theme) -> None:
    color = theme.colors["right" if right else "wrong"]
    _frame(axes, color, 3)
    corner = Rectangle((0.76, 0), 0.24, 0.24, transform=axes.transAxes, color=color, linewidth=0)
    axes.add_patch(corner)
    axes.text(
        0.88,
        0.12,
        RIGHT_MARK if right else WRONG_MARK,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=theme.background,
        fontsize=10,
        fontweight="bold",
    )
