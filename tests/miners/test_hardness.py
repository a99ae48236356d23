"""The dial of hardness: its ends, its distributions, its schedules."""

from __future__ import annotations

import math

import pytest
import torch

from distmetric.miners import BatchHardMiner, Dial, HardnessMiner
from miners.cases import chosen

RAW = {"normalize_embeddings": False}


def points(count: int, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


HARD_ENDS = (
    {"negatives": "hardest"},
    {"negatives": "kth", "k": 1},
    {"negatives": "range", "skip": 0, "width": 1},
    {"negatives": "quantile", "quantile": 1},
    {"negatives": "temperature", "temperature": 0},
    {"negatives": "kth", "k": Dial(start=20, end=1, end_step=10)},
)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "dot_product"])
@pytest.mark.parametrize("levels", [None, 2, 0], ids=["distinct", "many_ties", "all_equal"])
@pytest.mark.parametrize("count", [60, 600])
def test_the_hard_end_is_batch_hard_also_where_distances_tie(distance, levels, count) -> None:
    embeddings, labels = points(count).float(), torch.arange(count) % 9
    if levels is not None:
        embeddings = (embeddings * levels).round()
    expected = BatchHardMiner(distance=distance, **RAW)(embeddings, labels)
    assert len(expected[0]) == count
    for settings in HARD_ENDS:
        miner = HardnessMiner(**settings, distance=distance, **RAW)
        miner.set_step(10)
        assert chosen(miner(embeddings, labels)) == chosen(expected), settings


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-300])
def test_low_temperatures_choose_the_hardest(temperature) -> None:
    embeddings, labels = points(60).float(), torch.arange(60) % 9
    cold = HardnessMiner("temperature", temperature=temperature)
    assert chosen(cold(embeddings, labels)) == chosen(BatchHardMiner()(embeddings, labels))


@pytest.mark.parametrize(
    "miner",
    [
        HardnessMiner("hardest", random_fraction=1),
        HardnessMiner("temperature", temperature=math.inf),
        HardnessMiner("range", width=10_000),
    ],
    ids=repr,
)
def test_the_soft_end_is_uniform_over_negatives(miner) -> None:
    embeddings, labels = points(600), torch.arange(600) % 2
    counts = torch.zeros(600, dtype=torch.float64)
    for step in range(20):
        miner.set_step(step)
        anchors, _, negatives = miner(embeddings, labels)
        assert torch.equal(anchors.sort().values, torch.arange(600))
        counts += torch.bincount(negatives, minlength=600)
    # Of each half every column is expected 20 times; the 99.9 percent quantile for 598 degrees of freedom.
    assert chi_square(counts, torch.full((600,), 1 / 600)) < 708


def test_negatives_are_drawn_by_softmax_of_minus_distance() -> None:
    temperature, gaps = 0.3, torch.tensor([0.2, 0.5, 0.6, 0.9, 1.0, 1.5, 2.0], dtype=torch.float64)
    embeddings = torch.cat([torch.zeros(400, dtype=torch.float64), gaps])[:, None]
    labels = torch.cat([torch.zeros(400, dtype=torch.int64), torch.arange(1, 8)])
    miner = HardnessMiner("temperature", "all", temperature=temperature, **RAW)
    _, _, negatives = miner(embeddings, labels)
    assert len(negatives) == 400 * 399
    counts = torch.bincount(negatives - 400, minlength=7).double()
    assert (
        chi_square(counts, torch.softmax(-gaps / temperature, 0)) < 22.5
    )  # 99.9 percent, 6 degrees of freedom


def test_a_fraction_of_the_anchors_gets_any_negative() -> None:
    embeddings, labels = points(2000), torch.arange(2000) % 4
    hardest, mixed = BatchHardMiner(), HardnessMiner("kth", random_fraction=0.3)
    anchors, _, negatives = mixed(embeddings, labels)
    order = anchors.argsort()
    same = (hardest(embeddings, labels)[2] == negatives[order]).double().mean().item()
    assert same == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / 2000) ** 0.5)


def test_draws_change_with_step_and_seed_and_nothing_else() -> None:
    embeddings, labels = points(100), torch.arange(100) % 5
    for settings in ({"negatives": "range"}, {"negatives": "temperature"}, {"random_fraction": 0.5}):
        miner, other = HardnessMiner(**settings), HardnessMiner(**settings, seed=1)
        first = chosen(miner(embeddings, labels))
        torch.manual_seed(5)
        assert chosen(miner(embeddings, labels)) == first
        assert chosen(other(embeddings, labels)) != first
        miner.set_step(1)
        assert chosen(miner(embeddings, labels)) != first
        miner.set_step(0)
        assert chosen(miner(embeddings, labels)) == first


def test_negatives_come_nearer_as_the_dial_turns() -> None:
    embeddings, labels = points(300), torch.arange(300) % 10
    miner = HardnessMiner("quantile", quantile=Dial(start=0, end=1, end_step=10), **RAW)
    means = []
    for step in range(12):
        miner.set_step(step)
        anchors, _, negatives = miner(embeddings, labels)
        means.append((embeddings[anchors] - embeddings[negatives]).norm(dim=1).mean().item())
    assert means[:11] == sorted(means[:11], reverse=True)
    assert len(set(means[:11])) == 11
    assert means[10] == means[11]


def test_a_setting_on_a_dial_is_the_setting_it_has_reached() -> None:
    embeddings, labels = points(200), torch.arange(200) % 5
    moving = HardnessMiner("kth", k=Dial(start=50, end=10, begin_step=100, end_step=300))
    for step, k in ((0, 50), (100, 50), (200, 30), (250, 20), (300, 10), (9999, 10)):
        moving.set_step(step)
        assert chosen(moving(embeddings, labels)) == chosen(HardnessMiner("kth", k=k)(embeddings, labels))


def test_dials() -> None:
    linear = Dial(start=50, end=10, begin_step=100, end_step=300)
    assert [linear.at(step) for step in (0, 100, 150, 200, 300, 400)] == [50, 50, 40, 30, 10, 10]
    cosine = Dial(start=0, end=1, end_step=4, shape="cosine")
    assert [cosine.at(step) for step in range(5)] == pytest.approx([0, 0.146447, 0.5, 0.853553, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": "softest"}, "negatives='softest' is not known: choose one of hardest, kth"),
        ({"positives": "median"}, "positives='median' is not known"),
        ({"k": 0}, "k=0 is wrong: give a number from 1 to"),
        ({"k": math.inf}, "k=inf is wrong"),
        ({"skip": -1}, "skip=-1 is wrong: give a number from 0 to"),
        ({"width": 0.4}, "width=0.4 is wrong"),
        ({"quantile": 1.5}, "quantile=1.5 is wrong: give a number from 0 to 1"),
        ({"temperature": -0.1}, "temperature=-0.1 is wrong: give a number from 0 on"),
        ({"temperature": math.nan}, "temperature=nan is wrong"),
        ({"random_fraction": 1.1}, "random_fraction=1.1 is wrong"),
        ({"quantile": Dial(start=0.5, end=2, end_step=5)}, "quantile=2 is wrong"),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        HardnessMiner(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1, "end": 2, "end_step": 0}, "begin_step=0 and end_step=0 are wrong"),
        ({"start": 1, "end": 2, "begin_step": -1, "end_step": 5}, "begin_step=-1"),
        ({"start": 1, "end": math.inf, "end_step": 5}, "must be finite"),
        ({"start": 1, "end": 2, "end_step": 5, "shape": "cubic"}, "shape='cubic' is not known"),
    ],
)
def test_wrong_dials_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Dial(**settings)
