"""Cross entropy of embeddings over learned class vectors, differentiable, without a matrix of embeddings x vectors.

A tile of b anchors x c classes is computed, turned while it is in the cache into the derivative of its exponentials,
and kept until the normalizers of its rows are known. These, and all that comes from upstream, are one number a row:
they scale anchors, and the two matrix multiplications of the gradient take the tiles as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmetric.functional import distances


@dataclass(frozen=True)
class ClassScores:
    """How the similarities of an anchor to the k vectors of a class make the class's logit.

    Formula: z_c = scale S_c, with S_c = sum_j q_j s_cj and q = softmax_j(s_cj / gamma), or S_c = max_j s_cj.

    Args:
        scale: What a class's similarity is multiplied by.
        vectors: k.
        gamma: Temperature, in units of similarity; None for the maximum, which is the limit of gamma to 0.
    """

    scale: float
    vectors: int = 1
    gamma: float | None = None

    def of_listed(self, similarities: Tensor) -> Tensor:
        """S, (P,), of (P, k) similarities; plain autograd, for few of them."""
        if self.vectors == 1 or self.gamma is None:
            return similarities.amax(1)
        return ((similarities / self.gamma).softmax(1) * similarities).sum(1)


def class_cross_entropy(
    anchors: Tensor,
    labels: Tensor,
    vectors: Tensor,
    scores: ClassScores,
    own_logits: Tensor,
    row_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over classes, where the logits of the anchors' own classes are given.

    Formula: sum_i w_i l_i, with l_i = log(e^{t_i} + sum_{c != y_i} e^{z_ic}) - t_i and t_i = own_logits_i.

    Args:
        anchors: (B, D) of length one, float32 or float64.
        labels: (B,) int64 classes, 0 <= label < C.
        vectors: (C k, D) of length one, those of a class next to each other; same type.
        scores: How similarities make logits z.
        own_logits: (B,) t, with whatever graph they have.
        row_weights: (B,) w, without gradient; None for ones.

    Returns:
        The sum, with gradient to anchors, vectors and own logits, and the (B,) terms w_i l_i without. Cost: 3 B C k D
        (1 without gradient) and an exponential per entry. Memory: O((B + C k) D), max(64, D) x C k values, and two
        tiles of `BLOCK_BYTES`. A single class has terms of 0 with gradient 0.
    """
    weights = torch.ones_like(own_logits) if row_weights is None else row_weights
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in (anchors, vectors, own_logits))
    total, terms = _ClassCrossEntropy.apply(  # type: ignore[no-untyped-call]
        anchors, vectors, own_logits, labels, weights, scores, wanted
    )
    return total, terms


class _ClassCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        vectors: Tensor,
        own_logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        scores: ClassScores,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(len(anchors), vectors, scores, wanted)
        excess = torch.empty_like(own_logits)
        to_anchors, to_logits = torch.empty_like(anchors), torch.empty_like(own_logits)
        with torch.autocast(anchors.device.type, enabled=False):
            for place in tiles.row_blocks(len(anchors)):
                excess[place] = tiles.logsumexp(anchors[place], labels[place]) - own_logits[place]
                pull = weights[place] * torch.sigmoid(excess[place])
                to_logits[place] = -pull
                if wanted:
                    tiles.differentiate(anchors[place], pull, to_anchors[place])
        terms = weights * torch.logaddexp(excess, torch.zeros_like(excess))
        if wanted:
            ctx.save_for_backward(to_anchors, tiles.to_vectors(), to_logits)
        ctx.mark_non_differentiable(terms)
        return terms.sum(dtype=torch.float64).to(terms.dtype), terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * grad for saved in ctx.saved_tensors), None, None, None, None


def class_logsumexp(anchors: Tensor, labels: Tensor, vectors: Tensor, scores: ClassScores) -> Tensor:
    """Normalizers over the classes that are here, where others are elsewhere: a share of a cross entropy.

    Formula: l_i = log sum_{c != y_i} e^{z_ic}

    Args:
        anchors: (B, D) of length one, float32 or float64.
        labels: (B,) int64 classes; below 0 or from C on where the class is not among these.
        vectors: (C k, D) of length one, those of a class next to each other; same type.
        scores: How similarities make logits z.

    Returns:
        (B,), with gradient to anchors and vectors; -inf where there is no other class. Cost: 4 B C k D (1 without
        gradient) and two exponentials per entry, since what its rows weigh is known in backward only. Memory: O((B +
        C k) D), max(64, D) x C k values, and two tiles of `BLOCK_BYTES`.
    """
    logs: Tensor = _ClassLogSumExp.apply(anchors, vectors, labels, scores)  # type: ignore[no-untyped-call]
    return logs


class _ClassLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, vectors: Tensor, labels: Tensor, scores: ClassScores) -> Tensor:
        ctx.save_for_backward(anchors, vectors, labels)
        ctx.scores = scores
        tiles = _Tiles(len(anchors), vectors, scores, wanted=False)
        logs = anchors.new_empty(len(anchors))
        with torch.autocast(anchors.device.type, enabled=False):
            for place in tiles.row_blocks(len(anchors)):
                logs[place] = tiles.logsumexp(anchors[place], labels[place])
        return logs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchors, vectors, labels = ctx.saved_tensors
        tiles = _Tiles(len(anchors), vectors, ctx.scores, wanted=True)
        to_anchors = torch.empty_like(anchors)
        with torch.autocast(anchors.device.type, enabled=False):
            for place in tiles.row_blocks(len(anchors)):
                tiles.logsumexp(anchors[place], labels[place])
                tiles.differentiate(anchors[place], grad[place], to_anchors[place])
        return to_anchors, tiles.to_vectors(), None, None


class _Tiles:
    """All classes against one block of rows at a time: `logsumexp`, then `differentiate` of the same rows."""

    def __init__(self, num_rows: int, vectors: Tensor, scores: ClassScores, wanted: bool) -> None:
        self._scores, self._wanted = scores, wanted
        k, size = scores.vectors, vectors.element_size()
        budget = distances.block_bytes(vectors.device)
        # So few rows that their tiles take about as much as the vectors, unless everything is small.
        rows = max(distances.MIN_BLOCK_ROWS, vectors.shape[1], budget // (len(vectors) * size))
        self._rows = max(1, min(rows, num_rows))
        classes = max(1, budget // (self._rows * k * size))
        self._tiles = [
            slice(first * k, min((first + classes) * k, len(vectors)))
            for first in range(0, len(vectors) // k, classes)
        ]
        # Within a tile the first vectors of all its classes, then the second ones, and so on: sums over the vectors
        # of a class are then sums of long rows.
        self._vectors = vectors
        if k > 1:
            self._vectors = torch.cat([self._turned(vectors[tile], -1, k) for tile in self._tiles])
        self._gradient = torch.zeros_like(vectors) if wanted else None
        largest = self._tiles[0].stop
        self._values = vectors.new_empty(self._rows * (len(vectors) if wanted else largest))
        self._scratch = vectors.new_empty(self._rows * largest if k > 1 else 0)

    def row_blocks(self, num_rows: int) -> Iterator[slice]:
        """Which rows to take at a time."""
        for start in range(0, num_rows, self._rows):
            yield slice(start, min(start + self._rows, num_rows))

    def logsumexp(self, anchors: Tensor, labels: Tensor) -> Tensor:
        """(b,) log sum_{c != y} e^{z_c}; -inf where there is no other class."""
        k, gamma = self._scores.vectors, self._scores.gamma
        scaled = anchors * (self._scores.scale if k == 1 or gamma is None else 1 / gamma)
        shifts, sums = [], []
        for tile in self._tiles:
            values = self._values_of(tile, len(anchors))
            torch.mm(scaled, self._vectors[tile].T, out=values)
            own = labels - tile.start // k
            shift, total = self._exponentials(values.view(len(anchors), k, -1), own)
            shifts.append(shift)
            sums.append(total)
        self._shifts = torch.stack(shifts, 1)
        self._norms = torch.logsumexp(self._shifts + torch.stack(sums, 1).log(), 1)
        return self._norms

    def differentiate(self, anchors: Tensor, pull: Tensor, to_anchors: Tensor) -> None:
        """Add pull_i times the derivative of row i's logsumexp by the vectors; write that by the anchors."""
        assert self._gradient is not None
        norms = self._norms.nan_to_num(neginf=0.0)
        factors = (self._shifts - norms[:, None]).exp_().mul_((pull * self._scores.scale)[:, None])
        to_anchors.zero_()
        for tile, factor in zip(self._tiles, factors.unbind(1), strict=True):
            values = self._values_of(tile, len(anchors))
            to_anchors.addcmul_(values @ self._vectors[tile], factor[:, None])
            self._gradient[tile].addmm_(values.T, anchors * factor[:, None])

    def to_vectors(self) -> Tensor:
        """(C k, D) gradient of the vectors, in the caller's order."""
        assert self._gradient is not None
        k = self._scores.vectors
        if k == 1:
            return self._gradient
        return torch.cat([self._turned(self._gradient[tile], k, -1) for tile in self._tiles])

    def _values_of(self, tile: slice, rows: int) -> Tensor:
        # Side by side where they are needed again, otherwise all in one place.
        start = rows * tile.start if self._wanted else 0
        width = tile.stop - tile.start
        return self._values[start : start + rows * width].view(rows, width)

    def _exponentials(self, values: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a tile of (b, k, c) scaled similarities into d(sum_c e^{z_c - shift}) / d(scale s); own class left out.

        Returns:
            (b,) shift, the largest logit, and (b,) the sum.
        """
        if values.shape[1] == 1:
            return _shifted(values[:, 0], own)
        if self._scores.gamma is None:
            top = values.amax(1)
            torch.ge(values, top[:, None], out=values)
            # Vectors that tie for the maximum share it.
            share = 1 / values.sum(1)
            shift, total = _shifted(top, own)
            values.mul_(share.mul_(top)[:, None])
            return shift, total
        top = values.amax(1)
        weights = self._scratch[: values.numel()].view_as(values)
        torch.exp(values.sub_(top[:, None]), out=weights)
        normalizer = weights.sum(1)
        mean = values.mul_(weights).sum(1).div_(normalizer)
        logits = top.add_(mean).mul_(self._scores.scale * self._scores.gamma)
        shift, total = _shifted(logits, own)
        # q_j (1 + (s_j - S) / gamma) e^z, where `values` holds weight x similarity by now.
        share = logits.div_(normalizer)
        values.mul_(share[:, None]).addcmul_(weights, (share * (1 - mean))[:, None])
        return shift, total

    @staticmethod
    def _turned(rows: Tensor, first: int, second: int) -> Tensor:
        return rows.reshape(first, second, rows.shape[1]).transpose(0, 1).reshape(rows.shape)


def _shifted(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Replace (b, c) logits by e^{z - shift}, the column `own` of each row, if it is one, by 0; shift and sum, (b,)."""
    inside = (own >= 0) & (own < logits.shape[1])
    column = own.clamp(0, logits.shape[1] - 1)[:, None]
    logits.scatter_(1, column, torch.where(inside[:, None], -torch.inf, logits.gather(1, column)))
    shift = logits.amax(1).clamp_min_(torch.finfo(logits.dtype).min)
    return shift, logits.sub_(shift[:, None]).exp_().sum(1)
