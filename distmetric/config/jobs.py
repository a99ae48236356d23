"""The configurations of the jobs beside training: one dataclass per file of conf/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distmetric.config.schema import TrackingConfig


@dataclass(kw_only=True, frozen=True)
class IngestJob:
    """jobs/ingest.py: images and labels into one catalog; see `distmetric.data.ingest.ingest`."""

    source: str | list[str]
    """Image folder, zip, Parquet file or folder of them; several are merged by class name."""
    out: str
    """Catalog file to write."""
    manifest: str | None = None
    """CSV of paths and labels, for other layouts."""
    split_by: Literal["ratio", "group", "given"] = "ratio"
    """How classes are divided into training and test."""
    test_fraction: float = 0.5
    """Share of the classes for testing (ratio)."""
    validation_fraction: float = 0.0
    """Share of the classes for validation (ratio)."""
    test_groups: list[str] = field(default_factory=list)
    """Groups for testing (group)."""
    validation_groups: list[str] = field(default_factory=list)
    """Groups for validation (group)."""
    seed: int = 0
    """Key of the split (ratio)."""
    allow_shared_classes: bool = False
    """Accept a class in training and in test (given)."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """List unusable images, or stop at the first."""
    max_image_bytes: int = 64 << 20
    """Most bytes of one image file, unpacked."""
    max_pixels: int = 100_000_000
    """Most pixels of one image."""


@dataclass(kw_only=True, frozen=True)
class EvaluateData:
    """What to evaluate on."""

    path: str | None = None
    """Catalog; null: the data of the checkpoint's run."""
    split: str | None = None
    """Split of it; null: the test split of the checkpoint's run."""


@dataclass(kw_only=True, frozen=True)
class EvaluateJob:
    """jobs/evaluate.py: retrieval metrics of a checkpoint."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one)."""
    data: EvaluateData
    """What to evaluate on."""
    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """The k of recall@k."""
    batch_size: int = 512
    """Images per forward pass."""


@dataclass(kw_only=True, frozen=True)
class EmbedJob:
    """jobs/embed.py: embeddings into a Parquet file."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one)."""
    source: str
    """Catalog file, image folder or zip."""
    out: str
    """Parquet file to write."""
    split: str | None = None
    """Split of a catalog; null: all of it."""
    batch_size: int = 512
    """Images per forward pass."""


@dataclass(kw_only=True, frozen=True)
class BenchmarkJob:
    """jobs/benchmark.py: time and memory of our losses, beside pytorch-metric-learning's."""

    suite: Literal["losses"] = "losses"
    """What is measured."""
    sizes: list[int] = field(default_factory=lambda: [1024, 8192])
    """Batch sizes N, of all processes together."""
    losses: list[str] | None = None
    """Names of the losses; null for all."""
    peers: bool = True
    """Whether pytorch-metric-learning is measured too; it comes with `pip install 'distmetric[bench]'`."""
    processes: list[int] = field(default_factory=lambda: [1, 2])
    """Numbers of processes that share a batch. More than one are on the CPU (gloo), with one thread each, and are
    compared with one process with one thread."""
    steps: int = 5
    """Least number of timed steps of a cell; short ones are repeated for a second."""
    threads: int | None = None
    """CPU threads of one process alone; null: one per core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where one process alone computes; auto: on the GPU if there is one."""
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
            ValueError: If a batch cannot be made, or nothing would be measured.
        """
        if not self.sizes or not self.processes or self.losses == []:
            raise ValueError("sizes, losses and processes must not be empty lists")
        if min(self.processes) < 1 or self.steps < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("processes, steps and threads must be at least 1")
        if self.timeout_s <= 0 or (self.memory_limit_gib is not None and self.memory_limit_gib <= 0):
            raise ValueError("timeout_s and memory_limit_gib must be above 0")
        for size in self.sizes:
            for processes in self.processes:
                if size < 8 * processes or size % (4 * processes):
                    raise ValueError(
                        f"sizes={size} must be a multiple of {4 * processes} and at least {8 * processes}: "
                        f"classes of four, shared by {processes} processes"
                    )
