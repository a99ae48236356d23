"""Whether a step is taken is decided on the device: nothing is read back, and no number that is not finite hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distmetric.config.schema import AdamWConfig, OptimConfig, SGDConfig
from distmetric.distributed.loss import DistributedLoss
from distmetric.distributed.replica import Replica
from distmetric.functional.joint_batch import JointBatch
from distmetric.losses.build import LossContext, build_loss
from distmetric.losses.cross_batch_memory import CrossBatchMemory
from distmetric.losses.triplet import TripletLoss
from distmetric.miners.build import build_miner
from distmetric.training.finite_steps import FiniteSteps
from distmetric.training.optimizer import build_optimizer, clip_gradients
from runs import LOSS_OF_OTHERS, tiny_config

CONF = Path(__file__).parents[2] / "conf"
LOSSES, MINERS = (sorted(path.stem for path in (CONF / kind).glob("*.yaml")) for kind in ("loss", "miner"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(rows))


class ReadBack(TorchDispatchMode):
    """Refuses what makes the host wait for a number of the device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} reads a number back")
        return func(*args, **(kwargs or {}))


def parts(
    optim: OptimConfig | None = None, loss: nn.Module | None = None
) -> tuple[FiniteSteps, Net, nn.Module, Any]:
    torch.manual_seed(0)
    model, loss = Net(), loss or TripletLoss()
    optimizer = build_optimizer(optim or AdamWConfig(lr=0.1), model, loss)
    return FiniteSteps(optimizer, model, loss, keep_buffers=True, replica=Replica()), model, loss, optimizer


def one_step(
    steps: FiniteSteps, model: Net, loss: nn.Module, optimizer: Any, step: int, factor: float = 1.0
) -> None:
    steps.hold()
    labels = torch.arange(8) // 2
    batch = replace(JointBatch.alone(model(torch.randn(8, 3)), labels), column_ids=torch.arange(8))
    steps.settle()
    value, _ = DistributedLoss(loss).joint(batch)
    optimizer.zero_grad()
    (value * factor).backward()
    norm = clip_gradients(model.parameters(), None)
    steps.take(step, batch, value, norm, 0.1)


@pytest.mark.parametrize("optim", [AdamWConfig(), SGDConfig(), SGDConfig(momentum=0.0)])
def test_taking_a_step_or_not_reads_nothing_back(optim: OptimConfig) -> None:
    steps, model, loss, optimizer = parts(optim)
    for step, factor in enumerate([1.0, float("nan"), 1.0]):
        steps.hold()
        labels = torch.arange(8) // 2
        batch = replace(JointBatch.alone(model(torch.randn(8, 3)), labels), column_ids=torch.arange(8))
        value, _ = DistributedLoss(loss).joint(batch)
        optimizer.zero_grad()
        (value * factor).backward()
        norm = clip_gradients(model.parameters(), None)
        with ReadBack():
            steps.settle()
            steps.take(step, batch, value, norm, 0.1)
            steps.hold()
    with pytest.raises(AssertionError, match="reads a number back"), ReadBack():
        steps.flush()
    found, intact = steps.flush()
    assert [one.are_finite for one in found] == [True, False, True]
    assert intact


def test_infinities_that_a_model_has_on_purpose_are_none_of_ours() -> None:
    steps, model, loss, optimizer = parts()
    one_step(steps, model, loss, optimizer, 0)
    assert steps.flush()[1]
    with torch.no_grad():
        model.norm.running_mean[2] = torch.nan
    assert not steps.flush()[1]


@pytest.mark.parametrize("where", ["weight", "exp_avg_sq"])
def test_what_a_checkpoint_would_hold_is_looked_at(where: str) -> None:
    steps, model, loss, optimizer = parts()
    one_step(steps, model, loss, optimizer, 0)
    weight = model.layer.weight
    held = weight.detach() if where == "weight" else optimizer.state[weight][where]
    held[1, 1] = -torch.inf
    assert not steps.flush()[1]


def test_a_memory_goes_on_from_where_it_was() -> None:
    memory = CrossBatchMemory(TripletLoss(), 4, memory_size=32)
    steps, model, loss, optimizer = parts(loss=memory)
    one_step(steps, model, loss, optimizer, 0)
    before = memory.embedding_memory.clone()
    one_step(steps, model, loss, optimizer, 1, factor=float("inf"))
    steps.flush()  # a checkpoint comes after this, so the numbers on the host are right by then
    assert memory.filled == 8
    assert torch.equal(memory.embedding_memory, before)
    one_step(steps, model, loss, optimizer, 2)
    assert memory.filled == 16
    assert [one.are_finite for one in steps.flush()[0]] == [True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "miner"), [*((name, "none") for name in LOSSES), *(("triplet", miner) for miner in MINERS)]
)
def test_one_embedding_that_is_not_finite_is_seen_with_every_loss_and_miner(
    name: str, miner: str, bad: float, tmp_path: Path
) -> None:
    """Some miners pass over such a row, so that loss and gradient are finite; and none of them may raise."""
    attributes = "attribute" in name or name.startswith("aitl")
    needed = LOSS_OF_OTHERS if name == "custom" else ()
    config = tiny_config(tmp_path, f"loss={name}", *needed, f"miner={miner}")
    chosen = build_miner(config.miner, 0)
    loss = build_loss(config.loss, LossContext([4] * 8, 4, 0, chosen, allow_custom_targets=True))
    steps, model, _, _ = parts(loss=loss)
    embeddings = model(torch.randn(32, 3))
    embeddings = embeddings.index_fill(0, torch.tensor([5]), bad)
    batch = JointBatch.alone(embeddings, torch.arange(32) // 4)
    values, logits = torch.arange(32) % 3, torch.randn(32, 3, requires_grad=True)
    if attributes:
        names = ("serif", "mono", "bold", "italic")
        batch = replace(
            batch,
            logits=dict.fromkeys(names, logits),
            column_logits=dict.fromkeys(names, logits.detach()),
            attributes=dict.fromkeys(names, values),
            column_attributes=dict.fromkeys(names, values),
        )
    criterion = DistributedLoss(loss, None, chosen)
    steps.settle()
    criterion.set_step(0)
    value, _ = criterion.joint(replace(batch, ids=torch.arange(32), column_ids=torch.arange(32)))
    value.backward()
    before = model.layer.weight.detach().clone()
    steps.take(0, batch, value, clip_gradients(model.parameters(), None), 0.1)
    (found,), _ = steps.flush()
    assert not found.are_finite
    assert found.num_bad_rows == 1
    assert torch.equal(model.layer.weight, before)
