"""From the description of a model to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from distmetric.custom_targets import build_target
from distmetric.distributed.batch_norm import convert_sync_batchnorm
from distmetric.distributed.replica import Replica
from distmetric.errors import ConfigError
from distmetric.models.adapters import Preprocessing
from distmetric.models.conv import ConvTrunk
from distmetric.models.embedder import Embedder
from distmetric.models.norm import Norm
from distmetric.models.resnet import SmallResNet
from distmetric.models.spec import (
    AnySpec,
    ConvSpec,
    CustomSpec,
    EmbedderSpec,
    ResNetSpec,
    TimmSpec,
    TransformersSpec,
)


def build_embedder(
    spec: AnySpec,
    seed: int,
    replica: Replica | None = None,
    attribute_values: Mapping[str, Sequence[str]] | None = None,
    *,
    allow_custom_targets: bool = False,
) -> Embedder:
    """Build the model that a spec describes, on the CPU, with weights that depend on the seed alone.

    Args:
        spec: What to build.
        seed: Seed of the initial weights. The global generator is left as it was.
        replica: The ranks that norm "sync_batch" normalizes over; None for the default process group.
        attribute_values: Name -> values of the attributes, at least of those that the spec names.
        allow_custom_targets: Whether a custom trunk may be code outside this package, which is imported and run.

    Returns:
        The model in training mode, equal on all ranks that pass the same seed.

    Raises:
        ConfigError: The spec contradicts itself, or its model cannot be loaded.
        ResourceError: A package that the spec needs is missing.

    Corner cases: a custom trunk that draws its weights from another generator than PyTorch's default one is
    not covered by the seed.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, which are not forked here.
        torch.default_generator.manual_seed(seed)
        trunk = _trunk(spec, allow_custom_targets)
        embedder = _embedder(spec, trunk, _chosen_values(spec, attribute_values or {}))
    # The head's norm always sees the joint batch: ranks that standardized alone would not share one space.
    everything = spec.norm == "sync_batch"
    convert_sync_batchnorm(embedder if everything else embedder.head, replica or Replica.current())
    # Measured 1.3 to 2 times faster for convolutions on CPUs, and what tensor cores want; others do not notice.
    embedder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return embedder.train()


def _trunk(spec: AnySpec, allow_custom_targets: bool) -> nn.Module:
    match spec:
        case ConvSpec():
            trunk = ConvTrunk(spec.channels, spec.widths, _local_norm(spec), spec.pool_last)
            if min(spec.image_sides) < trunk.min_size:
                raise ConfigError(
                    f"model.image_size={spec.image_size} is too small for {len(spec.widths)} blocks: "
                    f"use at least {trunk.min_size}, or fewer model.widths"
                )
            return trunk
        case ResNetSpec():
            return SmallResNet(
                spec.channels, spec.widths, spec.blocks_per_stage, _local_norm(spec), spec.stem_stride
            )
        case TransformersSpec():
            from distmetric.models.hf import TransformersTrunk

            return TransformersTrunk(
                spec.model,
                spec.pretrained,
                spec.local_files_only,
                spec.token,
                spec.resize_to,
                spec.image_sides,
            )
        case TimmSpec():
            from distmetric.models.timm import TimmTrunk

            return TimmTrunk(spec.model, spec.pretrained, spec.token, spec.resize_to, spec.image_sides)
        case CustomSpec():
            return build_target("model", spec.target, spec.kwargs, allow_custom_targets)


def _local_norm(spec: AnySpec) -> Norm:
    return "group" if spec.norm == "group" else "batch"


def _chosen_values(spec: EmbedderSpec, known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    for name in spec.attributes:
        if name not in known:
            raise ConfigError(
                f"model.attributes names {name!r}, whose values are not known: "
                f"choose among {', '.join(known) or 'none'}, or give its values"
            )
    return {name: known[name] for name in spec.attributes}


def _embedder(spec: AnySpec, trunk: nn.Module, attribute_values: Mapping[str, Sequence[str]]) -> Embedder:
    mean, std = _standardization(spec, getattr(trunk, "preprocessing", None))
    return Embedder(
        trunk,
        spec.pooling,
        spec.embedding_dim,
        spec.normalize,
        spec.head,
        mean,
        std,
        image_shape=(max(spec.channels, len(mean)), *spec.image_sides),
        attribute_values=attribute_values,
        attributes_detached=spec.attributes_detached,
        temporal=None if spec.frames_per_clip is None else spec.temporal,
        attribute_groups=spec.attribute_groups,
        norm=_local_norm(spec),
        views=spec.views,
        framing=spec.framing,
        whitening=spec.whitening,
    )


def _standardization(spec: EmbedderSpec, own: Preprocessing | None) -> tuple[list[float], list[float]]:
    fallback = Preprocessing((0.5,) * spec.channels, (0.5,) * spec.channels) if own is None else own
    if spec.image_mean is None and spec.image_std is None:
        return list(fallback.mean), list(fallback.std)
    if spec.image_mean is None or spec.image_std is None:
        raise ConfigError("model.image_mean and model.image_std go together: set both or neither")
    if len(spec.image_mean) == len(spec.image_std) == 1:
        return spec.image_mean * spec.channels, spec.image_std * spec.channels
    if len(spec.image_mean) not in (spec.channels, len(fallback.mean)):
        raise ConfigError(
            f"model.image_mean has {len(spec.image_mean)} numbers for {spec.channels} channels: give one per "
            "channel, or one for all"
        )
    return spec.image_mean, spec.image_std
