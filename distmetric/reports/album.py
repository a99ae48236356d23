"""The charts of a page: drawn once, embedded for light and for dark, and kept as files for who wants them."""

import base64
import io
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from distmetric.reports.theme import DARK, LIGHT, Theme, darkened

Draw = Callable[[Theme], Figure]


class Album:
    """Collects what is drawn for a page.

    Args:
        keep: keep a light copy of every chart, to be saved as a file.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._files: dict[str, bytes] = {}

    def chart(self, name: str, draw: Draw, alt: str, caption: str = "") -> str:
        """Embed a figure of lines and letters, as SVG.

        Args:
            name: of its file, without an ending.
            draw: makes the figure in the colors of a theme.
            alt: text alternative, any text.
            caption: any text; none when empty.

        Returns:
            The HTML text.
        """
        light = _svg(draw(LIGHT))
        self._note(f"{name}.svg", light.encode())
        dark = darkened(light)
        return _element(_address(light.encode(), "svg+xml"), _address(dark.encode(), "svg+xml"), alt, caption)

    def dots(self, name: str, draw: Draw, alt: str, caption: str = "") -> str:
        """Embed a figure of thousands of marks, as PNG; see `chart`."""
        light, dark = (_png(draw(theme)) for theme in (LIGHT, DARK))
        self._note(f"{name}.png", light)
        return _element(_address(light, "png"), _address(dark, "png"), alt, caption)

    def extra(self, name: str, draw: Draw) -> None:
        """Keep a figure that the page shows in another way."""
        if self._keep:
            self._note(f"{name}.png", _png(draw(LIGHT)))

    def save(self, folder: Path) -> None:
        """Write the charts that were kept, one file for each, into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def _note(self, name: str, content: bytes) -> None:
        if self._keep:
            assert name not in self._files, f"two figures are called {name}"
            self._files[name] = content


def _element(light: str, dark: str, alt: str, caption: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        '<figure class="chart"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}"></picture>{below}</figure>'
    )


def _svg(figure: Figure) -> str:
    # The salt makes the ids inside an SVG, and so the whole page, the same for the same run.
    with matplotlib.rc_context({"svg.hashsalt": "distmetric"}):
        return _saved(figure, format="svg", metadata={"Date": None}).decode()


def _png(figure: Figure) -> bytes:
    # A palette of 128 colors is a third of the size, and no eye tells the difference.
    picture = Image.open(io.BytesIO(_saved(figure, format="png", dpi=160))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _saved(figure: Figure, **how: object) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A label in a script the font lacks is drawn as boxes; the page's own text still names it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
