"""Copies of files that are to be attached to a run, in its folder until a server has them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmetric.errors import ResourceError
from distmetric.locations import make_folder, open_location, put_in_place, reason
from distmetric.tracking.journal import FOLDER


def keep(run_dir: str, local: str, name: str) -> None:
    """Copy a local file, in the place of an earlier one of that name.

    Args:
        run_dir: Folder of the run, a path or URI.
        local: Path of the file.
        name: Its path among the run's artifacts, such as "figures/loss.svg".

    Raises:
        ResourceError: If the folder cannot be written.
    """
    try:
        filesystem, path = open_location(_copy(run_dir, name))
        make_folder(filesystem, path.rpartition("/")[0])
        with put_in_place(filesystem, path) as part, filesystem.open_output_stream(part) as stream:
            stream.write(Path(local).read_bytes())
    except OSError as error:
        raise ResourceError(
            f"{_copy(run_dir, name)} cannot be written ({reason(error)}): free space or fix access"
        ) from None


@contextmanager
def fetched(run_dir: str, name: str) -> Iterator[Path | None]:
    """Give a local copy of a kept file, of the same name, for as long as the block lasts; None if it is not kept."""
    filesystem, path = open_location(_copy(run_dir, name))
    if not filesystem.get_file_info(path).is_file:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, Path(name).name)
        with filesystem.open_input_stream(path) as stream:
            local.write_bytes(stream.read())
        yield local


def forget(run_dir: str, name: str) -> None:
    """Delete a kept file."""
    filesystem, path = open_location(_copy(run_dir, name))
    if filesystem.get_file_info(path).is_file:
        filesystem.delete_file(path)


def _copy(run_dir: str, name: str) -> str:
    return f"{run_dir.rstrip('/')}/{FOLDER}/attached/{name}"
