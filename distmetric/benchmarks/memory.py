"""Memory of this process: how much it holds, how much it held at most, how much it may ask for."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "memoryerror")


class PeakMemory:
    """The most memory that is held between its making and `above_base`.

    On a GPU what torch has allocated there; else resident memory, whose high-water mark Linux can set back. Elsewhere
    the mark is that of the whole life of the process.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.base = torch.cuda.memory_allocated(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.base = _status("VmRSS")
        except OSError:
            self.base = _lifetime_peak()

    def above_base(self) -> int:
        """Bytes that were held at most, beyond those held in the beginning."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self.base
        return max((_status("VmHWM") if _STATUS.exists() else _lifetime_peak()) - self.base, 0)


def give_back_free() -> None:
    """Give what was allocated and freed again back to the system, where glibc does not.

    What stays with the process would be used again, and not be seen as growth.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def held_on_gpu(device: torch.device) -> int:
    """Bytes that anybody holds on a GPU, libraries that torch knows nothing of included; 0 for the CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def limit_growth(num_bytes: int, device: torch.device) -> None:
    """Let this process have so much more memory than it has now; what asks for more gets an error, not the machine's.

    On Linux of address space, on a GPU of its memory; other systems do not enforce it.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + num_bytes) / total), device)
    elif _STATUS.exists():
        with contextlib.suppress(ValueError):  # a lower limit is set for this process already
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + num_bytes, hard))


def free_bytes() -> int:
    """Memory that the machine could give to new processes."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _kib_line(text, "MemAvailable")


def is_out_of_memory(text: str) -> bool:
    """Whether an error says that memory could not be had."""
    return any(message in text.lower() for message in _MESSAGES)


def _status(name: str) -> int:
    return _kib_line(_STATUS.read_text(encoding="ascii"), name)


def _kib_line(text: str, name: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
