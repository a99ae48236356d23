"""Pictures of retrieval: each query beside its nearest neighbors, right ones and wrong ones marked."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from distmetric.errors import InputError
from distmetric.reports.theme import LIGHT, Theme, new_figure

RIGHT_MARK, WRONG_MARK = "✓", "✗"
"""What tells right from wrong without color."""


def retrieval_grid(
    images: NDArray[np.uint8],
    queries: NDArray[np.int64],
    neighbors: NDArray[np.int64],
    correct: NDArray[np.bool_],
    query_titles: Sequence[str] = (),
    neighbor_titles: Sequence[Sequence[str]] = (),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw one row for each query: its image, then its nearest neighbors in order.

    A right neighbor has a green frame and a check mark, a wrong one an orange-red frame and a cross.

    Args:
        images: (N, C, H, W) uint8, one channel (gray) or three (RGB).
        queries: (Q,) int64 indices into `images`.
        neighbors: (Q, k) int64 indices into `images`, nearest first.
        correct: (Q, k) bool, whether the neighbor is of the query's class.
        query_titles: (Q,) texts above the queries; none when empty.
        neighbor_titles: (Q, k) texts above the neighbors; none when empty.
        theme: colors.

    Returns:
        The figure, Q rows and 1 + k columns.

    Raises:
        InputError: when shapes do not fit each other, or images are not uint8 of one or three channels.

    Cost: decodes nothing and reads only the images it shows.
    """
    check_images(images)
    if neighbors.ndim != 2 or len(queries) != len(neighbors) or correct.shape != neighbors.shape:
        raise InputError(
            "queries, neighbors and correct must have shapes (Q,), (Q, k) and (Q, k), got "
            f"{queries.shape}, {neighbors.shape} and {correct.shape}"
        )
    num_rows, k = neighbors.shape
    width, height = 0.4 + 1.14 * (k + 1), 1.36 * max(num_rows, 1)
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
        top=1 - 0.26 / height,
        wspace=0.08,
        hspace=0.28,
    )
    for row in range(num_rows):
        axes = figure.add_subplot(grid[row, 0])
        _draw_image(axes, images[queries[row]], query_titles[row] if query_titles else "query", theme)
        _frame(axes, theme.muted, 1.5)
        for column in range(k):
            axes = figure.add_subplot(grid[row, column + 2])
            title = neighbor_titles[row][column] if neighbor_titles else ""
            _draw_image(axes, images[neighbors[row, column]], title, theme)
            _mark(axes, bool(correct[row, column]), theme)
    return figure


def check_images(images: NDArray[np.uint8]) -> None:
    """Refuse images that cannot be drawn.

    Args:
        images: should be (N, C, H, W) uint8 with C of 1 or 3.

    Raises:
        InputError: when they are not.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"images must be uint8 of shape (N, 1, H, W) or (N, 3, H, W), got {images.dtype} {images.shape}"
        )


def _draw_image(axes: Axes, image: NDArray[np.uint8], title: str, theme: Theme) -> None:
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    axes.imshow(
        pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if max(pixels.shape) < 64 else None
    )
    axes.set_xticks([])
    axes.set_yticks([])
    shown = title if len(title) <= 14 else title[:13] + "…"
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
