"""The folder of a run: what is written there before training starts, so that it can be resumed from nothing else."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import fs

from distmetric.config.schema import Config
from distmetric.errors import InputError
from distmetric.locations import absolute, open_location

_RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """What `run.json` in a run's folder says.

    Args:
        location: The folder, an absolute path or a URI.
        name: Name of the run.
        config: The configuration it was started with, resolved, as plain containers.
        fingerprint: Of the data it trains on.
        version: The distmetric that started it.
        tracking_uri: Where it is tracked, or None.
        run_id: Its identity there, or None.
    """

    location: str
    name: str
    config: dict[str, Any]
    fingerprint: str
    version: str
    tracking_uri: str | None = None
    run_id: str | None = None

    def write(self) -> None:
        """Write `run.json`, making the folder."""
        filesystem, path = open_location(self.location)
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(f"{path}/{_RUN_FILE}") as stream:
            stream.write(json.dumps(asdict(self), indent=1).encode())


def read_run(location: str) -> RunFolder:
    """Read a run's folder.

    Raises:
        InputError: If it is not the folder of a run.
    """
    filesystem, path = open_location(location)
    if filesystem.get_file_info(f"{path}/{_RUN_FILE}").type != fs.FileType.File:
        raise InputError(f"resume={location} is not the folder of a run: it has no {_RUN_FILE}")
    with filesystem.open_input_stream(f"{path}/{_RUN_FILE}") as stream:
        try:
            content = json.loads(stream.read())
            return RunFolder(**{**content, "location": absolute(location)})
        except (ValueError, TypeError):
            raise InputError(f"{location}/{_RUN_FILE} is damaged: start a new run") from None


def new_run_location(config: Config) -> tuple[str, str]:
    """Name and folder of a new run.

    Raises:
        InputError: If `config.name` is taken or cannot name a folder.
    """
    name = config.name or "-".join(
        [config.data.name, config.loss.name, time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)]
    )
    if not re.fullmatch(r"[\w][\w.+=-]*", name):
        raise InputError(f"name={name!r} cannot name a folder: use letters, digits and . _ + = -")
    location = f"{absolute(config.output_dir)}/{name}"
    filesystem, path = open_location(location)
    if filesystem.get_file_info(f"{path}/{_RUN_FILE}").type != fs.FileType.NotFound:
        raise InputError(
            f"name={name} is taken: choose another name, or continue that run with resume={location}"
        )
    return name, location


def load_resumable(location: str) -> dict[str, Any]:
    """The configuration of the run in a folder, set to resume it."""
    folder = read_run(location)
    return {**folder.config, "resume": folder.location}
