"""The HTML of a report: small pieces that escape whatever text they are given."""

import base64
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from html import escape

import matplotlib
from matplotlib.figure import Figure

from distmetric.reports.theme import DARK, LIGHT, Theme

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #ffffff; --text: #1f2328; --muted: #5b6470;
  --line: #dfe3e8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #121519; --card: #1b1f24; --text: #e6e8eb;
  --muted: #98a1ac; --line: #30363d; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header { max-width: 70rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2.2rem; }
h1 { font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .2rem 0 .8rem; color: var(--muted); max-width: 46rem; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; }
.card { padding: .4rem 1rem; overflow-x: auto; }
figure { margin: 0; padding: .7rem; }
figcaption { color: var(--muted); font-size: .875rem; padding: .2rem .3rem 0; }
.panels { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.wide { overflow-x: auto; margin-bottom: .9rem; }
img { display: block; width: 100%; height: auto; }
.wide img { min-width: 34rem; max-width: 52rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; }
thead th { color: var(--muted); font-size: .875rem; }
td.number { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
.headline td.number { font-size: 1.35rem; color: var(--accent); line-height: 1.2; }
td.about { color: var(--muted); font-size: .9rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .7rem 1rem;
  margin-bottom: .9rem; }
summary { cursor: pointer; font-weight: 600; }
code, pre { font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-x: auto; margin: .4rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { padding: 2rem 0 3rem; color: var(--muted); font-size: .875rem; }
@media print { body { background: #fff; } figure, .card, details { break-inside: avoid; } }
"""


def document(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """One whole page that loads nothing and runs nothing.

    Args:
        title: heading and window title, any text.
        subtitle: one line below it, any text.
        sections: HTML made by the functions of this file; empty ones are left out.

    Returns:
        The HTML text.
    """
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n"
        f"<main>\n{body}\n<footer>Made by distmetric.</footer>\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, lead: str, *parts: str) -> str:
    """A section with a heading and one paragraph of escaped text before its parts.

    Args:
        heading: any text.
        lead: any text; no paragraph when empty.
        parts: HTML made by the functions of this file.

    Returns:
        The HTML text.
    """
    paragraph = f"<p>{escape(lead)}</p>\n" if lead else ""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{paragraph}" + "\n".join(parts) + "\n</section>"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], kind: str = "plain") -> str:
    """A table whose first column names the rows, whose second holds values, and whose third explains them.

    Args:
        head: column names, any text.
        rows: cells, any text.
        kind: class of the table in the style sheet.

    Returns:
        The HTML text.
    """
    classes = ("", ' class="number"', ' class="about"')
    lines = []
    for name, *cells in rows:
        columns = "".join(
            f"<td{css}>{escape(cell)}</td>" for cell, css in zip(cells, classes[1:], strict=False)
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{columns}</tr>')
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="card"><table class="{kind}"><thead><tr>{names}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def picture(draw: Callable[[Theme], Figure], alt: str, caption: str = "", *, photos: bool = False) -> str:
    """A figure embedded twice, so that it suits light and dark pages without a script.

    Args:
        draw: makes the figure in the colors of a theme.
        alt: text alternative, any text.
        caption: any text; none when empty.
        photos: the figure shows images: embed it as PNG, not SVG, and let it scroll on a narrow screen.

    Returns:
        The HTML text.
    """
    light, dark = (_data_address(draw(theme), "png" if photos else "svg") for theme in (LIGHT, DARK))
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f"<figure{' class=wide' if photos else ''}><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}"></picture>{below}</figure>'
    )


def details(summary: str, content: Mapping[str, object]) -> str:
    """A folded listing of nested settings, one `key: value` a line.

    Args:
        summary: what is folded, any text.
        content: names to values; mappings may be nested.

    Returns:
        The HTML text.
    """
    listing = escape("\n".join(_lines(content)))
    return f"<details><summary>{escape(summary)}</summary><pre>{listing}</pre></details>"


def _lines(content: Mapping[str, object], indent: str = "") -> Iterable[str]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value}"


def _data_address(figure: Figure, form: str) -> str:
    buffer = io.BytesIO()
    # The salt makes the ids inside an SVG, and so the whole page, the same for the same run.
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "distmetric"}):
        # A label in a script the font lacks is drawn as boxes; the page's own text still names it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
    kind = "image/svg+xml" if form == "svg" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
