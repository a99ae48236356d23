"""What every test starts from: one thread, a fixed seed, and no process group left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _clean_slate() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
