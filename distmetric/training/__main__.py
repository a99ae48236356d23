"""Train without Ray, MLflow or Hydra: one process, or one rank of torchrun.

    python jobs/train.py experiment=quickstart --cfg json > config.json
    torchrun --nproc-per-node 2 -m distmetric.training config.json [RUN_DIR]

RUN_DIR (by default <output_dir>/<name or "torchrun">) keeps the checkpoints; an existing one is resumed. The last
line of rank 0 is a JSON object: checkpoint, step, seconds, metrics. SIGINT or SIGTERM to any rank (torchrun hands its
own on) has all of them stop after the step that they are at, with a checkpoint and exit code 5; the second one ends a
rank at once.
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
from distmetric.config.signals import Interrupted, attended, end_at_once, handled
from distmetric.config.validate import validate
from distmetric.distributed.peers import is_lost_peer
from distmetric.distributed.replica import Replica, join_from_environment, leave
from distmetric.errors import InputError, ResourceError, StoppedError, UserError, out_of_memory
from distmetric.locations import absolute
from distmetric.secrets import mask_logs, masked
from distmetric.tracking.journal_tracker import JournalTracker
from distmetric.tracking.tracker import NullTracker, Tracker
from distmetric.training.loop import TrainResult, train
from distmetric.training.memory import LOWER
from distmetric.training.resumption import check_folder
from distmetric.training.run_data import open_data
from distmetric.training.stop import SignalRequest
from distmetric.training.worker import Worker


def main(arguments: list[str]) -> int:
    """Run one rank; returns the exit code."""
    request = SignalRequest()
    mask_logs()

    def hear(number: int) -> None:
        if request.number:
            end_at_once(number)
        request.number = number

    def look() -> None:
        if request.number and not request.asked:
            raise Interrupted(request.number)

    with handled(hear):
        try:
            result = attended(lambda: _run_rank(arguments, request), look)
        except UserError as error:
            _say(f"error: {error}")
            return error.exit_code
        except Interrupted as signal:
            _say_on_main(f"stopped on {signal} before the first step")
            return signal.exit_code
        except (MemoryError, RuntimeError) as error:
            if shortage := out_of_memory(error, LOWER):
                _say(f"error: {shortage}")
                return shortage.exit_code
            if not is_lost_peer(error):
                raise
            _say("error: another rank has ended, which says why or was killed: the same command goes on")
            return ResourceError.exit_code
    if result.stopped:
        where = f"stopped at step {result.step} on {result.stopped}"
        _say_on_main(f"{where}: checkpoint saved; the same command goes on")
        return StoppedError.exit_code
    if _is_main():
        print(json.dumps(asdict(result)), flush=True)
    return 0


def _run_rank(arguments: list[str], request: SignalRequest) -> TrainResult:
    config, run_dir = _read(arguments)
    validate(config)
    check_folder(config, run_dir, open_data(config.data).fingerprint)
    replica = join_from_environment(config.trainer.timeout_s)
    result = _train(config, run_dir, replica, request)
    leave()  # not after a failure: the others may be in a collective, for which it would wait
    return result


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say_on_main(line: str) -> None:
    if _is_main():
        _say(line)


def _say(line: str) -> None:
    print(" ".join(masked(line).split()), file=sys.stderr, flush=True)


def _read(arguments: list[str]) -> tuple[Config, str]:
    if not 1 <= len(arguments) <= 2:
        raise InputError("usage: python -m distmetric.training CONFIG.json [RUN_DIR]")
    try:
        config = decode(Config, json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{arguments[0]} cannot be read as JSON: {error}") from None
    default = f"{config.output_dir}/{config.name or 'torchrun'}"
    run_dir = arguments[1] if len(arguments) == 2 else default
    return config, absolute(run_dir)


def _train(config: Config, run_dir: str, replica: Replica, request: SignalRequest) -> TrainResult:
    torch.set_num_threads(max(1, int(config.trainer.cpus_per_worker)))
    device = torch.device("cpu")
    if config.trainer.use_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    tracker: Tracker = JournalTracker(run_dir) if replica.is_main else NullTracker()
    try:
        return train(Worker(config, run_dir, tracker, replica, device, stop=request))
    finally:
        tracker.close()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # What a failure leaves behind in other threads is not waited for: other ranks wait for this one to be gone.
    os._exit(code)
