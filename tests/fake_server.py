"""A tracking server in memory that can be away, hang, refuse, or take things without saying so."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distmetric.tracking.server import NoAnswerError, Point, RefusedError, UnacceptableError


class FakeServer:
    """Keeps what it is given as MLflow does: the same thing twice is there once.

    Args:
        patience_s: See `Server`.
    """

    def __init__(self, patience_s: float = 10.0) -> None:
        self.uri = self.address = "fake://server"
        self.patience_s = patience_s
        self.error: Exception | None = None  # raised by every call
        self.error_after: Exception | None = None  # raised by every call that has had its effect
        self.unacceptable: set[str] = set()
        self.answering = threading.Event()
        self.answering.set()
        self.asked = threading.Event()  # by a call that hangs
        self.callers: set[str] = set()
        self.calls = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.points: dict[str, list[Point]] = defaultdict(list)
        self.told: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.attached: dict[str, dict[str, bytes]] = defaultdict(dict)

    def open(self, run: Mapping[str, Any], run_id: str | None) -> str:
        self._enter()
        if run_id is not None and run_id in self.runs:
            found = run_id
        else:
            same = [known for known, kept in self.runs.items() if kept["key"] == run["key"]]
            found = same[0] if same else f"run-{len(self.runs)}"
            self.runs[found] = dict(run)
        return self._leave(found)

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        self._enter()
        self._check(run_id)
        if bad := self.unacceptable & {point.name for point in points}:
            raise UnacceptableError(f"no such thing as {min(bad)}")
        for point in points:
            if point not in self.points[run_id]:
                self.points[run_id].append(point)
        self._leave()

    def tell(self, run_id: str, record: Mapping[str, Any]) -> None:
        self._enter()
        self._check(run_id)
        if record["kind"] in self.unacceptable:
            raise UnacceptableError("not that")
        if record not in self.told[run_id]:
            self.told[run_id].append(dict(record))
        self._leave()

    def attach(self, run_id: str, path: str, folder: str) -> None:
        self._enter()
        self._check(run_id)
        if "attach" in self.unacceptable:
            raise UnacceptableError("its disk is full")
        name = Path(path).name
        self.attached[run_id][f"{folder}/{name}" if folder else name] = Path(path).read_bytes()
        self._leave()

    def hang(self) -> None:
        """Take calls and answer none until `go_on`."""
        self.asked.clear()
        self.answering.clear()

    def go_on(self) -> None:
        """Answer again, the calls that hang first."""
        self.answering.set()

    def series(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """What was logged by name, in the order in which it came."""
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for point in self.points[run_id]:
            found[point.name].append((point.step, point.value))
        return dict(found)

    def statuses(self, run_id: str) -> list[str]:
        return [record["status"] for record in self.told[run_id] if record["kind"] == "status"]

    def _enter(self) -> None:
        self.calls += 1
        self.callers.add(threading.current_thread().name)
        if not self.answering.is_set():
            self.asked.set()
            assert self.answering.wait(60)
        if self.error is not None:
            raise self.error

    def _leave(self, value: Any = None) -> Any:
        if self.error_after is not None:
            raise self.error_after
        return value

    def _check(self, run_id: str) -> None:
        if run_id not in self.runs:
            raise UnacceptableError("no such run")


AWAY = NoAnswerError("connection refused")
FORBIDDEN = RefusedError("403: not you")
