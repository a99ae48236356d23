"""The configuration of jobs/benchmark.py."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal

from distmetric.config.jobs.assumed_cluster import AssumedCluster
from distmetric.config.schema import MLflowConfig, TrackingConfig
from distmetric.functional.checks import check_at_least, check_not_negative

# Of a setting: the suites that read it; all of them where nothing is said.
_LOSSES, _INDEX, _SOAK, _DATA, _TRAINING, _SCALING = (
    {"suites": (name,)} for name in ("losses", "index", "soak", "data", "training", "scaling")
)
_RANKS = {"suites": ("losses", "training", "scaling")}
_OF_CELLS = ("sizes", "steps", "threads", "device", "memory_limit_gib", "timeout_s")


@dataclass(kw_only=True, frozen=True)
class BenchmarkJob:
    """jobs/benchmark.py: time and memory, each beside its peer and a bare matmul, and what a training survives."""

    suite: Literal["losses", "index", "soak", "data", "kernels", "training", "scaling"] = "losses"
    """What is measured: the losses, searches of a whole data set, what a training survives, reading, decoding and
    augmenting images, kernels on a GPU (which it needs), a training beside a bare PyTorch loop, or how it scales.
    Settings of other suites are refused."""
    sizes: list[int] | None = None
    """Batch sizes N, of all processes together (losses; null: 1024 and 8192. training; null: 256) or of each (scaling;
    null: 128, 256, 512), rows of the data set (index; null: 5000 and 20000, or those of `embeddings`), images of a
    batch (data; null: 256), or rows of both sides of the matrix (kernels; null: those with a goal)."""
    losses: list[str] | None = field(default=None, metadata=_LOSSES)
    """suite=losses: names of the losses; null for all."""
    peers: bool = field(default=True, metadata=_LOSSES)
    """suite=losses: whether pytorch-metric-learning is measured too: `pip install 'distmetric[bench]'`."""
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata=_RANKS)
    """suite=losses, training, scaling: numbers of processes that share a batch. More than one are on the CPU (gloo),
    with one thread each, and are compared with one process with one thread."""
    models: list[str] | None = field(default=None, metadata=_TRAINING)
    """suite=training: trunks to train, conv or resnet; null for both."""
    startup: bool = field(default=True, metadata=_TRAINING)
    """suite=training: whether `jobs/train.py` is started too, with two workers: `pip install 'distmetric[bench]'`."""
    cluster: AssumedCluster = field(default_factory=AssumedCluster, metadata=_SCALING)
    """suite=scaling: what is assumed of the GPUs that the predictions are for."""
    methods: list[str] | None = field(default=None, metadata=_INDEX)
    """suite=index: names of what is measured; null for all."""
    embeddings: str | None = field(default=None, metadata=_INDEX)
    """suite=index: Parquet file of `jobs/embed.py` to search, all of it; null: clusters that are drawn."""
    dim: int = field(default=128, metadata=_INDEX)
    """suite=index: D of what is drawn."""
    per_class: int = field(default=4, metadata=_INDEX)
    """suite=index: rows of a class of what is drawn."""
    spread: float = field(default=0.1, metadata=_INDEX)
    """suite=index: standard deviation per coordinate of a drawn row around its center of length one; 0.1 is as far as
    the nearest other class at D = 128, 0.02 a well separated class."""
    k: int = field(default=50, metadata=_INDEX)
    """suite=index: neighbors of every row, and classes that a snapshot lists for every class."""
    lists: int | None = field(default=None, metadata=_INDEX)
    """suite=index: lists of an ivf index; null: four times the square root of the number of rows."""
    probes: int = field(default=32, metadata=_INDEX)
    """suite=index: lists of an ivf index that a query looks at."""
    seconds: float = field(default=600.0, metadata=_SOAK)
    """suite=soak: how long to train with faults, from the first step on; the same training without any comes after."""
    faults_per_minute: float = field(default=4.0, metadata=_SOAK)
    """suite=soak: how many faults are injected per minute of training that is not just recovering from one."""
    faults: list[str] | None = field(default=None, metadata=_SOAK)
    """suite=soak: kinds of faults: kill_worker, kill_index_actor, drop_pushes, slow_disk, kill_driver,
    kill_everything, stop; null for all."""
    seed: int = field(default=0, metadata=_SOAK)
    """suite=soak: key of which fault comes when."""
    images: list[str] | None = field(default=None, metadata=_DATA)
    """suite=data: names of the sets of images: glyphs_held, glyphs, jpeg256_held, jpeg256, jpeg512; null for all."""
    prefetch: int = field(default=1, metadata=_DATA)
    """suite=data: batches that the loader reads ahead."""
    steps: int = 5
    """Least number of timed steps of a cell; short ones are repeated for a second."""
    threads: int | None = None
    """CPU threads of one process alone; null: one per core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where one process alone computes; auto: on the GPU if there is one (index: on the CPU and on the GPU)."""
    memory_limit_gib: float | None = None
    """Memory of a cell, above which it is given up; null: four fifths of what is free (on a GPU: all it has)."""
    timeout_s: float = 900.0
    """Seconds, start of the process included, after which a cell is given up."""
    out: str = "outputs"
    """Folder for the tables, as Markdown and as JSON, and for mlflow.db."""
    tracking: TrackingConfig
    """Where the results are logged too, as by `jobs/train.py`."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If a setting is not one of the suite, or what it asks for cannot be made or measured.
        """
        for each in fields(self):
            suites = each.metadata.get("suites", (self.suite,))
            if self.suite not in suites and self._given(each.name):
                raise ValueError(
                    f"{each.name} belongs to suite={' or '.join(suites)}: leave it out with suite={self.suite}"
                )
        if self.sizes == []:
            raise ValueError("sizes must not be an empty list: give some, or null")
        if self.steps < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("steps and threads must be at least 1")
        if self.timeout_s <= 0 or (self.memory_limit_gib is not None and self.memory_limit_gib <= 0):
            raise ValueError("timeout_s and memory_limit_gib must be above 0")
        tracking = self.tracking
        if isinstance(tracking, MLflowConfig) and (tracking.register is not None or tracking.system_metrics):
            raise ValueError(
                "tracking.register and tracking.system_metrics are for training runs: leave them out"
            )
        if not self.processes or min(self.processes) < 1:
            raise ValueError("processes must be a list of numbers of at least 1, not empty")
        checks = {
            "losses": self._check_losses,
            "index": self._check_index,
            "soak": self._check_soak,
            "data": self._check_data,
            "kernels": self._check_kernels,
            "training": self._check_ranks,
            "scaling": self._check_ranks,
        }
        checks[self.suite]()

    def _check_losses(self) -> None:
        if self.losses == []:
            raise ValueError("losses must not be an empty list: name some, or leave it null")
        for size in self.sizes or ():
            for processes in self.processes:
                if size < 8 * processes or size % (4 * processes):
                    raise ValueError(
                        f"sizes={size} must be a multiple of {4 * processes} and at least {8 * processes}: "
                        f"classes of four, shared by {processes} processes"
                    )

    def _check_ranks(self) -> None:
        for name in self._given("device", "threads", "memory_limit_gib"):
            raise ValueError(
                f"{name} is not for suite={self.suite}, whose processes have one CPU thread each: leave it out"
            )
        for size in self.sizes or ():
            if size % 8 or size < 16:
                raise ValueError(f"sizes={size} must be a multiple of 8, and 16 at least: classes of four")

    def _check_data(self) -> None:
        if self.images == []:
            raise ValueError("images must not be an empty list: name some, or leave it null")
        check_at_least(1, prefetch=self.prefetch)
        for size in self.sizes or ():
            if size < 8 or size % 4:
                raise ValueError(
                    f"sizes={size} is wrong: give multiples of 4 from 8 on, four images of a class"
                )
        for name in self._given("device", "memory_limit_gib"):
            raise ValueError(f"{name} is for what computes with embeddings, not for suite=data: leave it out")

    def _check_kernels(self) -> None:
        if min(self.sizes or [8]) < 8:
            raise ValueError(f"sizes={self.sizes} is wrong: suite=kernels compares 8 rows or more")

    def _check_soak(self) -> None:
        if self.faults == []:
            raise ValueError("faults must not be an empty list: name some, or leave it null")
        for name in ("seconds", "faults_per_minute"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is wrong: give a number above 0")
        for name in self._given(*_OF_CELLS):
            raise ValueError(f"{name} is for what is measured, not for suite=soak: leave it out")

    def _check_index(self) -> None:
        if self.methods == []:
            raise ValueError("methods must not be an empty list: name some, or leave it null")
        check_at_least(
            1, dim=self.dim, per_class=self.per_class, k=self.k, probes=self.probes, lists=self.lists
        )
        check_not_negative(spread=self.spread)
        if self.embeddings is not None:
            for name in self._given("sizes", "dim", "per_class", "spread"):
                raise ValueError(f"{name} is that of embeddings={self.embeddings}: leave it out")
        for size in self.sizes or ():
            if size <= self.per_class:
                raise ValueError(
                    f"sizes={size} is too small: two classes need more than per_class={self.per_class} rows"
                )

    def _given(self, *names: str) -> list[str]:
        """Those of some settings that do not have their default."""
        return [
            each.name
            for each in fields(self)
            if each.name in names and getattr(self, each.name) != _default(each)
        ]


def _default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()
