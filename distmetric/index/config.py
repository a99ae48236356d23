"""Settings of the index over the training set, one dataclass per source of its embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distmetric.functional.checks import check_at_least, check_not_negative, check_positive


@dataclass(kw_only=True, frozen=True)
class SearchConfig:
    """How nearest neighbors are searched."""

    backend: Literal["auto", "faiss", "torch"] = "auto"
    """Who searches; auto: FAISS where it can be imported, torch (exact) elsewhere."""
    kind: Literal["auto", "flat", "ivf"] = "auto"
    """Compare with all rows (flat, exact) or with the nearest lists only (ivf); auto: flat up to 200,000 rows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to search; auto: on the index's GPU if it has one and FAISS or torch can use it."""
    lists: int | None = None
    """Lists of an ivf index; null: four times the square root of the number of rows."""
    probes: int = 32
    """Lists of an ivf index that a query looks at."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one of them is no count.
        """
        check_at_least(1, probes=self.probes, lists=self.lists)
        if self.backend == "torch" and self.kind == "ivf":
            raise ValueError("backend=torch searches exactly: set kind=flat, or backend=faiss for ivf")


@dataclass(kw_only=True, frozen=True)
class IndexConfig:
    """What all sources of embeddings have in common; used by sampler=hard_neighbors."""

    name: str
    """Where the embeddings of the training set come from."""
    refresh_steps: int = 50
    """Steps between two rebuilds; while one is under way no other is begun."""
    neighbors: int = 100
    """Nearest classes (and, for a sampler that looks at rows, nearest negatives) that a snapshot lists."""
    positives: int = 16
    """Farthest rows of the same class that a snapshot lists, for a sampler that looks at rows."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How nearest neighbors are searched."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(
            1, refresh_steps=self.refresh_steps, neighbors=self.neighbors, positives=self.positives
        )


@dataclass(kw_only=True, frozen=True)
class ActorIndexConfig(IndexConfig):
    """An index in a Ray actor of its own, which works while training goes on."""

    storage: Literal["float32", "float16"] = "float32"
    """Numbers that embeddings are kept in."""
    num_cpus: float = 0.0
    """CPUs that Ray reserves for each index actor; 0 shares those there are."""
    num_gpus: float = 0.0
    """GPUs that Ray reserves for each index actor; without one it searches on the CPU."""
    threads: int = 1
    """CPU threads of a rebuild."""
    shards: int = 1
    """Actors that share the rows, each holding whole classes."""
    timeout_s: float = 120.0
    """How long a silent index actor is waited for, in the background, before it counts as lost."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        check_positive(timeout_s=self.timeout_s)
        check_at_least(1, threads=self.threads, shards=self.shards)
        check_not_negative(num_cpus=self.num_cpus, num_gpus=self.num_gpus)


@dataclass(kw_only=True, frozen=True)
class StreamIndexConfig(ActorIndexConfig):
    """Embeddings of the training batches themselves, topped up by embedding rows that were not seen for long."""

    name: Literal["stream"] = "stream"
    """Where the embeddings of the training set come from."""
    min_coverage: float = 0.9
    """Share of the classes with an embedded row before the first snapshot is built."""
    drift_fraction: float | None = 1.0
    """Rebuild early when rows have moved, in the median class, by more than this fraction of the distance to the
    nearest class; null: only every `refresh_steps`."""
    max_age_steps: int | None = None
    """Steps after which an unseen row is embedded again by the workers; null: never."""
    top_up_rows: int = 64
    """Most rows that one worker embeds again in one round."""
    max_pending: int = 8
    """Batches of embeddings that may wait for the index, per worker; what comes on top is dropped, and counted."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        check_at_least(
            1, top_up_rows=self.top_up_rows, max_pending=self.max_pending, max_age_steps=self.max_age_steps
        )
        if not 0 < self.min_coverage <= 1:
            raise ValueError(f"min_coverage={self.min_coverage} is wrong: 0 < min_coverage <= 1")
        if self.drift_fraction is not None:
            check_positive(drift_fraction=self.drift_fraction)


@dataclass(kw_only=True, frozen=True)
class SweepIndexConfig(ActorIndexConfig):
    """The whole training set embedded anew for every snapshot, by actors that get a copy of the weights."""

    name: Literal["sweep"] = "sweep"
    """Where the embeddings of the training set come from."""
    workers: int = 1
    """Actors that embed, each its share of the rows."""
    worker_cpus: float = 0.0
    """CPUs that Ray reserves for each of them."""
    worker_gpus: float = 0.0
    """GPUs that Ray reserves for each of them."""
    batch_size: int = 256
    """Images per forward pass."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        super().__post_init__()
        check_at_least(1, workers=self.workers, batch_size=self.batch_size)
        check_not_negative(worker_cpus=self.worker_cpus, worker_gpus=self.worker_gpus)


@dataclass(kw_only=True, frozen=True)
class InlineIndexConfig(IndexConfig):
    """The whole training set embedded anew by the workers, which wait for it: exact, repeatable, and without Ray."""

    name: Literal["inline"] = "inline"
    """Where the embeddings of the training set come from."""


AnyIndexConfig = StreamIndexConfig | SweepIndexConfig | InlineIndexConfig
