"""Checkpoints of a run on any filesystem: complete or not there, verified when read, no pickle.

A checkpoint is a folder `step_00000200`: `model.pt` and `training.pt` (tensors in plain containers, read with
weights_only), `meta.json`, and last of all `manifest.json` with the SHA-256 of the others and of itself. What a
sharded loss has for its classes is in files of its own, `classes_0_5000.<digest>.pt`, which the ranks write. Without a
manifest that fits, a folder is no checkpoint; so nothing depends on an atomic rename of folders, which object stores do
not have, and of a checkpoint that is deleted the manifest goes first.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.locations import make_folder, open_location, put_bytes, reason, sealed
from distmetric.training.checkpoint_folder import (
    FORMAT,
    INSTEAD,
    MANIFEST,
    META,
    Checkpoint,
    IncompleteCheckpointError,
    OtherFormatError,
    StoredFile,
    digest_named,
    read_checkpoint,
    read_manifest,
    read_meta,
    stored_name,
)

_PROBE = ".probe"

log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, newest and best kept.

    One process writes; others may read at the same time, and write parts between its `start` and its `save`. A process
    may be killed and a machine lose its power at any moment: what `save` has returned from is there, and what it has
    not is not taken for a checkpoint.

    Args:
        location: Folder of the checkpoints, a path or URI that every worker can read.
        keep_last: How many of the newest stay.
        best_metric: Evaluation metric, higher is better, whose best checkpoint stays too.
    """

    def __init__(self, location: str, keep_last: int = 2, best_metric: str = "recall_at_1") -> None:
        self.location, self.keep_last, self.best_metric = location.rstrip("/"), keep_last, best_metric
        self._opened = False

    def open(self) -> None:
        """See, before the first step, that checkpoints can be written; from then on the folder has to stay.

        Raises:
            ResourceError: If they cannot.
        """
        try:
            filesystem, path = open_location(self.location)
            make_folder(filesystem, path)
            with filesystem.open_output_stream(f"{path}/{_PROBE}") as stream:
                stream.write(b"can be written")
            filesystem.delete_file(f"{path}/{_PROBE}")
        except OSError as error:
            raise ResourceError(
                f"checkpoints cannot be written to {self.location} ({reason(error)}): free space, fix access, or set "
                "another output_dir"
            ) from None
        self._opened = True

    def start(self, step: int) -> None:
        """Make room for a checkpoint whose parts are written before it is saved.

        Raises:
            ResourceError: If the store cannot be written.
        """
        try:
            self._room_for(step)
            make_folder(*open_location(self._folder(step)))
        except OSError as error:
            raise self._unwritable(step, error) from None

    def write_part(self, step: int, name: str, tensors: Any) -> StoredFile:
        """Write a part of a checkpoint that has been started, in any process; `save` makes it one.

        Raises:
            ResourceError: If the store cannot be written.
        """
        data = _tensor_bytes(tensors)
        file = digest_named(f"{name}.pt", hashlib.sha256(data).hexdigest())
        try:
            put_bytes(*open_location(f"{self._folder(step)}/{file.name}"), data)
        except OSError as error:
            raise self._unwritable(step, error) from None
        return file

    def abandon(self, step: int) -> None:
        """Take away the parts of a checkpoint that will not be saved."""
        with suppress(OSError):
            self._tidy(step)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Any],
        meta: Mapping[str, Any],
        parts: Mapping[str, StoredFile] | None = None,
    ) -> Checkpoint:
        """Write a checkpoint, then drop those that the policy no longer keeps.

        Args:
            step: Optimizer steps done.
            tensors: By name, what is made of tensors in plain containers.
            meta: What can be read without them.
            parts: Files of a checkpoint that was started and that are there already, by what they hold.

        Raises:
            ResourceError: If the store cannot be written; older checkpoints are untouched.
        """
        location = self._folder(step)
        meta = {"step": step, "metrics": None, **meta}
        contents = {f"{name}.pt": _tensor_bytes(value) for name, value in tensors.items()}
        contents[META] = json.dumps(meta, indent=1).encode()
        filesystem, path = open_location(location)
        try:
            taken = {file.name: file.digest for file in self._room_for(step, bool(parts)).values()}
            files = {what: _stored_file(what, data, taken) for what, data in contents.items()}
            own = [file.name for file in files.values()]
            files |= parts or {}
            digests = {file.name: file.digest for file in files.values()}
            manifest = sealed({"format": FORMAT, "version": meta.get("version"), "files": digests})
            make_folder(filesystem, path)
            for name, data in [*zip(own, contents.values(), strict=True), (MANIFEST, manifest)]:
                put_bytes(filesystem, f"{path}/{name}", data)
        except OSError as error:
            with suppress(OSError):  # half a checkpoint takes space that may be what is missing
                self._tidy(step)
            raise self._unwritable(step, error) from None
        with suppress(OSError):
            self._tidy(step)
        self._prune(step)
        return Checkpoint(location, meta, files)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; damaged ones are named in a warning and passed over.

        Returns:
            None where none was ever written completely.

        Raises:
            InputError: If there are some and none can be used: going on would mean to begin again, which nobody asked
                for. Also if the newest is of another format, since its version can still go on from it.
        """
        refused: list[InputError] = []
        for step in reversed(self.steps()):
            try:
                return self.at(step)
            except OtherFormatError:
                raise
            except InputError as error:
                refused.append(error)
                log.warning("%s (trying the one before)", error)
        # A first checkpoint that was being written leaves one folder without a manifest, never two.
        if len(refused) > 1 or any(not isinstance(error, IncompleteCheckpointError) for error in refused):
            raise InputError(_none_left(self.location, refused))
        return None

    def at(self, step: int, *, with_parts: bool = True) -> Checkpoint:
        """The checkpoint of a step, verified as `read_checkpoint` does.

        Raises:
            InputError: If it is not there, or damaged.
        """
        found = read_checkpoint(self._folder(step), with_parts=with_parts)
        if found.step != step:
            raise InputError(f"{found.location} holds step {found.step}: it was renamed, take it away")
        return found

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the highest `best_metric`, the newest one where none was evaluated.

        Raises:
            InputError: As `latest`.
        """
        found = []
        for step in self.steps():
            try:
                found.append(self.at(step))
            except InputError as error:
                log.warning("%s", error)
        scores = {kept.step: score for kept in found if (score := self._score(kept.meta)) is not None}
        if not scores:
            return self.latest()
        return max(
            (kept for kept in found if kept.step in scores), key=lambda kept: (scores[kept.step], kept.step)
        )

    def steps(self) -> list[int]:
        """Steps of all checkpoint folders, complete or not, ascending.

        Raises:
            InputError: If the folder cannot be listed.
        """
        try:
            return self._steps()
        except OSError as error:
            raise InputError(
                f"{self.location} cannot be read ({reason(error)}): give the folder of a run"
            ) from None

    def _steps(self) -> list[int]:
        filesystem, path = open_location(self.location)
        listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = (re.fullmatch(r"step_(\d{8,})", info.base_name) for info in listed)
        return sorted(int(match.group(1)) for match in names if match)

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint that looks complete, without reading all of it; None where there is none."""
        return next((step for step in reversed(self.steps()) if read_meta(self._folder(step))), None)

    def _folder(self, step: int) -> str:
        return f"{self.location}/{_name(step)}"

    def _score(self, meta: Mapping[str, Any]) -> float | None:
        """What the best one is chosen by; None where it was not measured, or is no number."""
        value = (meta["metrics"] or {}).get(self.best_metric)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def _unwritable(self, step: int, error: OSError) -> ResourceError:
        return ResourceError(
            f"checkpoint {self._folder(step)} cannot be written ({reason(error)}): "
            "older checkpoints are untouched; free space or fix access, then resume the run"
        )

    def _room_for(self, step: int, is_started: bool = False) -> Mapping[str, StoredFile]:
        """Delete what interrupted saves have left, and a damaged checkpoint of this step; not what has been started.

        Returns:
            The files of a checkpoint of this step that is there; it stays until the new one is complete.
        """
        filesystem, path = open_location(self.location)
        is_local = isinstance(filesystem, fs.LocalFileSystem)
        if self._opened and is_local and filesystem.get_file_info(path).type != fs.FileType.Directory:
            raise FileNotFoundError(f"{self.location} was removed while the run was going on")
        for known in self._steps():
            try:
                files = read_manifest(self._folder(known))
            except InputError as error:
                if known == step and is_started:
                    continue
                if known == step or isinstance(error, IncompleteCheckpointError):
                    self._drop(known)
            else:
                if known == step:
                    return files
        return {}

    def _tidy(self, step: int) -> None:
        """Delete what the folder of a step holds beside a checkpoint, or the folder where it holds none."""
        filesystem, path = open_location(self._folder(step))
        try:
            named = {MANIFEST, *(file.name for file in read_manifest(self._folder(step)).values())}
        except InputError:
            self._drop(step)
            return
        for info in filesystem.get_file_info(fs.FileSelector(path)):
            if info.base_name not in named:
                filesystem.delete_file(info.path)

    def _drop(self, step: int) -> None:
        """Delete a checkpoint so that an interruption leaves none that looks complete."""
        filesystem, path = open_location(self._folder(step))
        with suppress(FileNotFoundError, NotADirectoryError):
            filesystem.delete_file(f"{path}/{MANIFEST}")
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)

    def _prune(self, saved: int) -> None:
        """Keep the newest and the best up to the one just saved.

        Of later ones a run has found that they are damaged, or it would have gone on from there.
        """
        try:
            steps = self._steps()
        except OSError as error:
            log.warning("%s cannot be listed (%s): older checkpoints stay", self.location, reason(error))
            return
        metas = {step: meta for step in steps if step <= saved and (meta := read_meta(self._folder(step)))}
        scores = {step: score for step, meta in metas.items() if (score := self._score(meta)) is not None}
        kept = {saved, *sorted(metas)[-self.keep_last :]}
        if scores:
            kept.add(max(scores, key=lambda step: (scores[step], step)))
        for step in set(steps) - kept:
            try:
                self._drop(step)
            except OSError as error:
                log.warning("%s cannot be deleted (%s)", self._folder(step), reason(error))


def find_checkpoint(location: str) -> Checkpoint:
    """The checkpoint at `location`, or the best one of the run whose folder that is.

    Raises:
        InputError: If there is none.
    """
    if _is_folder(f"{location}/checkpoints"):
        store = CheckpointStore(f"{location}/checkpoints")
        metas = (read_meta(store._folder(step)) for step in reversed(store.steps()))
        if newest := next(filter(None, metas), None):
            store.best_metric = _best_metric(newest) or store.best_metric
        if (best := store.best()) is None:
            raise InputError(f"checkpoint={location} has no complete checkpoint yet")
        return best
    if not _is_folder(location):
        raise InputError(f"checkpoint={location} does not exist: give the folder of a checkpoint or of a run")
    return read_checkpoint(location)


def _is_folder(location: str) -> bool:
    filesystem, path = open_location(location)
    try:
        return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)
    except OSError as error:
        raise InputError(f"{location} cannot be read ({reason(error)}): check the path and access") from None


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _best_metric(meta: Mapping[str, Any]) -> str | None:
    kept = meta.get("config", {}).get("checkpoint", {})
    name = kept.get("best_metric") if isinstance(kept, dict) else None
    return name if isinstance(name, str) else None


def _none_left(location: str, refused: Sequence[InputError]) -> str:
    which = "; ".join(
        str(error).removeprefix(f"{location}/").partition(f": {INSTEAD}")[0] for error in refused
    )
    return (
        f"none of the {len(refused)} checkpoints in {location} can be used ({which}), and the run does not begin again "
        "by itself: bring one back from a copy, or start a new run with another name"
    )


def _stored_file(what: str, data: bytes, taken: Mapping[str, str]) -> StoredFile:
    digest = hashlib.sha256(data).hexdigest()
    return StoredFile(stored_name(what, digest, taken), digest)


def _tensor_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


__all__ = ["Checkpoint", "CheckpointStore", "find_checkpoint", "read_checkpoint"]
