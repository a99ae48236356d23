"""Verification, identification and calibration from their definitions: plain loops over pairs, float64, no tensors."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Rows = Sequence[Sequence[float]]

# Small multiples of 1/4 have exact squared distances, and so few values that most distances are tied.
coordinates = st.integers(-2, 2).map(lambda value: value / 4)


@st.composite
def labeled(draw: st.DrawFn, min_rows: int = 3, classes: int = 4) -> tuple[list[list[float]], list[int]]:
    """Rows with many ties and duplicates, with two rows of one class and one of another."""
    size = draw(st.integers(min_rows, 24))
    rows = draw(st.lists(st.lists(coordinates, min_size=2, max_size=2), min_size=size, max_size=size))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    labels[0], labels[1], labels[2] = 0, 0, 1
    return rows, labels


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def pairs(rows: Rows, labels: Sequence[int]) -> tuple[list[float], list[bool]]:
    found, same = [], []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            found.append(distance(rows[i], rows[j]))
            same.append(labels[i] == labels[j])
    return found, same


def rates(distances: Sequence[float], same: Sequence[bool], threshold: float) -> tuple[float, float]:
    """TAR and FAR of "same if at most this far apart"."""
    positives = [d for d, s in zip(distances, same, strict=True) if s]
    negatives = [d for d, s in zip(distances, same, strict=True) if not s]
    return (
        sum(d <= threshold for d in positives) / len(positives),
        sum(d <= threshold for d in negatives) / len(negatives),
    )


def threshold_at(candidates: Sequence[float], negatives: Sequence[float], far: float) -> float:
    """The largest candidate that accepts at most this fraction of the negatives; below all where there is none."""
    allowed = [
        d
        for d in candidates
        if Fraction(sum(n <= d for n in negatives), len(negatives)) <= Fraction(str(far))
    ]
    return max(allowed) if allowed else math.nextafter(min(candidates), -math.inf)


def calibrate(distances: Sequence[float], same: Sequence[bool], far: float) -> tuple[float, float, float]:
    """Threshold, TAR and FAR."""
    negatives = [d for d, s in zip(distances, same, strict=True) if not s]
    threshold = threshold_at(distances, negatives, far)
    return threshold, *rates(distances, same, threshold)


def area(distances: Sequence[float], same: Sequence[bool]) -> float:
    positives = [d for d, s in zip(distances, same, strict=True) if s]
    negatives = [d for d, s in zip(distances, same, strict=True) if not s]
    wins = sum(1.0 if p < n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def equal_error(distances: Sequence[float], same: Sequence[bool]) -> float:
    """Walk the points (FAR, FRR) of all thresholds up to where FAR is no longer below FRR, and meet the diagonal."""
    far, frr = 0.0, 1.0
    for threshold in sorted(set(distances)):
        tar, next_far = rates(distances, same, threshold)
        if next_far >= 1.0 - tar:
            part = (frr - far) / ((frr - far) + next_far - (1.0 - tar))
            return far + part * (next_far - far)
        far, frr = next_far, 1.0 - tar
    raise AssertionError("accepting everything has FAR 1 and FRR 0")


def identification(
    gallery: Rows,
    gallery_labels: Sequence[int],
    probes: Rows,
    probe_labels: Sequence[int],
    fars: Sequence[float],
    ranks: Sequence[int],
) -> dict[str, Any]:
    """DIR by (far, rank), thresholds by far, closed-set rates by rank."""
    mated: list[tuple[float, int]] = []
    strangers: list[float] = []
    for probe, label in zip(probes, probe_labels, strict=True):
        to: dict[int, float] = {}
        for row, name in zip(gallery, gallery_labels, strict=True):
            to[name] = min(to.get(name, math.inf), distance(probe, row))
        if label in to:
            mated.append((to[label], sum(other <= to[label] for other in to.values())))
        else:
            strangers.append(min(to.values()))
    thresholds = {
        far: threshold_at([*strangers, *(d for d, _ in mated)], strangers, far)
        for far in fars
        if Fraction(str(far)) * len(strangers) >= 1
    }
    return {
        "dir": {
            (far, rank): sum(d <= threshold and r <= rank for d, r in mated) / len(mated)
            for far, threshold in thresholds.items()
            for rank in ranks
        },
        "thresholds": thresholds,
        "closed": {rank: sum(r <= rank for _, r in mated) / len(mated) for rank in ranks},
    }


def shared(cuts: Sequence[int], work: Callable[[slice, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """What each of some workers gets that share anchors at these cuts and add up int64 tensors."""
    workers = len(cuts) - 1
    barrier = threading.Barrier(workers, timeout=300)
    slots: list[Tensor] = [torch.empty(0)] * workers
    results: list[Any] = [None] * workers

    def run(worker: int) -> None:
        def add(counts: Tensor) -> Tensor:
            assert counts.dtype == torch.int64
            slots[worker] = counts.clone()
            barrier.wait()
            total = torch.stack(slots).sum(dim=0)
            barrier.wait()
            return total

        results[worker] = work(slice(cuts[worker], cuts[worker + 1]), add)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
