"""Measure losses, the index, the data path or training, beside their peers in one run, how a step scales, or what
training survives.

    python jobs/benchmark.py suite=losses
    python jobs/benchmark.py losses=[batch_hard,supcon] sizes=[4096] processes=[1] peers=false
    python jobs/benchmark.py suite=index
    python jobs/benchmark.py suite=index embeddings=embeddings.parquet methods=[flat,class_balls]
    python jobs/benchmark.py suite=data images=[jpeg512]
    python jobs/benchmark.py suite=training
    python jobs/benchmark.py suite=scaling cluster.batch_per_gpu=1024
    python jobs/benchmark.py suite=soak seconds=600

The last line is a JSON object: markdown and json (paths of the tables), run_id, cells, statuses, seconds; of a soak, in
place of cells and statuses, what the faults have cost and whether the training ended as if there had been none.
"""

import sys
from typing import Any

from distmetric.benchmarks.run import run_benchmark
from distmetric.config.command import run_command
from distmetric.config.compose import load
from distmetric.config.jobs import BenchmarkJob


def main(overrides: list[str]) -> dict[str, Any]:
    """Compose, check, measure."""
    return run_benchmark(load("benchmark", BenchmarkJob, overrides))


if __name__ == "__main__":
    sys.exit(run_command("benchmark", __doc__, main))
