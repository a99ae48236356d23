"""Who this process is among the training processes: the one value that the rest of the package passes around."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distmetric.errors import ResourceError


@dataclass(frozen=True)
class Replica:
    """One rank of a group of equal training processes.

    Args:
        rank: Index of this process, 0 <= rank < world_size.
        world_size: Number of processes. With 1, no process group is needed and every collective is the identity.
        group: Process group the collectives run over; None is the default group.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def current(cls) -> Replica:
        """The replica of the default process group, or a lone one where none is initialized."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), world_size=dist.get_world_size())
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes files and talks to the tracker."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by its sum over the ranks, in place and without gradient."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def broadcast(self, value: float, device: torch.device | str = "cpu") -> float:
        """The number that rank 0 holds, on every rank; whole numbers are exact up to 2^53."""
        if self.world_size == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(box, group_src=0, group=self.group)
        return float(box.item())

    def min(self, value: float, device: torch.device | str = "cpu") -> float:
        """The least of the numbers that the ranks hold; whole ones are exact up to 2^53."""
        return self.min_later(value, device)()

    def min_later(self, value: float, device: torch.device | str = "cpu") -> Callable[[], float]:
        """Begin what `min` does; the answer waits for its end."""
        if self.world_size == 1:
            return lambda: value
        box = torch.tensor([value], dtype=torch.float64, device=device)
        exchange = dist.all_reduce(box, dist.ReduceOp.MIN, group=self.group, async_op=True)

        def answer() -> float:
            exchange.wait()
            return float(box.item())

        return answer

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self.group)


def join_from_environment(timeout_s: float = 600.0) -> Replica:
    """Join the process group that torchrun describes in the environment, or stay alone where it does not.

    Returns:
        The replica of this process; NCCL for tensors on GPUs, gloo for those on CPUs.

    Raises:
        ResourceError: If the ranks cannot meet: a port in use, an address that is none, ranks that do not come.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Replica()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    except (dist.DistError, ValueError) as error:
        place = ":".join(
            os.environ.get(name, f"({name} is not set)") for name in ("MASTER_ADDR", "MASTER_PORT")
        )
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ResourceError(
            f"the ranks cannot meet at {place} ({why}): let MASTER_PORT be a port that is free where rank 0 runs, "
            "and MASTER_ADDR an address of that machine which all can reach"
        ) from None
    return Replica.current()


def leave() -> None:
    """Leave the process group that `join_from_environment` joined, if any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
