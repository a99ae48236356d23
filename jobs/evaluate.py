"""Measure how well a checkpoint retrieves: recall@k, MAP@R, R-precision, leave-one-out.

    python jobs/evaluate.py checkpoint=outputs/NAME
    python jobs/evaluate.py checkpoint=outputs/NAME/checkpoints/step_00000600 data.path=FILE.arrow data.split=test

The last line is a JSON object: checkpoint, step, data, split, metrics.
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import EvaluateJob
from distmetric.inference.evaluate import evaluate_checkpoint


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, evaluate."""
    return evaluate_checkpoint(load("evaluate", EvaluateJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("evaluate", __doc__, main))
