"""The token of a private Ray: whoever reaches its ports, and does not know it, can do nothing there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def private_token() -> Iterator[None]:
    """Have the Ray that is started within ask for a random token, which only its own processes are given.

    Ray listens on all interfaces of the machine, also where it is for one process alone, and runs what is handed in.
    The token is in the environment of this process and of those that Ray starts for it, and nowhere else: neither on
    the disk nor on a command line. An explicit RAY_AUTH_MODE=disabled is obeyed. The environment is restored.
    """
    if os.environ.get(_MODE, "").lower() == "disabled":
        yield
        return
    before = {name: os.environ.get(name) for name in (_MODE, _TOKEN, _PATH)}
    _set({_MODE: "token", _TOKEN: secrets.token_hex(32), _PATH: None})
    try:
        yield
    finally:
        _set(before)


def _set(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _forget()


def _forget() -> None:
    """Have Ray read the environment again, of which it keeps what it has read once."""
    raylet = import_module("ray._raylet")
    # First: a thread that ends late may still ask for a token of the mode that was.
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
