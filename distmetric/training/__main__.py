"""Train without Ray, MLflow or Hydra: one process, or one rank of torchrun.

    python jobs/train.py experiment=quickstart --cfg json > config.json
    torchrun --nproc-per-node 2 -m distmetric.training config.json [RUN_DIR]

RUN_DIR (by default <output_dir>/<name or "torchrun">) keeps the checkpoints; an existing one is resumed. The last
line of rank 0 is a JSON object: checkpoint, step, seconds, metrics.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.config.validate import validate
from distmetric.distributed.replica import Replica, join_from_environment, leave
from distmetric.errors import InputError, UserError
from distmetric.locations import absolute
from distmetric.tracking.tracker import NullTracker
from distmetric.training.loop import TrainResult, train
from distmetric.training.worker import Worker


def main(arguments: list[str]) -> int:
    """Run one rank; returns the exit code."""
    try:
        config, run_dir = _read(arguments)
        validate(config)
        replica = join_from_environment(config.trainer.timeout_s)
        result = _train(config, run_dir, replica)
        if replica.is_main:
            print(json.dumps(asdict(result)), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        leave()
    return 0


def _read(arguments: list[str]) -> tuple[Config, str]:
    if not 1 <= len(arguments) <= 2:
        raise InputError("usage: python -m distmetric.training CONFIG.json [RUN_DIR]")
    try:
        config = decode(Config, json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{arguments[0]} cannot be read as JSON: {error}") from None
    default = f"{config.output_dir}/{config.name or 'torchrun'}"
    run_dir = arguments[1] if len(arguments) == 2 else default
    return config, absolute(run_dir)


def _train(config: Config, run_dir: str, replica: Replica) -> TrainResult:
    torch.set_num_threads(max(1, int(config.trainer.cpus_per_worker)))
    device = torch.device("cpu")
    if config.trainer.use_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return train(Worker(config, run_dir, NullTracker(), replica, device))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
