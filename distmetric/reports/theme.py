"""Colors and sizes that all figures share, for light and for dark pages."""

import re
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIGURE_WIDTH = 4.5
"""Inches: a figure as wide as a phone keeps its letters at about their size in points."""
SMALL = 9.5
"""Points of whatever is no title."""


@dataclass(frozen=True)
class Theme:
    """Colors of a figure; the first hues are Okabe and Ito's, told apart by color-blind readers too.

    Attributes:
        background: what lies behind text and lines.
        text: titles and numbers.
        muted: axes, grid lines and captions.
        colors: hue of each role: `first`, `second`, `third`, `right`, `wrong`.
        series: ten hues for things that are told apart, the roles' among them.
    """

    background: str
    text: str
    muted: str
    colors: dict[str, str]
    series: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    text="#1f2328",
    muted="#6b7280",
    colors={
        "first": "#0072b2",
        "second": "#d55e00",
        "third": "#009e73",
        "right": "#00805d",
        "wrong": "#c2410c",
    },
    series=(
        *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a87800"),
        *("#2aa5c9", "#7b5ea7", "#8c564b", "#5b8c1a", "#4d5560"),
    ),
)
DARK = Theme(
    background="#1b1f24",
    text="#e6e8eb",
    muted="#98a1ac",
    colors={
        "first": "#56b4e9",
        "second": "#f0883e",
        "third": "#3ecf9f",
        "right": "#3fd0a0",
        "wrong": "#f5845b",
    },
    series=(
        *("#56b4e9", "#f0883e", "#3ecf9f", "#e8a3c8", "#e3b341"),
        *("#7ee3f2", "#b99cf0", "#c99a8b", "#a5d64c", "#c3cad3"),
    ),
)
_DARK_OF = dict(
    zip(
        (LIGHT.background, LIGHT.text, LIGHT.muted, *LIGHT.colors.values(), *LIGHT.series),
        (DARK.background, DARK.text, DARK.muted, *DARK.colors.values(), *DARK.series),
        strict=True,
    )
)


def darkened(svg: str) -> str:
    """What a light figure's SVG is on a dark page: every color of the light theme becomes that of the dark one.

    Drawing is what takes time, and both drawings differ in nothing else.
    """
    return re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: _DARK_OF.get(found[0], found[0]), svg)


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Make an empty figure without touching pyplot's global state.

    Args:
        width: inches.
        height: inches.
        theme: colors.

    Returns:
        A figure with the theme's background that lays itself out when drawn.
    """
    figure = Figure(figsize=(width, height), facecolor=theme.background)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return figure


def single_axes(
    width: float,
    height: float,
    theme: Theme,
    title: str,
    *,
    left: float = 0.62,
    bottom: float = 0.55,
    right: float = 0.15,
    top: float = 0.42,
) -> tuple[Figure, Axes]:
    """Make a figure with one pair of dressed axes and margins in inches.

    Fixed margins keep the charts of a page aligned, and solving for others is half of the time that drawing takes.

    Args:
        width: inches.
        height: inches.
        theme: colors.
        title: of the axes, any text.
        left: margin in inches.
        bottom: margin in inches.
        right: margin in inches.
        top: margin in inches.

    Returns:
        The figure and its axes.
    """
    figure = new_figure(width, height, theme)
    figure.set_layout_engine("none")
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(place)
    dress(axes, theme, title)
    return figure, axes


def dress(axes: Axes, theme: Theme, title: str) -> None:
    """Give axes the shared look: a title on the left, two quiet spines, horizontal grid lines.

    Args:
        axes: what to dress.
        theme: colors.
        title: drawn as it is, dollar signs included.
    """
    axes.set_facecolor(theme.background)
    axes.set_title(title, loc="left", color=theme.text, fontsize=12, fontweight="bold", parse_math=False)
    axes.tick_params(colors=theme.muted, labelsize=SMALL, length=0)
    axes.grid(axis="y", color=theme.muted, alpha=0.2, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.muted)
        spine.set_alpha(0.6)
