"""Losses, one per file: `loss(embeddings, labels)`; names and defaults are pytorch-metric-learning's where the
mathematics is the same.
"""

from distmetric.losses.base import LossParts, PairLoss
from distmetric.losses.build import LossConfig, build_loss
from distmetric.losses.lifted_structure import LiftedStructureLoss, LiftedStructureLossConfig
from distmetric.losses.triplet import TripletLoss, TripletLossConfig

__all__ = [
    "LiftedStructureLoss",
    "LiftedStructureLossConfig",
    "LossConfig",
    "LossParts",
    "PairLoss",
    "TripletLoss",
    "TripletLossConfig",
    "build_loss",
]
