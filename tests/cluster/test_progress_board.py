"""What a worker tells reaches the driver's line, a restart sets it back, and trouble with it troubles nobody."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace
from typing import Any

import ray

from distmetric.cluster import progress_board
from distmetric.cluster.progress_board import ProgressBoard, RemoteProgress, Standing
from distmetric.progress import Progress


def local(board: ProgressBoard) -> Any:
    """A handle whose calls are answered at once, here."""
    return SimpleNamespace(
        tell=SimpleNamespace(remote=board.tell), standing=SimpleNamespace(remote=board.standing)
    )


def view(board: Any, progress: Progress) -> None:
    over = threading.Event()
    over.set()  # one look
    progress_board._view(board, progress, over)


def test_the_driver_shows_what_rank_0_told(monkeypatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    board = local(ProgressBoard())
    shown = Progress("steps", 100, stream=io.StringIO())
    view(board, shown)
    assert shown.line().startswith("steps: 0 of 100")
    assert shown.line().endswith("starting")
    told = RemoteProgress(board)
    told.start_at(20)
    told.update(30, "loss 0.4")  # too soon after the last to be told
    view(board, shown)
    assert shown.done == 20
    told.close("loss 0.3")
    view(board, shown)
    assert (shown.done, shown.line().rpartition(", ")[2]) == (50, "loss 0.3")


def test_a_worker_that_starts_over_sets_the_line_back(monkeypatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    board = local(ProgressBoard())
    shown = Progress("steps", 100, stream=io.StringIO())
    first = RemoteProgress(board)
    first.update(80)
    view(board, shown)
    assert shown.done == 80
    RemoteProgress(board).start_at(40)
    view(board, shown)
    assert shown.done == 40


def test_a_lost_board_only_leaves_the_line_as_it_was(monkeypatch) -> None:
    def lost(answer: Standing | None, timeout: float) -> None:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray, "get", lost)
    shown = Progress("steps", 100, stream=io.StringIO())
    shown.update(7, "loss 1")
    view(local(ProgressBoard()), shown)
    assert shown.done == 7
