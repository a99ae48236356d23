"""What a sharded loss has for every class, in a checkpoint: parts of a few classes each, written by the ranks.

No rank ever holds more than its classes and one part: it writes those it has, and reads those it needs, so that a run
goes on with any number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distmetric.distributed.gather import gather
from distmetric.distributed.replica import Replica
from distmetric.errors import UserError
from distmetric.losses.class_shards import ClassRows, class_rows
from distmetric.training.checkpoint import CheckpointStore
from distmetric.training.checkpoint_folder import PART, Checkpoint, StoredFile, digest_named
from distmetric.training.claim import RunWriter

PART_BYTES = 256 << 20
"""Tensors of so many bytes make up a part, of a single class if need be."""

_WORDS = 4  # 64 bits each, of a SHA-256


def training_state(loss: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of loss and optimizer that all ranks share: without rows that only one of them has."""
    states = {"loss": loss.state_dict(), "optimizer": optimizer.state_dict()}
    rows = _sharded(loss)
    numbers = _numbers(rows, optimizer)
    for name, sharded in rows.items():
        del states["loss"][name]
        if name in numbers:
            own = states["optimizer"]["state"].get(numbers[name], {})
            kept = {key: value for key, value in own.items() if not _has_rows(value, sharded.tensor)}
            if own:
                states["optimizer"]["state"][numbers[name]] = kept
    return states


def write_parts(
    store: CheckpointStore,
    step: int,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    writer: RunWriter,
    replica: Replica,
    device: torch.device,
) -> dict[str, StoredFile]:
    """Have every rank write its parts of a checkpoint that rank 0 then completes; all ranks call it.

    Returns:
        The files of all ranks by what they hold, on every rank; none if nothing is sharded.

    Raises:
        UserError: On all ranks, if one of them cannot write.
    """
    if not _sharded(loss):
        return {}
    written: list[tuple[range, str]] = []

    def write() -> None:
        for classes, content in _parts(loss, optimizer):
            written.append((classes, store.write_part(step, _name(classes), content).digest))

    writer(partial(store.start, step))
    try:
        writer.everywhere(write)
    except UserError:
        if replica.is_main:
            store.abandon(step)
        raise
    rows = [[classes.start, classes.stop, *_words(digest)] for classes, digest in written]
    table = torch.tensor(rows, dtype=torch.int64, device=device).view(-1, 2 + _WORDS)
    files = {}
    for start, stop, *words in gather(table, replica).tolist():
        name = _name(range(start, stop))
        files[f"{name}.pt"] = digest_named(f"{name}.pt", _digest(words))
    return files


def whole_state(
    state: dict[str, Any], checkpoint: Checkpoint, loss: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """A checkpoint's state of loss and optimizer with the rows of this rank's classes, however it has been stored.

    Args:
        state: Of the training, as the checkpoint has it.
        checkpoint: With the parts, if there are any.
        loss: Whose rows are wanted.
        optimizer: Whose moments are.

    Raises:
        InputError: If a part is damaged.
        ValueError: If rows are missing.
    """
    stored = _stored(checkpoint)
    rows = dict(class_rows(loss))
    if not stored and not _sharded(loss):
        return state
    numbers = _numbers(rows, optimizer)
    of_loss, moments = dict(state["loss"]), dict(state["optimizer"]["state"])
    missing = {name: part for name, part in rows.items() if name not in of_loss}
    for name, part in rows.items():
        if name not in missing:
            own = part.places(part.classes, range(part.num_classes))
            number, shape = numbers.get(name, -1), of_loss[name].shape
            of_loss[name] = of_loss[name][own]
            if number in moments:
                moments[number] = {
                    key: value[own] if isinstance(value, Tensor) and value.shape == shape else value
                    for key, value in moments[number].items()
                }
    for name, (tensor, found) in _read(checkpoint, stored, missing).items():
        of_loss[name] = tensor
        if name in numbers and found:
            moments[numbers[name]] = {**moments.get(numbers[name], {}), **found}
    return {**state, "loss": of_loss, "optimizer": {**state["optimizer"], "state": moments}}


def _parts(loss: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[range, dict[str, Any]]]:
    """The rows of this rank, loss's and moments, a few classes at a time."""
    rows = _sharded(loss)
    tables: dict[str, dict[str, Tensor]] = {}
    parameters = dict(loss.named_parameters())
    for name, part in rows.items():
        state = optimizer.state.get(parameters[name], {}) if name in parameters else {}
        moments = {key: value for key, value in state.items() if _has_rows(value, part.tensor)}
        tables[name] = {"": part.tensor.detach(), **moments}
    own = next(iter(rows.values())).classes
    assert all(part.classes == own for part in rows.values()), "losses of a run have the same classes"
    size = sum(value.nbytes for table in tables.values() for value in table.values())
    count = max(1, PART_BYTES * len(own) // size)
    for start in range(own.start, own.stop, count):
        classes = range(start, min(start + count, own.stop))
        yield (
            classes,
            {
                name: {
                    key: value[rows[name].places(classes, own)].to("cpu", copy=True)
                    for key, value in table.items()
                }
                for name, table in tables.items()
            },
        )


def _read(
    checkpoint: Checkpoint, stored: list[range], wanted: dict[str, ClassRows]
) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """By name, the rows of the classes that are here, and their moments, from the parts of a checkpoint."""
    tables: dict[str, dict[str, Tensor]] = {name: {} for name in wanted}
    own = next((part.classes for part in wanted.values()), range(0))
    covered = 0
    for classes in stored:
        common = range(max(classes.start, own.start), min(classes.stop, own.stop))
        if not common:
            continue
        covered += len(common)
        content = checkpoint.tensors(_name(classes))
        for name, part in wanted.items():
            for key, value in content[name].items():
                shape = (len(part.tensor), *part.tensor.shape[1:])
                table = tables[name].setdefault(key, torch.empty(shape, dtype=value.dtype))
                table[part.places(common, own)] = value[part.places(common, classes)]
    if covered != len(own):
        raise ValueError(f"it has the vectors of {covered} of the {len(own)} classes that are wanted")
    return {name: (table.pop(""), table) for name, table in tables.items()}


def _sharded(loss: nn.Module) -> dict[str, ClassRows]:
    return {name: rows for name, rows in class_rows(loss) if rows.is_sharded}


def _numbers(rows: dict[str, ClassRows], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """By name, the number that the optimizer's state has for a tensor that it trains."""
    trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {name: id(part.tensor) for name, part in rows.items()}
    return {name: trained.index(number) for name, number in numbers.items() if number in trained}


def _has_rows(value: Any, tensor: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == tensor.shape


def _name(classes: range) -> str:
    return f"{PART}{classes.start}_{classes.stop}"


def _stored(checkpoint: Checkpoint) -> list[range]:
    """Of which classes a checkpoint has parts, in their order."""
    names = (re.fullmatch(rf"{PART}(\d+)_(\d+)\.pt", name) for name in checkpoint.files)
    found = [range(int(match[1]), int(match[2])) for match in names if match]
    return sorted(found, key=lambda classes: classes.start)


def _words(digest: str) -> list[int]:
    data = bytes.fromhex(digest)
    return [int.from_bytes(data[8 * i : 8 * i + 8], "big", signed=True) for i in range(_WORDS)]


def _digest(words: list[int]) -> str:
    return b"".join(word.to_bytes(8, "big", signed=True) for word in words).hex()
