"""Mine a file of embeddings: hardest pairs, suspected label errors, near-duplicates across classes.

    python jobs/mine.py embeddings=FILE.parquet out=FOLDER
    python jobs/mine.py embeddings=FILE.parquet out=FOLDER metric=cosine k=3 pairs=1000

The file is one that jobs/embed.py wrote. All rows are compared with all others, exactly, if possible without computing
all distances. The last line is a JSON object: rows, classes, tables with their paths and rows, the share of distances
that was computed, whether brute force took over, seconds.
"""

import sys
from dataclasses import asdict
from typing import Any

from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import MineJob
from distmetric.index.mine import mine


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, mine."""
    return mine(**asdict(load("mine", MineJob, overrides)))


if __name__ == "__main__":
    sys.exit(run_command("mine", __doc__, main))
