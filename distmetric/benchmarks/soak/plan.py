"""Which faults come when: drawn from a seed, every kind as often as the others."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distmetric.errors import ConfigError

KINDS = {
    "kill_worker": "SIGKILL of one training worker, which Ray replaces",
    "kill_index_actor": "SIGKILL of the actor that owns the index, which Ray restarts",
    "drop_pushes": "SIGSTOP of that actor for some seconds: embeddings that are pushed pile up and are dropped",
    "slow_disk": (
        "another process writes to the same disk and waits for it (fsync) all the time, and workers that are writing a "
        "checkpoint meanwhile are held up in it (SIGSTOP)"
    ),
    "kill_driver": "SIGKILL of the driver alone, and resume= at once, while its workers may still be there",
    "kill_everything": "SIGKILL of the driver and of every process of its Ray, then resume=",
    "stop": "SIGTERM to the driver, which has to save and to end with exit code 5, then resume=",
}
"""What is injected, and how."""


@dataclass(frozen=True)
class Planned:
    """A fault to come.

    Args:
        kind: One of `KINDS`.
        wait_s: Seconds of undisturbed training before it.
        draw: In [0, 1): which of several processes it hits.
    """

    kind: str
    wait_s: float
    draw: float


def plan(seed: int, faults_per_minute: float, kinds: Sequence[str] | None = None) -> Iterator[Planned]:
    """Faults without end.

    Args:
        seed: The same one gives the same faults.
        faults_per_minute: Of training that is not disturbed; from 0.5 to 1.5 times the mean time lies between two.
        kinds: Names; None for all.

    Raises:
        ConfigError: If a name is none of `KINDS`.
    """
    for name in kinds or ():
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1)
            fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(KINDS)}"
            raise ConfigError(f"faults={name} is not a fault that can be injected: {fix}")
    return _drawn(random.Random(seed), 60.0 / faults_per_minute, list(kinds or KINDS))


def _drawn(draw: random.Random, mean_s: float, kinds: list[str]) -> Iterator[Planned]:
    while True:
        draw.shuffle(kinds)
        for kind in kinds:
            yield Planned(kind, mean_s * draw.uniform(0.5, 1.5), draw.random())
