"""Where ranks talk: the replica, the differentiable gather, the loss over the joint batch, batches in chunks."""

from distmetric.distributed.gather import JointRows, gather, gather_batch, joint_batch
from distmetric.distributed.gradient_cache import GradientCache
from distmetric.distributed.loss import DistributedLoss
from distmetric.distributed.parallel import average_gradients
from distmetric.distributed.replica import Replica, join_from_environment

__all__ = [
    "DistributedLoss",
    "GradientCache",
    "JointRows",
    "Replica",
    "average_gradients",
    "gather",
    "gather_batch",
    "join_from_environment",
    "joint_batch",
]
