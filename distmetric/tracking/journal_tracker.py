"""The tracker of a run: into the history in its folder, from where others bring it to a server."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from typing import Any

from distmetric.errors import ResourceError
from distmetric.tracking.journal import MEASURED, JournalWriter, now, read_stream

_WRITE_EVERY_S = 5.0

log = logging.getLogger(__name__)


class JournalTracker:
    """Logs into the history of a run, never a step twice.

    A resumed run repeats the steps after its checkpoint; what the history has of them already is not noted again. What
    is noted is written every few seconds by a thread, and at once by `flush`. Several threads may log.

    Args:
        run_dir: Folder of the run, a path or URI.

    Raises:
        ResourceError: If the folder cannot be written.

    Cost: reads the history once; keeps what was noted since the last write in memory.
    """

    def __init__(self, run_dir: str) -> None:
        self._last: dict[str, int] = {}
        for record in read_stream(run_dir, MEASURED):
            for name in record["metrics"]:
                self._last[name] = max(record["step"], self._last.get(name, -1))
        self._writer = JournalWriter(run_dir, MEASURED)
        self._noted: list[dict[str, Any]] = []
        self._noting, self._writing = threading.Lock(), threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, name="history", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log`; values that are not finite are left out."""
        with self._noting:
            fresh = {
                name: float(value)
                for name, value in metrics.items()
                if step > self._last.get(name, -1) and math.isfinite(value)
            }
            if fresh:
                self._last |= dict.fromkeys(fresh, step)
                self._noted.append({"step": int(step), "time": now(), "metrics": fresh})

    def next_step(self, prefix: str) -> int:
        """The first step after all those that metrics with such names have."""
        with self._noting:
            return max((last + 1 for name, last in self._last.items() if name.startswith(prefix)), default=0)

    def flush(self) -> None:
        """See `Tracker.flush`.

        Raises:
            ResourceError: If the folder cannot be written; what was noted is kept for the next time.
        """
        with self._writing:
            with self._noting:
                records, self._noted = self._noted, []
            if not records:
                return
            try:
                self._writer.write(records)
            except BaseException:
                with self._noting:
                    self._noted = records + self._noted
                raise

    def close(self) -> None:
        """See `Tracker.close`; where the folder cannot be written, that is logged."""
        self._over.set()
        self._thread.join(timeout=60)
        self._flush_or_say_so()

    def _write_regularly(self) -> None:
        said = False
        while not self._over.wait(_WRITE_EVERY_S):
            said = not self._flush_or_say_so(quietly=said)

    def _flush_or_say_so(self, quietly: bool = False) -> bool:
        try:
            self.flush()
        except ResourceError as error:
            if not quietly:
                log.warning("%s", error)
            return False
        return True
