"""From the training thread to a thread behind it: bounded, without waiting, and with what waiting there is measured."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class HandOver(Generic[Item]):
    """A bounded queue between one producer, who never waits for room, and one consumer, who waits for items.

    Args:
        limit: Items that may lie here; what is offered on top is dropped, and counted.

    The one thing that can hold the producer up is the lock, which the consumer has for the time of taking an item
    out. That is what `wait_seconds` measures: 0 where the lock was always free.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._items = limit, deque[Item]()
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._closed = False
        self.dropped = 0
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, make: Callable[[], Item]) -> bool:
        """Put in what `make` gives, or drop it.

        Args:
            make: Called only if there is room, so that nothing is copied in vain.

        Returns:
            Whether it was put in.
        """
        if self._closed or len(self._items) >= self._limit:
            self.dropped += 1
            return False
        item = make()
        if not self._lock.acquire(blocking=False):
            started = time.perf_counter()
            self._lock.acquire()
            self.wait_seconds += time.perf_counter() - started
        try:
            self._items.append(item)
            self._filled.notify()
        finally:
            self._lock.release()
        return True

    def take(self) -> Item | None:
        """The oldest item, as soon as there is one; None once it is closed."""
        with self._filled:
            self._filled.wait_for(lambda: self._items or self._closed)
            return None if self._closed else self._items.popleft()

    def close(self) -> None:
        """Let the consumer go; what still lies here is forgotten."""
        with self._filled:
            self._closed = True
            self._items.clear()
            self._filled.notify_all()


class HostCopy:
    """Copies of tensors on the host, begun in the training thread and waited for in another.

    From a GPU the copies go into pinned memory behind what its stream has to do, so beginning them waits for nothing;
    tensors of the host are copied at once.

    Args:
        tensors: Any number of them by name, on one device; they may be overwritten as soon as this returns.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {name: _begin_copy(tensor.detach()) for name, tensor in tensors.items()}
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._done = torch.cuda.current_stream(device).record_event() if device is not None else None

    def wait(self) -> dict[str, Tensor]:
        """The copies, complete."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies


def _begin_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
