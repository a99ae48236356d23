"""EVIDENCE.md points at what is there: sections, studies, presets, losses, tests."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import zipfile
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


def test_the_list_of_who_drew_what_can_be_made_as_it_says(tmp_path) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for number, alphabet in ((1, "Greek"), (2, "Latin")):
        name = f"images_background_small{number}"
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.mkdir(f"{name}/{alphabet}")
            for drawer in (1, 20):
                archive.writestr(f"{name}/{alphabet}/character03/0394_{drawer:02}.png", b"")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)
    rows = list(csv.DictReader((tmp_path / "drawers.csv").open()))
    assert [row["attribute.drawer"] for row in rows] == ["Greek/01", "Greek/20", "Latin/01", "Latin/20"]
    assert {row["label"] for row in rows} == {"Greek/character03", "Latin/character03"}
    assert rows[0]["path"] == "images_background_small1/Greek/character03/0394_01.png"
    assert rows[0]["group"] == "Greek"
