"""Optimizer steps that are taken only if all their numbers are finite, which is decided on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distmetric.distributed.replica import Replica
from distmetric.errors import NonFiniteError
from distmetric.functional.joint_batch import JointBatch

REMEDY = "start again with a lower optim.lr, a longer schedule.warmup_steps, or optim.clip_norm"
"""What keeps numbers finite."""


@dataclass(frozen=True)
class StepNumbers:
    """What is known of a step that was taken, or was not.

    Args:
        step: Counted from 0.
        loss: Of the joint batch.
        gradient_norm: Over all ranks.
        learning_rate: Of the model.
        ids: (N,) catalog ids of the joint batch, on the device; None where they are not known.
        bad_rows: (N,) bool, on the device: rows with embeddings that are not finite.
        num_bad_rows: How many these are.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    ids: Tensor | None
    bad_rows: Tensor
    num_bad_rows: int

    @property
    def are_finite(self) -> bool:
        """Whether the step was taken."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm) and self.num_bad_rows == 0


class FiniteSteps:
    """Takes the optimizer's steps, and leaves out those with a loss, gradient or embedding that is not finite.

    A step that is left out changes neither weights nor moments nor step counters. All ranks decide the same: they
    look at the loss of the joint batch, the norm of the mean gradient and the gathered embeddings, which are equal on
    all of them. Nothing is read back from the device before `flush`.

    Args:
        optimizer: One of `build_optimizer`, which can be told on the device not to step.
        model: What is trained.
        loss: The loss over the joint batch.
        keep_buffers: Whether a step that is left out leaves buffers as they were, too: running statistics, the memory
            of the loss. That costs a copy of all of them per step. Where a loss says by `get_extra_state` that it
            keeps numbers on the host, the host waits in the loss for the end of the step before.
        replica: Who this rank is.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        loss: nn.Module,
        *,
        keep_buffers: bool,
        replica: Replica,
    ) -> None:
        self._optimizer, self._model, self._loss = optimizer, model, loss
        self._keep_buffers, self._replica = keep_buffers, replica
        self._held: list[tuple[nn.Module, str, Tensor]] = []
        self._on_host = [
            module
            for module in loss.modules()
            if keep_buffers and type(module).get_extra_state is not nn.Module.get_extra_state
        ]
        self._host_states: list[Any] = []
        self._verdict: _Verdict | None = None
        self._noted: list[tuple[int, float, Tensor, Tensor | None, Tensor]] = []
        # Some models have infinities on purpose, such as masks of attention.
        self._infinite = {name for name, tensor in self._state() if not bool(tensor.isfinite().all())}

    @torch.no_grad()
    def hold(self) -> None:
        """Remember the buffers before the forward pass of a step."""
        if self._keep_buffers:
            self._held = [
                (module, name, buffer.clone())
                for part in (self._model, self._loss)
                for module in part.modules()
                for name, buffer in module.named_buffers(recurse=False)
            ]

    def settle(self) -> None:
        """Have the loss forget the last step if that was left out; called before the loss of the next one."""
        if self._verdict is not None and self._verdict.is_bad():
            for module, state in zip(self._on_host, self._host_states, strict=True):
                module.set_extra_state(state)
        self._verdict = None
        self._host_states = [module.get_extra_state() for module in self._on_host]

    @torch.no_grad()
    def take(
        self, step: int, batch: JointBatch, loss: Tensor, gradient_norm: Tensor, learning_rate: float
    ) -> None:
        """Take the step whose gradients are in the parameters, unless a number of it is not finite.

        Args:
            step: Counted from 0.
            batch: The joint batch.
            loss: Its loss, equal on all ranks.
            gradient_norm: Norm of the gradient after its mean over the ranks.
            learning_rate: Of the model, for the record.
        """
        # 0 for what is finite, NaN for all else: a quarter of the time of `isfinite` over all of them.
        bad_rows = ~batch.columns.detach().mul(0).sum(1).isfinite()
        numbers = torch.stack([loss.detach().double(), gradient_norm.double(), bad_rows.sum().double()])
        bad = ~numbers.isfinite().all() | bad_rows.any()
        self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self._optimizer.step()
        for module, name, before in self._held:
            buffer = module.get_buffer(name)
            buffer.copy_(torch.where(bad, before.to(buffer), buffer))
        self._held = []
        if self._on_host:
            self._verdict = _Verdict(bad)
        self._noted.append((step, learning_rate, numbers, batch.column_ids, bad_rows))

    def flush(self) -> tuple[list[StepNumbers], bool]:
        """The steps since the last flush, and whether all that was learned is finite; all ranks call it."""
        self.settle()
        intact = math.isfinite(self._sum())
        intact = bool(self._replica.min(intact, self._device))
        if not self._noted:
            return [], intact
        table = torch.stack([numbers for _, _, numbers, _, _ in self._noted]).tolist()
        noted, self._noted = self._noted, []
        return [
            StepNumbers(step, loss, norm, rate, ids, bad_rows, int(num_bad_rows))
            for (step, rate, _, ids, bad_rows), (loss, norm, num_bad_rows) in zip(noted, table, strict=True)
        ], intact

    @property
    def _device(self) -> torch.device:
        return next(tensor.device for _, tensor in self._state())

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """Everything with a fraction that a checkpoint would hold, by name."""
        for place, part in enumerate((self._model, self._loss)):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                if tensor.is_floating_point():
                    yield f"{place}.{name}", tensor
        for place, moments in enumerate(self._optimizer.state.values()):
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield f"optimizer.{place}.{name}", value

    @torch.no_grad()
    def _sum(self) -> float:
        """The sum of the state, as one number that is read back; not finite if any value is not."""
        sums = [
            tensor.sum().double()
            for name, tensor in self._state()
            if name not in self._infinite and tensor.numel()
        ]
        return float(torch.stack(sums).sum().item())


class _Verdict:
    """Whether a step was left out, on its way to the host; asking waits for that step and not for what came after."""

    def __init__(self, bad: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._bad = bad
        if bad.is_cuda:
            self._bad = torch.empty_like(bad, device="cpu", pin_memory=True).copy_(bad, non_blocking=True)
            self._done = torch.cuda.current_stream(bad.device).record_event()

    def is_bad(self) -> bool:
        if self._done is not None:
            self._done.synchronize()
        return bool(self._bad)


def check_embeddings(embeddings: Tensor, described: Callable[[int], str]) -> None:
    """See that embeddings are finite before anything is measured with them.

    Args:
        embeddings: (M, D), equal on all ranks.
        described: Row number 0..M-1 -> how to name its image.

    Raises:
        NonFiniteError: Naming how many are not, and the first of them.

    Cost: one number is read back.
    """
    bad = ~embeddings.isfinite().all(1)
    count = int(bad.sum())
    if count:
        raise NonFiniteError(
            f"the embeddings of {count} of {len(embeddings)} evaluated images are not finite (the first is of "
            f"{described(int(bad.nonzero()[0]))}), so nothing was measured: {REMEDY}"
        )
