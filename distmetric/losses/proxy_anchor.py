"""Proxy-Anchor loss: every proxy against all embeddings of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distmetric.functional.checks import check_positive
from distmetric.functional.joint_batch import HostLabels, JointBatch
from distmetric.functional.pair_blocks import PairBlock
from distmetric.functional.row_sums import Row, sum_rows
from distmetric.functional.tuple_weights import column_weights
from distmetric.losses.base import ACTIVE_ABOVE, LossTerm
from distmetric.losses.class_loss import ClassLoss, ClassLossConfig
from distmetric.losses.class_shards import class_shard


@dataclass(kw_only=True, frozen=True)
class ProxyAnchorLossConfig(ClassLossConfig):
    """Settings of `ProxyAnchorLoss`."""

    name: Literal["proxy_anchor"] = "proxy_anchor"
    margin: float = 0.1
    """Cosine that embeddings of the class must exceed, and those of other classes stay below the negative of."""
    alpha: float = 32.0
    """Scale: the larger, the more the hardest embedding of the batch alone counts."""

    def __post_init__(self) -> None:
        """Check the scale.

        Raises:
            ValueError: If it is not above 0.
        """
        super().__post_init__()
        check_positive(alpha=self.alpha)


class ProxyAnchorLoss(ClassLoss):
    """Proxy-Anchor: the proxy of each class pulls and pushes embeddings by how hard they are relative to each other.

    Formula, with P the C proxies, P+ those whose class is in the batch, and s_pi the cosine of proxy p and embedding i:

        L = 1 / |P+| sum_{p in P+} log(1 + sum_{i: y_i = p} e^{-alpha (s_pi - m)})
          + 1 / |P| sum_{p in P} log(1 + sum_{i: y_i != p} e^{alpha (s_pi + m)})

    Rows are proxies here and columns the joint batch: each rank computes its share of the proxies against all ranks'
    embeddings, and the gradient flows back to these through the gather.

    Args:
        num_classes: C; labels are 0 .. C - 1.
        embedding_size: D.
        margin: m, in units of cosine.
        alpha: Scale.

    With tuples of a miner, the exponent of embedding i grows by w_i - 1, as in pytorch-metric-learning.

    Cost: 3 C N D / W and two exponentials per entry in one pass; memory O((C / W + N) D) beside three blocks.

    Corner cases: where negatives are sampled, P are the proxies that were kept. The proxy of a class that is not in the
    batch is only pushed. Without any embedding the loss is 0.

    Source: Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, arXiv 2003.13911.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32.0
    ) -> None:
        check_positive(alpha=alpha)
        super().__init__(num_classes, embedding_size)
        self.margin = margin
        self.alpha = alpha

    def terms(self, batch: JointBatch) -> list[LossTerm]:
        """See `MetricLoss.terms`; a term per proxy of this rank, divided at once since every rank knows by what."""
        vectors = self.unit_vectors(batch)
        own = range(vectors.number)
        number = torch.full((), vectors.number, dtype=torch.float64, device=vectors.rows.device)
        if self.has_all_classes:
            own = class_shard(vectors.number, batch.rank, batch.world_size)
        else:
            assert batch.sum_ranks is not None
            number = batch.sum_ranks(number)
        labels = torch.arange(own.start, own.stop, device=batch.labels.device)
        rows, known = vectors.rows[own.start : own.stop], None
        if vectors.host_labels is not None:
            known = HostLabels(np.arange(own.start, own.stop), vectors.host_labels)
        proxies = JointBatch(rows, labels, batch.columns, vectors.labels, None, host_labels=known)
        offsets = None if batch.tuples is None else column_weights(batch) - 1
        present = len(np.unique(batch.on_host().columns))

        def proxy_rows(block: PairBlock) -> Row:
            given = None if offsets is None else offsets[block.columns]
            return self._proxy_rows(block, given, 1 / max(1, present), 1 / number)

        total, count, active = sum_rows(proxies, self.distance, proxy_rows)
        return [LossTerm(total, None, count, active)]

    def _proxy_rows(self, block: PairBlock, offsets: Tensor | None, pull: float, push: Tensor) -> Row:
        # -alpha (s - m) in the band and alpha (s + m) everywhere, with s = 1 - d.
        near = (block.distances[:, block.band] + (self.margin - 1)).mul_(self.alpha)
        far = torch.mul(block.distances, -self.alpha, out=block.scratch).add_(self.alpha * (1 + self.margin))
        if offsets is not None:
            near.add_(offsets[block.band])
            far.add_(offsets)
        near.masked_fill_(~block.same, -torch.inf)
        positive, near_share = _log1p_sums(near)
        negative, far_share = _log1p_sums(block.fill_same_(far, -torch.inf))
        if block.gradient is not None:
            torch.mul(far, far_share.mul_(-self.alpha * push)[:, None], out=block.gradient)
            block.gradient[:, block.band].addcmul_(near, near_share.mul_(self.alpha * pull)[:, None])
        return Row(
            values=positive * pull + negative * push,
            num_terms=torch.ones_like(positive),
            num_active=(positive > ACTIVE_ABOVE) | (negative > ACTIVE_ABOVE),
        )

    def extra_repr(self) -> str:
        """Settings shown by `repr`."""
        return f"{super().extra_repr()}, margin={self.margin}, alpha={self.alpha}"


def _log1p_sums(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + sum e^x) of (b, n) rows, and 1 / (1 + sum e^x) for what `exponents` then are, e^x shifted; (b,) each."""
    shift = exponents.amax(1).clamp_min_(0.0) if exponents.shape[1] else exponents.new_zeros(len(exponents))
    sums = exponents.sub_(shift[:, None]).exp_().sum(1)
    return shift + torch.log1p(torch.expm1(-shift) + sums), 1 / (torch.exp(-shift) + sums)
