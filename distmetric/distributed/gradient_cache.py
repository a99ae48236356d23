"""Batches larger than memory: rows computed in chunks without a graph, gradients put through chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class GradientCache:
    """The rows of a batch, and their gradient's way back, with the activations of one chunk at a time.

    With rows f_i = encode(i) and any loss L of all of them,  dL/dtheta = sum over chunks c of  J_c^T dL/df_c.
    The rows are computed without a graph; what a loss leaves in their gradient is kept; then each chunk is computed
    again, with the same random numbers, and its rows pass on their share.

    Args:
        encode: Part of the batch, a slice of its rows, -> (rows of the part, F), from parameters that want gradients.
        size: Rows B of the batch; 0 is one empty chunk.
        chunk_size: Most rows of a chunk; there are as few chunks as that allows, as equal as possible.
        module: What `encode` computes with; its buffers move once per chunk.
        device: Where it computes; the random state of that device and of the CPU is replayed.

    Attributes:
        rows: (B, F), a leaf that collects the gradient of what is computed from it.

    Cost: one more forward pass than without, about a third more time; B F values held, and one chunk's activations.
    Where all rows are one chunk, its graph is kept, and nothing is computed twice.

    Corner cases: exact where a row does not depend on its chunk. Batch normalization in training mode makes it depend:
    its moments are those of a chunk, and running statistics move once per chunk.

    Source: Gao, Zhang, Han, Callan 2021 (arXiv 2101.06983).
    """

    def __init__(
        self,
        encode: Callable[[slice], Tensor],
        size: int,
        chunk_size: int,
        module: nn.Module,
        device: torch.device,
    ) -> None:
        assert chunk_size >= 1, "a chunk has rows"
        self._encode, self._device = encode, device
        chunks = max(1, -(-size // chunk_size))
        self._parts = [slice(size * k // chunks, size * (k + 1) // chunks) for k in range(chunks)]
        self._states: list[tuple[Tensor, Tensor | None]] = []
        self._whole: Tensor | None = None
        if chunks == 1:
            self._whole = encode(self._parts[0])
            self.rows = self._whole.detach().requires_grad_()
            return
        rows = []
        with torch.no_grad(), kept_buffers(module):
            for part in self._parts:
                self._states.append(_random_state(device))
                rows.append(encode(part))
        self.rows = torch.cat(rows).requires_grad_()

    def backward(self) -> None:
        """Pass the gradient of `rows` on to the parameters, adding to what they have."""
        gradient = self.rows.grad
        if gradient is None:
            return
        if self._whole is not None:
            _pass_on(self._whole, gradient)
            return
        for part, state in zip(self._parts, self._states, strict=True):
            with _replayed(state, self._device):
                rows = self._encode(part)
            _pass_on(rows, gradient[part])


def _pass_on(rows: Tensor, gradient: Tensor) -> None:
    if rows.requires_grad:
        rows.backward(gradient)  # type: ignore[no-untyped-call]


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Put buffers back after a block as they were before it."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Random numbers as they were, and afterwards as they are."""
    host, on_device = state
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(host)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        yield
