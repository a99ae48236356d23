"""What `run.json` in the folder of a run says: enough to resume the run, and to report on it, from nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pyarrow import fs

from distmetric.errors import InputError
from distmetric.locations import absolute, open_location

RUN_FILE = "run.json"


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
        command: The command line that started it; empty in runs of older versions.
        environment: Versions and machine it was started with, by name; empty in runs of older versions.
    """

    location: str
    name: str
    config: dict[str, Any]
    fingerprint: str
    version: str
    tracking_uri: str | None = None
    run_id: str | None = None
    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write `run.json`, making the folder."""
        filesystem, path = open_location(self.location)
        filesystem.create_dir(path, recursive=True)
        with filesystem.open_output_stream(f"{path}/{RUN_FILE}") as stream:
            stream.write(json.dumps(asdict(self), indent=1).encode())


def read_run(location: str, key: str = "resume") -> RunFolder:
    """Read a run's folder.

    Args:
        location: The folder, a path or URI.
        key: The setting that named it, for the message.

    Raises:
        InputError: If it is not the folder of a run.
    """
    filesystem, path = open_location(location)
    if filesystem.get_file_info(f"{path}/{RUN_FILE}").type != fs.FileType.File:
        raise InputError(f"{key}={location} is not the folder of a run: it has no {RUN_FILE}")
    with filesystem.open_input_stream(f"{path}/{RUN_FILE}") as stream:
        try:
            content = json.loads(stream.read())
            return RunFolder(**{**content, "location": absolute(location)})
        except (ValueError, TypeError):
            raise InputError(f"{location}/{RUN_FILE} is damaged: start a new run") from None
