"""Parts of a step and whole steps are measured on any number of ranks, and rebuilds of the index beside them."""

from __future__ import annotations

import pytest
import torch

from distmetric.benchmarks.scaling import measure
from distmetric.benchmarks.scaling.cost import WORK, StepSize
from distmetric.benchmarks.scaling.measure import MODEL, PRODUCT, ScalingSpec, measure_scaling
from distmetric.distributed.replica import Replica
from distmetric.models.build import build_embedder
from processes import run_ranks


def parts_of(replica: Replica) -> tuple[list[tuple[str, float]], int, bool]:
    found = measure_scaling(ScalingSpec("step", 16, processes=replica.world_size, steps=1), replica)
    is_sound = all(wall > 0 and cpu >= 0 for *_, wall, cpu in found.points) and min(found.seconds) > 0
    return [(part, work) for part, work, *_ in found.points], found.parameters, is_sound


def test_two_ranks_measure_every_part_at_two_sizes() -> None:
    for points, parameters, is_sound in run_ranks(2, parts_of, timeout=120):
        assert is_sound
        assert parameters == sum(each.numel() for each in build_embedder(MODEL, 0, Replica()).parameters())
        works = {part: sorted(work for name, work in points if name == part) for part in (*WORK, PRODUCT)}
        assert {part: len(work) for part, work in works.items()} == {**dict.fromkeys(WORK, 2), PRODUCT: 1}
        ratios = {part: work[1] / work[0] for part, work in works.items() if len(work) == 2}
        assert ratios == {"trunk": 2, "pair": 4, "gather": 4, "reduce": 4, "update": 4}
        size = StepSize(processes=2, images=16, dim=128, parameters=parameters, image_flops=1.0)
        assert works[PRODUCT] == [WORK["pair"](size)]
        assert works["reduce"][0] == WORK["reduce"](size)


def test_alone_nothing_is_exchanged() -> None:
    points, _, is_sound = parts_of(Replica())
    assert is_sound
    assert {part for part, _ in points} == {"trunk", "pair", "update", PRODUCT}


def test_operations_and_activations_of_an_image_are_counted() -> None:
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
    )
    images = torch.rand(4, 1, 2, 3)
    forward = 2 * (6 * 5 + 5 * 3)
    backward = forward + 2 * 5 * 3  # of all weights, and of the inputs of all layers but the first
    assert measure._image_flops(model, images) == forward + backward
    assert measure._kept_bytes(model, images) == 4 * (
        6 + 5
    )  # images, and what both ReLU and the last layer keep


def test_a_rebuild_is_measured() -> None:
    found = measure_scaling(ScalingSpec("build", 200, steps=2))
    assert len(found.seconds) == len(found.cpu_seconds) == 2
    assert found.classes == 50
    assert found.points == []


@pytest.mark.parametrize("kind", ["step", "build"])
def test_a_cell_is_a_fresh_process_too(kind) -> None:
    from distmetric.benchmarks.fresh_process import run_fresh

    outcome = run_fresh(ScalingSpec(kind, 32, steps=1), 240.0)
    assert (outcome.status, outcome.message) == ("ok", "")
