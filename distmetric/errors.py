"""The errors a user can cause: one line that names what was wrong and how to mend it, and an exit code.

Every job turns a `UserError` into that one line on stderr and exits with its code; anything else is a bug of
ours and keeps its traceback.
"""

from __future__ import annotations

import re


class UserError(Exception):
    """Something the user can mend; the message is one line naming the key or file, the value and the fix."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key is unknown, has the wrong type, or contradicts another one."""


class InputError(UserError):
    """A file, catalog, image or checkpoint that was handed in cannot be used."""


class ResourceError(UserError):
    """The machine or the cluster lacks what was asked for (CPUs, GPUs, packages, disk, servers)."""

    exit_code = 3


class TakenOverError(ResourceError):
    """Another process has resumed the run that this one was at: nothing of it may be written any more."""


class NonFiniteError(UserError):
    """Training produced a loss or gradient that is not a finite number."""

    exit_code = 4


class StoppedError(UserError):
    """A run was asked to stop and has: what it had reached is saved, and `resume` goes on from there."""

    exit_code = 5


def out_of_memory(error: BaseException, fix: str) -> ResourceError | None:
    """One line for an error that says nothing but that memory is short; None for any other.

    Args:
        error: Python's, NumPy's, or PyTorch's, on the CPU or a GPU.
        fix: What to do about it.
    """
    # By names and words, since PyTorch says it on the CPU with a plain RuntimeError.
    is_named = any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__)
    text = " ".join(str(error).split())
    if not is_named and not (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return None
    detail = _ASKED_FOR.search(text)
    asked = f" ({detail.group(0)})" if detail else ""
    where = "the GPU" if "CUDA" in text else "this machine"
    return ResourceError(f"the memory of {where} is not enough{asked}: {fix}")


_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|bad_alloc", re.IGNORECASE
)
_ASKED_FOR = re.compile(r"tried to allocate [\d.,]+ \w+|allocate [\d.,]+ \w*i?B\b", re.IGNORECASE)
