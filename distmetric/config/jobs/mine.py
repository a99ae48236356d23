"""The configuration of jobs/mine.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmetric.functional.checks import check_at_least, check_not_negative


@dataclass(kw_only=True, frozen=True)
class MineJob:
    """jobs/mine.py: what embeddings say about the labels of a data set; see `distmetric.index.mine.mine`."""

    embeddings: str
    """Parquet file that jobs/embed.py wrote: id, path, label_name, embedding."""
    out: str
    """Folder for the tables."""
    metric: Literal["l2", "cosine"] = "l2"
    """Distance of two embeddings: euclidean, or 1 less their cosine."""
    k: int = 10
    """Nearest negatives of every row."""
    pairs: int | None = None
    """Hardest pairs to list, of all rows together; null: the k of every row."""
    label_neighbors: int = 3
    """A row is suspected of a wrong label if so many nearest rows agree on one other label."""
    duplicate_fraction: float = 0.1
    """Rows of two classes are near-duplicates up to this fraction of the spread of either class."""
    sub_centers: int = 4
    """Balls (center and radius) of a class at most, a power of two; used where classes have outliers or modes."""
    fall_back_above: float = 0.1
    """Share of all distances above which brute force takes over, measured on a sample; 1: never."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on the GPU if there is one."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(
            1, k=self.k, pairs=self.pairs, label_neighbors=self.label_neighbors, sub_centers=self.sub_centers
        )
        if self.sub_centers & (self.sub_centers - 1):
            raise ValueError(f"sub_centers={self.sub_centers} is wrong: give a power of two, 1 for none")
        check_not_negative(duplicate_fraction=self.duplicate_fraction)
        if not 0 <= self.fall_back_above <= 1:
            raise ValueError(f"fall_back_above={self.fall_back_above} is wrong: it must be from 0 to 1")
