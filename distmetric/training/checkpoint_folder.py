"""One checkpoint as a folder: what is in it, whether it is intact, and what it takes to read it without pickle."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from distmetric.errors import InputError, out_of_memory
from distmetric.locations import open_location, reason, unsealed

FORMAT = 1
MANIFEST, META = "manifest.json", "meta.json"
PART = "classes_"
"""What the names of files begin with that hold what a sharded loss has for some of its classes."""
INSTEAD = "use an older checkpoint of the run"
_DIGITS = 12


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint: its name in the folder, and its SHA-256."""

    name: str
    digest: str


class IncompleteCheckpointError(InputError):
    """A folder without a manifest: being written, or left by a process that was killed while it wrote."""


class OtherFormatError(InputError):
    """A checkpoint that another version has written, in a format that this one does not read."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Args:
        location: Its folder, as a path or URI.
        meta: What `meta.json` says: format, step, metrics (of the evaluation at that step, or None), config,
            data fingerprint, values of the attributes that the model predicts, version.
        files: Its files by what they hold ("model.pt"); a name in the folder is another one where a checkpoint of the
            same step was replaced.
    """

    location: str
    meta: Mapping[str, Any]
    files: Mapping[str, StoredFile] = field(default_factory=dict, repr=False)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.meta["step"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """Evaluation metrics at that step; empty where none was made."""
        return self.meta["metrics"] or {}

    def tensors(self, name: str) -> Any:
        """The tensors saved under `name` ("model" or "training"), on the CPU.

        Raises:
            InputError: If the file is not there any more, has changed, or holds more than tensors and plain containers.
        """
        if (file := self.files.get(f"{name}.pt")) is None:
            raise InputError(f"{self.location} has no {name}.pt: use a checkpoint that distmetric wrote")
        data = _intact(self.location, file)
        try:
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises almost anything for what it did not write
            if out_of_memory(error, ""):
                raise
            # Torch's own text begins with how to load such a file all the same.
            culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"it would run {culprit.group(1)}" if culprit else reason(error)[:200]
            raise InputError(
                f"{self.location}/{file.name} was not loaded, since it holds more than tensors in plain containers "
                f"({what}): use a checkpoint that distmetric wrote"
            ) from None


def read_checkpoint(location: str, *, with_parts: bool = True) -> Checkpoint:
    """Open one checkpoint folder and verify every file in it.

    Args:
        location: The folder.
        with_parts: Whether to verify parts of single classes as well; otherwise that is left to who reads one.

    Raises:
        InputError: If it is not there, incomplete, damaged, or of another format; the message says which.

    Cost: reads every file once.
    """
    files = read_manifest(location)
    for what, file in files.items():
        if what.startswith(PART) and not with_parts:
            continue
        data = _intact(location, file)
        if what == META:
            meta = _meta_of(data, location)
    return Checkpoint(location, meta, files)


def read_meta(location: str) -> dict[str, Any] | None:
    """What a complete checkpoint says of itself; None for what is none (being written, interrupted, damaged).

    Cost: reads the two small files, not the tensors.
    """
    try:
        return _meta_of(_intact(location, read_manifest(location)[META]), location)
    except InputError:
        return None


def read_manifest(location: str) -> dict[str, StoredFile]:
    """A checkpoint's files by what they hold, from an intact manifest of this format; they may be damaged.

    Raises:
        InputError: If it is not there, damaged, or of another format.
    """
    try:
        manifest = unsealed(_read(location, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise IncompleteCheckpointError(
            f"{location} is not a complete checkpoint: it has no {MANIFEST}"
        ) from None
    except ValueError:
        raise InputError(f"{location}/{MANIFEST} is damaged: {INSTEAD}") from None
    if (version := manifest.get("format")) != FORMAT or isinstance(version, bool):
        raise OtherFormatError(
            f"{location} has checkpoint format {version} (written by distmetric "
            f"{manifest.get('version')}), this version reads {FORMAT}: use the version that wrote it"
        )
    digests = manifest.get("files")
    files = _stored_files(digests) if isinstance(digests, dict) else {}
    if META not in files or set(manifest) != {"format", "version", "files"}:
        raise InputError(f"{location}/{MANIFEST} is damaged: {INSTEAD}")
    return files


def stored_name(what: str, digest: str, taken: Mapping[str, str]) -> str:
    """A name for a file that leaves alone what is in the folder.

    Args:
        what: What it holds ("model.pt"), which is its name if that is free.
        digest: Its SHA-256.
        taken: SHA-256 by name of what is there.
    """
    return what if taken.get(what, digest) == digest else digest_named(what, digest).name


def digest_named(what: str, digest: str) -> StoredFile:
    """A file whose name tells its content from any other's, so that nobody who writes it overwrites another's."""
    stem, _, kind = what.partition(".")
    return StoredFile(f"{stem}.{digest[:_DIGITS]}.{kind}", digest)


def _stored_files(digests: Mapping[str, Any]) -> dict[str, StoredFile]:
    """Files by what they hold; none if names or digests are not of the kind that `stored_name` gives."""
    files: dict[str, StoredFile] = {}
    for name, digest in digests.items():
        parts = re.fullmatch(rf"(\w+)(?:\.[0-9a-f]{{{_DIGITS}}})?\.(pt|json)", name)
        what = f"{parts.group(1)}.{parts.group(2)}" if parts else ""
        if not what or what in files or not isinstance(digest, str):
            return {}
        files[what] = StoredFile(name, digest)
    return files


def _intact(location: str, file: StoredFile) -> bytes:
    """The bytes of a file, which its digest fits."""
    try:
        data = _read(location, file.name)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{location}/{file.name} is missing: {INSTEAD}") from None
    if hashlib.sha256(data).hexdigest() != file.digest:
        what = "damaged" if data else "empty"
        raise InputError(f"{location}/{file.name} is {what}: {INSTEAD}")
    return data


def _meta_of(data: bytes, location: str) -> dict[str, Any]:
    """What meta.json says, seen to be of the kind that everybody expects."""
    try:
        meta = json.loads(data)
        step, metrics = meta["step"], meta["metrics"]
        fits = isinstance(step, int) and not isinstance(step, bool) and step >= 0
        fits = fits and (metrics is None or isinstance(metrics, dict))
        fits = fits and all(isinstance(meta.get(name, {}), dict) for name in ("config", "attribute_values"))
    except (ValueError, LookupError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise InputError(f"{location}/{META} is not what distmetric writes: {INSTEAD}")
    return dict(meta)


def _read(location: str, name: str) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: If it is not there.
        NotADirectoryError: If its folder is a file.
        InputError: If it cannot be read for any other reason.
    """
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            data: bytes = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise InputError(f"{location}/{name} cannot be read ({reason(error)}): {INSTEAD}") from None
    return data
