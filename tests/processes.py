"""Real processes for tests: gloo ranks by fork, with a deadline, and nobody left behind."""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distmetric.distributed.replica import Replica


def _rank_main(
    rank: int, world_size: int, store: str, fn: Callable[..., Any], args: tuple, pipe: Any
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=240),
        )
        pipe.send((None, fn(Replica.current(), *args)))
        dist.destroy_process_group()
    except BaseException:  # the traceback has to reach the parent whatever it was
        pipe.send((traceback.format_exc(), None))
    finally:
        pipe.close()


def run_ranks(world_size: int, fn: Callable[..., Any], *args: Any, timeout: float = 240.0) -> list[Any]:
    """Run `fn(replica, *args)` on `world_size` gloo ranks and return their results in rank order.

    Results must be picklable without sharing memory: return numpy arrays, floats or plain containers.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes, pipes = [], []
        for rank in range(world_size):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main, args=(rank, world_size, store, fn, args, sending), daemon=True
            )
            process.start()
            sending.close()
            processes.append(process)
            pipes.append(receiving)
        try:
            return _collect(pipes, deadline=time.monotonic() + timeout)
        finally:
            for process in processes:
                process.join(timeout=2)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Any], deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(pipes)
    waiting = dict(enumerate(pipes))
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting.values()), max(deadline - time.monotonic(), 0))
        if not ready:
            raise TimeoutError(f"ranks {sorted(waiting)} did not answer in time")
        for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
            try:
                error, results[rank] = waiting.pop(rank).recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if error is not None:
                raise RuntimeError(f"rank {rank} failed:\n{error}")
    return results
