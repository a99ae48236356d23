"""Checkpoints of a run on any filesystem: complete or not there, verified when read, no pickle.

A checkpoint is a folder `step_00000200`: `model.pt` and `training.pt` (tensors in plain containers, read with
weights_only), `meta.json`, and last of all `manifest.json` with the SHA-256 of the others. Without a manifest that
fits, a folder is no checkpoint; so nothing depends on an atomic rename, which object stores do not have.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.locations import open_location

FORMAT = 1
_MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Args:
        location: Its folder, as a path or URI.
        meta: What `meta.json` says: format, step, metrics (of the evaluation at that step, or None), config,
            data fingerprint, values of the attributes that the model predicts, version.
    """

    location: str
    meta: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.meta["step"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """Evaluation metrics at that step; empty where none was made."""
        return self.meta["metrics"] or {}

    def tensors(self, name: str) -> Any:
        """The tensors saved under `name` ("model" or "training"), on the CPU."""
        return torch.load(
            io.BytesIO(_read(self.location, f"{name}.pt")), weights_only=True, map_location="cpu"
        )


def read_checkpoint(location: str) -> Checkpoint:
    """Open one checkpoint folder and verify every file in it.

    Raises:
        InputError: If it is not there, incomplete, damaged, or of another format; the message says which.
    """
    try:
        manifest = json.loads(_read(location, _MANIFEST))
        files: dict[str, str] = manifest["files"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{location} is not a complete checkpoint: it has no {_MANIFEST}") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(f"{location}/{_MANIFEST} is damaged: use an older checkpoint of the run") from None
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{location} has checkpoint format {manifest.get('format')} (written by distmetric "
            f"{manifest.get('version')}), this version reads {FORMAT}: use the version that wrote it"
        )
    for name, digest in files.items():
        try:
            intact = hashlib.sha256(_read(location, name)).hexdigest() == digest
        except FileNotFoundError:
            intact = False
        if not intact:
            raise InputError(f"{location}/{name} is damaged: use an older checkpoint of the run")
    return Checkpoint(location, json.loads(_read(location, "meta.json")))


class CheckpointStore:
    """The checkpoints of one run, newest and best kept.

    Args:
        location: Folder of the checkpoints, a path or URI that every worker can read.
        keep_last: How many of the newest stay.
        best_metric: Evaluation metric, higher is better, whose best checkpoint stays too.
    """

    def __init__(self, location: str, keep_last: int = 2, best_metric: str = "recall_at_1") -> None:
        self.location, self.keep_last, self.best_metric = location.rstrip("/"), keep_last, best_metric

    def save(self, step: int, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint, then drop those that the policy no longer keeps.

        Raises:
            ResourceError: If the store cannot be written; older checkpoints are untouched.
        """
        location = self._folder(step)
        meta = {"step": step, "metrics": None, **meta}
        files = {f"{name}.pt": _tensor_bytes(value) for name, value in tensors.items()}
        files["meta.json"] = json.dumps(meta, indent=1).encode()
        manifest = {
            "format": FORMAT,
            "version": meta.get("version"),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
        try:
            filesystem, path = open_location(location)
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                filesystem.delete_dir(path)  # what an interrupted or replayed save left there
            filesystem.create_dir(path, recursive=True)
            for name, data in [*files.items(), (_MANIFEST, json.dumps(manifest, indent=1).encode())]:
                with filesystem.open_output_stream(f"{path}/{name}") as stream:
                    stream.write(data)
        except OSError as error:
            raise ResourceError(
                f"checkpoint {location} cannot be written ({' '.join(str(error).split())}): "
                "older checkpoints are untouched; free space or fix access, then resume the run"
            ) from None
        self._prune()
        return Checkpoint(location, meta)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; damaged ones are named in a warning and passed over."""
        for step in reversed(self.steps()):
            try:
                return self.at(step)
            except InputError as error:
                log.warning("%s (trying the one before)", error)
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            InputError: If it is not there, or damaged.
        """
        return read_checkpoint(self._folder(step))

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the highest `best_metric`, the newest one where none was evaluated."""
        evaluated = [kept for kept in self._intact() if self.best_metric in kept.metrics]
        if not evaluated:
            return self.latest()
        return max(evaluated, key=lambda kept: (kept.metrics[self.best_metric], kept.step))

    def _intact(self) -> list[Checkpoint]:
        found = []
        for step in self.steps():
            try:
                found.append(self.at(step))
            except InputError as error:
                log.warning("%s", error)
        return found

    def _folder(self, step: int) -> str:
        return f"{self.location}/step_{step:08d}"

    def steps(self) -> list[int]:
        """Steps of all checkpoint folders, complete or not, ascending."""
        filesystem, path = open_location(self.location)
        listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = (re.fullmatch(r"step_(\d+)", info.base_name) for info in listed)
        return sorted(int(match.group(1)) for match in names if match)

    def _prune(self) -> None:
        filesystem, path = open_location(self.location)
        steps = self.steps()
        metas = {step: _meta(self._folder(step)) for step in steps}
        scores = {
            step: meta["metrics"][self.best_metric]
            for step, meta in metas.items()
            if meta and self.best_metric in (meta["metrics"] or {})
        }
        kept = set([step for step in steps if metas[step]][-self.keep_last :])
        if scores:
            kept.add(max(scores, key=lambda step: (scores[step], step)))
        for step in set(steps) - kept:
            filesystem.delete_dir(f"{path}/step_{step:08d}")


def find_checkpoint(location: str) -> Checkpoint:
    """The checkpoint at `location`, or the best one of the run whose folder that is.

    Raises:
        InputError: If there is none.
    """
    filesystem, path = open_location(location)
    if filesystem.get_file_info(f"{path}/checkpoints").type == fs.FileType.Directory:
        store = CheckpointStore(f"{location}/checkpoints")
        metas = (_meta(store._folder(step)) for step in reversed(store.steps()))
        if newest := next(filter(None, metas), None):
            store.best_metric = newest["config"]["checkpoint"]["best_metric"]
        if (best := store.best()) is None:
            raise InputError(f"checkpoint={location} has no complete checkpoint yet")
        return best
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        raise InputError(f"checkpoint={location} does not exist: give the folder of a checkpoint or of a run")
    return read_checkpoint(location)


def _meta(location: str) -> dict[str, Any] | None:
    """What a complete checkpoint says of itself; None without a manifest (being written, or interrupted)."""
    try:
        json.loads(_read(location, _MANIFEST))
        meta: dict[str, Any] = json.loads(_read(location, "meta.json"))
    except (OSError, ValueError):
        return None
    return meta


def _tensor_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _read(location: str, name: str) -> bytes:
    filesystem, path = open_location(location)
    with filesystem.open_input_stream(f"{path}/{name}") as stream:
        data: bytes = stream.read()
    return data
