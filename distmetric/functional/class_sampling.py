"""Which classes a softmax runs over where it does not run over all: those of the batch, and others beside them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.functional.counter_random import uniform


def kept_classes(
    labels: Tensor,
    own: range,
    num_classes: int,
    rate: float,
    seed: int,
    step: int,
    nearest: NDArray[np.int32] | None = None,
) -> Tensor:
    """The classes of a batch and about so many others that a fraction `rate` of all is kept.

    A class that is not in the batch is kept if a hash of (seed, step, class), a number in [0, 1), is below the
    probability that brings the expected number of kept classes to rate C. So who holds a class plays no part: the
    ranks together keep what one process does.

    Args:
        labels: (N,) int64 classes of the joint batch.
        own: The classes that are here.
        num_classes: C.
        rate: Fraction of the C classes to keep, those of the batch among them; these are kept all the same if they
            are more.
        seed: Key of the draw.
        step: Of the training: every step draws anew.
        nearest: (C, k) nearest other classes of each, nearest first, -1 where there are no more: those of the batch's
            classes are kept before random ones, the nearest of every class first, and as long as there is room.

    Returns:
        Those of `own` that are kept, ascending, int64 on the device of `labels`. Cost: one hash for each class that is
        here; with `nearest`, sorting k of each of the batch's classes on the host.

    Source: An et al., "Partial FC: Training 10 Million Identities on a Single Machine", ICCV-W 2021, arXiv 2010.05222,
    where each rank draws among its own classes, as many as on every other rank.
    """
    certain = torch.unique(labels)
    if nearest is not None:
        room = int(rate * num_classes) - len(certain)
        certain = torch.cat([certain, _nearest_others(certain, nearest, room)])
    others = num_classes - len(certain)
    probability = (rate * num_classes - len(certain)) / max(others, 1)
    classes = torch.arange(own.start, own.stop, device=labels.device)
    kept = uniform(seed, step, classes, 1)[:, 0] < probability
    here = certain[(certain >= own.start) & (certain < own.stop)]
    kept[here - own.start] = True
    return classes[kept]


def _nearest_others(present: Tensor, nearest: NDArray[np.int32], room: int) -> Tensor:
    """Classes near those of the batch and not among them, at most `room`: first everybody's nearest, and so on."""
    by_rank = nearest[present.cpu().numpy()].T.astype(np.int64).ravel()
    found, first = np.unique(by_rank, return_index=True)
    isnt_present = ~np.isin(found, present.cpu().numpy()) & (found >= 0)
    found, first = found[isnt_present], first[isnt_present]
    return torch.from_numpy(found[np.argsort(first)][: max(room, 0)]).to(present.device)
