"""From the `miner` part of a configuration to the miner."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from distmetric.miners.base import Miner, RandomMiner
from distmetric.miners.batch_easy_hard import BatchEasyHardMiner, BatchEasyHardMinerConfig
from distmetric.miners.batch_hard import BatchHardMiner, BatchHardMinerConfig
from distmetric.miners.distance_weighted import DistanceWeightedMiner, DistanceWeightedMinerConfig
from distmetric.miners.hardness import HardnessMiner, HardnessMinerConfig
from distmetric.miners.multi_similarity import MultiSimilarityMiner, MultiSimilarityMinerConfig
from distmetric.miners.semi_hard import SemiHardMiner, SemiHardMinerConfig
from distmetric.miners.triplet_margin import TripletMarginMiner, TripletMarginMinerConfig


@dataclass(kw_only=True, frozen=True)
class NoMinerConfig:
    """All pairs count, or those that the loss finds itself."""

    name: Literal["none"] = "none"


MinerConfig = (
    NoMinerConfig
    | BatchHardMinerConfig
    | BatchEasyHardMinerConfig
    | MultiSimilarityMinerConfig
    | TripletMarginMinerConfig
    | SemiHardMinerConfig
    | DistanceWeightedMinerConfig
    | HardnessMinerConfig
)

# Each miner takes what its configuration has, under the same names.
_CLASSES: dict[type, type[Miner]] = {
    BatchHardMinerConfig: BatchHardMiner,
    BatchEasyHardMinerConfig: BatchEasyHardMiner,
    MultiSimilarityMinerConfig: MultiSimilarityMiner,
    TripletMarginMinerConfig: TripletMarginMiner,
    SemiHardMinerConfig: SemiHardMiner,
    DistanceWeightedMinerConfig: DistanceWeightedMiner,
    HardnessMinerConfig: HardnessMiner,
}


def build_miner(config: MinerConfig, seed: int = 0) -> Miner | None:
    """The miner that `config` describes, None for none; whether embeddings have length one is the model's business.

    Args:
        config: Its settings.
        seed: Key of whatever the miner draws.
    """
    if isinstance(config, NoMinerConfig):
        return None
    settings: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name != "name"
    }
    miner_class = _CLASSES[type(config)]
    if miner_class is not DistanceWeightedMiner:
        settings |= {"normalize_embeddings": False}
    if issubclass(miner_class, RandomMiner):
        settings |= {"seed": seed}
    return miner_class(**settings)
