"""Parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distmetric.config.schema import AdamWConfig, OptimConfig, ScheduleConfig, SGDConfig
from distmetric.training.optimizer import (
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    load_optimizer,
    set_learning_rate,
)


def test_warmup_rises_to_the_peak() -> None:
    config = ScheduleConfig(name="constant", warmup_steps=4)
    assert [learning_rate_factor(config, step, 100) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("exponential", math.sqrt(0.1))])
def test_decay_ends_at_its_final_fraction(name, middle) -> None:
    config = ScheduleConfig(name=name, warmup_steps=0, final_fraction=0.1)
    assert learning_rate_factor(config, 0, 100) == 1
    assert learning_rate_factor(config, 50, 100) == pytest.approx(middle)
    assert learning_rate_factor(config, 100, 100) == pytest.approx(0.1)


def test_decay_start_keeps_the_peak_as_long() -> None:
    config = ScheduleConfig(name="exponential", warmup_steps=0, decay_start=0.6, final_fraction=0.001)
    assert learning_rate_factor(config, 60, 100) == 1
    assert learning_rate_factor(config, 80, 100) == pytest.approx(math.sqrt(0.001))


def test_steps_fall_at_their_milestones() -> None:
    config = ScheduleConfig(name="step", warmup_steps=2, milestones=[0.25, 0.5], milestone_factor=0.5)
    found = [learning_rate_factor(config, step, 8) for step in range(8)]
    assert found == [0.5, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


class Proxies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.zeros(3, 2))


def test_groups_and_their_rates() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = build_optimizer(AdamWConfig(lr=0.1, loss_lr_multiplier=5, weight_decay=0.3), model, Proxies())
    described = [(len(g["params"]), g["weight_decay"], g["lr"]) for g in optimizer.param_groups]
    assert described == [(1, 0.3, 0.1), (3, 0.0, 0.1), (1, 0.0, 0.5)]
    set_learning_rate(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05, 0.25]
    set_learning_rate(optimizer, 1.0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1, 0.5]


def test_frozen_parameters_and_losses_without_parameters_make_no_group() -> None:
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(SGDConfig(), model, nn.Module())
    assert [len(g["params"]) for g in optimizer.param_groups] == [1]


def test_clipping_returns_the_norm_before() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], None).item() == 5
    assert weight.grad.tolist() == [3, 4]
    assert clip_gradients([weight], 1.0).item() == 5
    assert weight.grad.norm().item() == pytest.approx(1, abs=1e-5)


OPTIMIZERS = [AdamWConfig(), SGDConfig(), SGDConfig(momentum=0.0)]


def trained(config: OptimConfig, steps: int, **more: object) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, dtype=torch.float64)
    optimizer = build_optimizer(config, model, nn.Module())
    for group in optimizer.param_groups:
        group.update(more)
    for step in range(steps):
        gradients = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=gradients, dtype=torch.float64)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_one_fused_kernel_does_what_the_plain_loop_does(config: OptimConfig) -> None:
    fused, optimizer = trained(config, 5)
    plain, _ = trained(config, 5, fused=False, foreach=False)
    assert all(group["fused"] for group in optimizer.param_groups)
    torch.testing.assert_close(fused.weight, plain.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_a_step_that_is_not_to_happen_changes_nothing_not_even_the_first_one(config: OptimConfig) -> None:
    model, optimizer = trained(config, 0)
    before = model.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(model.weight, before)
    kept = [value for state in optimizer.state.values() for value in state.values() if value is not None]
    assert all((value == 0).all() for value in kept)


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_moments_of_a_checkpoint_of_the_plain_loop_go_on_in_the_fused_kernel(config: OptimConfig) -> None:
    _, older = trained(config, 4, fused=None)
    state = older.state_dict()
    _, newer = trained(config, 0)
    load_optimizer(newer, state)
    assert all(group["fused"] for group in newer.param_groups)
    for saved, loaded in zip(older.state.values(), newer.state.values(), strict=True):
        assert saved.keys() == loaded.keys()
        for name, value in saved.items():
            assert value is loaded[name] is None or torch.equal(value, loaded[name])


def test_a_loaded_optimizer_keeps_its_own_rates() -> None:
    _, older = trained(AdamWConfig(lr=0.1, weight_decay=0.5), 2)
    _, newer = trained(AdamWConfig(lr=0.001, weight_decay=0.0), 0)
    load_optimizer(newer, older.state_dict())
    assert [group["peak_lr"] for group in newer.param_groups] == [0.001, 0.001]
    assert [group["weight_decay"] for group in newer.param_groups] == [0.0, 0.0]


def test_moments_of_other_parameters_are_refused() -> None:
    _, older = trained(AdamWConfig(), 1)
    newer = build_optimizer(AdamWConfig(), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), nn.Module())
    with pytest.raises(
        ValueError, match=r"of groups of \[1, 1\] parameters, and here are groups of \[2, 2\]"
    ):
        load_optimizer(newer, older.state_dict())
