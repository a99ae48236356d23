"""From the feature maps of T frames (B, T, F, h, w) to one vector per clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from distmetric.errors import ConfigError
from distmetric.functional.distances import at_least_float32
from distmetric.models.norm import Norm, norm_layer

_KERNEL = 3


class MeanOverTime(nn.Module):
    """The mean over frames of pooled maps:  v = 1/T sum_t pool(g_t).

    Args:
        pooling: (N, F, h, w) -> (N, P).

    Input (B, T, F, h, w), output (B, P).
    """

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps (B, T, F, h, w) to (B, P)."""
        return _vectors(maps, self.pooling).mean(1)


class AttentionOverTime(nn.Module):
    """A weighted mean of pooled maps, by weights that a frame and its neighbors in time decide.

    v_t = pool(g_t),  s = Conv1d_3(ReLU(A v_t + b)) over t,  w = softmax_t(s),  v = sum_t w_t v_t

    Args:
        pooling: (N, F, h, w) -> (N, P).
        pooled: P.
        hidden: Rows of A.

    Input (B, T, F, h, w), output (B, P).

    Corner cases: with one frame the weight is 1. Before and after the clip the convolution sees zeros.

    Source: Gao and Nevatia 2018 (arXiv 1805.02104), "temporal conv", on pooled vectors.
    """

    def __init__(self, pooling: nn.Module, pooled: int, hidden: int = 64) -> None:
        super().__init__()
        self.pooling = pooling
        self.reduce = nn.Linear(pooled, hidden)
        self.score = nn.Conv1d(hidden, 1, _KERNEL, padding=_KERNEL // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps (B, T, F, h, w) to (B, P)."""
        vectors = _vectors(maps, self.pooling)
        return (self.weights(vectors)[..., None] * vectors).sum(1)

    def weights(self, vectors: Tensor) -> Tensor:
        """Weights of the frames, (B, T, P) -> (B, T); each row sums to 1."""
        scores: Tensor = self.score(self.reduce(vectors).relu().transpose(1, 2))
        return scores.squeeze(1).softmax(1)


class AttributeRecognizer(nn.Module):
    """One group of attributes: where in space and time it is seen, and what its values are.

    a = sigmoid(Conv1d_3 over t (Conv_3x3(ReLU(norm(Conv_1x1 g))))),  with the h w positions as channels of the Conv1d;
    logits = W ReLU(1/T sum_t pool(a_t g_t)) + b

    Args:
        shape: (F, h, w) of a frame's map.
        pooled: P, what `pool` makes of it.
        attribute_values: Name -> values of the attributes of the group, in the order of their logits.
        norm: Normalization after the 1x1 convolution.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        pooled: int,
        attribute_values: Mapping[str, Sequence[str]],
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        features, positions = shape[0], shape[1] * shape[2]
        hidden = max(1, features // 4)
        self.attribute_values = {name: list(values) for name, values in attribute_values.items()}
        self.spatial = nn.Sequential(
            nn.Conv2d(features, hidden, 1, bias=False),
            norm_layer(norm, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, _KERNEL, padding=_KERNEL // 2),
        )
        self.temporal = nn.Conv1d(positions, positions, _KERNEL, padding=_KERNEL // 2)
        self.classify = nn.Linear(pooled, sum(map(len, self.attribute_values.values())))

    def attention(self, maps: Tensor) -> Tensor:
        """Where the group is seen: maps (B, T, F, h, w) -> (B, T, 1, h, w) in (0, 1)."""
        batch, frames, _, height, width = maps.shape
        seen = self.spatial(maps.flatten(0, 1)).reshape(batch, frames, height * width)
        along: Tensor = self.temporal(seen.transpose(1, 2)).transpose(1, 2)
        return along.reshape(batch, frames, 1, height, width).sigmoid()

    def logits(self, vectors: Tensor) -> dict[str, Tensor]:
        """Logits of each attribute by name, from the pooled maps (B, P) under the group's attention."""
        return by_attribute(self.classify(vectors.relu()), self.attribute_values)


def by_attribute(logits: Tensor, attribute_values: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Logits of all attributes side by side, (B, sum of V), as (B, V) each by name; float32 or wider."""
    widths = [len(values) for values in attribute_values.values()]
    return dict(zip(attribute_values, torch.split(at_least_float32(logits), widths, 1), strict=True))


class AttributeAttention(nn.Module):
    """Attribute-driven spatio-temporal attention: the maps under each group's attention beside the maps without.

    a = sigmoid(Conv_3x3 g);  v = [pool(a g), pool(a_1 a g), ..., pool(a_G a g)], each the mean over t

    The maps a_r come from recognizers that read g without passing a gradient to it: what is learned about attributes
    never reaches the trunk, while v trains the trunk, a, and the maps a_r.

    Args:
        pooling: (N, F, h, w) -> (N, P); average in the paper.
        shape: (F, h, w) of a frame's map.
        pooled: P.
        groups: Attributes with their values, group by group.
        norm: Normalization in the recognizers.
        detached: Whether recognizers read g without passing a gradient; the paper's way.

    Attributes:
        width: (1 + G) P, numbers of v.

    Input (B, T, F, h, w), output (B, (1 + 2 G) P): v, then what the logits of each group are read from.

    Cost: of the maps' size 3 + 2 G products are held for the backward pass.

    Source: Chen, Li, Jiang and Wang 2020 (arXiv 2006.07597).
    """

    def __init__(
        self,
        pooling: nn.Module,
        shape: tuple[int, int, int],
        pooled: int,
        groups: Sequence[Mapping[str, Sequence[str]]],
        norm: Norm = "batch",
        detached: bool = True,
    ) -> None:
        super().__init__()
        self.pooling, self.detached, self.pooled = pooling, detached, pooled
        self.width = (1 + len(groups)) * pooled
        self.spatial = nn.Conv2d(shape[0], 1, _KERNEL, padding=_KERNEL // 2)
        recognizers = [AttributeRecognizer(shape, pooled, values, norm) for values in groups]
        self.recognizers = nn.ModuleList(recognizers)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps (B, T, F, h, w) to (B, (1 + 2 G) P)."""
        seen = maps.detach() if self.detached else maps
        where: Tensor = self.spatial(maps.flatten(0, 1)).sigmoid()
        attended = where.reshape(*maps.shape[:2], *where.shape[1:]) * maps
        found = [each.attention(seen) for each in self._recognizers()]
        parts = [attended, *(one * attended for one in found), *(one * seen for one in found)]
        return torch.cat([_vectors(part, self.pooling).mean(1) for part in parts], 1)

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of all attributes by name, from what `forward` gave."""
        read = torch.split(features[:, self.width :], self.pooled, 1)
        found: dict[str, Tensor] = {}
        for recognizer, vectors in zip(self._recognizers(), read, strict=True):
            found |= recognizer.logits(vectors)
        return found

    def _recognizers(self) -> list[AttributeRecognizer]:
        return cast(list[AttributeRecognizer], list(self.recognizers))


def divided(
    attribute_values: Mapping[str, Sequence[str]], groups: Sequence[Sequence[str]]
) -> list[Mapping[str, Sequence[str]]]:
    """Attributes with their values, group by group.

    Raises:
        ConfigError: If an attribute is in none or in two of the groups, or a group is empty.
    """
    if sorted(name for group in groups for name in group) != sorted(attribute_values) or not all(groups):
        raise ConfigError(
            f"model.attribute_groups={[list(group) for group in groups]} must divide "
            f"model.attributes={list(attribute_values)}, each of them in one group: attend to attributes that there are"
        )
    return [{name: attribute_values[name] for name in group} for group in groups]


def _vectors(maps: Tensor, pooling: nn.Module) -> Tensor:
    """(B, T, F, h, w) -> (B, T, P)."""
    pooled: Tensor = pooling(maps.flatten(0, 1))
    return pooled.reshape(*maps.shape[:2], -1)
