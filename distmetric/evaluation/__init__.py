"""Embeddings in, one value object out: how well neighbors share their class."""

from distmetric.evaluation.neighbors import nearest
from distmetric.evaluation.retrieval import RetrievalMetrics, evaluate, retrieval_sums

__all__ = ["RetrievalMetrics", "evaluate", "nearest", "retrieval_sums"]
