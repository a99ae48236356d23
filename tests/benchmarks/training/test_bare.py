"""The bare loop computes the same loss and the same gradients as ours, alone and on two ranks."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from distmetric.benchmarks.training.bare import BareLoop, Batch, supervised_contrastive
from distmetric.distributed.replica import Replica
from distmetric.losses import SupConLoss
from processes import run_ranks


def model() -> torch.nn.Module:
    torch.manual_seed(3)
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 5))
    return torch.nn.Sequential(layer, Unit()).double()


class Unit(torch.nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(rows)


def batch(rank: int = 0, ranks: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(12, 1, 3, 3, generator=generator, dtype=torch.float64)
    own = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
    return Batch(images[own], torch.arange(12) // 3, torch.arange(12)[own])


def test_the_loss_is_ours() -> None:
    found = []
    for loss in (lambda rows, labels: supervised_contrastive(rows, labels, 0.2), SupConLoss(0.2)):
        learned = model()
        value = loss(learned(batch().images), batch().labels)
        value.backward()
        found.append((value.item(), [parameter.grad.numpy() for parameter in learned.parameters()]))
    (bare, bare_gradients), (ours, gradients) = found
    assert math.isclose(bare, ours, rel_tol=1e-12)
    for one, other in zip(bare_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def trained(replica: Replica) -> tuple[list[float], list[np.ndarray]]:
    learned = model()
    loop = BareLoop(learned, 1e-2, 0.2, replica)
    own = batch(replica.rank, replica.world_size)
    losses = [loss.item() for loss in loop.run([own] * 4, 0)]
    return losses, [parameter.detach().numpy() for parameter in learned.parameters()]


def test_two_ranks_learn_what_one_does() -> None:
    losses, weights = trained(Replica())
    assert losses == sorted(losses, reverse=True)
    for other_losses, other_weights in run_ranks(2, trained):
        np.testing.assert_allclose(other_losses, losses, rtol=1e-9)
        for ours, theirs in zip(weights, other_weights, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-7, atol=1e-9)


def test_images_are_varied_by_their_step_and_ids() -> None:
    seen = []

    def vary(images: torch.Tensor, step: int, ids: torch.Tensor) -> torch.Tensor:
        seen.append((step, ids.tolist()))
        return images

    loop = BareLoop(copy.deepcopy(model()), 1e-2, 0.2, Replica(), vary)
    loop.run([batch(), batch()], first_step=5)
    assert seen == [(5, list(range(12))), (6, list(range(12)))]
