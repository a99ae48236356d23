"""What a run leaves in its `index` folder, kept for the reference before the run drops it, and how far the run is."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

_LOOK_EVERY_S = 0.03
_KEPT = re.compile(r"round_(\d+)\.json|snapshot_\d+\.arrow")


class IndexWatch:
    """Copies every snapshot and every note of a round of a run as soon as it is there, by hard link.

    A round is noted, on the disk, one step before its first step; so the newest note also tells how far training has
    come, whoever is killed.

    Args:
        run_dir: The run's folder.
        kept: Folder for the copies, on the same file system; made.
    """

    def __init__(self, run_dir: Path, kept: Path) -> None:
        self._index, self.kept = run_dir / "index", kept
        kept.mkdir(parents=True)
        self._names = set[str]()
        self._newest = -1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="index-watch", daemon=True)
        self._thread.start()

    @property
    def newest_round(self) -> int:
        """Number of the newest round that was noted; -1 before the first."""
        return self._newest

    def wait_beyond(
        self, number: int, seconds: float, is_hopeless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until a later round than `number` is noted; False if that takes too long, or will never be."""
        deadline = time.monotonic() + seconds
        while self._newest <= number:
            if time.monotonic() > deadline or is_hopeless():
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def missing(self, rounds: int) -> list[int]:
        """Which of the first so many rounds have no note here."""
        return [number for number in range(rounds) if f"round_{number:08d}.json" not in self._names]

    def close(self) -> None:
        """Look once more, and stop."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            last = self._over.wait(_LOOK_EVERY_S)
            self._look()
            if last:
                return

    def _look(self) -> None:
        try:
            names = [entry.name for entry in os.scandir(self._index)]
        except FileNotFoundError:
            return
        for name in names:
            match = _KEPT.fullmatch(name)
            if match is None or name in self._names:
                continue
            try:
                _copy(self._index / name, self.kept / name)
            except FileNotFoundError:  # it was dropped meanwhile
                continue
            self._names.add(name)
            if match.group(1) is not None:
                self._newest = max(self._newest, int(match.group(1)))


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
