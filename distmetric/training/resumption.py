"""Going on where a run stood: which checkpoint all ranks go on from, and whether it is of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from distmetric.config.decode import leaves
from distmetric.config.schema import Config
from distmetric.distributed.replica import Replica
from distmetric.errors import InputError, UserError
from distmetric.secrets import is_masked
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.checkpoint_folder import Checkpoint
from distmetric.training.class_parts import whole_state
from distmetric.training.optimizer import load_optimizer
from distmetric.training.run_folder import read_run
from distmetric.training.saved_model import config_of, load_model

_NONE, _FAILED = -1.0, -2.0
_OR_NEW = "resume with the run's own settings, or start a new run"
# Beside the architecture, what a run has to keep from its first step to its last: with anything else a resumed one
# would be neither this run nor that.
_KEPT = (
    *(
        "seed",
        "data.train_split",
        "data.test_split",
        "data.frame_",
        "augment.",
        "loss.",
        "miner.",
        "sampler.",
    ),
    *("optim.", "schedule.", "train.precision", "train.chunk_size"),
)


def check_resumable(config: Config, fingerprint: str) -> Checkpoint | None:
    """See, before anything is started, that the run in the folder `config.resume` can go on with these settings.

    Args:
        config: The whole run, as it is to go on.
        fingerprint: Of the data that there are.

    Returns:
        The checkpoint that it goes on from; None where there is none yet.

    Raises:
        InputError: If it is of other data or settings, or none of its checkpoints can be used.

    Cost: reads the newest checkpoint.
    """
    assert config.resume is not None, "asked about a run to resume"
    folder = read_run(config.resume)
    if folder.fingerprint != fingerprint:
        raise InputError(
            f"the data has changed since {folder.location} was started: resume with the same catalog, "
            "or start a new run"
        )
    return check_folder(config, folder.location, fingerprint)


def check_folder(config: Config, run_dir: str, fingerprint: str) -> Checkpoint | None:
    """As `check_resumable`, of a folder that may be no run's yet, or has no `run.json`."""
    newest = CheckpointStore(f"{run_dir}/checkpoints").latest()
    if newest is not None:
        check_same_run(config, newest, fingerprint)
    return newest


def finished(config: Config, fingerprint: str) -> dict[str, Any] | None:
    """What a training leaves (checkpoint, step, seconds, metrics), of a run that is resumed after its last step.

    Args:
        config: The whole run.
        fingerprint: Of its data.

    Returns:
        None if there are steps to do.

    Raises:
        InputError: If it is not the run that it was, or none of its checkpoints can be used.
    """
    if config.resume is None:
        return None
    newest = check_resumable(config, fingerprint)
    if newest is None or newest.step < config.train.steps:
        return None
    kept = config.checkpoint
    store = CheckpointStore(f"{config.resume}/checkpoints", kept.keep_last, kept.best_metric)
    best = store.best() or newest
    return {"checkpoint": best.location, "step": newest.step, "seconds": 0.0, "metrics": dict(best.metrics)}


def check_same_run(config: Config, checkpoint: Checkpoint, fingerprint: str) -> None:
    """See that a checkpoint is one of this run, by what it says of itself.

    Raises:
        InputError: Naming what is different.
    """
    location, meta = checkpoint.location, checkpoint.meta
    if meta.get("fingerprint") != fingerprint:
        raise InputError(
            f"the data has changed since {location} was written: "
            "resume with the same catalog, or start a new run"
        )
    here, there = leaves(asdict(config)), leaves(asdict(config_of(checkpoint)))
    here |= {
        key: value for key, value in there.items() if is_masked(value)
    }  # secret: nobody knows what it was
    if found := _difference(here, there, ("model.",)):
        raise InputError(
            f"{location} holds another architecture than this configuration's model ({found}): {_OR_NEW}"
        )
    if found := _difference(here, there, _KEPT):
        raise InputError(f"{location} is of another run than this configuration ({found}): {_OR_NEW}")


def newest_of(
    store: CheckpointStore, replica: Replica, device: torch.device
) -> tuple[Checkpoint | None, float]:
    """The checkpoint that all ranks go on from, which rank 0 chooses.

    Returns:
        The newest intact one, None where there is none yet; and the best score so far, -1 where none was measured.

    Raises:
        InputError: On all ranks, if there are checkpoints and none can be used, or if a rank cannot read it.
    """
    found, score, failure = None, -1.0, None
    if replica.is_main:
        try:
            found = store.latest()
            best = store.best() if found else None
            score = -1.0 if best is None else best.metrics.get(store.best_metric, -1.0)
        except UserError as error:
            failure = error
    chosen = _FAILED if failure else _NONE if found is None else float(found.step)
    chosen = replica.broadcast(chosen, device)
    if chosen == _FAILED:
        raise failure or InputError(f"rank 0 found no checkpoint in {store.location} that can be used")
    if chosen == _NONE:
        return None, -1.0
    score = replica.broadcast(score, device)
    if found is None:
        try:
            found = store.at(int(chosen), with_parts=False)
        except UserError as error:
            failure = error
    if not replica.min(found is not None, device):
        raise failure or InputError(
            f"the checkpoint of step {int(chosen)} in {store.location} cannot be read by all workers: "
            "output_dir has to be on storage that every worker reaches"
        )
    return found, score


def load_state(
    checkpoint: Checkpoint,
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    sampler: Any,
    health: Any,
) -> None:
    """Put a checkpoint's weights and the state of the training into the parts of a run.

    Raises:
        InputError: If it does not fit one of them.
        ConfigError: If its batches were others than the sampler's.
    """
    load_model(model, checkpoint)
    state = checkpoint.tensors("training")

    def complete(_: Any) -> None:
        state.update(whole_state(state, checkpoint, loss, optimizer))

    for name, load in (
        ("loss", complete),
        ("loss", loss.load_state_dict),
        ("optimizer", partial(load_optimizer, optimizer)),
        ("sampler", sampler.load_state_dict),
        ("health", health.load_state_dict),
    ):
        if name == "health" and name not in state:
            continue  # of a version that did not judge it
        try:
            load(state[name])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            lines = [line.strip() for line in str(error).strip().splitlines()]
            detail = lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__
            raise InputError(
                f"the {name} in {checkpoint.location} does not fit this configuration's ({detail}): {_OR_NEW}"
            ) from None


def _difference(here: Mapping[str, Any], there: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """A setting that differs, in words, and of those that do one that brings others with it; empty where none does."""
    for key in sorted(here.keys() | there.keys(), key=lambda key: (not key.endswith(".name"), key)):
        if key.endswith(".sharded"):
            continue  # how it is stored, and not what
        if key.startswith(keys) and here.get(key) != there.get(key) and not is_masked(there.get(key)):
            return f"{key}={here.get(key)} here and {there.get(key)} there"
    return ""
