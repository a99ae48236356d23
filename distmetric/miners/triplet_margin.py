"""All triplets on one side of a margin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.distances import Distance
from distmetric.functional.index_lists import collected
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.triplet_rows import each_positive
from distmetric.functional.tuples import Tuples
from distmetric.miners.base import Miner

TripletType = Literal["all", "hard", "semihard", "easy"]
TRIPLET_TYPES: tuple[TripletType, ...] = ("all", "hard", "semihard", "easy")


@dataclass(kw_only=True, frozen=True)
class TripletMarginMinerConfig:
    """Settings of `TripletMarginMiner`."""

    name: Literal["triplet_margin"] = "triplet_margin"
    margin: float = 0.2
    """Distance by which a negative must be farther than the positive for the triplet to be an easy one."""
    type_of_triplets: TripletType = "all"
    """all that violate the margin; of these the hard (negative nearer than the positive) or the semihard (farther, by
    less than the margin); or the easy, which do not violate it."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""

    def __post_init__(self) -> None:
        """Check margin and type.

        Raises:
            ValueError: If one of them is wrong.
        """
        _check(self.margin, self.type_of_triplets)


def _check(margin: float, type_of_triplets: TripletType) -> None:
    check_choice("type_of_triplets", type_of_triplets, TRIPLET_TYPES)
    if not math.isfinite(margin):
        raise ValueError(f"margin={margin} is wrong: give a finite number")


class TripletMarginMiner(Miner):
    """All triplets that violate a margin, or those of them that are hard or semi-hard, or all others.

    Formula, with g = D_an - D_ap: all g <= m, hard g <= min(m, 0), semihard 0 < g <= m, easy g > m.

    Args:
        margin: m, in units of distance.
        type_of_triplets: "all", "hard", "semihard" or "easy".
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.

    Cost: B N D + B K N; memory two blocks, and three int64 per triplet, of which there may be B (K - 1) N: the list
    itself is that long. `TripletLoss("batch_all")` and ("semi_hard") add the same triplets up without it.

    Corner cases: an anchor without positive or without negative has no triplet.
    """

    def __init__(
        self,
        margin: float = 0.2,
        type_of_triplets: TripletType = "all",
        *,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
    ) -> None:
        super().__init__(distance, normalize_embeddings)
        _check(margin, type_of_triplets)
        self.margin = margin
        self.type_of_triplets: TripletType = type_of_triplets

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; triplets."""
        blocks = SortedPairs(batch, self.distance).blocks()
        return Tuples.of(
            collected((part for block in blocks for part in self._triplets(block)), 3, batch.labels)
        )

    def _triplets(self, block: PairBlock) -> Iterator[tuple[Tensor, ...]]:
        band = block.distances[:, block.band].clone()
        easy = self.type_of_triplets == "easy"
        negatives = block.fill_same_(block.distances, -torch.inf if easy else torch.inf)
        for place, is_positive in each_positive(block):
            # A comparison with NaN keeps nothing.
            near = band.gather(1, place).masked_fill_(~is_positive, torch.nan)
            wanted = negatives > near + self.margin if easy else negatives <= near + self._upper()
            if self.type_of_triplets == "semihard":
                wanted &= negatives > near
            row, column = wanted.nonzero().unbind(1)
            yield block.rows[row], block.columns[place[row, 0] + block.band.start], block.columns[column]

    def _upper(self) -> float:
        return min(self.margin, 0.0) if self.type_of_triplets == "hard" else self.margin

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"margin={self.margin}, type_of_triplets={self.type_of_triplets!r}"
