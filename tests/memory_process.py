"""Memory measured in a process that does nothing else, and whose heap gives back at once what is freed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["measured"]

TESTS = Path(__file__).parent

# glibc keeps freed blocks for later: whether a block is taken from those or asked of the system depends on all that
# went before. With a fixed limit, large blocks come from the system and go back.
HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measured(script: str, *arguments: object, seconds: float = 280) -> list[str]:
    """Run a Python script, in which modules of the tests can be imported, and return the lines that it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=TESTS.parent,
        env={**os.environ, **HEAP, "PYTHONPATH": str(TESTS)},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()
