"""The configuration of jobs/embed.py."""

from __future__ import annotations

from dataclasses import dataclass

from distmetric.functional.checks import check_at_least, check_not_negative, check_positive


@dataclass(kw_only=True, frozen=True)
class EmbedJob:
    """jobs/embed.py: embeddings into a Parquet or Arrow file."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its best one)."""
    source: str
    """Catalog file, image folder, archive (zip, tar) or image."""
    out: str
    """File or URI to write; its ending says the format: .parquet, or .arrow or .feather."""
    split: str | None = None
    """Split of a catalog; null: all of it."""
    batch_size: int = 512
    """Images per forward pass."""
    part_rows: int = 4096
    """Images of a part; finished parts are kept in OUT.parts until the job is done, and not done again."""
    fresh: bool = False
    """Whether to delete the parts of an unfinished job and start over."""
    workers: int = 0
    """Ray workers that embed; 0: this process does."""
    worker_cpus: float = 1.0
    """CPUs of each worker."""
    worker_gpus: float = 0.0
    """GPUs of each worker; 0: they compute on the CPU. A fraction shares a GPU among several."""
    address: str | None = None
    """Ray cluster to join; null: the one of RAY_ADDRESS, or else one of this machine, started for the job."""
    start_timeout_s: float = 300.0
    """Seconds to wait for the first worker."""
    allow_custom_targets: bool = False
    """Whether `model.target` of a checkpoint may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(1, batch_size=self.batch_size, part_rows=self.part_rows)
        check_at_least(0, workers=self.workers)
        check_not_negative(worker_cpus=self.worker_cpus, worker_gpus=self.worker_gpus)
        if self.worker_gpus > 1 and self.worker_gpus != int(self.worker_gpus):
            raise ValueError(
                f"worker_gpus={self.worker_gpus:g} is wrong: give a fraction of 1, or whole ones"
            )
        check_positive(start_timeout_s=self.start_timeout_s)
