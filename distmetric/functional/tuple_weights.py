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
        (N,), equal on all ranks and to those of one process; ones if nothing at all was chosen. Cost: on W ranks an
        all-reduce of N numbers.
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
    assert batch.sum_ranks is not None
    counts = batch.sum_ranks(torch.bincount(torch.cat(rows), minlength=size).to(torch.float64))
    counts = counts.to(batch.anchors.dtype)
    return counts / counts.max() if counts.any() else torch.ones_like(counts)
