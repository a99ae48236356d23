"""Attributes on W ranks: what is gathered, and the gradients of trunk, head and attribute head of one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distmetric.distributed import DistributedLoss, Replica, gather_batch
from distmetric.distributed.parallel import parallel
from distmetric.losses import (
    AttributeClassificationLoss,
    AttributeIdentityHardTripletLoss,
    MetricLoss,
    TripletLoss,
    WeightedSumLoss,
)
from distmetric.models import Embedder
from processes import run_ranks

SPLITS = [(2, [8, 5]), (2, [12, 1]), (3, [5, 4, 4]), (3, [0, 6, 7])]
VALUES = {"hat": ["no", "yes"], "pose": ["back", "front", "side"]}


def recipe(kind: str) -> MetricLoss:
    return WeightedSumLoss(
        {
            "triplet": (1 / 3, TripletLoss(0.3, distance="cosine")),
            "predicted": (1 / 3, AttributeIdentityHardTripletLoss(["pose", "hat"], margin=0.05)),
            "true": (1 / 3, AttributeIdentityHardTripletLoss(["hat"], side="labels", include_self=True)),
            "attributes": (1.0, AttributeClassificationLoss(kind=kind, label_smoothing=0.1)),
        }
    )


def embedder(detached: bool) -> Embedder:
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(6, 10), nn.Tanh())
    image_shape = (1, 2, 3)
    model = Embedder(
        trunk,
        "avg",
        4,
        head="linear",
        image_shape=image_shape,
        attribute_values=VALUES,
        attributes_detached=detached,
    )
    return model.double()


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(13, 1, 2, 3, dtype=torch.float64, generator=generator)
    unknown = torch.arange(13) % 5 == 0
    attributes = {"hat": torch.arange(13) // 2 % 2, "pose": torch.arange(13) % 3}
    attributes["pose"][unknown] = -1
    return images, torch.arange(13) % 4, 100 + torch.arange(13), attributes


def step(
    replica: Replica, sizes: list[int], detached: bool, kind: str
) -> tuple[float, float, list[np.ndarray]]:
    images, labels, ids, attributes = data()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    model = embedder(detached)
    wrapped = parallel(model, replica, torch.device("cpu"))
    embeddings, logits = wrapped(images[own], with_attributes=True)
    mine = {name: values[own] for name, values in attributes.items()}
    batch = gather_batch(embeddings, labels[own], replica, None, ids[own], logits, mine)
    criterion = DistributedLoss(recipe(kind), replica)
    loss, _ = criterion.joint(batch)
    loss.backward()
    accuracy = criterion.metrics()["attributes/attribute_accuracy"].item()
    return loss.item(), accuracy, [parameter.grad.numpy() for parameter in model.parameters()]


def steps(replica: Replica, sizes: list[int]) -> list[tuple[float, float, list[np.ndarray]]]:
    return [
        step(replica, sizes, detached, kind)
        for detached in (True, False)
        for kind in ("cross_entropy", "binary")
    ]


@pytest.mark.parametrize(("world_size", "sizes"), SPLITS, ids=str)
def test_world_size_invariance_of_the_whole_recipe(world_size: int, sizes: list[int]) -> None:
    single = steps(Replica(), [13])
    for rank in run_ranks(world_size, steps, sizes):
        for (value, accuracy, gradients), (own_value, own_accuracy, own_gradients) in zip(
            single, rank, strict=True
        ):
            assert own_value == pytest.approx(value, abs=1e-12)
            assert own_accuracy == accuracy
            assert len(own_gradients) == len(gradients) == 6
            for ours, expected in zip(own_gradients, gradients, strict=True):
                np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11)


def test_a_detached_attribute_head_does_not_train_the_trunk() -> None:
    # Two steps differ in what the attribute loss sends to the trunk, and in nothing else.
    (_, _, detached), (_, _, attached) = (
        step(Replica(), [13], flag, "cross_entropy") for flag in (True, False)
    )
    names = [name for name, _ in embedder(True).named_parameters()]
    same = [np.array_equal(a, b) for a, b in zip(detached, attached, strict=True)]
    assert dict(zip(names, same, strict=True)) == {name: not name.startswith("trunk") for name in names}


def gathered(replica: Replica, sizes: list[int]) -> dict[str, object]:
    _, labels, ids, attributes = data()
    start = sum(sizes[: replica.rank])
    own = slice(start, start + sizes[replica.rank])
    logits = {name: torch.randn(13, len(values)) for name, values in VALUES.items()}
    mine = {name: part[own].requires_grad_() for name, part in logits.items()}
    values = {name: part[own] for name, part in attributes.items()}
    batch = gather_batch(torch.zeros(len(labels[own]), 2), labels[own], replica, None, ids[own], mine, values)
    assert all(batch.logits[name] is mine[name] for name in VALUES)
    assert not any(part.requires_grad for part in batch.column_logits.values())
    assert torch.equal(batch.ids, ids[own])
    return {
        "labels": torch.equal(batch.column_labels, labels),
        "ids": torch.equal(batch.column_ids, ids),
        "logits": all(torch.equal(batch.column_logits[name], logits[name]) for name in VALUES),
        "attributes": all(torch.equal(batch.column_attributes[name], attributes[name]) for name in VALUES),
        "own": all(torch.equal(batch.attributes[name], attributes[name][own]) for name in VALUES),
    }


@pytest.mark.parametrize(("world_size", "sizes"), SPLITS, ids=str)
def test_what_is_known_of_the_columns_is_everybodys_in_rank_order(world_size: int, sizes: list[int]) -> None:
    for found in run_ranks(world_size, gathered, sizes):
        assert all(found.values()), found


def bare(replica: Replica) -> bool:
    batch = gather_batch(torch.zeros(2, 2), torch.arange(2), replica)
    return batch.ids is batch.column_ids is None and not (batch.column_logits or batch.column_attributes)


def test_nothing_has_to_be_known_beside_labels() -> None:
    assert run_ranks(2, bare) == [True, True]
