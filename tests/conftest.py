"""What every test starts from: one thread, a fixed seed, and no process group left over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _clean_slate() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's glyphs are drawn, once."""
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(autouse=True)
def _quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    # Private clusters on this machine: without a mode Ray would write a token into the home folder.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where artifacts are, of tests that left some."""
    browser = sys.modules.get("browser")
    for path in browser.KEPT if browser else []:
        terminalreporter.write_line(f"artifact: {path}")
