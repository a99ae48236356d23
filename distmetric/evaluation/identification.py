"""1:N identification among enrolled identities, with strangers among the probes (open set); exact and streamed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.distance_grid import GridPoints, are_unit_rows, as_anchors, on_grid
from distmetric.evaluation.inputs import Array, as_embeddings, as_labels
from distmetric.evaluation.neighbors import BLOCK_BYTES, sum_by_halves
from distmetric.evaluation.roc import allowed_accepts, check_far, rate_name
from distmetric.functional.segments import segment_sum

Templates = Literal["nearest", "mean"]
"""What an identity is compared by: the nearest of its gallery rows, or their mean."""


@dataclass(frozen=True)
class IdentificationMetrics:
    """How often enrolled identities are found, and strangers refused.

    Attributes:
        dir_at_far: detection and identification rate by (false alarm rate, rank), 0..1; without rates finer than one
            stranger.
        thresholds: the distance up to which a probe raises an alarm, by false alarm rate.
        identification_rate: the fraction of mated probes whose identity is among the r nearest, by r, whatever the
            distance (closed set), 0..1.
        num_identities: identities in the gallery.
        num_mated_probes: probes whose identity is enrolled.
        num_strangers: probes whose identity is not.
    """

    dir_at_far: dict[tuple[float, int], float]
    thresholds: dict[float, float]
    identification_rate: dict[int, float]
    num_identities: int
    num_mated_probes: int
    num_strangers: int

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats: `dir_at_far_1e-2` for rank 1, `dir_at_far_1e-2_rank_5`, ..."""
        ranks = {rank: "" if rank == 1 else f"_rank_{rank}" for rank in self.identification_rate}
        return {
            **{
                f"dir_at_far_{rate_name(far)}{ranks[rank]}": rate
                for (far, rank), rate in self.dir_at_far.items()
            },
            **{f"threshold_at_far_{rate_name(far)}": value for far, value in self.thresholds.items()},
            **{f"identification_rate_at_{rank}": rate for rank, rate in self.identification_rate.items()},
            "num_identities": float(self.num_identities),
            "num_mated_probes": float(self.num_mated_probes),
            "num_strangers": float(self.num_strangers),
        }


@torch.no_grad()
def identify(
    gallery_embeddings: Array,
    gallery_labels: Array,
    probe_embeddings: Array,
    probe_labels: Array,
    *,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
    ranks: Sequence[int] = (1, 5, 10),
    templates: Templates = "nearest",
    block_bytes: int = BLOCK_BYTES,
) -> IdentificationMetrics:
    """Identify probes, and refuse those of nobody enrolled.

    DIR(f, r) = #{mated probes p : d(p, own identity) <= t_f and rank(p) <= r} / #mated probes, where the threshold t_f
    is the largest distance (of a mated probe to its identity, or of a stranger to the nearest one) such that
    #{strangers with an identity at most t_f away} / #strangers <= f, and
    rank(p) = 1 + #{other identities that are as near as p's own, or nearer}.

    Args:
        gallery_embeddings: (G, D) enrolled rows.
        gallery_labels: (G,) integer identities, one or more rows each.
        probe_embeddings: (Q, D).
        probe_labels: (Q,) integer identities; who is not in the gallery is a stranger.
        fars: false alarm rates, each between 0 and 1; those finer than 1 / #strangers are left out.
        ranks: ranks up to which an identification counts.
        templates: "nearest": an identity is as far away as the nearest of its rows; "mean": as the mean of its rows,
            which is scaled to length one if all rows are.
        block_bytes: memory for a block of probes, in bytes.

    Returns:
        The metrics, the same for any block size, number of threads and order of rows.

    Raises:
        InputError: when embeddings are not finite, lengths or dimensions differ, no probe is mated or none a stranger,
            or a setting is out of range.

    Cost: Q x G x D multiplications in float64; `block_bytes`, and (Q + G) x (D + 2) float64 values.

    Where no probe may be accepted, the threshold is the next float64 below the smallest of these distances. Ties of
    identities count against the probe's own, so that a collapsed model identifies nobody. Distances are those of rows
    rounded by `on_grid`.

    Reference: Grother and Ngan, FRVT: Performance of face identification algorithms, NIST 2014; ISO/IEC 19795-1.
    """
    for far in fars:
        check_far(far, "each of fars")
    if not ranks or min(ranks) < 1:
        raise InputError(f"ranks must be one or more numbers, each at least 1, got {list(ranks)}")
    if templates not in get_args(Templates):
        raise InputError(f"templates must be one of {', '.join(get_args(Templates))}, got {templates}")
    gallery = as_embeddings(gallery_embeddings, "gallery embeddings")
    probes = as_embeddings(probe_embeddings, "probe embeddings").to(gallery.device)
    enrolled = as_labels(gallery_labels, gallery, "gallery labels")
    wanted = as_labels(probe_labels, probes, "probe labels")
    if not len(gallery):
        raise InputError("the gallery has no rows; enroll one or more identities")
    if gallery.shape[1] != probes.shape[1]:
        raise InputError(f"probes have {probes.shape[1]} dimensions but the gallery has {gallery.shape[1]}")
    names, identities = torch.unique(enrolled, return_inverse=True)
    own = torch.searchsorted(names, wanted.contiguous()).clamp_(max=len(names) - 1)
    own[names[own] != wanted] = -1
    strangers = int((own < 0).sum())
    if strangers in (0, len(own)):
        kind = "a stranger" if strangers == 0 else "of an enrolled identity"
        raise InputError(f"none of {len(own)} probes is {kind}; open-set identification needs both kinds")
    if templates == "mean":
        gallery, identities = _means(gallery, identities, len(names))
    grid = on_grid(gallery, probes)
    distances, rank = _distances_and_ranks(grid, identities, own, block_bytes)
    return _metrics(grid, distances, rank, own < 0, fars, sorted(set(ranks)), len(names))


def _means(gallery: Tensor, identities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(C, D) one row for each identity, and its number."""
    # Whole numbers below 2^53 have the same sum in any order.
    bits = 30 - int(gallery.abs().max().double().frexp().exponent)
    values = (gallery.double() * 2.0**bits).round_()
    sums = segment_sum(values, identities, count)
    means = sums / torch.bincount(identities, minlength=count).unsqueeze(1) * 2.0**-bits
    if are_unit_rows(gallery):
        means /= sum_by_halves(means.square()).sqrt().clamp_min_(torch.finfo(torch.float64).tiny).unsqueeze(1)
    return means, torch.arange(count, device=gallery.device)


def _distances_and_ranks(
    grid: GridPoints, identities: Tensor, own: Tensor, block_bytes: int
) -> tuple[Tensor, Tensor]:
    """(Q,) squared distance of each probe to its identity, of strangers to the nearest; (Q,) rank of that identity."""
    points, probes = grid.points[: len(identities)], grid.points[len(identities) :]
    count = int(identities.max()) + 1
    distances = torch.empty(len(probes), dtype=torch.float64, device=probes.device)
    ranks = torch.zeros(len(probes), dtype=torch.int64, device=probes.device)
    size = max(1, block_bytes // (8 * points.shape[0] + 32 * count + 16 * points.shape[1]))
    for start in range(0, len(probes), size):
        block = slice(start, start + size)
        squared = as_anchors(probes[block]) @ points.T
        nearest = squared.new_full((len(squared), count), torch.inf)
        nearest.scatter_reduce_(1, identities.expand_as(squared), squared, "amin")
        mine = nearest.gather(1, own[block].clamp_min(0).unsqueeze(1))
        ranks[block] = (nearest <= mine).sum(dim=1)
        distances[block] = torch.where(own[block] < 0, nearest.amin(dim=1), mine.squeeze(1))
    return distances, ranks


def _metrics(
    grid: GridPoints,
    distances: Tensor,
    ranks: Tensor,
    strange: Tensor,
    fars: Sequence[float],
    depths: list[int],
    num_identities: int,
) -> IdentificationMetrics:
    alarms, found, rank = distances[strange].sort().values, distances[~strange], ranks[~strange]
    rates, thresholds = {}, {}
    for far in fars:
        allowed = allowed_accepts(far, len(alarms))
        if allowed == 0:
            continue
        accepted = found < alarms[allowed]
        for depth in depths:
            rates[far, depth] = float((accepted & (rank <= depth)).sum()) / len(found)
        nearer = distances[distances < alarms[allowed]]
        thresholds[far] = (
            grid.distance(int(nearer.max()))
            if len(nearer)
            else math.nextafter(grid.distance(int(distances.min())), -math.inf)
        )
    return IdentificationMetrics(
        dir_at_far=rates,
        thresholds=thresholds,
        identification_rate={depth: float((rank <= depth).sum()) / len(rank) for depth in depths},
        num_identities=num_identities,
        num_mated_probes=len(rank),
        num_strangers=len(alarms),
    )
