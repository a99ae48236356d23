"""Where the catalogs of the tests of ingest go."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "set.arrow"
