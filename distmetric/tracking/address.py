"""Addresses of tracking servers: which one, whether it can be one, and what of it may be seen."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from distmetric.errors import ConfigError, ResourceError
from distmetric.secrets import masked

_WEB, _DATABASES = ("http", "https"), ("sqlite", "postgresql", "mysql", "mssql")
_SQLITE = "sqlite:///"


def tracking_uri(
    uri: str | None, output_dir: str, known: str | None = None, key: str = "tracking.uri"
) -> str:
    """The tracking URI to use: the configured one, the environment's, or a database beside the runs.

    Args:
        uri: The configured one, or None.
        output_dir: Where the runs are.
        known: Address, without credentials, that a run which is resumed was tracked at; it comes before the
            environment's. Credentials come from that one where it is the same server.
        key: What the configured one is called.

    Raises:
        ConfigError: If it cannot be the address of a server.
        ResourceError: If there is none and the runs are not on a local disk, or its database cannot be.
    """
    variable = os.environ.get("MLFLOW_TRACKING_URI") or None
    wanted = uri or known
    if wanted is None or (variable is not None and without_credentials(variable) == wanted):
        wanted = variable or wanted
    if wanted is None:
        if "://" in output_dir:
            raise ResourceError(
                f"output_dir={output_dir} is not a local folder, so tracking needs a server: "
                "set tracking.uri=http://... or tracking=none"
            )
        wanted = f"{_SQLITE}{Path(output_dir).expanduser().resolve() / 'mlflow.db'}"
    _check(wanted, key if uri or known else "MLFLOW_TRACKING_URI")
    return wanted


def without_credentials(uri: str) -> str:
    """A URI without user and password, as it may be kept and shown; of a database's, without the password.

    On the web these come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead.
    """
    scheme, mark, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if mark and at:
        kept = "" if scheme in _WEB else user.partition(":")[0] + at
        uri = f"{scheme}{mark}{kept}{host}{slash}{path}"
    return masked(uri)


def database_path(uri: str) -> Path | None:
    """The file of an SQLite database; None for anything else."""
    path = uri.removeprefix(_SQLITE)
    return None if path == uri else Path(path.partition("?")[0])


def _check(uri: str, key: str) -> None:
    """See whether this can be the address of a server, without asking it."""
    shown = f"{key}={without_credentials(uri)}"
    scheme, mark, rest = uri.partition(":")
    base = scheme.partition("+")[0]
    if re.search(r"\s", uri):
        raise ConfigError(f"{shown} is wrong: an address has no spaces; give http://HOST:PORT")
    if base in _WEB:
        _check_web(uri, shown)
    elif base in _DATABASES:
        _check_database(uri, rest, shown)
    elif uri != "databricks" and not (mark and base in _schemes()):
        guess = f": did you mean http://{uri}?" if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri) else ""
        raise ConfigError(
            f"{shown} is wrong{guess or ', since MLflow has no such servers: give http://HOST:PORT or sqlite:///FILE'}"
        )


def _check_web(uri: str, shown: str) -> None:
    try:
        parts = urlsplit(uri)
        fits = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{shown} is wrong: give http://HOST:PORT")


def _check_database(uri: str, rest: str, shown: str) -> None:
    if not rest.startswith("//"):
        raise ConfigError(f"{shown} is wrong: give sqlite:///FILE, or the address of a server")
    path = database_path(uri)
    if path is None:
        return
    path = path.absolute()
    above = next(folder for folder in path.parents if folder.exists() or folder == Path("/"))
    if path.is_dir() or not above.is_dir() or not os.access(path if path.exists() else above, os.W_OK):
        raise ResourceError(f"{shown} cannot be written: give another file, or fix access to {path}")


def _schemes() -> set[str]:
    """What plugins of MLflow know."""
    return {"databricks", *(found.name for found in entry_points(group="mlflow.tracking_store"))}
