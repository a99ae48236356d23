"""What a run was made by: the command line, versions of packages, the machine."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from distmetric.data.decode import available_cores
from distmetric.secrets import masked
from distmetric.tracking.tracked_run import git_revision

_PACKAGES = (
    *("distmetric", "torch", "ray", "mlflow", "pyarrow", "numpy", "pillow"),
    *("faiss-cpu", "faiss-gpu", "transformers", "timm"),
)


def command_line() -> str:
    """The command that this process was started with, what is secret masked."""
    return masked(shlex.join(["python", *sys.argv]))


def environment() -> dict[str, str]:
    """Versions of the packages that matter and are installed, the machine, and the commit of the code."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    machine = [f"{platform.system()} {platform.machine()}", f"{available_cores()} CPUs", *gpus]
    return {
        **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "python": platform.python_version(),
        "machine": ", ".join(machine),
        "revision": git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
