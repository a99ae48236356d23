"""Make the report of a run again, or compare several runs on one page.

    python jobs/report.py 'runs=[outputs/NAME]'
    python jobs/report.py 'runs=[outputs/A,outputs/B]' out=comparison.html

A run need not have ended, or ended well: the page says how it stands. Without `out`, the report of a single run
replaces the one in its folder and in MLflow. The last line is a JSON object: out, runs (of each name, run_dir, status,
step of the best checkpoint, metrics).
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import ReportJob
from distmetric.inference.compare import make_report


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, report."""
    return make_report(load("report", ReportJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("report", __doc__, main))
