"""Measure any checkpoint, or file of embeddings, on any images by any protocol.

    python jobs/evaluate.py checkpoint=outputs/NAME
    python jobs/evaluate.py checkpoint=[outputs/A,outputs/B] data.path=FILE.arrow data.split=test
    python jobs/evaluate.py checkpoint=outputs/NAME query=FOLDER gallery=FOLDER protocol=identification
    python jobs/evaluate.py embeddings=FILE.parquet protocol=verification

Without a gallery every image is searched for among all others. The last line is a JSON object: checkpoint and step,
data and split (or query and gallery, or embeddings), protocol, settings, images, metrics, intervals (95 %), bad_images
with their reasons, seconds; of several checkpoints, evaluations (a list of them) and seconds.
"""

import sys
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import EvaluateJob
from distmetric.inference.evaluate import run_evaluation


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, evaluate."""
    return run_evaluation(load("evaluate", EvaluateJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("evaluate", __doc__, main))
