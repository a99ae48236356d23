"""Losses, one per file: `loss(embeddings, labels)`; names and defaults are pytorch-metric-learning's where the
mathematics is the same.
"""

from distmetric.losses.arcface import ArcFaceLoss, ArcFaceLossConfig
from distmetric.losses.attribute_classification import (
    AttributeClassificationLoss,
    AttributeClassificationLossConfig,
)
from distmetric.losses.attribute_identity_hard import (
    AttributeIdentityHardTripletLoss,
    AttributeIdentityHardTripletLossConfig,
)
from distmetric.losses.base import LossTerm, MetricLoss
from distmetric.losses.build import (
    CrossBatchMemoryConfig,
    LossConfig,
    WeightedPartConfig,
    WeightedSumLossConfig,
    build_loss,
)
from distmetric.losses.centroid_bound import CentroidBoundLoss, CentroidBoundLossConfig
from distmetric.losses.circle import CircleLoss, CircleLossConfig
from distmetric.losses.contrastive import ContrastiveLoss, ContrastiveLossConfig
from distmetric.losses.cosface import CosFaceLoss, CosFaceLossConfig
from distmetric.losses.cross_batch_memory import CrossBatchMemory
from distmetric.losses.generalized_lifted_structure import (
    GeneralizedLiftedStructureLoss,
    GeneralizedLiftedStructureLossConfig,
)
from distmetric.losses.lifted_structure import LiftedStructureLoss, LiftedStructureLossConfig
from distmetric.losses.multi_similarity import MultiSimilarityLoss, MultiSimilarityLossConfig
from distmetric.losses.n_pairs import NPairsLoss, NPairsLossConfig
from distmetric.losses.ntxent import NTXentLoss, NTXentLossConfig
from distmetric.losses.proxy_anchor import ProxyAnchorLoss, ProxyAnchorLossConfig
from distmetric.losses.proxy_nca import ProxyNCALoss, ProxyNCALossConfig
from distmetric.losses.soft_triple import SoftTripleLoss, SoftTripleLossConfig
from distmetric.losses.supcon import SupConLoss, SupConLossConfig
from distmetric.losses.triplet import TripletLoss, TripletLossConfig
from distmetric.losses.weighted_sum import WeightedSumLoss
from distmetric.losses.whole_batch import CustomLossConfig, WholeBatchLoss

__all__ = [
    "ArcFaceLoss",
    "ArcFaceLossConfig",
    "AttributeClassificationLoss",
    "AttributeClassificationLossConfig",
    "AttributeIdentityHardTripletLoss",
    "AttributeIdentityHardTripletLossConfig",
    "CentroidBoundLoss",
    "CentroidBoundLossConfig",
    "CircleLoss",
    "CircleLossConfig",
    "ContrastiveLoss",
    "ContrastiveLossConfig",
    "CosFaceLoss",
    "CosFaceLossConfig",
    "CrossBatchMemory",
    "CrossBatchMemoryConfig",
    "CustomLossConfig",
    "GeneralizedLiftedStructureLoss",
    "GeneralizedLiftedStructureLossConfig",
    "LiftedStructureLoss",
    "LiftedStructureLossConfig",
    "LossConfig",
    "LossTerm",
    "MetricLoss",
    "MultiSimilarityLoss",
    "MultiSimilarityLossConfig",
    "NPairsLoss",
    "NPairsLossConfig",
    "NTXentLoss",
    "NTXentLossConfig",
    "ProxyAnchorLoss",
    "ProxyAnchorLossConfig",
    "ProxyNCALoss",
    "ProxyNCALossConfig",
    "SoftTripleLoss",
    "SoftTripleLossConfig",
    "SupConLoss",
    "SupConLossConfig",
    "TripletLoss",
    "TripletLossConfig",
    "WeightedPartConfig",
    "WeightedSumLoss",
    "WeightedSumLossConfig",
    "WholeBatchLoss",
    "build_loss",
]
