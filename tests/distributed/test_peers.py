"""What a lost peer looks like from here is told apart from errors of one's own."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from distmetric.distributed.peers import is_lost_peer
from distmetric.distributed.replica import Replica
from processes import run_ranks


def seen_by_rank_0(replica: Replica) -> list[bool]:
    """Rank 1 goes away; what rank 0's collectives raise then."""
    replica.sum_(torch.ones(3))
    if replica.rank == 1:
        dist.destroy_process_group()
        dist.init_process_group(
            "gloo", store=dist.HashStore(), rank=0, world_size=1
        )  # which is left in the end
        return []
    found = []
    for collective in (lambda: replica.sum_(torch.ones(3)), replica.barrier, lambda: replica.broadcast(1.0)):
        try:
            collective()
        except RuntimeError as error:
            found.append(is_lost_peer(error))
    return found


def test_a_rank_that_left_is_a_lost_peer() -> None:
    assert run_ranks(2, seen_by_rank_0)[0] == [True, True, True]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        RuntimeError(
            "[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"
        ),
        RuntimeError("CUDA out of memory"),
        ValueError("gloo: Connection closed by peer"),
        TimeoutError("timed out"),
    ],
)
def test_errors_of_ones_own_are_not(error) -> None:
    assert not is_lost_peer(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:37"
        ),
        RuntimeError(
            "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 60000ms for recv operation"
        ),
        dist.DistBackendError("NCCL communicator was aborted on rank 1."),
        dist.DistNetworkError("The client socket has timed out after 60000ms while trying to connect"),
    ],
)
def test_what_gloo_nccl_and_the_store_say_of_a_lost_peer_is(error) -> None:
    assert is_lost_peer(error)
