"""Connecting to a Ray cluster, or starting a private one: soon, or one line of why not."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import ray

from distmetric.data.decode import available_cores
from distmetric.errors import ConfigError, ResourceError
from distmetric.locations import reason

PATIENCE_S = 10.0
"""How long an address may take to answer; Ray itself tries for many minutes, and tells each time."""
_CLIENT_PORT = 10001
# The first bytes of every HTTP/2 connection, which gRPC is, and an empty frame of settings. A server sends its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_FRAME, _SETTINGS = 9, 4


def join_cluster(address: str, options: dict[str, Any]) -> None:
    """Connect this process to the cluster at an address.

    Args:
        address: host:port, ray://host:port, or "auto" for the one that runs on this machine.
        options: Of `ray.init`.

    Raises:
        ConfigError: If the address is none.
        ResourceError: If nothing, or something else than Ray, answers there, or the cluster refuses.
    """
    check_address(address)
    try:
        ray.init(address=address, **options)
    except (OSError, RuntimeError) as error:
        why = reason(error)
        fix = "check its address and RAY_AUTH_MODE"
        if "ersion mismatch" in why:
            fix = "install the cluster's versions of Ray and Python here, or submit a job to it"
        raise ResourceError(f"the Ray cluster at {address} cannot be joined ({why[:300]}): {fix}") from None
    except ValueError as error:
        raise ConfigError(_no_address(address, reason(error))) from None


def check_address(address: str, patience_s: float = PATIENCE_S) -> None:
    """See that somebody who speaks Ray's language answers at an address.

    Args:
        address: As in `join_cluster`.
        patience_s: How long to try.

    Raises:
        ConfigError: If the address is none.
        ResourceError: If nobody does.
    """
    scheme, _, rest = address.rpartition("://")
    if address in ("auto", "local") or scheme not in ("", "ray"):
        return
    place = rest.partition("/")[0].partition("?")[0]
    host, _, number = (place if ":" in place or not scheme else f"{place}:{_CLIENT_PORT}").rpartition(":")
    host = host.strip("[]")
    if not host or not number.isdecimal() or not 0 < int(number) < 1 << 16:
        raise ConfigError(_no_address(address, "it is not host:port"))
    deadline = time.monotonic() + patience_s
    while (why := _silence(host, int(number), deadline)) is not None:
        if time.monotonic() >= deadline:
            raise ResourceError(
                f"no Ray cluster answers at {address} ({why}): start it, or correct trainer.address or RAY_ADDRESS"
            )
        time.sleep(0.2)


def start_private(options: dict[str, Any]) -> None:
    """Start Ray for this process alone, on the cores that it may use.

    Args:
        options: Of `ray.init`.

    Raises:
        ResourceError: If this machine does not let it start.
    """
    try:
        # Without this address Ray would look for a cluster of somebody else on this machine.
        ray.init("local", num_cpus=available_cores(), include_dashboard=False, **options)
    except Exception as error:  # Ray raises plain ones as well
        fix = "see that /tmp, or the folder that RAY_TMPDIR names, can be written, has a short path and space"
        if "timed out" in str(error):
            fix = "the machine is too busy or short of memory; start again when it is less so"
        raise ResourceError(f"Ray cannot be started on this machine ({reason(error)[:300]}): {fix}") from None


def _silence(host: str, port: int, deadline: float) -> str | None:
    """Why nobody can be spoken to; None where somebody answers."""
    left = max(deadline - time.monotonic(), 0.1)
    try:
        with socket.create_connection((host, port), timeout=left) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":  # which has a greeting of its own
                return None
            connection.sendall(_GREETING)
            answer = b""
            while len(answer) < _FRAME and (more := connection.recv(_FRAME - len(answer))):
                answer += more
    except UnicodeError:  # of a host name that is none
        return "no such host"
    except OSError as error:
        return error.strerror or reason(error)
    return None if len(answer) == _FRAME and answer[3] == _SETTINGS else "what answers there is not Ray"


def _no_address(address: str, why: str) -> str:
    return f"trainer.address or RAY_ADDRESS={address} is wrong ({why}): give host:port, or auto"
