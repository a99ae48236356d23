"""What counts as memory, and as the lack of it."""

from __future__ import annotations

import pytest
import torch

from distmetric.benchmarks.memory import PeakMemory, give_back_free, held_on_gpu, is_out_of_memory

MIB = 1 << 20
CPU = torch.device("cpu")


def test_peak_memory_is_that_since_the_beginning_and_includes_what_was_freed() -> None:
    earlier = torch.ones(64 * MIB // 4)
    del earlier
    memory = PeakMemory(CPU)
    passing = torch.ones(32 * MIB // 4)
    del passing
    assert memory.above_base() == pytest.approx(32 * MIB, rel=0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "RuntimeError [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate",
            True,
        ),
        ("OutOfMemoryError CUDA out of memory. Tried to allocate 20.00 MiB", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("MemoryError ", True),
        ("RuntimeError mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_errors_about_memory_are_known(text: str, expected: bool) -> None:
    assert is_out_of_memory(text) == expected


def test_memory_that_was_freed_and_is_used_again_counts_once_it_was_given_back() -> None:
    pieces = [torch.ones(MIB // 64) for _ in range(32 * 16)]  # too small to be given back one by one
    keep = pieces[-1]
    del pieces
    give_back_free()
    memory = PeakMemory(CPU)
    again = [torch.ones(MIB // 64) for _ in range(32 * 16)]
    assert memory.above_base() == pytest.approx(32 * MIB, rel=0.15)
    assert len(again) == 512
    assert len(keep) == MIB // 64


def test_the_cpu_holds_nothing_on_a_gpu() -> None:
    assert held_on_gpu(CPU) == 0
