"""How often a miner has chosen each row, as weights for losses that have no pairs to choose from."""

from __future__ import annotations

import torch
from torch import Tensor

from distmetric.functional.joint_batch import JointBatch


def column_weights(batch: JointBatch, only_anchors: bool = False) -> Tensor:
    """Weights of all columns by how often `batch.tuples` of all ranks name them.

    Formula: w_j = n_j / max_i n_i. A triplet counts once for each of its three rows, a pair once for both.

    Args:
        batch: Its columns are the anchors of all ranks (`gather_rows`), and its tuples those of its anchors.
        only_anchors: Whether to count rows as anchors only, not as positives and negatives.

    Returns:
        (N,), equal on all ranks and to those of one process; ones if nothing at all was chosen. Cost: on W ranks two
        gathers, of N and of about W N numbers.
    """
    chosen = batch.tuples
    assert chosen is not None, "without tuples there is nothing to count"
    assert batch.anchor_index is not None, "the anchors must be among the columns"
    rows = [batch.anchor_index[chosen.anchors_of_positives]]
    if not chosen.triplets:
        rows.append(batch.anchor_index[chosen.anchors_of_negatives])
    if not only_anchors:
        rows += [chosen.positives, chosen.negatives]
    size = len(batch.column_labels)
    counts = _sum_over_ranks(torch.bincount(torch.cat(rows), minlength=size), batch)
    counts = counts.to(batch.anchors.dtype)
    return counts / counts.max() if counts.any() else torch.ones_like(counts)


def _sum_over_ranks(counts: Tensor, batch: JointBatch) -> Tensor:
    """Sum (N,) numbers of all ranks by `gather_rows`, which hands on one row per anchor."""
    assert batch.gather_rows is not None
    owners = batch.gather_rows(torch.full_like(batch.labels, batch.rank))
    sizes = torch.bincount(owners, minlength=batch.world_size).tolist()
    # As wide as the rank with the fewest anchors needs to send all its numbers; a rank without any has counted none.
    width = -(-len(counts) // max(1, min((size for size in sizes if size), default=1)))
    sent = counts.new_zeros(len(batch.labels) * width)
    sent[: len(counts)] = counts[: len(sent)]
    parts = torch.split(batch.gather_rows(sent.view(-1, width)), sizes)
    return torch.stack([part.flatten()[: len(counts)] for part in parts if len(part)]).sum(0)
