"""Whose a run's folder is: the newest process that trains in it, so that one that was thought dead writes no more."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable

import torch

from distmetric.distributed.replica import Replica
from distmetric.errors import ResourceError, TakenOverError, UserError
from distmetric.locations import read_document, reason, write_document

CLAIM_FILE = "claim.json"


class Claim:
    """Takes the folder of a run for this process.

    A driver that is killed leaves workers that train on for seconds, and a machine that is cut off from the others, or
    a process that is stopped, may wake up while the run goes on elsewhere. They find another claim than their own
    before they write the next file.

    Args:
        run_dir: Folder of the run, a path or URI.
        owner: Identity of the driver's claim in whose name this one is made, by a worker; None for one's own name.

    Raises:
        TakenOverError: If another driver has taken the folder since `owner` did.
        ResourceError: If it cannot be written.

    Cost: a small file written once, and read before every file that is written and all measurements that are sent.
    """

    def __init__(self, run_dir: str, owner: str | None = None) -> None:
        self._run_dir = run_dir
        self._location = f"{run_dir}/{CLAIM_FILE}"
        self._token = secrets.token_hex(8)
        self.owner = owner or self._token
        if owner is not None:
            check_owner(run_dir, owner)
        document = {
            "owner": self.owner,
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            write_document(self._location, document)
        except OSError as error:
            raise ResourceError(
                f"{self._location} cannot be written ({reason(error)}): free space, fix access, or set another "
                "output_dir"
            ) from None

    def check(self) -> None:
        """See that nobody has taken the folder since.

        Raises:
            TakenOverError: If somebody has.
            ResourceError: If it cannot be known.
        """
        _check(self._run_dir, "token", self._token)


def check_owner(run_dir: str, owner: str) -> None:
    """See that the driver with this claim, or one of its workers, still has the folder; raises as `Claim.check`."""
    _check(run_dir, "owner", owner)


def _check(run_dir: str, key: str, expected: str) -> None:
    location = f"{run_dir}/{CLAIM_FILE}"
    try:
        found = read_document(location)
    except FileNotFoundError:  # nobody has taken it, but somebody has removed it
        return
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"{location} cannot be read ({reason(error)}), so whether this run has been resumed elsewhere "
            "is not known, and nothing more is written: fix access, then resume the run"
        ) from None
    if found.get(key) != expected:
        raise TakenOverError(
            f"{run_dir} was resumed by process {found.get('pid')} on {found.get('host')}: this one has "
            "stopped writing; let that one go on"
        )


class RunWriter:
    """Has rank 0 write for all ranks, for as long as the run is theirs; all ranks make it, which claims the run.

    Args:
        run_dir: The run's folder, a path or URI.
        replica: Who this rank is.
        device: Where it computes.
        owner: As in `Claim`.

    Raises:
        UserError: On all ranks, if rank 0 cannot claim the run.
    """

    def __init__(
        self, run_dir: str, replica: Replica, device: torch.device, owner: str | None = None
    ) -> None:
        self._replica, self._device = replica, device
        self._claim: Claim | None = None

        def take() -> None:
            self._claim = Claim(run_dir, owner)

        self(take)

    def __call__(self, write: Callable[[], None]) -> None:
        """Have rank 0 write something; all ranks call it, and where rank 0 cannot, all of them stop.

        Raises:
            UserError: On all ranks, if rank 0 met one, or if the run was taken over.
        """
        failure: UserError | None = None
        if self._replica.is_main:
            try:
                self.check()
                write()
            except UserError as error:
                failure = error
        if self._replica.broadcast(failure is not None, self._device):
            raise failure or ResourceError("rank 0 could not write into the run's folder")

    def everywhere(self, write: Callable[[], None]) -> None:
        """Have every rank write something of its own; all ranks call it, and where one cannot, all of them stop.

        Whose the run is has been seen by a call just before, and is again by the one that follows: what is written here
        means nothing without that one's.

        Raises:
            UserError: On all ranks, if one of them met one.
        """
        failure: UserError | None = None
        try:
            write()
        except UserError as error:
            failure = error
        if not self._replica.min(failure is None, self._device):
            raise failure or ResourceError("another rank could not write into the run's folder")

    def check(self) -> None:
        """See, on rank 0, that the run is still its own; raises as `Claim.check`."""
        if self._claim is not None:
            self._claim.check()
