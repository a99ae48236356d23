"""What a start took, part by part, also where it goes on in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from distmetric import startup
from distmetric.startup import StartUp


def test_every_part_is_what_passed_since_the_one_before_and_the_total_is_their_sum(monkeypatch) -> None:
    times = iter([10.0, 10.5, 12.5, 13.0, 13.25])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    start = StartUp()
    for name in ("imports", "ray", "checks", "ray"):
        start.mark(name)
    assert start.seconds() == {"imports": 0.5, "ray": 2.25, "checks": 0.5, "total": 3.25}
    assert start.metrics() == {
        "time/startup_imports": 0.5,
        "time/startup_ray": 2.25,
        "time/startup_checks": 0.5,
        "time/startup_total": 3.25,
    }


def test_a_whole_start_begins_with_the_birth_of_the_process() -> None:
    code = (
        "import time; time.sleep(0.3); from distmetric.startup import StartUp; "
        "start = StartUp(is_whole=True); start.mark('x'); print(start.seconds()['x'])"
    )
    before = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.3 <= float(told) <= time.monotonic() - before + 0.05  # its birth is told in hundredths


def test_another_process_of_the_machine_goes_on_and_one_elsewhere_does_not(monkeypatch) -> None:
    start = StartUp()
    start.mark("checks")
    handed_over = json.loads(json.dumps(start.handed_over()))
    there = StartUp.taken_over(handed_over)
    assert there is not None
    there.mark("workers")
    assert there.seconds()["checks"] == pytest.approx(start.seconds()["checks"])
    assert list(there.seconds()) == ["checks", "workers", "total"]
    monkeypatch.setattr(startup, "_machine", lambda: "another one")
    assert StartUp.taken_over(handed_over) is None
