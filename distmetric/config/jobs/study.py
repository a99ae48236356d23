"""The configuration of jobs/study.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distmetric.functional.checks import check_at_least


@dataclass(kw_only=True, frozen=True)
class StudyConfig:
    """A question, and the training runs that answer it: every arm in every variant with every seed."""

    name: str
    """Of the study."""
    question: str
    """What it is to answer, as the table's heading."""
    train: dict[str, Any]
    """Settings of `jobs/train.py` that all runs share, by dotted key."""
    arms: dict[str, dict[str, Any]]
    """What is compared, the table's rows: by name the settings that make the difference."""
    variants: dict[str, dict[str, Any]]
    """Under what, the table's columns: by name the settings; {} for one."""
    seeds: list[int]
    """Every arm is trained with each of these as its `seed`."""
    measures: list[str]
    """What is compared: metrics of the last evaluation, `positive_distance_variance` of its pairs, or what was logged
    by step (`train/loss`, `hard/violating_fraction`, ...), the mean over the last quarter of the steps."""
    baseline: str | None
    """Arm that the others are told apart from, seed by seed."""

    def __post_init__(self) -> None:
        """Check that there is something to compare.

        Raises:
            ValueError: Naming what is missing or doubled.
        """
        for name, given in (("seeds", self.seeds), ("measures", self.measures)):
            if not given:
                raise ValueError(f"{name} is empty: give one or more")
            if len(set(map(str, given))) < len(given):
                raise ValueError(f"{name}={given} is wrong: give each of them once")
        check_at_least(0, seeds=min(self.seeds))
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(
                f"baseline={self.baseline} is none of the arms: choose one of {', '.join(self.arms)}"
            )


@dataclass(kw_only=True, frozen=True)
class StudyJob:
    """jobs/study.py: training runs that answer a question, and the table of what came out."""

    study: StudyConfig
    """Which one."""
    train: dict[str, Any] | str | None = None
    """Further settings of `jobs/train.py` for all runs, by dotted key, or a YAML file of them; they win over the
    study's own."""
    metric: str = "recall_at_1"
    """Evaluation metric that decides the best checkpoint of each run; the table is of the last step all the same."""
    concurrent: int | None = None
    """Runs at once; null: as many as the CPUs (GPUs) of the cluster have room for the workers of."""
    name: str | None = None
    """Name of this run of the study and of its folder; null makes a unique one."""
    output_dir: str = "outputs"
    """Where the folder of the study goes, with its training runs in it: a local path or a URI."""
    resume: str | None = None
    """Folder of a study to continue, as it was set up; only `concurrent` may be given with it."""
    allow_custom_targets: bool = False
    """Whether `model.target` and `loss.target` may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(1, concurrent=self.concurrent)
