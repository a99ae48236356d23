"""The model that every part of the package trains and evaluates: trunk, pooling, head, normalization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distmetric.errors import ConfigError, InputError
from distmetric.functional.distances import at_least_float32, unit_length
from distmetric.models.framing import framed
from distmetric.models.norm import Norm
from distmetric.models.pooling import pooling_layer
from distmetric.models.probe import dry_run
from distmetric.models.spec import Head, Pooling, Temporal
from distmetric.models.temporal import (
    AttentionOverTime,
    AttributeAttention,
    MeanOverTime,
    by_attribute,
    divided,
)
from distmetric.models.views import view


class Embedder(nn.Module):
    """Images in, embeddings out, and logits of attributes where it has heads for them.

    e = unit(head(pool(trunk((images - mean) / std))))

    A sample is an image, or, with `temporal`, a clip: its frames go through the trunk as images do, and are pooled over
    space and time.

    Args:
        trunk: Module (B, C, H, W) -> (B, F, h, w), or (B, F), which is then not pooled. An integer attribute
            `num_features` saves a dry run.
        pooling: "avg", "max", "gem" (learned exponent) or "flatten".
        embedding_dim: Length D of an embedding.
        normalize: Whether embeddings are scaled to length one.
        head: "linear_bn" (linear, then every dimension standardized over the batch), "linear", "mlp" (one hidden
            layer of F units, ReLU) or "none", for which D must be F. Standardizing keeps the embeddings from
            collapsing into one point, which the hardest pairs of an untrained model otherwise lead to.
        image_mean: Mean per channel of images in [0, 1]; a single number is for all channels.
        image_std: Standard deviation per channel, equally long.
        image_shape: (C, H, W) of the trunk's input, to check images against and for a dry run. Needed where
            the number of pooled features is unknown: with "flatten", or a trunk without `num_features`.
        attribute_values: Name of an attribute to predict -> its V values, in the order of their logits. Each gets a
            linear map of the pooled features.
        attributes_detached: Whether logits pass no gradient to the trunk.
        temporal: How clips are pooled over time: "mean", "attention" or "attribute_attention" (`models/temporal.py`),
            which reads attributes through an attention of their own; None for images.
        attribute_groups: Names of attributes, group by group, each with an attention map; None for one group.
        norm: Normalization in the attribute attention.
        views: In how many ways an image is seen where the model is not in training mode (`models/views.py`): its
            embedding is the mean of theirs, scaled to length one where they are, its logits are the mean of theirs.
        framing: Fraction of the image that the longer side of its content is brought to, in the middle
            (`models/framing.py`), before anything else looks at it; 0 for images as they are.
        whitening: Whether embeddings are whitened within classes where the model is not in training mode
            (`models/whitening.py`); evaluations in training compute how, until then nothing changes.

    Attributes:
        embedding_dim: Length D of an embedding.
        attribute_values: As given.
        whitening: (D, D) what embeddings are multiplied by, symmetric; None where nothing is whitened.

    Raises:
        ConfigError: Head "none" with another D, or means and deviations that do not fit together, or groups that do not
            divide the attributes.

    Corner cases: an embedding of zeros stays zeros and passes no gradient, instead of NaN. Where clips are expected, an
    image is a clip of one frame.
    """

    image_mean: Tensor
    image_std: Tensor
    whitening: Tensor | None

    def __init__(
        self,
        trunk: nn.Module,
        pooling: Pooling = "avg",
        embedding_dim: int = 128,
        normalize: bool = True,
        head: Head = "linear_bn",
        image_mean: Sequence[float] = (0.5,),
        image_std: Sequence[float] = (0.5,),
        image_shape: tuple[int, int, int] | None = None,
        attribute_values: Mapping[str, Sequence[str]] | None = None,
        attributes_detached: bool = True,
        temporal: Temporal | None = None,
        attribute_groups: Sequence[Sequence[str]] | None = None,
        norm: Norm = "batch",
        views: int = 1,
        framing: float = 0.0,
        whitening: bool = False,
    ) -> None:
        super().__init__()
        if len(image_mean) != len(image_std) or not image_mean or min(image_std) <= 0:
            raise ConfigError(
                f"model.image_mean={list(image_mean)} and model.image_std={list(image_std)} must be "
                "equally long, one number per channel, and the deviations positive"
            )
        self.trunk = trunk
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._layout = torch.preserve_format
        self.pooling: nn.Module = pooling_layer(pooling)
        self.normalize = normalize
        self.views = views
        self.framing = framing
        self.embedding_dim = embedding_dim
        self.register_buffer("whitening", torch.eye(embedding_dim) if whitening else None)
        self._whitens = whitening
        self.channels = image_shape[0] if image_shape else (len(image_mean) if len(image_mean) > 1 else None)
        repeats = self.channels if self.channels and len(image_mean) == 1 else 1
        self.register_buffer("image_mean", torch.tensor(image_mean).view(-1, 1, 1).repeat(repeats, 1, 1))
        self.register_buffer("image_std", torch.tensor(image_std).view(-1, 1, 1).repeat(repeats, 1, 1))
        channels, pooled = self._widths(pooling, image_shape)
        self.attribute_values = {name: list(values) for name, values in (attribute_values or {}).items()}
        self.attributes_detached = attributes_detached
        self.takes_clips = temporal is not None
        if temporal == "mean":
            self.pooling = MeanOverTime(self.pooling)
        elif temporal == "attention":
            self.pooling = AttentionOverTime(self.pooling, pooled)
        elif temporal == "attribute_attention":
            groups = attribute_groups or [list(self.attribute_values)]
            shape = self._map_shape(image_shape)
            self.pooling = AttributeAttention(
                *(self.pooling, shape, pooled, divided(self.attribute_values, groups)),
                *(norm, attributes_detached),
            )
        attending = isinstance(self.pooling, AttributeAttention)
        width = self.pooling.width if isinstance(self.pooling, AttributeAttention) else pooled
        self.head = _head(head, width, channels, embedding_dim)
        # The maps of all attributes as one, whose outputs are split.
        total = sum(map(len, self.attribute_values.values()))
        self.attribute_head = nn.Linear(pooled, total) if total and not attending else None

    def forward(
        self, images: Tensor, with_attributes: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Embed images and, where asked, predict their attributes.

        Args:
            images: (B, C, H, W), or clips (B, T, C, H, W), floating point in [0, 1] or uint8. A single gray channel is
                repeated where the model takes three.
            with_attributes: Whether to return logits, too.

        Returns:
            Embeddings (B, D); if asked also a dict of each attribute's name -> logits (B, V) of its values. float64 for
            a float64 model, else float32, under autocast too.

        Raises:
            InputError: The images have another layout or number type.
        """
        if self.training or self.views == 1:
            embeddings, logits = self.from_features(self.features(images))
        else:
            embeddings, logits = self._mean_over_views(images)
        if self._whitens and not self.training:
            embeddings = self._whitened(embeddings)
        return (embeddings, logits) if with_attributes else embeddings

    def _mean_over_views(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = images.to(self.image_mean.dtype)
        if images.dtype == torch.uint8:
            pixels = pixels / 255
        frames = pixels.flatten(0, 1) if images.dim() == 5 else pixels
        seen = [
            self.from_features(self.features(view(frames, number).view_as(pixels)))
            for number in range(self.views)
        ]
        embeddings = torch.stack([rows for rows, _ in seen]).mean(0)
        logits = {name: torch.stack([each[name] for _, each in seen]).mean(0) for name in seen[0][1]}
        return unit_length(embeddings) if self.normalize else embeddings, logits

    def _whitened(self, embeddings: Tensor) -> Tensor:
        assert self.whitening is not None
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = embeddings @ self.whitening
        return unit_length(rows) if self.normalize else rows

    @contextmanager
    def not_whitened(self) -> Iterator[None]:
        """Leave embeddings as they are for a block."""
        whitens, self._whitens = self._whitens, False
        try:
            yield
        finally:
            self._whitens = whitens

    def features(self, images: Tensor) -> Tensor:
        """The first and costly part of `forward`, sample by sample: trunk and pooling, -> (B, F)."""
        if not self.takes_clips:
            return self._pool(self._maps(images))
        clips = images[:, None] if images.dim() == 4 else images
        if clips.dim() != 5:
            raise InputError(
                f"images have shape {tuple(images.shape)}, but the model takes clips "
                f"(batch, frames, {self.channels or 'channels'}, height, width)"
            )
        maps = _as_maps(self._maps(clips.flatten(0, 1)))
        pooled: Tensor = self.pooling(maps.reshape(*clips.shape[:2], *maps.shape[1:]))
        return pooled

    def _maps(self, images: Tensor) -> Tensor:
        images = self._standardize(images).to(memory_format=self._layout)
        # Evaluations have batches of many sizes, each of which would be compiled.
        trunk = self._compiled if self._compiled is not None and self.training else self.trunk
        maps: Tensor = trunk(images)
        return maps

    def before_head(self) -> nn.ModuleList:
        """Trunk and pooling, which is what `features` computes with."""
        return nn.ModuleList([self.trunk, self.pooling])

    def from_features(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The rest of `forward`, whose norm sees the whole batch: (B, F) -> embeddings and logits of attributes."""
        own = features[:, : self.pooling.width] if isinstance(self.pooling, AttributeAttention) else features
        embeddings = at_least_float32(self.head(own))
        if self.normalize:
            embeddings = unit_length(embeddings)
        return embeddings, self._attributes(features)

    def lay_out(self, *, channels_last: bool) -> None:
        """Keep feature maps as they come, or with the channels of a pixel together (NHWC), as GPUs' convolutions want.

        Names, shapes and values stay, in checkpoints too; results differ by rounding.
        """
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layout = torch.channels_last if channels_last else torch.preserve_format

    def use_compiled(self, trunk: Callable[[Tensor], Tensor]) -> None:
        """Call that in place of the trunk wherever the model is in training mode; see `compiled`."""
        self._compiled = trunk

    def _attributes(self, features: Tensor) -> dict[str, Tensor]:
        if isinstance(self.pooling, AttributeAttention):
            found = self.pooling.logits(features)
            return {name: found[name] for name in self.attribute_values}
        if self.attribute_head is None:
            return {}
        seen = features.detach() if self.attributes_detached else features
        return by_attribute(self.attribute_head(seen), self.attribute_values)

    def _standardize(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or (self.channels and images.shape[1] not in (1, self.channels)):
            raise InputError(
                f"images have shape {tuple(images.shape)}, but the model takes "
                f"(batch, {self.channels or 'channels'}, height, width)"
            )
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise InputError(f"images are {images.dtype}, but the model takes floats in [0, 1] or uint8")
        scaled = images.to(self.image_mean.dtype)
        if images.dtype == torch.uint8:
            scaled = scaled / 255
        if self.framing:
            scaled = framed(scaled, self.framing)
        return (scaled - self.image_mean) / self.image_std

    def _pool(self, features: Tensor) -> Tensor:
        pooled: Tensor = features if features.dim() == 2 else self.pooling(features)
        return pooled

    def _widths(self, pooling: Pooling, image_shape: tuple[int, int, int] | None) -> tuple[int, int]:
        """Number of features before and after pooling; drops a pooling that would never be used."""
        known = getattr(self.trunk, "num_features", None)
        if isinstance(known, int) and (
            pooling in ("avg", "max") or (pooling == "gem" and image_shape is None)
        ):
            return known, known
        if image_shape is None:
            raise ConfigError("the trunk's number of features is unknown: give num_features or image_shape")
        features = dry_run(self.trunk, image_shape)
        if features.dim() == 2:
            # The exponent of an idle GeM would get no gradient, which DistributedDataParallel does not take.
            self.pooling = nn.Identity()
        return features.shape[1], self._pool(features).shape[1]

    def _map_shape(self, image_shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
        """(F, h, w) of what the trunk gives for an image; a vector is a map of one pixel."""
        if image_shape is None:
            raise ConfigError("temporal=attribute_attention needs image_shape, to know the maps of the trunk")
        _, features, height, width = _as_maps(dry_run(self.trunk, image_shape)).shape
        return features, height, width


def _as_maps(features: Tensor) -> Tensor:
    return features[:, :, None, None] if features.dim() == 2 else features


def _head(head: Head, pooled: int, channels: int, embedding_dim: int) -> nn.Module:
    if head == "linear_bn":
        # Two spatial dimensions of one pixel, so that it is the batch norm that can be synchronized over ranks.
        norm = nn.BatchNorm2d(embedding_dim, affine=False)
        return nn.Sequential(
            nn.Linear(pooled, embedding_dim, bias=False), nn.Unflatten(1, (-1, 1, 1)), norm, nn.Flatten()
        )
    if head == "linear":
        return nn.Linear(pooled, embedding_dim)
    if head == "mlp":
        return nn.Sequential(nn.Linear(pooled, channels), nn.ReLU(), nn.Linear(channels, embedding_dim))
    if pooled != embedding_dim:
        raise ConfigError(
            f"model.embedding_dim={embedding_dim}, but without a head the trunk gives {pooled}: set "
            f"model.embedding_dim={pooled} or model.head=linear"
        )
    return nn.Identity()
