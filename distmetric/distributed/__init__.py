"""Where ranks talk: the replica, the differentiable gather, the loss over the joint batch."""

from distmetric.distributed.gather import gather, gather_batch
from distmetric.distributed.loss import DistributedLoss, average_gradients
from distmetric.distributed.replica import Replica, join_from_environment

__all__ = [
    "DistributedLoss",
    "Replica",
    "average_gradients",
    "gather",
    "gather_batch",
    "join_from_environment",
]
