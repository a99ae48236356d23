"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from distmetric import __version__
from distmetric.benchmarks.losses.cells import PEER
from distmetric.benchmarks.memory import free_bytes
from distmetric.tracking.tracked_run import git_revision


def describe_machine(device: str, threads: int) -> dict[str, str | int | float]:
    """Processor, memory, versions, date, command and commit.

    Args:
        device: "cpu" or "cuda".
        threads: CPU threads of a cell in one process.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": git_revision(),
        "cpu": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "free_gib": round(free_bytes() / 2**30, 1),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "distmetric": __version__,
        PEER: _version(PEER),
        "pillow": _version("pillow"),
        "faiss": _version("faiss-gpu", "faiss-cpu"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(*packages: str) -> str:
    """Of the first of these that is installed."""
    for package in packages:
        with suppress(PackageNotFoundError):
            return version(package)
    return "not installed"
