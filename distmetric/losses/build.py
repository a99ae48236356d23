"""From the `loss` part of a configuration to the loss."""

from __future__ import annotations

from distmetric.losses.base import PairLoss
from distmetric.losses.lifted_structure import LiftedStructureLoss, LiftedStructureLossConfig
from distmetric.losses.triplet import TripletLoss, TripletLossConfig

LossConfig = TripletLossConfig | LiftedStructureLossConfig


def build_loss(config: LossConfig) -> PairLoss:
    """The loss that `config` describes."""
    match config:
        case TripletLossConfig():
            return TripletLoss(margin=config.margin)
        case LiftedStructureLossConfig():
            return LiftedStructureLoss(neg_margin=config.neg_margin, pos_margin=config.pos_margin)
