"""The configuration of jobs/tune.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from distmetric.functional.checks import check_at_least


@dataclass(kw_only=True, frozen=True)
class TuneJob:
    """jobs/tune.py: a search for better settings, every trial of it a whole training run."""

    space: dict[str, Any] | str
    """Settings of `jobs/train.py` that trials differ in: by dotted key a list of values, or a range with `low`, `high`
    and, where ratios count, `log: true` (whole numbers where both ends and the default are); or a YAML file of it."""
    train: dict[str, Any] | str | None = None
    """Settings of `jobs/train.py` that all trials share, by dotted key, or a YAML file of them; null: the defaults."""
    num_trials: int | None = None
    """Trials to draw from the space; null: every combination, where the space has no ranges."""
    metric: str = "recall_at_1"
    """Evaluation metric that trials are compared by, higher is better; it decides their best checkpoints, too."""
    concurrent: int | None = None
    """Trials at once; null: as many as the CPUs (GPUs) of the cluster have room for the workers of."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops trials whose evaluations are not among the best at the same step (Li et al., arXiv 1810.05934)."""
    grace_steps: int | None = None
    """scheduler=asha: training steps before which no trial is stopped; null: those up to the first evaluation."""
    reduction: float = 3.0
    """scheduler=asha: one trial in so many goes on at `grace_steps`, and at each so many times as many steps."""
    seed: int = 0
    """Key of the trials that are drawn."""
    name: str | None = None
    """Name of the search and of its folder; null makes a unique one."""
    output_dir: str = "outputs"
    """Where the folder of the search goes, with the runs of its trials in it: a local path or a URI."""
    report: bool = True
    """Write the report.html of the best trial's run."""
    resume: str | None = None
    """Folder of a search to continue, as it was set up; only `concurrent` and `report` may be given with it."""
    allow_custom_targets: bool = False
    """Whether `model.target` and `loss.target` may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: Naming the first that is wrong.
        """
        check_at_least(
            1, num_trials=self.num_trials, concurrent=self.concurrent, grace_steps=self.grace_steps
        )
        check_at_least(0, seed=self.seed)
        if not 1 < self.reduction < float("inf"):
            raise ValueError(f"reduction={self.reduction:g} is wrong: give a number above 1, such as 3")
        if self.grace_steps is not None and self.scheduler == "none":
            raise ValueError(
                f"grace_steps={self.grace_steps} needs scheduler=asha: set it, or leave grace_steps out"
            )
