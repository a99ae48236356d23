"""Where a new run goes, what it is called, and how one is resumed."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from pyarrow import fs

from distmetric.config.schema import CatalogDataConfig, Config
from distmetric.errors import InputError
from distmetric.locations import absolute, open_location
from distmetric.training.run_folder import RUN_FILE, read_run


def data_name(config: Config) -> str:
    """What the data of a run are called: a catalog by its file."""
    if not isinstance(config.data, CatalogDataConfig):
        return config.data.name
    stem = config.data.path.rstrip("/").rpartition("/")[2].removesuffix(".arrow")
    return re.sub(r"[^\w.+=-]+", "_", stem).lstrip(".+=-")[:40] or config.data.name


def new_run_location(config: Config) -> tuple[str, str]:
    """Name and folder of a new run.

    Raises:
        InputError: If `config.name` is taken or cannot name a folder.
    """
    name = config.name or "-".join([*_kinds(config), time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)])
    if not re.fullmatch(r"[\w][\w.+=-]*", name):
        raise InputError(f"name={name!r} cannot name a folder: use letters, digits and . _ + = -")
    location = f"{absolute(config.output_dir)}/{name}"
    filesystem, path = open_location(location)
    if filesystem.get_file_info(f"{path}/{RUN_FILE}").type != fs.FileType.NotFound:
        raise InputError(
            f"name={name} is taken: choose another name, or continue that run with resume={location}"
        )
    return name, location


def _kinds(config: Config) -> list[str]:
    """Data, loss and, where it is not random batches, sampler."""
    sampler = [] if config.sampler.name == "pk" else [config.sampler.name]
    return [data_name(config), config.loss.name, *sampler]


def load_resumable(location: str) -> dict[str, Any]:
    """The configuration of the run in a folder, set to resume it."""
    folder = read_run(location)
    return {**folder.config, "resume": folder.location}
