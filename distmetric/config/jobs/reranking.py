"""Settings of re-ranking, for the jobs that can order neighbors anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmetric.functional.checks import check_at_least, check_not_negative


@dataclass(kw_only=True, frozen=True)
class RerankSettings:
    """How neighbors are ordered anew."""

    rerank: Literal["none", "k_reciprocal", "query_expansion"] = "none"
    """Order neighbors anew by whom they have in common, or replace queries by means of their neighbors."""
    reciprocal_k1: int = 20
    """rerank=k_reciprocal: neighbors among which reciprocal ones are sought."""
    reciprocal_k2: int = 6
    """rerank=k_reciprocal: neighbors whose neighborhoods are averaged; at most `reciprocal_k1`."""
    reciprocal_lambda: float = 0.3
    """rerank=k_reciprocal: weight of the distance itself, the rest is that of the neighborhoods."""
    expansion_neighbors: int = 10
    """rerank=query_expansion: neighbors that are added to a query."""
    expansion_alpha: float = 3.0
    """rerank=query_expansion: power of the cosine that weighs a neighbor."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(1, reciprocal_k1=self.reciprocal_k1, expansion_neighbors=self.expansion_neighbors)
        if not 1 <= self.reciprocal_k2 <= self.reciprocal_k1:
            raise ValueError(
                f"reciprocal_k2={self.reciprocal_k2} is wrong: it must be from 1 to "
                f"reciprocal_k1={self.reciprocal_k1}"
            )
        if not 0 <= self.reciprocal_lambda <= 1:
            raise ValueError(f"reciprocal_lambda={self.reciprocal_lambda} is wrong: it must be from 0 to 1")
        check_not_negative(expansion_alpha=self.expansion_alpha)
