"""Random numbers as hashes: equal to plain integer arithmetic, uniform, independent."""

from __future__ import annotations

import pytest
import torch

from distmetric.functional.counter_random import uniform


def mixed(z: int) -> int:
    """SplitMix64's finalizer, spelled out."""
    mask = 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def uniform_by_hand(seed: int, step: int, identity: int, draw: int) -> float:
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    key = mixed(mixed(seed & mask) ^ mixed((step + golden) & mask))
    stream = mixed((identity * golden + key) & mask)
    return (mixed((stream + (draw + 1) * golden) & mask) >> 11) / 2**53


def test_the_mixer_is_splitmix64() -> None:
    # The first output for seed 1234567, as published with many implementations.
    assert mixed(1234567 + 0x9E3779B97F4A7C15) == 6457827717110365317


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63])
def test_draws_equal_plain_integer_arithmetic(seed) -> None:
    ids = torch.tensor([0, 1, 5, -3, 2**62, -(2**63)])
    for step in (0, 1, 123_456_789):
        drawn = uniform(seed, step, ids, 5)
        assert drawn.tolist() == [[uniform_by_hand(seed, step, i, d) for d in range(5)] for i in ids.tolist()]


def test_golden_draws() -> None:
    assert uniform(0, 0, torch.tensor([0, 1]), 2).tolist() == [
        [0.17541561601846456, 0.4732158221135335],
        [0.3660577160841394, 0.26405596930022257],
    ]


def test_draws_are_uniform() -> None:
    drawn = uniform(1, 2, torch.arange(20_000), 4).flatten()
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = torch.histc(drawn.float(), 100, 0, 1)
    expected = len(drawn) / 100
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 149  # the 99.9 percent quantile for 99 degrees of freedom
    assert drawn.mean().item() == pytest.approx(1 / 2, abs=4 * (1 / 12 / len(drawn)) ** 0.5)
    assert drawn.var().item() == pytest.approx(1 / 12, rel=0.02)


def test_draws_are_independent_between_draws_steps_ids_and_seeds() -> None:
    ids = torch.arange(50_000)
    base = uniform(3, 10, ids, 3)
    others = {
        "draw": base[:, 1],
        "next draw": base[:, 2],
        "step": uniform(3, 11, ids, 1)[:, 0],
        "id": uniform(3, 10, ids + 1, 1)[:, 0],
        "seed": uniform(4, 10, ids, 1)[:, 0],
        "swapped": uniform(10, 3, ids, 1)[:, 0],
    }
    for name, other in others.items():
        correlation = torch.corrcoef(torch.stack([base[:, 0], other]))[0, 1].abs().item()
        assert correlation < 4 / len(ids) ** 0.5, name
    assert len(set(base.flatten().tolist())) == base.numel()
    assert torch.equal(uniform(3, 10, ids, 1), base[:, :1])
