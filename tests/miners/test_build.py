"""From settings to miners: the same names and defaults, in the class, its settings and pytorch-metric-learning."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_args

import pytest
from pytorch_metric_learning import miners as pml_miners

from distmetric import miners
from distmetric.miners import (
    BatchEasyHardMinerConfig,
    Dial,
    DistanceWeightedMinerConfig,
    HardnessMinerConfig,
    MinerConfig,
    NoMinerConfig,
    RandomMiner,
    TripletMarginMinerConfig,
    build_miner,
)

CONFIGS = [config for config in get_args(MinerConfig) if config is not NoMinerConfig]


def defaults(function: object) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return {p.name: p.default for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_and_class_have_the_same_defaults(config) -> None:
    miner_class = getattr(miners, config.__name__.removesuffix("Config"))
    in_class = defaults(miner_class)
    in_class.pop("normalize_embeddings", None)
    in_class.pop("seed", None)
    assert {field.name: field.default for field in fields(config) if field.name != "name"} == in_class
    assert type(build_miner(config())) is miner_class


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_are_those_of_pytorch_metric_learning(config) -> None:
    name = config.__name__.removesuffix("Config")
    if name not in ("SemiHardMiner", "HardnessMiner"):
        theirs = defaults(getattr(pml_miners, name))
        assert theirs.items() <= {field.name: field.default for field in fields(config)}.items()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_model_decides_about_length_one_and_the_run_about_the_seed(config) -> None:
    miner = build_miner(config(), seed=7)
    assert miner is not None
    assert miner.normalize_embeddings == (config is DistanceWeightedMinerConfig)
    assert getattr(miner, "seed", 7) == 7
    assert hasattr(miner, "seed") == isinstance(miner, RandomMiner)


def test_no_miner_is_none() -> None:
    assert build_miner(NoMinerConfig()) is None


def test_settings_reach_the_miner() -> None:
    config = HardnessMinerConfig(negatives="kth", k=Dial(start=9, end=1, end_step=4), distance="cosine")
    miner = build_miner(config)
    assert isinstance(miner, miners.HardnessMiner)
    miner.set_step(2)
    assert (miner.negatives, miner.setting("k"), miner.distance) == ("kth", 5, "cosine")


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (BatchEasyHardMinerConfig, {"pos_strategy": "semihard"}, "cannot both"),
        (DistanceWeightedMinerConfig, {"cutoff": 0.0}, "cutoff=0.0"),
        (HardnessMinerConfig, {"quantile": 2.0}, "quantile=2 is wrong"),
        (TripletMarginMinerConfig, {"margin": float("nan")}, "margin=nan"),
    ],
)
def test_settings_are_checked_when_they_are_given(config, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)
