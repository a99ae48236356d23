"""The machine that tables of benchmarks are drawn for in tests."""

from __future__ import annotations

from typing import Any

MACHINE: dict[str, Any] = {
    "date": "2026-11-23 12:00 UTC",
    "command": "python jobs/benchmark.py",
    "commit": "abc",
    "cpu": "Some CPU",
    "cores": 2,
    "threads": 2,
    "device": "cpu",
    "gpu": "",
    "system": "Linux x86_64",
    "python": "3.11.7",
    "torch": "2.13.0",
    "distmetric": "0.1.0",
}
