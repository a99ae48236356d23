"""A disk of its own that a test may fill, and places that cannot be written to whoever asks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

UNWRITABLE = "/proc/distmetric"
"""A folder that nobody can make, not even root, whom modes do not stop."""


@contextmanager
def disk_of(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a disk of some size on a folder; the test is skipped where this process may not."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    with suppress(FileNotFoundError):
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if mounted.returncode == 0:
            try:
                yield folder
            finally:
                subprocess.run(["umount", "-l", str(folder)], timeout=20, check=True)
            return
    pytest.skip("mounting a small disk takes root")


def fill(disk: Path) -> Path:
    """Leave no byte free; the file that takes the space is returned, to be deleted."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return ballast
