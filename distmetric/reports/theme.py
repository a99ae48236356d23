"""Colors and sizes that all figures share, for light and for dark pages."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colors of a figure; the hues are Okabe and Ito's, told apart by color-blind readers too.

    Attributes:
        background: what lies behind text and lines.
        text: titles and numbers.
        muted: axes, grid lines and captions.
        colors: hue of each role: `first`, `second`, `third`, `right`, `wrong`.
    """

    background: str
    text: str
    muted: str
    colors: dict[str, str]


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
)
DARK = Theme(
    background="#1b1f24",
    text="#e6e8eb",
    muted="#98a1ac",
    colors={
        "first": "#56b4e9",
        "second": "#f0883e",
        "third": "#3ecf9f",
        "right": "#3ecf9f",
        "wrong": "#f0883e",
    },
)


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
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    return figure


def dress(axes: Axes, theme: Theme, title: str) -> None:
    """Give axes the shared look: a title on the left, two quiet spines, horizontal grid lines.

    Args:
        axes: what to dress.
        theme: colors.
        title: drawn as it is, dollar signs included.
    """
    axes.set_facecolor(theme.background)
    axes.set_title(title, loc="left", color=theme.text, fontsize=12, fontweight="bold", parse_math=False)
    axes.tick_params(colors=theme.muted, labelsize=9.5, length=0)
    axes.grid(axis="y", color=theme.muted, alpha=0.2, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.muted)
        spine.set_alpha(0.6)
