"""The protocols of an evaluation, from sets of embeddings to named numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.config.jobs.evaluate import (
    ClusteringProtocolConfig,
    EpisodesProtocolConfig,
    IdentificationProtocolConfig,
    ProtocolConfig,
    RankingSettings,
    ReidProtocolConfig,
    RetrievalProtocolConfig,
    VerificationProtocolConfig,
)
from distmetric.errors import InputError
from distmetric.evaluation.clustering import cluster
from distmetric.evaluation.episodes import evaluate_episodes
from distmetric.evaluation.identification import identify
from distmetric.evaluation.query_expansion import expand_queries
from distmetric.evaluation.reid import evaluate_reid, reid_metrics_of_rankings
from distmetric.evaluation.reranking import rerank
from distmetric.evaluation.retrieval import (
    RetrievalMetrics,
    metrics_of_rankings,
    query_measures,
)
from distmetric.evaluation.verification import verify, verify_pairs
from distmetric.inference.evaluation_sets import EvaluationSet, lacking, matched_labels
from distmetric.inference.verification_pairs import PairList


@dataclass(frozen=True)
class Measured:
    """What a protocol found.

    Attributes:
        metrics: Numbers by name.
        intervals: 95 % intervals (low, high) of those that have one.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Material:
    """What is measured.

    Attributes:
        query: The queries, or the only set there is.
        gallery: What they search; None for one set.
        pairs: Pairs to verify; None for all.
        seed: Key of what is drawn.
        device: Where to compute.
    """

    query: EvaluationSet
    gallery: EvaluationSet | None
    pairs: PairList | None
    seed: int
    device: torch.device


def measure(protocol: ProtocolConfig, material: Material) -> Measured:
    """Measure by a protocol.

    Raises:
        InputError: If the material cannot answer it: classes, cameras or groups are unknown or too few.
    """
    match protocol:
        case RetrievalProtocolConfig():
            return _retrieval(protocol, material)
        case ReidProtocolConfig():
            return _reid(protocol, material)
        case VerificationProtocolConfig():
            return _verification(protocol, material)
        case IdentificationProtocolConfig():
            return _identification(protocol, material)
        case ClusteringProtocolConfig():
            return _clustering(protocol, material)
        case EpisodesProtocolConfig():
            return _episodes(protocol, material)


def _retrieval(protocol: RetrievalProtocolConfig, material: Material) -> Measured:
    sides, whole = _sides(material), protocol.whole_ranking
    labels = (sides.query_labels, sides.gallery_labels)
    drawn: dict[str, Any] = {"resamples": protocol.resamples, "seed": material.seed}
    if protocol.rerank == "k_reciprocal":
        depth = max(*protocol.ks, int(np.bincount(sides.gallery_labels).max()))
        found = metrics_of_rankings(
            _reranked(protocol, sides, None if whole else depth),
            *labels,
            query_index=sides.query_index,
            ks=protocol.ks,
            whole_ranking=whole,
            **drawn,
        )
    else:
        measures = query_measures(
            _expanded(protocol, sides),
            labels[0],
            sides.gallery,
            labels[1],
            sides.query_index,
            protocol.ks,
            whole_ranking=whole,
        )
        found = RetrievalMetrics.from_measures(measures, protocol.ks, whole_ranking=whole, **drawn)
    return Measured(found.to_dict(), found.intervals)


def _reid(protocol: ReidProtocolConfig, material: Material) -> Measured:
    query, gallery = material.query, material.gallery or material.query
    cameras = _cameras(query, gallery, protocol.camera_pattern)
    sides = _sides(material)
    options: dict[str, Any] = {
        "ks": protocol.ks,
        "junk_label": None,
        "average_precision": protocol.average_precision,
        "resamples": protocol.resamples,
        "seed": material.seed,
    }
    if protocol.junk is not None:
        if protocol.junk not in gallery.label_names:
            raise InputError(f"protocol.junk={protocol.junk} is no class of {gallery.name}: leave it out")
        options["junk_label"] = sides.names.index(protocol.junk)
    asked, searched = (sides.query_labels, cameras[0]), (sides.gallery_labels, cameras[1])
    if protocol.rerank == "k_reciprocal":
        found = reid_metrics_of_rankings(_reranked(protocol, sides, None), *asked, *searched, **options)
    else:
        found = evaluate_reid(_expanded(protocol, sides), *asked, sides.gallery, *searched, **options)
    return Measured(found.to_dict(), found.intervals)


def _expanded(protocol: RankingSettings, sides: _Sides) -> Tensor:
    """The queries, as they are to be searched for."""
    if protocol.rerank != "query_expansion":
        return sides.queries
    return expand_queries(
        sides.queries,
        sides.gallery,
        neighbors=protocol.expansion_neighbors,
        alpha=protocol.expansion_alpha,
        query_index=sides.query_index,
    )


def _reranked(protocol: RankingSettings, sides: _Sides, depth: int | None) -> Tensor:
    """(Q, depth) gallery indices; with None the whole gallery, in 16 bytes for each pair."""
    neighbors, _ = rerank(
        sides.queries,
        sides.gallery,
        k1=protocol.reciprocal_k1,
        k2=protocol.reciprocal_k2,
        lambda_value=protocol.reciprocal_lambda,
        k=depth,
        query_index=sides.query_index,
    )
    return neighbors


def _cameras(
    query: EvaluationSet, gallery: EvaluationSet, pattern: str | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the cameras of both sides.

    Raises:
        InputError: If a row has none.
    """
    if pattern is None:
        return _known_cameras(query), _known_cameras(gallery)
    compiled = re.compile(pattern)
    number: dict[str, int] = {}
    sides = []
    for each in (query, gallery):
        found = np.empty(len(each), np.int64)
        for row, path in enumerate(each.paths):
            match = compiled.search(str(path))
            if match is None or match[1] is None:
                raise InputError(
                    f"protocol.camera_pattern={pattern} finds no camera in {path} of {each.name}: mend the pattern"
                )
            found[row] = number.setdefault(match[1], len(number))
        sides.append(found)
    return sides[0], sides[1]


def _known_cameras(of: EvaluationSet) -> NDArray[np.int64]:
    if of.cameras is None:
        raise lacking("camera", of.name)
    unknown = np.flatnonzero(of.cameras < 0)
    if len(unknown):
        raise InputError(
            f"{of.name}: {len(unknown)} of {len(of)} images have no camera (the first: {of.paths[int(unknown[0])]}): "
            "leave them out, or give protocol.camera_pattern=..."
        )
    return of.cameras


def _verification(protocol: VerificationProtocolConfig, material: Material) -> Measured:
    query, pairs = material.query, material.pairs
    if pairs is None:
        embeddings = query.embeddings.to(material.device)
        labels = query.known_labels()
        found = verify(embeddings, labels, fars=protocol.fars, folds=protocol.folds, seed=material.seed)
    else:
        distances = pairs.distances(query, material.device)
        folds = protocol.folds if pairs.folds is None else pairs.folds
        found = verify_pairs(distances, pairs.same, fars=protocol.fars, folds=folds)
    return Measured(found.to_dict())


def _identification(protocol: IdentificationProtocolConfig, material: Material) -> Measured:
    if material.gallery is None:
        labels = material.query.known_labels()
        embeddings = material.query.embeddings.to(material.device)
        enrolled, probes = divide(labels, protocol.shots, protocol.strangers, material.seed)
        sides = (embeddings[enrolled], labels[enrolled], embeddings[probes], labels[probes])
    else:
        both = _sides(material)
        sides = (both.gallery, both.gallery_labels, both.queries, both.query_labels)
    found = identify(*sides, fars=protocol.fars, ranks=protocol.ranks, templates=protocol.templates)
    return Measured(found.to_dict())


def divide(
    labels: NDArray[np.int64], shots: int, strangers: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Enroll some images of some classes, by lot; the others are probes.

    Args:
        labels: (N,) int64.
        shots: Images of an enrolled class, fewer where it has no more.
        strangers: Fraction of the C classes of which none is enrolled, rounded, but at least one class and not all.
        seed: Key of the lots.

    Returns:
        Rows that are enrolled and rows of the probes, ascending; together all N.

    Raises:
        InputError: If there are fewer than two classes.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InputError(
            f"protocol=identification needs strangers, but there are images of {len(classes)} class only: give more "
            "classes, or query=... and gallery=..."
        )
    random = np.random.default_rng(seed)
    count = min(max(round(strangers * len(classes)), 1), len(classes) - 1)
    known = np.isin(labels, random.permutation(classes)[count:])
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[order], labels[order])
    first = order[np.arange(len(order)) - starts < shots]
    enrolled = np.zeros(len(labels), np.bool_)
    enrolled[first] = True
    enrolled &= known
    return np.flatnonzero(enrolled), np.flatnonzero(~enrolled)


def _clustering(protocol: ClusteringProtocolConfig, material: Material) -> Measured:
    found = cluster(
        material.query.embeddings.to(material.device),
        material.query.known_labels(),
        num_clusters=protocol.num_clusters,
        seed=material.seed,
        iterations=protocol.iterations,
    )
    return Measured(found.to_dict())


def _episodes(protocol: EpisodesProtocolConfig, material: Material) -> Measured:
    query, groups = material.query, None
    if protocol.within_groups:
        if query.groups is None:
            raise lacking("group", query.name)
        unknown = [row for row, name in enumerate(query.groups) if name is None]
        if unknown:
            raise InputError(
                f"{query.name}: {len(unknown)} of {len(query)} images have no group (the first: "
                f"{query.paths[unknown[0]]}): give protocol.within_groups=false"
            )
        groups = np.unique(np.asarray(query.groups, dtype=np.str_), return_inverse=True)[1]
    found = evaluate_episodes(
        query.embeddings.to(material.device),
        query.known_labels(),
        ways=protocol.ways,
        shots=protocol.shots,
        queries=protocol.queries,
        episodes=protocol.episodes,
        seed=material.seed,
        groups=groups,
        method=protocol.method,
    )
    return Measured(found.to_dict(), found.intervals)


@dataclass(frozen=True, eq=False)
class _Sides:
    """Both sides on one device, with labels that are equal where the names of the classes are.

    Attributes:
        queries: (Q, D).
        query_labels: (Q,) places in `names`.
        gallery: (G, D), the queries themselves where there is one set.
        gallery_labels: (G,) places in `names`.
        query_index: (Q,) gallery index of each query where there is one set, else None.
        names: Of the classes.
    """

    queries: Tensor
    query_labels: NDArray[np.int64]
    gallery: Tensor
    gallery_labels: NDArray[np.int64]
    query_index: Tensor | None
    names: list[str]


def _sides(material: Material) -> _Sides:
    query, gallery = material.query, material.gallery or material.query
    query_labels, gallery_labels, names = matched_labels(query, gallery)
    queries = query.embeddings.to(material.device)
    if gallery is query:
        index = torch.arange(len(queries), device=material.device)
        return _Sides(queries, query_labels, queries, gallery_labels, index, names)
    rows = gallery.embeddings.to(material.device)
    return _Sides(queries, query_labels, rows, gallery_labels, None, names)
