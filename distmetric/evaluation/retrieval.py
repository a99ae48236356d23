"""Recall@k, R-precision, MAP@R, mAP and MRR: exact, streamed over blocks of queries, by query and so by worker."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.confidence import bootstrap_intervals
from distmetric.evaluation.inputs import Array, as_tensor
from distmetric.evaluation.listed_rankings import listed_rankings
from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.evaluation.relevance import ranks_of_hits, retrieval_values
from distmetric.evaluation.relevant_ranks import RelevantRanks


def measure_names(ks: Sequence[int] = (1, 2, 4, 8), whole_ranking: bool = False) -> tuple[str, ...]:
    """Names of the columns of `query_measures`: `recall_at_1`, ..., `map_at_r`, `r_precision`, and with
    `whole_ranking` also `mean_average_precision`, `mean_reciprocal_rank`.
    """
    names = [f"recall_at_{k}" for k in _depths(ks)] + ["map_at_r", "r_precision"]
    return (*names, *(["mean_average_precision", "mean_reciprocal_rank"] if whole_ranking else []))


@dataclass(frozen=True)
class RetrievalMetrics:
    """What retrieval reached; means over the queries that have something to find.

    Attributes:
        queries: number of queries with at least one relevant gallery item.
        lone_queries: number of queries without any, which no mean counts.
        recall_at: for each k, the fraction of queries with a relevant item among their k nearest, 0..1.
        r_precision: mean precision at R, R being the number of relevant items of the query, 0..1.
        map_at_r: mean average precision at R, 0..1.
        mean_average_precision: mean over the queries of the precision at the ranks of all relevant items, 0..1; None
            unless the whole ranking was asked for.
        mean_reciprocal_rank: mean of 1 / rank of the first relevant item, 0..1; None likewise.
        intervals: (low, high) of the 95 % bootstrap interval of each mean, by the names of `to_dict`; empty unless
            resamples were asked for.
    """

    queries: int
    lone_queries: int
    recall_at: dict[int, float]
    r_precision: float
    map_at_r: float
    mean_average_precision: float | None = None
    mean_reciprocal_rank: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_measures(
        cls,
        measures: Array,
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        whole_ranking: bool = False,
        resamples: int = 0,
        seed: int = 0,
    ) -> "RetrievalMetrics":
        """Turn the measures of all queries into means.

        Args:
            measures: (Q, M) rows of `query_measures` of all workers, in any order.
            ks: the same numbers of neighbors as were given there.
            whole_ranking: likewise.
            resamples: bootstrap resamples of the queries for the intervals; 0 for none.
            seed: of the resamples.

        Returns:
            The metrics; means are rounded once, so that they do not depend on the order of the rows. Intervals do.

        Raises:
            InputError: when the table does not fit `ks`, or no query had a relevant item.

        Cost: Q * M additions, and what `bootstrap_intervals` costs.
        """
        names, table = measure_names(ks, whole_ranking), as_tensor(measures)
        if table.ndim != 2 or table.shape[1] != len(names):
            raise InputError(
                f"measures must have {len(names)} columns {list(names)}, got {tuple(table.shape)}"
            )
        known = table[~table.isnan().any(dim=1)].double()
        if len(known) == 0:
            raise InputError(
                f"none of {len(table)} queries has a relevant gallery item; give classes of two images or more"
            )
        means = [math.fsum(column) / len(known) for column in known.T.tolist()]
        found = dict(zip(names, means, strict=True))
        intervals = {}
        if resamples:
            ends = bootstrap_intervals(known, resamples=resamples, seed=seed).T.tolist()
            intervals = {name: (low, high) for name, (low, high) in zip(names, ends, strict=True)}
        return cls(
            queries=len(known),
            lone_queries=len(table) - len(known),
            recall_at={k: found[f"recall_at_{k}"] for k in _depths(ks)},
            r_precision=found["r_precision"],
            map_at_r=found["map_at_r"],
            mean_average_precision=found.get("mean_average_precision"),
            mean_reciprocal_rank=found.get("mean_reciprocal_rank"),
            intervals=intervals,
        )

    def to_dict(self) -> dict[str, float]:
        """Flat names and floats, as a tracker logs them: `recall_at_1`, ..., `map_at_r`, `num_queries`."""
        whole = {
            "mean_average_precision": self.mean_average_precision,
            "mean_reciprocal_rank": self.mean_reciprocal_rank,
        }
        return {
            **{f"recall_at_{k}": value for k, value in self.recall_at.items()},
            "map_at_r": self.map_at_r,
            "r_precision": self.r_precision,
            **{name: value for name, value in whole.items() if value is not None},
            "num_queries": float(self.queries),
            "num_lone_queries": float(self.lone_queries),
        }


def evaluate(
    embeddings: Array,
    labels: Array,
    *,
    gallery_embeddings: Array | None = None,
    gallery_labels: Array | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    whole_ranking: bool = False,
    resamples: int = 0,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> RetrievalMetrics:
    """Measure how well nearest neighbors in euclidean distance share the class of their query.

    recall@k = mean_q [some rel_q(i) = 1, i <= k];  R-precision = mean_q P_q(R_q);
    MAP@R = mean_q (1 / R_q) sum_{i <= R_q} P_q(i) rel_q(i),  P_q(i) = (1 / i) sum_{j <= i} rel_q(j);
    mAP = mean_q (1 / R_q) sum_i P_q(i) rel_q(i) over the whole ranking;  MRR = mean_q 1 / min {i : rel_q(i) = 1}

    Args:
        embeddings: (N, D) queries, real numbers; half precision is computed in float32, float64 kept. On unit
            vectors the order is that of cosine similarity.
        labels: (N,) integer classes of the queries.
        gallery_embeddings: (G, D) items to be found; None for leave-one-out, where every query searches all
            other queries, itself excluded by index and never by value.
        gallery_labels: (G,) integer classes of the gallery.
        ks: numbers of neighbors for recall@k; one beyond the gallery's size means all of it. Large ones cost little.
        whole_ranking: whether to measure mAP and MRR, too, which take the ranks of all relevant items.
        resamples: bootstrap resamples of the queries for 95 % intervals of all means, 1000 say; 0 for none.
        seed: of the resamples.
        block_bytes: memory for one block of queries, in bytes.

    Returns:
        The metrics as one value object.

    Raises:
        InputError: when an embedding is not finite, lengths or dimensions differ, there are fewer than 2
            rows, no query has a relevant item, or some k < 1.

    Cost: N * G * D multiplications; `block_bytes` and two copies of the gallery, never an N x G array. The whole
    ranking costs as `ItemRanks` says.

    Ties go to the lower gallery index, so results do not depend on block size, threads or shards. Queries
    whose class has no gallery item are dropped from the means and counted in `lone_queries`.

    Reference: Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020 (arXiv:2003.08505).
    """
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise InputError("give gallery_embeddings and gallery_labels together, or neither for leave-one-out")
    index = None
    if gallery_embeddings is None or gallery_labels is None:
        if len(embeddings) < 2:
            raise InputError(f"leave-one-out retrieval needs at least 2 embeddings, got {len(embeddings)}")
        gallery_embeddings, gallery_labels, index = embeddings, labels, torch.arange(len(embeddings))
    measures = query_measures(
        embeddings,
        labels,
        gallery_embeddings,
        gallery_labels,
        index,
        ks,
        whole_ranking=whole_ranking,
        block_bytes=block_bytes,
    )
    return RetrievalMetrics.from_measures(
        measures, ks, whole_ranking=whole_ranking, resamples=resamples, seed=seed
    )


@torch.no_grad()
def query_measures(
    query_embeddings: Array,
    query_labels: Array,
    gallery_embeddings: Array,
    gallery_labels: Array,
    query_index: Array | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    whole_ranking: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor:
    """Measure the retrieval of some queries one by one, so that workers can share the queries and gather their rows.

    Args:
        query_embeddings: (Q, D) this worker's queries; Q may be 0.
        query_labels: (Q,) their integer classes.
        gallery_embeddings: (G, D) the whole gallery, the same on every worker.
        gallery_labels: (G,) integer classes of the gallery.
        query_index: (Q,) int64 gallery index of each query, left out of its own ranking; None when queries
            are no gallery members.
        ks: numbers of neighbors for recall@k.
        whole_ranking: whether to measure average precision and reciprocal rank, too.
        block_bytes: memory for one block of queries, in bytes.

    Returns:
        (Q, M) float64 on the device of the queries, columns as `measure_names` names them; rows of NaN for queries
        without a relevant item. Gather the rows of all workers and hand them to `RetrievalMetrics.from_measures`.

    Raises:
        InputError: as `evaluate`, but for queries without relevant items, which only all rows can tell.

    Cost: Q * G * D multiplications; `block_bytes` and two copies of the gallery.

    The measures of a query do not depend on the worker it is on, to the last bit.
    """
    depths = _depths(ks)
    search = RelevantRanks(
        query_embeddings, query_labels, gallery_embeddings, gallery_labels, query_index, block_bytes
    )
    relevant, names = search.relevant, measure_names(ks, whole_ranking)
    shape = (len(relevant), len(names))
    measures = torch.full(shape, torch.nan, dtype=torch.float64, device=relevant.device)
    for block, ranks in search.all() if whole_ranking else search.first(depths[-1]):
        measures[block] = retrieval_values(ranks, relevant[block], depths, whole_ranking=whole_ranking)
    return measures


@torch.no_grad()
def metrics_of_rankings(
    neighbors: Array,
    query_labels: Array,
    gallery_labels: Array,
    *,
    query_index: Array | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    whole_ranking: bool = False,
    resamples: int = 0,
    seed: int = 0,
) -> RetrievalMetrics:
    """Measure lists of neighbors that somebody else made, by re-ranking say.

    Args:
        neighbors: (Q, k) gallery indices, nearest first, none twice in a list; -1 at the end of shorter lists.
        query_labels: (Q,) integer classes of the queries.
        gallery_labels: (G,) integer classes of the gallery.
        query_index: (Q,) gallery index of each query, which is skipped where its own list holds it and is nothing to
            be found; None when queries are no gallery members.
        ks: numbers of neighbors for recall@k.
        whole_ranking: whether to measure mAP and MRR, too.
        resamples: bootstrap resamples of the queries for 95 % intervals of all means; 0 for none.
        seed: of the resamples.

    Returns:
        The metrics, as `evaluate` gives them. What is not in a list counts as not found: recall@k with a larger k than
        the list has, and R-precision, MAP@R and mAP of queries with R > k, are what the list alone shows, which is at
        most what a longer one would. For what `evaluate` would say, lists need max(ks) and R items, for mAP all.

    Raises:
        InputError: when a list names an item twice or one that is not there, lengths differ, or no query has a
            relevant item.

    Cost: a sort of each list.
    """
    lists = listed_rankings(neighbors, query_labels, gallery_labels, query_index)
    depths, names = _depths(ks), measure_names(ks, whole_ranking)
    shape = (len(lists.neighbors), len(names))
    measures = torch.full(shape, torch.nan, dtype=torch.float64, device=lists.neighbors.device)
    for block, hits, kept in lists.blocks():
        ranks = ranks_of_hits(hits, max(1, int(hits.sum(dim=1).max())), kept)
        relevant = lists.relevant[block]
        measures[block] = retrieval_values(ranks, relevant, depths, whole_ranking=whole_ranking)
    return RetrievalMetrics.from_measures(
        measures, ks, whole_ranking=whole_ranking, resamples=resamples, seed=seed
    )


def _depths(ks: Sequence[int]) -> list[int]:
    if not ks or any(k < 1 for k in ks):
        raise InputError(f"recall@k needs one or more k, each at least 1, got {list(ks)}")
    return sorted(set(ks))
