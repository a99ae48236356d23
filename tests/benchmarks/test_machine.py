"""What is said of the machine."""

from __future__ import annotations

import json

import pytest

from distmetric.benchmarks import machine
from distmetric.benchmarks.machine import describe_machine


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"faiss-cpu": "1.2.3", "pytorch-metric-learning": "2.9.0"}

    def version(package: str) -> str:
        if package in there:
            return there[package]
        raise machine.PackageNotFoundError

    monkeypatch.setattr(machine, "version", version)
    found = describe_machine("cpu", 2)
    assert json.loads(json.dumps(found)) == found
    assert (found["faiss"], found["pytorch-metric-learning"]) == ("1.2.3", "2.9.0")
    assert (found["device"], found["threads"], found["gpu"]) == ("cpu", 2, "")
    there.clear()
    assert describe_machine("cpu", 2)["faiss"] == "not installed"
    there["faiss-gpu"] = "4.5.6"
    assert describe_machine("cpu", 2)["faiss"] == "4.5.6"
