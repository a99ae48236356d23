"""Stands in for jobs/train.py: notes rounds and saves checkpoints as a training does, with a worker and an index."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from distmetric.index.snapshot_store import SnapshotStore
from distmetric.training.checkpoint import CheckpointStore

ROUND_STEPS, SAVED_EVERY = 5, 20


def actor(title: str) -> subprocess.Popen[bytes]:
    # It ends some time after its driver has.
    return subprocess.Popen(["bash", "-c", f"exec -a ray::{title} tail --pid={os.getpid()} -f /dev/null"])


def main(overrides: dict[str, str]) -> int:
    run_dir = overrides.get("resume") or f"{overrides['output_dir']}/{overrides['name']}"
    notes, saved = SnapshotStore(f"{run_dir}/index"), CheckpointStore(f"{run_dir}/checkpoints", keep_last=3)
    busy = Path(run_dir, "busy")  # how often the machine is still too busy for a start
    if (starts_to_fail := int(busy.read_text()) if busy.exists() else 0) > 0:
        busy.write_text(str(starts_to_fail - 1))
        return 3
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    worker, index = actor("RayTrainWorker.run"), actor("NeighborIndexActor")
    newest = saved.latest()
    step = 0 if newest is None else newest.step
    while True:
        if (step + 1) % ROUND_STEPS == 0 or step == 0:
            notes.note_swap(0 if step == 0 else (step + 1) // ROUND_STEPS, 0)
        time.sleep(0.005)
        step += 1
        if step == int(overrides.get("fails_at", -1)):
            return 7
        if worker.poll() is not None:
            newest = saved.latest()
            step, worker = 0 if newest is None else newest.step, actor("RayTrainWorker.run")
        if stopped or step % SAVED_EVERY == 0:
            saved.save(step, {"model": {"step": torch.tensor(step)}}, {})
        if stopped:
            worker.kill()
            index.kill()
            return 5


if __name__ == "__main__":
    sys.exit(main(dict(override.split("=", 1) for override in sys.argv[1:])))
