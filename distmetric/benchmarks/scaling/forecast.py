"""What the cost model says of GPUs that are not here, with its arithmetic: assumptions in, seconds and bytes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from distmetric.benchmarks.scaling.cost import Cost, StepSize, step_seconds
from distmetric.config.jobs.assumed_cluster import AssumedCluster
from distmetric.index.scale import IndexSize, Speed, build_bytes, build_seconds

GPUS = (8, 64, 512)
IMAGES = (10**6, 10**8)
BYTES_PER_WEIGHT = 16
"""Weight, gradient and two moments, in float32."""
UPDATE_BYTES = 28
"""Read and written of a weight when it is updated: weight, gradient and two moments, three of them back."""
COLLECTIVES = 8
"""In a step: embeddings and back, labels, numbers of the loss, the head's moments and back, gradients, the stop."""
BATCHES_BYTES = 2 + 4
"""Of each pixel value: the batch at work and the next one as they are stored, and the varied one in float32."""
_PIXELS = 3 * 224 * 224
BLOCKS, BLOCK_BYTES = 3, 64 * 2**20
"""What pair losses work in: blocks of distances, derivatives and scratch."""


@dataclass(frozen=True)
class Forecast:
    """A training step on GPUs.

    Args:
        size: What it works on.
        costs: What each part is taken to cost.
        collective_s: What its collectives take for nothing.
        memory: Bytes of each GPU by what holds them.
    """

    size: StepSize
    costs: dict[str, Cost]
    collective_s: float
    memory: dict[str, float]

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part."""
        return {**step_seconds(self.costs, self.size), "latency": self.collective_s}

    @property
    def seconds(self) -> float:
        """Of a step, nothing at the same time."""
        return sum(self.parts.values())


def forecast(cluster: AssumedCluster, gpus: int, products: float) -> Forecast:
    """A step on so many GPUs.

    Args:
        cluster: What is assumed of them.
        gpus: W.
        products: Time of a pair loss, forward and backward, in that of one product of anchors and columns; measured.
    """
    size = StepSize(
        processes=gpus,
        images=cluster.batch_per_gpu,
        dim=cluster.dim,
        parameters=int(cluster.parameters),
        image_flops=cluster.image_gflop * 1e9,
    )
    link = _link_gb_per_s(cluster, gpus) * 1e9
    costs = {
        "trunk": Cost(1 / (cluster.trunk_tflops * 1e12)),
        "pair": Cost(products / (cluster.pair_tflops * 1e12)),
        "gather": Cost(1 / link),
        "reduce": Cost(1 / link),
        "update": Cost(UPDATE_BYTES / (cluster.memory_gb_per_s * 1e9)),
    }
    latency = COLLECTIVES * cluster.latency_us * 1e-6 * math.log2(gpus)
    return Forecast(size, costs, latency, memory_bytes(cluster, size))


def _link_gb_per_s(cluster: AssumedCluster, gpus: int) -> float:
    """Of a GPU to others: within a machine, where all of them are in one."""
    return cluster.node_gb_per_s if gpus <= cluster.gpus_per_node else cluster.network_gb_per_s


def memory_bytes(cluster: AssumedCluster, size: StepSize) -> dict[str, float]:
    """Bytes of a GPU by what holds them.

    weights  16 P;  activations  B a;  images  6 B pixels;  loss  4 D (2 B + 2 N) + blocks: rows and columns with their
    gradients, and three blocks of at most 64 MiB
    """
    rows, own = size.rows, size.images
    return {
        "weights": BYTES_PER_WEIGHT * size.parameters,
        "activations": own * cluster.activation_mb * 1e6,
        "images": BATCHES_BYTES * own * _PIXELS,
        "loss": 8 * cluster.dim * (own + rows) + BLOCKS * min(BLOCK_BYTES, 4 * own * rows),
    }


@dataclass(frozen=True)
class IndexForecast:
    """The index over a data set.

    Args:
        size: What it holds.
        seconds: Of a rebuild, which no step waits for.
        shard_bytes: Of each actor with rows.
        coordinator_bytes: Of the actor that makes the snapshot, beside them.
    """

    size: IndexSize
    seconds: float
    shard_bytes: float
    coordinator_bytes: float


def forecast_index(cluster: AssumedCluster, images: int) -> IndexForecast:
    """The index over so many images, with nearest classes listed, not nearest rows.

    Args:
        cluster: What is assumed of its hosts.
        images: M.
    """
    size = IndexSize(
        rows=images,
        classes=max(1, images // cluster.images_per_class),
        dim=cluster.dim,
        shards=max(1, math.ceil(images / cluster.rows_per_shard)),
    )
    speed = Speed(flops=cluster.host_gflops * 1e9, bytes_per_second=cluster.host_gb_per_s * 1e9)
    memory = build_bytes(size)
    return IndexForecast(size, build_seconds(size, speed).total, memory.shard, memory.coordinator)


def arithmetic(step: Forecast, cluster: AssumedCluster, products: float) -> list[str]:
    """The step of a forecast, as it is computed, one line a part."""
    s, parts = step.size, step.parts
    w, n, b, d, p = s.processes, s.rows, s.images, s.dim, s.parameters
    link = _link_gb_per_s(cluster, w)
    lines: Mapping[str, str] = {
        "trunk": f"B F = {b} x {cluster.image_gflop:g}e9 / {cluster.trunk_tflops:g}e12 per s",
        "pair": f"k 2 N^2 D / W = {products:.1f} x 2 x {n}^2 x {d} / {w} / {cluster.pair_tflops:g}e12 per s",
        "gather": f"8 N D (W - 1) / W = 8 x {n} x {d} x {w - 1} / {w} / {link:g}e9 per s",
        "reduce": f"8 P (W - 1) / W = 8 x {p} x {w - 1} / {w} / {link:g}e9 per s",
        "update": f"{UPDATE_BYTES} P = {UPDATE_BYTES} x {p} / {cluster.memory_gb_per_s:g}e9 per s",
        "latency": f"{COLLECTIVES} collectives x {cluster.latency_us:g}e-6 s x log2({w})",
    }
    return [f"{part:<8} {lines[part]} = {parts[part] * 1e3:.3g} ms" for part in parts]
