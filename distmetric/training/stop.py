"""Who asks a training for a checkpoint or for its end, and how all ranks come to hear of it before the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

from distmetric.config.signals import signal_name

if TYPE_CHECKING:  # it brings PyTorch, which the processes that only pass wishes on can do without
    from distmetric.distributed.replica import Replica

Wish = Literal["", "save", "stop"]
_WISHES: Final[tuple[Wish, ...]] = get_args(Wish)  # the greater, the more urgent


class EvaluationAbandonedError(Exception):
    """An evaluation was given up, since the training ends; it is made when the run is resumed."""


class StopRequest(Protocol):
    """What the training asks before every step; asking waits for nothing."""

    def wanted(self) -> Wish:
        """A checkpoint, "save", told once for each time it was asked for, or the end after one, "stop"."""

    def reason(self) -> str:
        """Who asked, such as SIGTERM; empty where nobody has."""


class NoRequest:
    """Never asks for anything: for ranks that hear it from another one."""

    def wanted(self) -> Wish:
        """See `StopRequest.wanted`."""
        return ""

    def reason(self) -> str:
        """See `StopRequest.reason`."""
        return ""


class SignalRequest:
    """What the signals to this process ask for.

    `asked` says whether the training asks at all: before it does, there is nothing to save.
    """

    def __init__(self) -> None:
        self.number = 0
        self.asked = False

    def wanted(self) -> Wish:
        """See `StopRequest.wanted`."""
        self.asked = True
        return "stop" if self.number else ""

    def reason(self) -> str:
        """See `StopRequest.reason`."""
        return signal_name(self.number) if self.number else ""


class Wishes:
    """What was asked of a training, agreed upon by its ranks.

    Args:
        request: What this rank is asked; on all ranks or on none.
        replica: Who this rank is.
    """

    def __init__(self, request: StopRequest | None, replica: Replica) -> None:
        self._request, self._replica = request, replica
        self._answer: Callable[[], float] | None = None
        self.stopped = ""
        """Why the training ends early; empty as long as it does not."""

    def agree(self) -> Wish:
        """The most urgent wish that any rank was told; all ranks call it.

        With several ranks it is what they were told by the time of the last call: the numbers that the hosts exchange
        are on their way during a step, and nobody waits for them. On a single rank it is what was told by now.

        Cost: one exchange of a number between the hosts; none on a single rank, nor once the training ends.
        """
        if self.stopped or self._request is None:
            return "stop" if self.stopped else ""
        wish = self._request.wanted() if self._replica.world_size == 1 else self._heard(self._request)
        if wish == "stop":
            self.stopped = self._request.reason() or "a signal to another rank"
        return wish

    def _heard(self, request: StopRequest) -> Wish:
        """What the ranks were told by the last call; what they are told now is sent out."""
        wish = "" if self._answer is None else _WISHES[int(-self._answer())]
        if wish != "stop":
            self._answer = self._replica.min_later(-_WISHES.index(request.wanted()))
        return wish
