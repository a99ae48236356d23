"""Retrieval and re-identification from their definitions: plain loops over Python floats, one query at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence[float]]


def ranking(query: Sequence[float], gallery: Rows, skip: int | None = None) -> list[int]:
    """Gallery indices by distance, ties by index."""
    distances = [math.fsum((a - b) ** 2 for a, b in zip(query, row, strict=True)) for row in gallery]
    return sorted((j for j in range(len(gallery)) if j != skip), key=lambda j: (distances[j], j))


def retrieval_of_hits(hits: Sequence[bool], R: int, ks: Sequence[int]) -> dict[str, float]:
    """The measures of one query: is the i-th item right, of R right ones that there are."""
    precisions = [sum(hits[: at + 1]) / (at + 1) for at in range(len(hits))]
    found = [at for at, hit in enumerate(hits) if hit]
    return {
        **{f"recall_at_{k}": float(any(hits[:k])) for k in ks},
        "map_at_r": sum(precisions[at] for at in found if at < R) / R,
        "r_precision": sum(hits[:R]) / R,
        "mean_average_precision": sum(precisions[at] for at in found) / R,
        "mean_reciprocal_rank": 1 / (found[0] + 1) if found else 0.0,
    }


def mean_of(measures: Sequence[dict[str, float]], lone: int, lone_name: str) -> dict[str, float]:
    """Means by name, and how many were and were not counted."""
    means = {name: sum(each[name] for each in measures) / len(measures) for name in measures[0]}
    return {**means, "num_queries": float(len(measures)), lone_name: float(lone)}


def retrieval(
    queries: Rows,
    labels: Sequence[int],
    gallery: Rows,
    gallery_labels: Sequence[int],
    leave_one_out: bool,
    ks: Sequence[int] = (1, 2, 4, 8),
) -> dict[str, float]:
    """What `evaluate(..., whole_ranking=True).to_dict()` should say."""
    measures = []
    for i, query in enumerate(queries):
        hits = [gallery_labels[j] == labels[i] for j in ranking(query, gallery, i if leave_one_out else None)]
        if any(hits):
            measures.append(retrieval_of_hits(hits, sum(hits), ks))
    return mean_of(measures, len(queries) - len(measures), "num_lone_queries")


def without_whole_ranking(metrics: dict[str, float]) -> dict[str, float]:
    whole = ("mean_average_precision", "mean_reciprocal_rank")
    return {name: value for name, value in metrics.items() if name not in whole}


def step_average_precision(hits: Sequence[bool]) -> float:
    """Mean of the precisions at the right items."""
    precisions = [sum(hits[: at + 1]) / (at + 1) for at in range(len(hits)) if hits[at]]
    return sum(precisions) / len(precisions)


def market_average_precision(good: Sequence[int], junk: Sequence[int], index: Sequence[int]) -> float:
    """The loop of Market-1501's compute_AP.m, line by line."""
    old_recall, old_precision, ap = 0.0, 1.0, 0.0
    intersect_size, j, good_now = 0, 0, 0
    for item in index:
        flag = item in good
        if flag:
            good_now += 1
        if item in junk:
            continue
        if flag:
            intersect_size += 1
        recall = intersect_size / len(good)
        precision = intersect_size / (j + 1)
        ap += (recall - old_recall) * ((old_precision + precision) / 2)
        old_recall, old_precision = recall, precision
        j += 1
        if good_now == len(good):
            break
    return ap


def reid(
    queries: Rows,
    labels: Sequence[int],
    cameras: Sequence[int],
    gallery: Rows,
    gallery_labels: Sequence[int],
    gallery_cameras: Sequence[int],
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
    junk_label: int | None = None,
    average_precision: str = "step",
) -> dict[str, float]:
    """What `evaluate_reid(...).to_dict()` should say."""
    measures = []
    for i, query in enumerate(queries):
        order = ranking(query, gallery)
        junk = [
            j
            for j in order
            if gallery_labels[j] == junk_label
            or (gallery_labels[j] == labels[i] and gallery_cameras[j] == cameras[i])
        ]
        good = [j for j in order if gallery_labels[j] == labels[i] and j not in junk]
        if not good:
            continue
        hits = [j in good for j in order if j not in junk]
        last = max(at for at, hit in enumerate(hits) if hit) + 1
        trapezoid = market_average_precision(good, junk, order)
        measures.append(
            {
                **{f"cmc_at_{k}": float(any(hits[:k])) for k in ks},
                "mean_average_precision": trapezoid
                if average_precision == "trapezoid"
                else step_average_precision(hits),
                "mean_inverse_negative_penalty": len(good) / last,
            }
        )
    return mean_of(measures, len(queries) - len(measures), "num_unanswerable_queries")


def clusters(
    num_classes: int, per_class: int, dim: int, seed: int = 0, spread: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Gaussian classes that overlap, and their labels, in the order of the classes."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, dim, generator=generator).repeat_interleave(per_class, dim=0)
    rows = centers + spread * torch.randn(len(centers), dim, generator=generator)
    return rows, torch.arange(num_classes).repeat_interleave(per_class)
