"""EVIDENCE.md points at what is there: sections, studies, presets, losses, tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "EVIDENCE.md").read_text(encoding="utf-8")


def slugs(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_a_link_leads_somewhere(link: str) -> None:
    file, _, anchor = link.partition("#")
    target = REPOSITORY / (file or "EVIDENCE.md")
    assert target.is_file()
    assert not anchor or anchor in slugs(target)


@pytest.mark.parametrize(
    ("group", "name"), sorted(set(re.findall(r"\b(study|experiment|loss|sampler|index)=(\w+)", TEXT)))
)
def test_what_it_tells_to_choose_can_be_chosen(group: str, name: str) -> None:
    assert (REPOSITORY / "conf" / group / f"{name}.yaml").is_file()


def test_the_tests_it_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)", TEXT)
    assert named
    assert [path for path in named if not (REPOSITORY / path).is_file()] == []
