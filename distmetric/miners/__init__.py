"""Miners, one per file: `miner(embeddings, labels)` gives what a loss takes as `indices_tuple`; names and defaults are
pytorch-metric-learning's where the choice is the same.
"""

from distmetric.functional.dial import Dial
from distmetric.miners.base import Miner, RandomMiner
from distmetric.miners.batch_easy_hard import BatchEasyHardMiner, BatchEasyHardMinerConfig
from distmetric.miners.batch_hard import BatchHardMiner, BatchHardMinerConfig
from distmetric.miners.build import MinerConfig, NoMinerConfig, build_miner
from distmetric.miners.distance_weighted import DistanceWeightedMiner, DistanceWeightedMinerConfig
from distmetric.miners.hardness import HardnessMiner, HardnessMinerConfig
from distmetric.miners.multi_similarity import MultiSimilarityMiner, MultiSimilarityMinerConfig
from distmetric.miners.semi_hard import SemiHardMiner, SemiHardMinerConfig
from distmetric.miners.triplet_margin import TripletMarginMiner, TripletMarginMinerConfig

__all__ = [
    "BatchEasyHardMiner",
    "BatchEasyHardMinerConfig",
    "BatchHardMiner",
    "BatchHardMinerConfig",
    "Dial",
    "DistanceWeightedMiner",
    "DistanceWeightedMinerConfig",
    "HardnessMiner",
    "HardnessMinerConfig",
    "Miner",
    "MinerConfig",
    "MultiSimilarityMiner",
    "MultiSimilarityMinerConfig",
    "NoMinerConfig",
    "RandomMiner",
    "SemiHardMiner",
    "SemiHardMinerConfig",
    "TripletMarginMiner",
    "TripletMarginMinerConfig",
    "build_miner",
]
