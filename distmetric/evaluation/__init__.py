"""Embeddings in, one value object out: how well neighbors share their class."""

from distmetric.evaluation.calibration import Calibration, DistanceHistogram, PairSurvey, survey_pairs
from distmetric.evaluation.clustering import ClusteringMetrics, cluster
from distmetric.evaluation.confidence import bootstrap_intervals
from distmetric.evaluation.episodes import EpisodeMetrics, evaluate_episodes
from distmetric.evaluation.identification import IdentificationMetrics, identify
from distmetric.evaluation.neighbors import nearest
from distmetric.evaluation.partitions import (
    adjusted_mutual_information,
    normalized_mutual_information,
    pairwise_f1,
)
from distmetric.evaluation.query_expansion import expand_queries
from distmetric.evaluation.reid import ReidMetrics, evaluate_reid, reid_metrics_of_rankings
from distmetric.evaluation.reranking import rerank
from distmetric.evaluation.retrieval import (
    RetrievalMetrics,
    evaluate,
    measure_names,
    metrics_of_rankings,
    query_measures,
)
from distmetric.evaluation.verification import VerificationMetrics, verify, verify_pairs

__all__ = [
    "Calibration",
    "ClusteringMetrics",
    "DistanceHistogram",
    "EpisodeMetrics",
    "IdentificationMetrics",
    "PairSurvey",
    "ReidMetrics",
    "RetrievalMetrics",
    "VerificationMetrics",
    "adjusted_mutual_information",
    "bootstrap_intervals",
    "cluster",
    "evaluate",
    "evaluate_episodes",
    "evaluate_reid",
    "expand_queries",
    "identify",
    "measure_names",
    "metrics_of_rankings",
    "nearest",
    "normalized_mutual_information",
    "pairwise_f1",
    "query_measures",
    "reid_metrics_of_rankings",
    "rerank",
    "survey_pairs",
    "verify",
    "verify_pairs",
]
