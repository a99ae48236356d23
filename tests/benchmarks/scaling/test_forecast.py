"""Predictions are the arithmetic that is printed beside them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from distmetric.benchmarks.scaling.forecast import arithmetic, forecast, forecast_index
from distmetric.config.jobs.assumed_cluster import AssumedCluster
from distmetric.index.scale import IndexSize, Speed, build_bytes, build_seconds

CLUSTER = AssumedCluster(
    batch_per_gpu=100,
    dim=64,
    parameters=1e6,
    image_gflop=2.0,
    activation_mb=10.0,
    trunk_tflops=50.0,
    pair_tflops=20.0,
    memory_gb_per_s=1000.0,
    node_gb_per_s=100.0,
    network_gb_per_s=10.0,
    gpus_per_node=4,
    latency_us=10.0,
)


def test_a_step_is_computed_by_hand() -> None:
    step = forecast(CLUSTER, 16, products=5.0)
    n = 1600
    expected = {
        "trunk": 100 * 2e9 / 50e12,
        "pair": 5 * 2 * n * n * 64 / 16 / 20e12,
        "gather": 8 * n * 64 * 15 / 16 / 10e9,
        "reduce": 8 * 1e6 * 15 / 16 / 10e9,
        "update": 28 * 1e6 / 1000e9,
        "latency": 8 * 10e-6 * 4,
    }
    assert step.parts == pytest.approx(expected)
    assert step.seconds == pytest.approx(sum(expected.values()))
    assert step.memory == pytest.approx(
        {
            "weights": 16e6,
            "activations": 1e9,
            "images": 6 * 100 * 3 * 224 * 224,
            "loss": 8 * 64 * (100 + n) + 3 * 4 * 100 * n,
        }
    )


def test_only_beyond_a_machine_the_network_counts() -> None:
    inside, outside = (forecast(CLUSTER, gpus, 5.0).parts for gpus in (4, 8))
    assert inside["reduce"] == pytest.approx(8e6 * 3 / 4 / 100e9)
    assert outside["reduce"] == pytest.approx(8e6 * 7 / 8 / 10e9)


def test_the_printed_arithmetic_gives_what_is_printed() -> None:
    step = forecast(CLUSTER, 16, products=5.0)
    for line in arithmetic(step, CLUSTER, 5.0):
        part, formula, result = line.split()[0], *re.split(r" = (?=[^=]*ms$)", line.split(None, 1)[1])
        numbers = formula.split(" = ")[-1].removesuffix(" per s").replace(" s x", " x")
        numbers = numbers.replace(" x ", " * ").replace("^", "**").replace("collectives", "")
        value = eval(numbers, {"log2": math.log2})
        assert value == pytest.approx(step.parts[part], rel=1e-3), line
        assert float(result.removesuffix(" ms")) == pytest.approx(1e3 * value, rel=0.01)


def test_the_pair_work_of_a_gpu_grows_with_their_number_at_equal_shares() -> None:
    steps = [forecast(CLUSTER, gpus, 5.0) for gpus in (8, 64, 512)]
    pairs = [step.parts["pair"] for step in steps]
    assert [b / a for a, b in pairwise(pairs)] == pytest.approx([8, 8])
    assert len({step.parts["trunk"] for step in steps}) == 1


def test_the_index_is_that_of_scale() -> None:
    cluster = replace(CLUSTER, rows_per_shard=3e5, images_per_class=20)
    index = forecast_index(cluster, 10**6)
    size = IndexSize(rows=10**6, classes=50_000, dim=64, shards=4)
    assert index.size == size
    speed = Speed(flops=1e12, bytes_per_second=5e10)
    assert index.seconds == build_seconds(size, speed).total
    assert index.shard_bytes == build_bytes(size).shard
    assert index.coordinator_bytes == build_bytes(size).coordinator


@pytest.mark.parametrize("name", ["dim", "pair_tflops", "latency_us"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_impossible_assumptions_are_refused(name, value) -> None:
    with pytest.raises(ValueError, match=name):
        AssumedCluster(**{name: value})
