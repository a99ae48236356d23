"""What a rank sees of another one that has gone: errors of a collective that say nothing of their own."""

from __future__ import annotations

import re

import torch.distributed as dist

# What gloo, NCCL and the store say when a connection ends, or nobody answers.
_SIGNS = re.compile(
    r"(closed|reset) by peer|connection (refused|was closed|reset)|broken pipe|timed out|timeout"
    r"|communicator was aborted|remote process (exited|has terminated)",
    re.IGNORECASE,
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank does not answer, which is not the fault of this one."""
    if not isinstance(error, RuntimeError):
        return False
    is_of_group = isinstance(error, dist.DistError) or re.search(r"gloo|nccl|c10d", str(error), re.IGNORECASE)
    return bool(is_of_group and _SIGNS.search(str(error)))
