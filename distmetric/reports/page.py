"""The HTML of a report: small pieces that escape whatever text they are given, and the file they end in."""

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from distmetric.reports.style import STYLE


@dataclass(frozen=True)
class Cell:
    """What stands in a cell of a table: a text, a smaller one below it, and how it looks.

    Attributes:
        text: any text.
        below: any text.
        kind: class in the style sheet.
    """

    text: str
    below: str = ""
    kind: str = ""

    def html(self, tag: str = "td", attributes: str = "") -> str:
        """The cell as an element."""
        small = f"<small>{escape(self.below)}</small>" if self.below else ""
        kind = f' class="{self.kind}"' if self.kind else ""
        return f"<{tag}{attributes}{kind}>{self.inner()}{small}</{tag}>"

    def inner(self) -> str:
        """The text as HTML."""
        return escape(self.text)


@dataclass(frozen=True)
class RawCell(Cell):
    """A cell whose text is HTML made by the functions of this room."""

    def inner(self) -> str:
        """The HTML."""
        return self.text


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading of its own.

    Attributes:
        heading: any text.
        lead: one paragraph of any text before the parts; none when empty.
        parts: HTML made by the functions of this room; a section without any is left out.
    """

    heading: str
    lead: str
    parts: Sequence[str]

    @property
    def anchor(self) -> str:
        """What links inside the page call it."""
        return re.sub(r"\W+", "-", self.heading.lower()).strip("-")

    def html(self) -> str:
        """The HTML text."""
        paragraph = f"<p>{escape(self.lead)}</p>\n" if self.lead else ""
        heading = f'<h2 id="{self.anchor}">{escape(self.heading)}</h2>'
        return f"<section>\n{heading}\n{paragraph}" + "\n".join(self.parts) + "\n</section>"


def document(title: str, subtitle: str, sections: Iterable[Section], notes: Sequence[str] = ()) -> str:
    """One whole page that loads nothing and runs nothing.

    Args:
        title: heading and window title, any text.
        subtitle: one line below it, any text.
        sections: from top to bottom; those without parts are left out.
        notes: what has to be said before anything else, any texts.

    Returns:
        The HTML text.
    """
    shown = [section for section in sections if section.parts]
    links = "".join(f'<a href="#{each.anchor}">{escape(each.heading)}</a>' for each in shown)
    body = "\n".join(each.html() for each in shown)
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{said}"
        f"{f'<nav>{links}</nav>' if len(shown) > 2 else ''}</header>\n"
        f"<main>\n{body}\n<footer>Made by distmetric.</footer>\n</main>\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "plain") -> str:
    """A table whose first column names the rows.

    Args:
        head: column names, any text.
        rows: cells.
        kind: class of the table in the style sheet.

    Returns:
        The HTML text.
    """
    scope = ' scope="row"'
    lines = [
        f"<tr>{first.html('th', scope)}{''.join(cell.html() for cell in rest)}</tr>" for first, *rest in rows
    ]
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="card {kind}"><table><thead><tr>{names}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
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


def write_page(path: Path, text: str) -> Path:
    """Write a page in one step, so that a reader sees the old one or the new one and a failure keeps the old one.

    Args:
        path: file to write; its folder is made.
        text: the page.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files that only their owner may read; a report is for others.
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
