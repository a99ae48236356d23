"""Errors that say nothing but that memory is short become one line; no others do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.cluster.failures import told_failures
from distmetric.config.command import run_command
from distmetric.errors import ResourceError, out_of_memory


class OutOfMemoryError(RuntimeError):
    """As PyTorch's for GPUs is called."""


def raised(by) -> BaseException:
    with pytest.raises(Exception) as found:  # noqa: PT011
        by()
    return found.value


SHORT = {
    "PyTorch": (lambda: torch.empty(10**15), r"this machine .*tried to allocate \d+ bytes"),
    "NumPy": (lambda: np.empty(10**16), r"this machine .*allocate [\d.]+ PiB"),
    "Python": (lambda: bytearray(10**16), "this machine is not enough: FIX"),
    "a GPU": (
        lambda: _fail(OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 3 MiB")),
        r"the GPU .*Tried to allocate 20\.00 GiB",
    ),
}


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("kind", SHORT)
def test_memory_that_is_short_is_one_line_wherever_it_is_met(kind, capsys) -> None:
    by, message = SHORT[kind]
    shortage = out_of_memory(raised(by), "FIX")
    assert isinstance(shortage, ResourceError)
    with pytest.raises(ResourceError, match=message):
        raise shortage
    with (
        pytest.raises(ResourceError, match=r"sampler\.classes_per_batch or model\.image_size"),
        told_failures(lambda: 3),
    ):
        by()
    assert run_command("config", "", lambda _: by(), ["debug=tiny"]) == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: the memory of ")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("out of memory"), RuntimeError("mat1 and mat2"), KeyError("x")]
)
def test_other_errors_stay_what_they_are(error) -> None:
    assert out_of_memory(error, "FIX") is None
    with pytest.raises(type(error)):
        run_command("config", "", lambda _: _fail(error), ["debug=tiny"])
