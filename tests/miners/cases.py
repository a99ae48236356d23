"""Every miner with its oracle and its counterpart in pytorch-metric-learning, where it has one.

Plain loops are in tests/oracles.py. `CASES` is run by tests/miners/test_miners.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import oracles
from distmetric.functional.counter_random import uniform
from distmetric.functional.tuples import Tuples
from distmetric.miners import (
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    HardnessMiner,
    Miner,
    MultiSimilarityMiner,
    SemiHardMiner,
    TripletMarginMiner,
)
from distmetric.miners.base import _STREAM

Chosen = oracles.Triplets | tuple[oracles.Pairs, oracles.Pairs]
SEED, STEP = 3, 11


@dataclass(frozen=True)
class Case:
    """A miner under test.

    Args:
        name: Shown as the test's id.
        make: The miner.
        oracle: (embeddings, labels) -> triplets, or pairs of both kinds, as plain loops.
        pml: The miner of pytorch-metric-learning that chooses the same, or None.
    """

    name: str
    make: Callable[[], Miner]
    oracle: Callable[[oracles.Rows, Sequence[int]], Chosen]
    pml: Callable[[], nn.Module] | None = None


def pml_miner(name: str, **settings: object) -> Callable[[], nn.Module]:
    """A miner of pytorch-metric-learning on raw euclidean distances."""

    def make() -> nn.Module:
        from pytorch_metric_learning import distances, miners

        raw = distances.LpDistance(normalize_embeddings=False)
        return getattr(miners, name)(distance=raw, **settings)

    return make


def pml_default(name: str) -> Callable[[], nn.Module]:
    """A miner of pytorch-metric-learning as it comes."""

    def make() -> nn.Module:
        from pytorch_metric_learning import miners

        return getattr(miners, name)()

    return make


def units(embeddings: oracles.Rows) -> oracles.Rows:
    return [oracles.unit(row) for row in embeddings]


def number(anchor: int, draw: int) -> float:
    """What miners of `SEED` draw at `STEP`."""
    return uniform(SEED ^ _STREAM, STEP, torch.tensor([anchor]), draw + 1)[0, draw].item()


def chosen(tuples: Tuples | Sequence[torch.Tensor]) -> tuple[list[tuple[int, ...]], ...]:
    """What was chosen, as sorted lists, to be compared."""
    found = Tuples.of(tuples) if not isinstance(tuples, Tuples) else tuples
    parts = (
        [found.indices()]
        if found.triplets
        else [
            (found.anchors_of_positives, found.positives),
            (found.anchors_of_negatives, found.negatives),
        ]
    )
    return tuple(sorted(zip(*(part.tolist() for part in each), strict=True)) for each in parts)


def expected(plain: Chosen) -> tuple[list[tuple[int, ...]], ...]:
    """The same for an oracle's answer."""
    return tuple(map(sorted, plain)) if isinstance(plain, tuple) else (sorted(plain),)


RAW = {"normalize_embeddings": False}
RANDOM = {**RAW, "seed": SEED}
EASY_HARD = [
    ("easy", "semihard"),
    ("easy", "easy"),
    ("easy", "hard"),
    ("easy", "all"),
    ("hard", "semihard"),
    ("hard", "hard"),
    ("hard", "easy"),
    ("hard", "all"),
    ("semihard", "hard"),
    ("semihard", "easy"),
    ("all", "hard"),
    ("all", "easy"),
    ("all", "all"),
]


def easy_hard(positive: str, negative: str) -> Case:
    return Case(
        f"batch_easy_hard_{positive}_{negative}",
        lambda: BatchEasyHardMiner(positive, negative, **RAW),  # type: ignore[arg-type]
        lambda e, y: oracles.easy_hard_pairs(e, y, positive, negative),
        pml_miner("BatchEasyHardMiner", pos_strategy=positive, neg_strategy=negative),
    )


def easy_hard_ranges(positive: str, negative: str) -> Case:
    ranges = {"allowed_pos_range": (0.5, 2.0), "allowed_neg_range": (1.0, 3.0)}
    return Case(
        f"batch_easy_hard_{positive}_{negative}_in_ranges",
        lambda: BatchEasyHardMiner(positive, negative, **ranges, **RAW),  # type: ignore[arg-type]
        lambda e, y: oracles.easy_hard_pairs(e, y, positive, negative, *ranges.values()),
        pml_miner("BatchEasyHardMiner", pos_strategy=positive, neg_strategy=negative, **ranges),
    )


def margin(kind: str, size: float = 0.2) -> Case:
    return Case(
        f"triplet_margin_{kind}",
        lambda: TripletMarginMiner(size, kind, **RAW),  # type: ignore[arg-type]
        lambda e, y: oracles.margin_triplets(e, y, size, kind),
        pml_miner("TripletMarginMiner", margin=size, type_of_triplets=kind),
    )


def hardness(name: str, negatives: str, positives: str = "hardest", **settings: float) -> Case:
    return Case(
        f"hardness_{name}",
        lambda: HardnessMiner(negatives, positives, **settings, **RANDOM),  # type: ignore[arg-type]
        lambda e, y: oracles.hardness_triplets(e, y, negatives, positives, settings, number),
    )


CASES = [
    Case(
        "batch_hard",
        lambda: BatchHardMiner(**RAW),
        oracles.batch_hard_triplets,
        pml_miner("BatchHardMiner"),
    ),
    Case(
        "batch_hard_default",
        BatchHardMiner,
        lambda e, y: oracles.batch_hard_triplets(units(e), y),
        pml_default("BatchHardMiner"),
    ),
    Case(
        "batch_easy_hard_default",
        BatchEasyHardMiner,
        lambda e, y: oracles.easy_hard_pairs(units(e), y, "easy", "semihard"),
        pml_default("BatchEasyHardMiner"),
    ),
    *(easy_hard(*strategies) for strategies in EASY_HARD),
    *(easy_hard_ranges(*strategies) for strategies in EASY_HARD),
    Case(
        "multi_similarity_default",
        MultiSimilarityMiner,
        lambda e, y: oracles.multi_similarity_pairs(e, y, 0.1),
        pml_default("MultiSimilarityMiner"),
    ),
    Case(
        "multi_similarity_strict",
        lambda: MultiSimilarityMiner(-0.2),
        lambda e, y: oracles.multi_similarity_pairs(e, y, -0.2),
    ),
    Case(
        "triplet_margin_default",
        TripletMarginMiner,
        lambda e, y: oracles.margin_triplets(units(e), y, 0.2, "all"),
        pml_default("TripletMarginMiner"),
    ),
    *(margin(kind) for kind in ("all", "hard", "semihard", "easy")),
    Case("semi_hard", lambda: SemiHardMiner(**RAW), oracles.nearest_beyond_triplets),
    Case(
        "distance_weighted",
        lambda: DistanceWeightedMiner(seed=SEED),
        lambda e, y: oracles.distance_weighted_triplets(e, y, number),
    ),
    hardness("hardest", "hardest"),
    hardness("third", "kth", k=3),
    hardness("window", "range", skip=1, width=3),
    hardness("window_all_positives", "range", "all", skip=2, width=4),
    hardness("window_beyond_the_negatives", "range", "random", skip=100, width=5),
    hardness("median", "quantile", quantile=0.5),
    hardness("easiest", "quantile", "easiest", quantile=0.0),
    hardness("temperature", "temperature", temperature=0.4),
    hardness("temperature_all_positives", "temperature", "all", temperature=2.0),
    hardness("half_random", "kth", "all", k=2, random_fraction=0.5),
    hardness("random", "hardest", "random", random_fraction=1.0),
]
