"""The snapshots of a run on any filesystem, and which of them each round was planned from."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.locations import make_folder, open_location, put_bytes, reason, sealed, unsealed

log = logging.getLogger(__name__)


class SnapshotStore:
    """Snapshots by version, and a journal of swaps by round: `snapshot_00000012.arrow`, `round_00000034.json`.

    A file appears under its name when it is complete, so a process may be killed at any moment. One process writes
    snapshots and one notes swaps; others may read at the same time, and none minds files that are pruned meanwhile.

    Args:
        location: Folder, a path or URI; made when it is first written to.
        check: Called before snapshots and notes are written; what it raises keeps them from being written.
    """

    def __init__(self, location: str, check: Callable[[], None] | None = None) -> None:
        self.location, self._check = location.rstrip("/"), check or (lambda: None)

    def save(self, snapshot: NeighborSnapshot) -> None:
        """Keep a snapshot under its version; one that is there is replaced.

        Raises:
            ResourceError: If it cannot be written; the others are untouched.
        """
        self._check()
        snapshot.save(self._snapshot(snapshot.version))

    def load(self, version: int) -> NeighborSnapshot:
        """The snapshot of a version; arrays of a local file are views of it, which stay good when it is pruned.

        Raises:
            InputError: If it is not there, or damaged.
        """
        location = self._snapshot(version)
        snapshot = NeighborSnapshot.load(location)
        if snapshot.version != version:
            raise InputError(f"{location} holds version {snapshot.version}: it was renamed, take it away")
        return snapshot

    def newest(self) -> NeighborSnapshot | None:
        """The newest intact snapshot; damaged ones are named in a warning and passed over."""
        for version in reversed(self.versions()):
            try:
                return self.load(version)
            except InputError as error:
                log.warning("%s (trying the one before)", error)
        return None

    def versions(self) -> list[int]:
        """Versions that are there, ascending, intact or not."""
        return self._numbers(r"snapshot_(\d+)\.arrow")

    def note_swap(self, round: int, version: int) -> None:
        """Write down which version a round is planned from; when this returns, the note is on the disk.

        Raises:
            ResourceError: If it cannot be written.
        """
        self._check()
        location = self._round(round)
        filesystem, path = open_location(location)
        try:
            make_folder(filesystem, path.rpartition("/")[0])
            put_bytes(filesystem, path, sealed({"round": round, "version": version}))
        except OSError as error:
            raise ResourceError(
                f"{location} cannot be written ({reason(error)}): "
                "free space or fix access, then resume the run"
            ) from None

    def swap_at(self, round: int) -> int | None:
        """The version that was noted for a round; None where none was.

        Raises:
            InputError: If the note is damaged.
        """
        location = self._round(round)
        filesystem, path = open_location(location)
        try:
            with filesystem.open_input_stream(path) as stream:
                note = unsealed(stream.read())
            if note["round"] == round and isinstance(note["version"], int):
                return int(note["version"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError(
            f"{location} is damaged: take it away to plan round {round} from the newest snapshot"
        )

    def prune(self, keep_versions: set[int], before_round: int) -> None:
        """Drop the journal of earlier rounds, and older snapshots that nobody needs.

        Kept are the versions in `keep_versions`, those that the journal names for `before_round` or later, and all
        that are newer than any of these: they are still to be swapped in. The newest is never dropped.
        """
        rounds = self._numbers(r"round_(\d+)\.json")
        for one in rounds:
            if one < before_round:
                self._drop(self._round(one))
        named = {self._version_or_none(one) for one in rounds if one >= before_round}
        kept = keep_versions | {version for version in named if version is not None}
        versions = self.versions()
        newest_kept = max(kept, default=max(versions, default=0))
        for version in versions[:-1]:
            if version < newest_kept and version not in kept:
                self._drop(self._snapshot(version))

    def _snapshot(self, version: int) -> str:
        return f"{self.location}/snapshot_{version:08d}.arrow"

    def _round(self, round: int) -> str:
        return f"{self.location}/round_{round:08d}.json"

    def _version_or_none(self, round: int) -> int | None:
        try:
            return self.swap_at(round)
        except InputError as error:
            log.warning("%s", error)
            return None

    def _numbers(self, pattern: str) -> list[int]:
        filesystem, path = open_location(self.location)
        listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = (re.fullmatch(pattern, info.base_name) for info in listed)
        return sorted(int(match.group(1)) for match in names if match)

    def _drop(self, location: str) -> None:
        filesystem, path = open_location(location)
        try:
            filesystem.delete_file(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s cannot be deleted: %s", location, reason(error))
