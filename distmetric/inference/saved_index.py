"""An embedded gallery in a folder: its neighbor index, what its rows are, and what both were made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from distmetric.errors import InputError, ResourceError
from distmetric.index.config import SearchConfig
from distmetric.index.neighbor_index import NeighborIndex
from distmetric.inference.search_sets import SearchSet, SourceMark
from distmetric.locations import open_location, put_in_place
from distmetric.training.checkpoint import Checkpoint

FORMAT = 1
_INDEX, _ITEMS, _ABOUT = "neighbors.arrow", "items.parquet", "search_index.json"


@dataclass(frozen=True)
class MadeBy:
    """The checkpoint that embedded a gallery.

    Attributes:
        location: Its folder.
        step: Its step.
        digest: SHA-256 of its manifest, which has those of all its files.
    """

    location: str
    step: int
    digest: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> MadeBy:
        """Look at a checkpoint."""
        filesystem, path = open_location(checkpoint.location)
        with filesystem.open_input_stream(f"{path}/manifest.json") as stream:
            return cls(checkpoint.location, checkpoint.step, hashlib.sha256(stream.read()).hexdigest())

    def __str__(self) -> str:
        return f"{self.location} (step {self.step})"


@dataclass(frozen=True, eq=False)
class SavedIndex:
    """A gallery that was kept.

    Attributes:
        rows: What is in it.
        index: Its searcher.
        made_by: Who embedded it; None for a file of embeddings.
    """

    rows: SearchSet
    index: NeighborIndex
    made_by: MadeBy | None


def is_saved_index(location: str) -> bool:
    """Whether a folder holds a saved index."""
    filesystem, path = open_location(location)
    return bool(filesystem.get_file_info(f"{path}/{_ABOUT}").type == fs.FileType.File)


def save_index(location: str, saved: SavedIndex) -> None:
    """Write a folder that `load_index` reads; complete, or none.

    Raises:
        InputError: If there is a folder with other things in it.
        ResourceError: If it cannot be written.
    """
    filesystem, path = open_location(location)
    _check_free(filesystem, path, location)
    saved.index.save(f"{location}/{_INDEX}")
    table = pa.table({"id": saved.rows.ids, "path": saved.rows.paths, "label_name": saved.rows.label_names})
    about = {
        "format": FORMAT,
        "rows": len(saved.rows),
        "dim": saved.index.embeddings.shape[1],
        "gallery": asdict(saved.rows.mark),
        "made_by": None if saved.made_by is None else asdict(saved.made_by),
    }
    try:
        with put_in_place(filesystem, f"{path}/{_ITEMS}") as target:
            pq.write_table(table, target, filesystem=filesystem)
        # Last of all: without this one the folder is no index.
        with (
            put_in_place(filesystem, f"{path}/{_ABOUT}") as target,
            filesystem.open_output_stream(target) as out,
        ):
            out.write(json.dumps(about, indent=1).encode())
    except OSError as error:
        raise ResourceError(
            f"saved_index={location} cannot be written ({' '.join(str(error).split())}): free space or fix access"
        ) from None


def check_place(location: str) -> None:
    """See that an index can be kept at a place, before anything is embedded for it.

    Raises:
        InputError: If there is a file, or a folder with other things in it.
    """
    _check_free(*open_location(location), location)


def _check_free(filesystem: fs.FileSystem, path: str, location: str) -> None:
    if filesystem.get_file_info(path).type == fs.FileType.File:
        raise InputError(f"saved_index={location} is a file: name a folder")
    listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    ours = {name for base in (_INDEX, _ITEMS, _ABOUT) for name in (base, f"{base}.part")}
    if foreign := sorted(info.base_name for info in listed if info.base_name not in ours):
        raise InputError(
            f"saved_index={location} holds {foreign[0]} and is no saved index: name a new or an empty folder"
        )


def load_index(location: str, key: str, search: SearchConfig) -> SavedIndex:
    """Read what `save_index` wrote.

    Args:
        location: The folder.
        key: The setting that named it.
        search: How to search.

    Raises:
        InputError: If it is damaged, or of another format.
        ResourceError: If FAISS was asked for and is not there.
    """
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_stream(f"{path}/{_ABOUT}") as stream:
            about: Mapping[str, Any] = json.loads(stream.read())
        if about["format"] != FORMAT:
            raise InputError(f"{key}={location} has index format {about['format']}, not {FORMAT}: delete it")
        mark, made_by = SourceMark(**about["gallery"]), about["made_by"]
        table = pq.read_table(f"{path}/{_ITEMS}", filesystem=filesystem).combine_chunks()
        table.validate(full=True)
        rows = SearchSet(
            f"{key}={location}",
            mark,
            table["id"].to_numpy(),
            table["path"].combine_chunks(),
            table["label_name"].combine_chunks(),
        )
        index = NeighborIndex.load(f"{location}/{_INDEX}", search=search)
        if not len(rows) == len(index) == about["rows"]:
            raise ValueError("its files are not of one index")
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{key}={location} is damaged ({' '.join(str(error).split())}): delete it, and it is made again"
        ) from None
    return SavedIndex(rows, index, None if made_by is None else MadeBy(**made_by))


def check_same(saved: SavedIndex, location: str, mark: SourceMark, made_by: MadeBy | None) -> None:
    """See that a saved index is that of a gallery and a checkpoint.

    Raises:
        InputError: If it is not.
    """
    check_checkpoint(saved, f"saved_index={location}", made_by, "name another folder, or delete this one")
    if saved.rows.mark.fingerprint != mark.fingerprint:
        changed = (
            "which has changed since" if saved.rows.mark.source == mark.source else f"not of {mark.source}"
        )
        raise InputError(
            f"saved_index={location} was made of {saved.rows.mark.source}, {changed}: "
            "name another folder, or delete this one"
        )


def check_checkpoint(saved: SavedIndex, name: str, made_by: MadeBy | None, fix: str) -> None:
    """See that a saved index was embedded by a checkpoint.

    Raises:
        InputError: If both are known and differ.
    """
    if saved.made_by is not None and made_by is not None and saved.made_by.digest != made_by.digest:
        raise InputError(f"{name} was made with the checkpoint {saved.made_by}, not with {made_by}: {fix}")
