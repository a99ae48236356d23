"""The yardstick is what it is said to be."""

from __future__ import annotations

import torch

from distmetric.benchmarks import timing
from distmetric.benchmarks.timing import BareMatmul

CPU = torch.device("cpu")


def test_the_bare_matmul_is_whole_and_keeps_little(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_MATMUL_BYTES", 4 * 60 * 7)
    products = []
    monkeypatch.setattr(torch, "mm", lambda rows, columns, out: products.append((rows @ columns).shape))
    BareMatmul(16, 60, 8, CPU)()
    assert products == [(7, 60), (7, 60), (2, 60)]
