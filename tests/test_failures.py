"""FAILURES.md promises nothing that no test shows."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = ("what breaks", "what you see", "what is lost", "shown by")


def rows() -> list[list[str]]:
    text = (REPOSITORY / "FAILURES.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.lstrip().startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line[1:-1])] for line in lines]
    return [row for row in cells if tuple(row) != COLUMNS and set("".join(row)) - set("-: ")]


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_there_is_a_table() -> None:
    assert len(rows()) >= 40


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_row_says_what_is_seen_and_lost_and_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == len(COLUMNS), row
    assert all(row), row
    assert re.match(r"nothing|at most ", row[2]), row[2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[3])
    assert named, row[3]
    for path, name in named:
        assert name in names_in(path), f"{path} has no {name}"
