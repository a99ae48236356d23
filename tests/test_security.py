"""SECURITY.md promises nothing that no test shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def promises() -> list[tuple[str, str]]:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.partition("## What is checked")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [(promise.strip(), tests.strip()) for promise, tests in rows[1:]]


def test_there_are_promises() -> None:
    assert len(promises()) >= 10


@pytest.mark.parametrize(("promise", "tests"), promises(), ids=lambda text: text[:40])
def test_every_promise_names_tests_that_exist(promise: str, tests: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", tests)
    assert promise
    assert len(named) == tests.count("`tests/") > 0, tests
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in found or not name, f"{path} has no {name}"
