"""What would make the host wait for a GPU, seen on any device: calls whose results or arguments travel between them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = "/distmetric/"
# Operators that read a number back, or whose result has a shape that only the device knows.
_WAITING = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "histc"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "argwhere"),
)
# Python calls that do, before any operator: they would copy memory that is not pinned, and wait for it.
_TRAVELING = (
    "tolist",
    "numpy",
    "__array__",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "cpu",
    "new_tensor",
)


class HostSyncs:
    """What was called and where, as 'operator in file:function'."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if PACKAGE in frame.filename]
        where = f"{frames[-1].filename.rpartition(PACKAGE)[2]}:{frames[-1].name}" if frames else "?"
        self.found.append(f"{what} in {where}")

    @contextmanager
    def watch(self) -> Iterator[None]:
        """See what this thread does in the block."""
        with _Calls(self), _Operators(self):
            yield


class _Operators(TorchDispatchMode):
    def __init__(self, seen: HostSyncs) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self._seen.note(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self._seen.note(f"{name} by a mask")
        return func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    def __init__(self, seen: HostSyncs) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _TRAVELING or (name in ("tensor", "as_tensor") and kwargs.get("device") is not None):
            self._seen.note(name)
        return func(*args, **kwargs)
