"""From the `loss` part of a configuration to the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.custom_targets import build_target
from distmetric.losses.arcface import ArcFaceLoss, ArcFaceLossConfig
from distmetric.losses.attribute_classification import (
    AttributeClassificationLoss,
    AttributeClassificationLossConfig,
)
from distmetric.losses.attribute_identity_hard import (
    AttributeIdentityHardTripletLoss,
    AttributeIdentityHardTripletLossConfig,
)
from distmetric.losses.base import MetricLoss
from distmetric.losses.centroid_bound import CentroidBoundLoss, CentroidBoundLossConfig
from distmetric.losses.circle import CircleLoss, CircleLossConfig
from distmetric.losses.class_loss import ClassLoss, ClassLossConfig
from distmetric.losses.contrastive import ContrastiveLoss, ContrastiveLossConfig
from distmetric.losses.cosface import CosFaceLoss, CosFaceLossConfig
from distmetric.losses.cross_batch_memory import CrossBatchMemory, check_memory
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
from distmetric.losses.weighted_sum import WeightedSumLoss, check_parts
from distmetric.losses.whole_batch import CustomLossConfig, WholeBatchLoss
from distmetric.miners.base import Miner

# Losses made of other losses: their configurations refer to the union below, and so stand beside it.


@dataclass(kw_only=True, frozen=True)
class WeightedPartConfig:
    """One of the losses that `WeightedSumLoss` adds up."""

    weight: float = 1.0
    """What this part is multiplied by."""
    loss: LossConfig
    """Any of the losses, with its settings."""


@dataclass(kw_only=True, frozen=True)
class WeightedSumLossConfig:
    """Settings of `WeightedSumLoss`."""

    name: Literal["weighted_sum"] = "weighted_sum"
    parts: dict[str, WeightedPartConfig]
    """The losses that are added up, by names of your choice."""

    def __post_init__(self) -> None:
        """Check names and weights.

        Raises:
            ValueError: If one cannot be used.
        """
        check_parts({name: part.weight for name, part in self.parts.items()})


@dataclass(kw_only=True, frozen=True)
class CrossBatchMemoryConfig:
    """Settings of `CrossBatchMemory`."""

    name: Literal["cross_batch_memory"] = "cross_batch_memory"
    memory_size: int = 1024
    """How many of the newest embeddings of all workers are kept; a global batch must fit."""
    start_step: int = 0
    """Until this step only the batch counts; the memory is filled from the beginning."""
    batch_weight: float = 0.0
    """Weight of the loss within the batch beside that against the memory; 1.0 in the paper."""
    loss: LossConfig
    """Any loss over pairs or triplets, with its settings."""

    def __post_init__(self) -> None:
        """Check the numbers, and that the loss has use for a memory.

        Raises:
            ValueError: If it has not, or a number is out of its range.
        """
        check_memory(self.memory_size, self.start_step, self.batch_weight)
        for key, inner in nested_losses(self.loss, "loss"):
            if not _CLASSES[type(inner)].over_pairs:
                raise ValueError(
                    f"{key}.name={inner.name} has no use for a memory: put it beside this loss, in a weighted_sum"
                )


LossConfig = (
    TripletLossConfig
    | ContrastiveLossConfig
    | LiftedStructureLossConfig
    | GeneralizedLiftedStructureLossConfig
    | MultiSimilarityLossConfig
    | SupConLossConfig
    | NTXentLossConfig
    | CircleLossConfig
    | NPairsLossConfig
    | SoftTripleLossConfig
    | ArcFaceLossConfig
    | CosFaceLossConfig
    | ProxyNCALossConfig
    | ProxyAnchorLossConfig
    | CentroidBoundLossConfig
    | AttributeIdentityHardTripletLossConfig
    | AttributeClassificationLossConfig
    | WeightedSumLossConfig
    | CrossBatchMemoryConfig
    | CustomLossConfig
)

# Each loss takes what its configuration has, under the same names.
_CLASSES: dict[type, type[MetricLoss]] = {
    TripletLossConfig: TripletLoss,
    ContrastiveLossConfig: ContrastiveLoss,
    LiftedStructureLossConfig: LiftedStructureLoss,
    GeneralizedLiftedStructureLossConfig: GeneralizedLiftedStructureLoss,
    MultiSimilarityLossConfig: MultiSimilarityLoss,
    SupConLossConfig: SupConLoss,
    NTXentLossConfig: NTXentLoss,
    CircleLossConfig: CircleLoss,
    NPairsLossConfig: NPairsLoss,
    SoftTripleLossConfig: SoftTripleLoss,
    ArcFaceLossConfig: ArcFaceLoss,
    CosFaceLossConfig: CosFaceLoss,
    ProxyNCALossConfig: ProxyNCALoss,
    ProxyAnchorLossConfig: ProxyAnchorLoss,
    CentroidBoundLossConfig: CentroidBoundLoss,
    AttributeIdentityHardTripletLossConfig: AttributeIdentityHardTripletLoss,
    AttributeClassificationLossConfig: AttributeClassificationLoss,
    WeightedSumLossConfig: WeightedSumLoss,
    CrossBatchMemoryConfig: CrossBatchMemory,
    CustomLossConfig: WholeBatchLoss,
}


@dataclass(frozen=True)
class LossContext:
    """What a loss may have to know of the data and the model.

    Args:
        class_counts: Number of training images of each class; labels are its indices.
        embedding_size: Length D of an embedding.
        seed: Key of whatever the loss draws.
        miner: Chooses pairs for a loss that compares with more than the batch, and hence has to mine on its own.
        nearest_classes: Gives the nearest classes of each, (C, k), or None while nothing is known of them.
        rank: Which share of the classes is this process's, where a loss is sharded.
        world_size: How many shares there are.
        allow_custom_targets: Whether a custom loss may be code outside this package, which is imported and run.
    """

    class_counts: Sequence[int]
    embedding_size: int
    seed: int = 0
    miner: Miner | None = None
    nearest_classes: Callable[[], NDArray[np.int32] | None] | None = None
    rank: int = 0
    world_size: int = 1
    allow_custom_targets: bool = False


def nested_losses(config: LossConfig, key: str = "loss") -> Iterator[tuple[str, LossConfig]]:
    """The configuration at `key` and those of all losses in it, each with its full key."""
    yield key, config
    if isinstance(config, WeightedSumLossConfig):
        for name, part in config.parts.items():
            yield from nested_losses(part.loss, f"{key}.parts.{name}.loss")
    elif isinstance(config, CrossBatchMemoryConfig):
        yield from nested_losses(config.loss, f"{key}.loss")


def build_loss(config: LossConfig, context: LossContext) -> MetricLoss:
    """The loss that `config` describes; whether embeddings have length one is the model's business.

    Its parameters depend on the context's seed alone, so they are equal on all ranks and in a run that starts over
    because it was killed before its first checkpoint. The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, which are not forked here.
        torch.default_generator.manual_seed(context.seed)
        return _build(config, context)


def _build(config: LossConfig, context: LossContext) -> MetricLoss:
    if isinstance(config, WeightedSumLossConfig):
        return WeightedSumLoss(
            {name: (part.weight, _build(part.loss, context)) for name, part in config.parts.items()}
        )
    if isinstance(config, CrossBatchMemoryConfig):
        return CrossBatchMemory(
            _build(config.loss, context),
            context.embedding_size,
            config.memory_size,
            context.miner,
            start_step=config.start_step,
            batch_weight=config.batch_weight,
        )
    if isinstance(config, CentroidBoundLossConfig):
        bound = CentroidBoundLoss(
            len(context.class_counts),
            context.embedding_size,
            config.placement,
            class_counts=context.class_counts if config.weighted else None,
            seed=context.seed,
            normalize_embeddings=False,
            reduction=config.reduction,
        )
        if config.sharded:
            bound.shard(context.rank, context.world_size)
        return bound
    if isinstance(config, CustomLossConfig):
        return WholeBatchLoss(
            build_target("loss", config.target, config.kwargs, context.allow_custom_targets)
        )
    if isinstance(config, ClassLossConfig):
        return _build_class_loss(config, context)
    loss_class, settings = _CLASSES[type(config)], _settings(config)
    if "normalize_embeddings" in inspect.signature(loss_class).parameters:
        settings |= {"normalize_embeddings": False}
    return loss_class(**settings)


def _build_class_loss(config: LossConfig, context: LossContext) -> ClassLoss:
    assert isinstance(config, ClassLossConfig)
    shared = {field.name for field in fields(ClassLossConfig)}
    settings = {name: value for name, value in _settings(config).items() if name not in shared}
    sizes: dict[str, Any] = {
        "num_classes": len(context.class_counts),
        "embedding_size": context.embedding_size,
    }
    # Of a sharded loss nobody makes all the vectors.
    with torch.device("meta") if config.sharded else nullcontext():
        loss = _CLASSES[type(config)](**sizes, **settings)
    assert isinstance(loss, ClassLoss)
    if config.sharded:
        loss.shard(context.rank, context.world_size)
    nearest = context.nearest_classes if config.negatives == "hard" else None
    loss.sample_negatives(config.negative_sample_rate, nearest)
    return loss


def _settings(config: LossConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name != "name"}
