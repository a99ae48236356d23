"""Re-identification: CMC, mAP and mINP with the camera rule, exact and streamed over blocks of queries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.confidence import bootstrap_intervals
from distmetric.evaluation.inputs import Array, as_labels, as_tensor
from distmetric.evaluation.listed_rankings import listed_rankings
from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.evaluation.relevance import MISSING, precision_at_hits, ranks_of_hits, sum_of_row
from distmetric.evaluation.relevant_ranks import RelevantRanks

AveragePrecision = Literal["step", "trapezoid"]


@dataclass(frozen=True)
class ReidMetrics:
    """What re-identification reached; means over the queries that have something to find.

    Attributes:
        queries: number of queries with at least one gallery item of their class from another camera.
        unanswerable_queries: number of queries without any, which no mean counts.
        cmc_at: for each k, the fraction of queries with a right item among the k nearest that count, 0..1.
        mean_average_precision: 0..1.
        mean_inverse_negative_penalty: mean of R / rank of the last right item, 0..1.
        intervals: (low, high) of the 95 % bootstrap interval of each mean, by the names of `to_dict`; empty unless
            resamples were asked for.
    """

    queries: int
    unanswerable_queries: int
    cmc_at: dict[int, float]
    mean_average_precision: float
    mean_inverse_negative_penalty: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats: `cmc_at_1`, ..., `mean_average_precision`, `mean_inverse_negative_penalty`, counts."""
        return {
            **{f"cmc_at_{k}": value for k, value in self.cmc_at.items()},
            "mean_average_precision": self.mean_average_precision,
            "mean_inverse_negative_penalty": self.mean_inverse_negative_penalty,
            "num_queries": float(self.queries),
            "num_unanswerable_queries": float(self.unanswerable_queries),
        }


@torch.no_grad()
def evaluate_reid(
    query_embeddings: Array,
    query_labels: Array,
    query_cameras: Array,
    gallery_embeddings: Array,
    gallery_labels: Array,
    gallery_cameras: Array,
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
    junk_label: int | None = None,
    average_precision: AveragePrecision = "step",
    resamples: int = 0,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> ReidMetrics:
    """Measure how well persons (vehicles, ...) are found again in the images of other cameras: single query.

    Of the ranking of the gallery by euclidean distance, items of the query's class AND camera are left out, as are
    junk items; the right items of a query are the R remaining ones of its class, at ranks r_1 < ... < r_R of what
    remains. All others, classes without a query (distractors) among them, are wrong.

    CMC@k = mean_q [r_1 <= k];  mINP = mean_q R / r_R;  mAP = mean_q AP_q with, by `average_precision`,
    step:      AP = (1 / R) sum_i i / r_i                                             (scikit-learn's)
    trapezoid: AP = (1 / R) sum_i (P(r_i - 1) + i / r_i) / 2,  P(n) = (i - 1) / n,  P(0) = 1    (Market-1501's)

    Args:
        query_embeddings: (Q, D) real numbers, finite.
        query_labels: (Q,) integer classes.
        query_cameras: (Q,) integers.
        gallery_embeddings: (G, D); may be the queries themselves, which their camera excludes from their own ranking.
        gallery_labels: (G,) integer classes.
        gallery_cameras: (G,) integers.
        ks: the k of CMC@k; one beyond the gallery's size means all of it.
        junk_label: class of gallery items that are neither right nor wrong (-1 in Market-1501); None if there is none.
        average_precision: "trapezoid" is what the MATLAB script of Market-1501 computes and older papers report; it is
            about a point lower.
        resamples: bootstrap resamples of the queries for 95 % intervals of all means; 0 for none.
        seed: of the resamples.
        block_bytes: memory for one block of queries, in bytes.

    Returns:
        The metrics as one value object.

    Raises:
        InputError: when embeddings are not finite, lengths or dimensions differ, all of the gallery is junk, no query
            has a right item, or some k < 1.

    Cost: Q * G * D multiplications and the ranks of all items of the queries' classes, see `ItemRanks`; `block_bytes`
    and three copies of the gallery, never a Q x G array. Ties go to the lower gallery index.

    References: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015; mINP: Ye et al., Deep Learning
    for Person Re-identification: A Survey and Outlook, TPAMI 2021 (arXiv:2001.04193).
    """
    depths = _depths(ks, average_precision)
    rows, labels = as_tensor(gallery_embeddings), as_tensor(gallery_labels)
    cameras = as_labels(gallery_cameras, rows, "gallery cameras")
    if junk_label is not None:
        kept = as_labels(labels, rows, "gallery labels") != junk_label
        rows, labels, cameras = rows[kept], labels.to(rows.device)[kept], cameras[kept]
    search = RelevantRanks(query_embeddings, query_labels, rows, labels, None, block_bytes)
    relevant = search.relevant
    query_cameras = as_labels(query_cameras, relevant, "query cameras")
    cameras = cameras.to(relevant.device)
    measures = _no_measures(relevant, depths)
    for block, items, ranks in search.all_items():
        ranks, order = ranks.sort(dim=1)
        items = items.gather(1, order)
        skipped = (items >= 0) & (cameras[items.clamp(min=0)] == query_cameras[block, None])
        right = ((items >= 0) & ~skipped).sum(dim=1)
        ranks = (
            (ranks - skipped.cumsum(dim=1)).masked_fill_(skipped | (items < 0), MISSING).sort(dim=1).values
        )
        known = right > 0
        measures[block[known]] = reid_values(ranks[known], right[known], depths, average_precision)
    return _metrics(measures, depths, resamples, seed)


@torch.no_grad()
def reid_metrics_of_rankings(
    neighbors: Array,
    query_labels: Array,
    query_cameras: Array,
    gallery_labels: Array,
    gallery_cameras: Array,
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
    junk_label: int | None = None,
    average_precision: AveragePrecision = "step",
    resamples: int = 0,
    seed: int = 0,
) -> ReidMetrics:
    """Measure lists of neighbors that somebody else made, by re-ranking say, as `evaluate_reid` measures rankings.

    Args:
        neighbors: (Q, k) gallery indices, nearest first, none twice in a list; -1 at the end of shorter lists. Items of
            the query's class and camera and junk items may be there: they are skipped.
        query_labels: (Q,) integer classes.
        query_cameras: (Q,) integers.
        gallery_labels: (G,) integer classes.
        gallery_cameras: (G,) integers.
        ks: see `evaluate_reid`, as for all that follows.
        junk_label: class of items that are neither right nor wrong.
        average_precision: which definition.
        resamples: bootstrap resamples of the queries for 95 % intervals of all means; 0 for none.
        seed: of the resamples.

    Returns:
        The metrics. What is not in a list counts as not found, at no rank (R / rank of the last is 0 then): only lists
        of the whole gallery give what `evaluate_reid` would.

    Raises:
        InputError: when a list names an item twice or one that is not there, lengths differ, no query has a right item,
            or some k < 1.

    Cost: a sort of each list.
    """
    depths = _depths(ks, average_precision)
    lists = listed_rankings(neighbors, query_labels, gallery_labels, None)
    device = lists.neighbors.device
    query_cameras = as_labels(query_cameras, lists.classes, "query cameras")
    cameras = as_labels(gallery_cameras, lists.gallery_classes, "gallery cameras")
    right = _right_counts(lists.classes, query_cameras, lists.gallery_classes, cameras)
    junk = torch.zeros_like(cameras, dtype=torch.bool)
    if junk_label is not None:
        junk = lists.gallery_classes == junk_label
        right.masked_fill_(lists.classes == junk_label, 0)
    measures = _no_measures(right, depths)
    for block, same, kept in lists.blocks():
        at = lists.neighbors[block].clamp(min=0)
        kept &= ~(junk[at] | (same & (cameras[at] == query_cameras[block, None])))
        hits, known = same & kept, right[block] > 0
        ranks = ranks_of_hits(hits, max(1, int(hits.sum(dim=1).max())), kept)
        values = reid_values(ranks[known], right[block[known]], depths, average_precision)
        measures[block[known]] = values.to(device)
    return _metrics(measures, depths, resamples, seed)


def reid_values(
    ranks: Tensor, right: Tensor, ks: Sequence[int], average_precision: AveragePrecision = "step"
) -> Tensor:
    """Measures of queries by the ranks of their right items.

    Args:
        ranks: (B, S) int64, ascending from 1 on; `MISSING` for what was not found.
        right: (B,) number R >= 1 of right items of each query, found or not.
        ks: the k of CMC@k.
        average_precision: see `evaluate_reid`.

    Returns:
        (B, len(ks) + 2) float64: hit or not at each k, average precision, inverse negative penalty.
    """
    precision, number = precision_at_hits(ranks), right.double()
    first, found = ranks[:, :1], ranks != MISSING
    if average_precision == "trapezoid":
        before = torch.arange(ranks.shape[1], device=ranks.device) / (ranks - 1).double()
        precision = ((before.masked_fill_(ranks == 1, 1.0) + precision) / 2).masked_fill_(~found, 0.0)
    last = ranks.masked_fill(~found, 0).amax(dim=1).double()
    complete = found.sum(dim=1) == right
    columns = [
        (first <= torch.tensor(list(ks), device=ranks.device)).double(),
        (sum_of_row(precision) / number)[:, None],
        torch.where(complete, number / last, 0.0)[:, None],
    ]
    return torch.cat(columns, dim=1)


def _right_counts(labels: Tensor, cameras: Tensor, gallery_labels: Tensor, gallery_cameras: Tensor) -> Tensor:
    """(Q,) number of gallery items of each query's class from other cameras."""
    seen = torch.stack([torch.cat([gallery_labels, labels]), torch.cat([gallery_cameras, cameras])], dim=1)
    of_class, of_both = (torch.unique(rows, dim=0, return_inverse=True)[1] for rows in (seen[:, :1], seen))
    size = len(gallery_labels)
    same, skipped = (
        torch.bincount(group[:size], minlength=len(seen))[group[size:]] for group in (of_class, of_both)
    )
    return same - skipped


def _no_measures(queries: Tensor, ks: Sequence[int]) -> Tensor:
    return torch.full((len(queries), len(ks) + 2), torch.nan, dtype=torch.float64, device=queries.device)


def _metrics(measures: Tensor, ks: Sequence[int], resamples: int, seed: int) -> ReidMetrics:
    known = measures[~measures.isnan().any(dim=1)]
    if len(known) == 0:
        raise InputError(
            f"none of {len(measures)} queries has a gallery item of its class from another camera; check labels and "
            "cameras of both"
        )
    *cmc, mean_average_precision, penalty = [math.fsum(column) / len(known) for column in known.T.tolist()]
    found = ReidMetrics(
        queries=len(known),
        unanswerable_queries=len(measures) - len(known),
        cmc_at=dict(zip(ks, cmc, strict=True)),
        mean_average_precision=mean_average_precision,
        mean_inverse_negative_penalty=penalty,
    )
    if not resamples:
        return found
    ends = bootstrap_intervals(known, resamples=resamples, seed=seed).T.tolist()
    return replace(
        found, intervals={name: (low, high) for name, (low, high) in zip(found.to_dict(), ends, strict=False)}
    )


def _depths(ks: Sequence[int], average_precision: str) -> list[int]:
    if not ks or any(k < 1 for k in ks):
        raise InputError(f"CMC@k needs one or more k, each at least 1, got {list(ks)}")
    if average_precision not in get_args(AveragePrecision):
        raise InputError(f"average_precision must be step or trapezoid, got {average_precision}")
    return sorted(set(ks))
