"""Triplets as hard as one likes: from the hardest of all, over windows and temperatures, to any at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distmetric.functional.checks import check_choice
from distmetric.functional.column_draws import WeightedDraws, at_rank, draw_negatives
from distmetric.functional.dial import Setting, ends, value_at
from distmetric.functional.distances import Distance
from distmetric.functional.index_lists import collected
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.pair_blocks import PairBlock, SortedPairs
from distmetric.functional.tuples import Tuples
from distmetric.miners.base import RandomMiner

Negatives = Literal["hardest", "kth", "range", "quantile", "temperature"]
NEGATIVES: tuple[Negatives, ...] = ("hardest", "kth", "range", "quantile", "temperature")
Positives = Literal["hardest", "easiest", "random", "all"]
POSITIVES: tuple[Positives, ...] = ("hardest", "easiest", "random", "all")

# What each setting may be.
_RANKS = float(2**31 - 1)
_BOUNDS = {
    "k": (1.0, _RANKS),
    "skip": (0.0, _RANKS),
    "width": (1.0, _RANKS),
    "quantile": (0.0, 1.0),
    "temperature": (0.0, math.inf),
    "random_fraction": (0.0, 1.0),
}
# Numbers drawn for every anchor: whether it gets a random negative, which positive, and then two a triplet.
_FIRST_NEGATIVE = 2


@dataclass(kw_only=True, frozen=True)
class HardnessMinerConfig:
    """Settings of `HardnessMiner`."""

    name: Literal["hardness"] = "hardness"
    negatives: Negatives = "range"
    """How negatives are picked: hardest (the nearest), kth (the k-th nearest), range (one of a window of ranks),
    quantile (by the share of negatives that are easier), temperature (drawn by softmax(-d / T))."""
    positives: Positives = "hardest"
    """Which positive of an anchor: hardest (farthest), easiest (nearest), random, or all, a triplet for each."""
    k: Setting = 1.0
    """kth: rank of the negative, 1 for the nearest. Like all numbers below it can follow the steps:
    {start: 50, end: 10, end_step: 5000}, also with begin_step and shape: linear or cosine."""
    skip: Setting = 0.0
    """range: how many of the nearest negatives are passed over."""
    width: Setting = 10.0
    """range: how many negatives the window has; one of them is drawn."""
    quantile: Setting = 1.0
    """quantile: share of the negatives that are easier than the chosen one; 1 is the hardest, 0 the easiest."""
    temperature: Setting = 0.1
    """temperature: T in units of distance; 0 is the hardest, infinity (inf; .inf in YAML) any."""
    random_fraction: Setting = 0.0
    """Share of the anchors that get any negative at all instead, whatever `negatives` says."""
    distance: Distance = "euclidean"
    """euclidean, squared_euclidean, cosine (1 - cos) or dot_product (-a.b)."""

    def __post_init__(self) -> None:
        """Check choices and numbers.

        Raises:
            ValueError: If one of them is wrong.
        """
        _check(self.negatives, self.positives, {name: getattr(self, name) for name in _BOUNDS})


def _check(negatives: Negatives, positives: Positives, dials: dict[str, Setting]) -> None:
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("positives", positives, POSITIVES)
    for name, (least, most) in _BOUNDS.items():
        for value in ends(dials[name]):
            if not least <= value <= most:
                limits = f"from {least:.0f} on" if most == math.inf else f"from {least:.0f} to {most:.0f}"
                raise ValueError(f"{name}={value:g} is wrong: give a number {limits}")


class HardnessMiner(RandomMiner):
    """A negative of chosen hardness for every anchor or positive pair.

    Formula, with the n negatives of an anchor by ascending distance n_1 .. n_n:

        hardest      n_1
        kth          n_k, or n_n if there are less
        range        n_r, r uniform in skip + 1 .. skip + width, as far as there are so many
        quantile     n_r, r = 1 + round((1 - q) (n - 1))
        temperature  n_r with probability ~ exp(-D_r / T)

    and for a share `random_fraction` of the anchors, drawn anew in each step, any negative with equal probability.
    k = 1, q = 1 and T = 0 are `BatchHardMiner`'s choice.

    Args:
        negatives: "hardest", "kth", "range", "quantile" or "temperature".
        positives: "hardest", "easiest" or "random", for one triplet per anchor, or "all", for one triplet per positive
            pair, with negatives drawn for each.
        k: A number, or a `Dial` to move it with the steps, like all that follow; ranks are rounded.
        skip: Size of what the window leaves out.
        width: Size of the window.
        quantile: q.
        temperature: T, in units of distance.
        random_fraction: From 0 to 1.
        distance: D.
        normalize_embeddings: Whether to compare unit vectors.
        seed: Key of the draws.

    Cost: B N D, and for each pair beside it a comparison (hardest), a quick select (kth, quantile), a partial sort
    (range), or an exponential and passes over int64 (temperature); memory two blocks (temperature four, large ranks
    six), and O(B), or O(B K) for positives="all", for the triplets.

    Corner cases: an anchor without positive or without negative has no triplet; ties go to one of the tied.

    Source: uniform ranks: Xiong et al., "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text
    Retrieval", arXiv 2007.00808; on what too hard negatives do: Xuan, Stylianou, Liu, Pless, "Hard Negative Examples
    are Hard, but Useful", ECCV 2020.
    """

    def __init__(
        self,
        negatives: Negatives = "range",
        positives: Positives = "hardest",
        *,
        k: Setting = 1.0,
        skip: Setting = 0.0,
        width: Setting = 10.0,
        quantile: Setting = 1.0,
        temperature: Setting = 0.1,
        random_fraction: Setting = 0.0,
        distance: Distance = "euclidean",
        normalize_embeddings: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(distance, normalize_embeddings, seed)
        self._dials = {
            "k": k,
            "skip": skip,
            "width": width,
            "quantile": quantile,
            "temperature": temperature,
            "random_fraction": random_fraction,
        }
        _check(negatives, positives, self._dials)
        self.negatives: Negatives = negatives
        self.positives: Positives = positives

    def setting(self, name: str) -> float:
        """What one of the numbers is at the current step."""
        return value_at(self._dials[name], self.step)

    def choose(self, batch: JointBatch) -> Tuples:
        """See `Miner.choose`; at most B triplets, or B (K - 1) for positives="all"."""
        # Roots keep the order: they are taken where distances themselves count.
        ranked: Distance = "squared_euclidean" if self.distance == "euclidean" else self.distance
        blocks, weighted = SortedPairs(batch, ranked).blocks(), WeightedDraws()
        return Tuples.of(
            collected((self._triplets(batch, block, weighted) for block in blocks), 3, batch.labels)
        )

    def _triplets(self, batch: JointBatch, block: PairBlock, weighted: WeightedDraws) -> tuple[Tensor, ...]:
        numbers = self.numbers(batch, block, _FIRST_NEGATIVE)
        place, exists = self._positive_places(block, numbers[:, 1])
        count = place.shape[1]
        draws = self.numbers(batch, block, _FIRST_NEGATIVE + 2 * count)[:, _FIRST_NEGATIVE:]
        negative = self._negative_columns(block, draws[:, 0::2], weighted)
        if (fraction := self.setting("random_fraction")) > 0:
            any_at_all = draw_negatives(block, draws[:, 1::2])
            negative = torch.where(numbers[:, :1] < fraction, any_at_all, negative)
        row, draw = (exists & (block.num_negatives > 0)[:, None]).nonzero().unbind(1)
        return block.rows[row], block.columns[place[row, draw] + block.band.start], negative[row, draw]

    def _positive_places(self, block: PairBlock, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Where the chosen positives of every anchor are in the band, (b, J), and whether there are so many."""
        if self.positives == "all" or not block.positive.shape[1]:
            place, exists = block.same_places()
            return place, exists & block.positive.gather(1, place)
        if self.positives == "hardest":
            chosen = block.positives_of(block.distances, -torch.inf).argmax(1)
        elif self.positives == "easiest":
            chosen = block.positives_of(block.distances, torch.inf).argmin(1)
        else:
            drawn = (numbers * block.num_positives).to(torch.int64)
            chosen = (block.positive.cumsum(1) > drawn[:, None]).to(torch.uint8).argmax(1)
        return chosen[:, None], (block.num_positives > 0)[:, None]

    def _negative_columns(self, block: PairBlock, draws: Tensor, weighted: WeightedDraws) -> Tensor:
        """A negative for every draw, (b, J); uses the distances up."""
        values = block.fill_same_(block.distances, torch.inf)
        if self.negatives == "temperature" and (temperature := self.setting("temperature")) > 0:
            if self.distance == "euclidean":
                values.sqrt_()
            excess = values.sub_(values.amin(1, keepdim=True).nan_to_num_(posinf=0.0))
            excess.div_(-max(temperature, torch.finfo(excess.dtype).tiny))
            return weighted.draw(block.fill_same_(excess, -torch.inf), block, draws, block.scratch)[0]
        last = (block.num_negatives - 1).clamp_min_(0)[:, None]
        return block.columns[at_rank(values, self._ranks(draws, last))].expand(draws.shape)

    def _ranks(self, draws: Tensor, last: Tensor) -> Tensor:
        """Rank of the negative, 0 for the nearest: one a draw (b, J), or one for all (b, 1); `last` is the largest."""
        if self.negatives == "range":
            skip, width = round(self.setting("skip")), round(self.setting("width"))
            first = last.clamp_max(skip)
            width_there = (last - first + 1).clamp_max_(width)
            return first + torch.minimum((draws * width_there).to(torch.int64), width_there - 1)
        if self.negatives == "quantile":
            return ((1 - self.setting("quantile")) * last.double()).round().to(torch.int64)
        return last.clamp_max(round(self.setting("k")) - 1 if self.negatives == "kth" else 0)

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        used = {"kth": ("k",), "range": ("skip", "width")}.get(self.negatives, (self.negatives,))
        shown = {name: self._dials[name] for name in (*used, "random_fraction") if name in self._dials}
        settings = "".join(f", {name}={value}" for name, value in shown.items())
        return f"negatives={self.negatives!r}, positives={self.positives!r}{settings}"
