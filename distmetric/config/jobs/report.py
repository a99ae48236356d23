"""The configuration of jobs/report.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, frozen=True)
class ReportJob:
    """jobs/report.py: the report of a run, or a page with several runs side by side."""

    runs: list[str]
    """Folders of runs: one for its report, two to ten to compare them."""
    out: str | None = None
    """HTML file to write; null: report.html in the folder of the one run."""
    allow_custom_targets: bool = False
    """Whether `model.target` of a checkpoint may name code outside this package, which is imported and run."""

    def __post_init__(self) -> None:
        """Check the number of runs.

        Raises:
            ValueError: If there are none or too many, or nobody says where a comparison goes.
        """
        if not 1 <= len(self.runs) <= 10:
            raise ValueError(
                f"runs has {len(self.runs)} folders: give one for a report, two to ten to compare"
            )
        if len(self.runs) > 1 and self.out is None:
            raise ValueError(
                "out is missing: several runs are compared in a file of their own, out=FILE.html"
            )
