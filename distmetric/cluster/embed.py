"""Embed a large set on Ray workers: parts go out, embeddings come back, lost workers are replaced."""

from __future__ import annotations

import os
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from distmetric.cluster.session import ray_session  # sets Ray's environment, so before anything imports ray

# isort: split
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from distmetric.cluster.index_messages import ActorHandle, in_one_line
from distmetric.cluster.index_shard import log_in_one_line
from distmetric.config.jobs import EmbedJob
from distmetric.config.schema import TrainerConfig
from distmetric.data.decode import available_cores
from distmetric.errors import ConfigError, ResourceError, UserError
from distmetric.inference.embed import EmbedWork, PartEmbedder, PartRange, embed_source
from distmetric.inference.images import ImagePart
from distmetric.inference.part_store import EmbeddedPart
from distmetric.locations import absolute
from distmetric.progress import Counter

MOST_LOSSES = 3
"""Workers that one part may end, or that may end one after another while they start, before the job does."""
_STARTING = -1
_LOOK_SECONDS = 0.5


def embed_on_workers(job: EmbedJob) -> dict[str, Any]:
    """Write the embeddings of a source, embedded by `job.workers` Ray workers.

    Checkpoint and source have to be reachable wherever the workers are, `out` only from here: embeddings come back
    through Ray's object store, a part at a time, and are written by this process. Ray is started, or joined, only if
    there are parts to embed.

    Returns:
        As `embed_source`.

    Raises:
        ConfigError: If this machine does not have what the workers need, or `out` would be lost with a Ray job.
        ResourceError: If no worker could be placed, or a part ended several of them.
        UserError: As `embed_source`.
    """
    if "://" not in job.out and "/_ray_pkg_" in absolute(job.out):
        raise ConfigError(
            f"out={job.out} lies in the job's copy of the code, which Ray deletes: give an absolute path or a URI"
        )

    def embed_parts(
        work: EmbedWork, parts: Sequence[PartRange], progress: Counter
    ) -> Generator[EmbeddedPart]:
        if parts:
            with ray_session(_trainer(job)):
                yield from EmbedWorkers(job, work, parts).embedded(progress)

    return embed_source(job, embed_parts)


class EmbedWorker:
    """The actor that embeds parts.

    Args:
        threads: To compute and decode with.
        on_gpu: Whether to compute on the GPU that Ray gave it.
    """

    def __init__(self, threads: int, on_gpu: bool) -> None:
        log_in_one_line()
        torch.set_num_threads(threads)
        self._threads = threads
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._embedder: PartEmbedder | None = None

    def ready(self) -> None:
        """Answer as soon as it can be given parts."""

    def embed(self, shared: Sequence[Any], number: int, part: ImagePart) -> EmbeddedPart:
        """Embed a part.

        Args:
            shared: Reference of the `EmbedWork`, in a list so that it is resolved here, where errors are told well.
            number: Of the part.
            part: Its images.
        """
        if self._embedder is None:
            work: EmbedWork = ray.get(shared[0])
            self._embedder = PartEmbedder(work, self._device, self._threads)
        return self._embedder.embed(number, part)


class EmbedWorkers:
    """The workers of a job, and which of them has which part.

    A worker gets its first part when it is up, and the next when it hands one in; so a few workers do all the work
    where the cluster has no room for more. One that is lost is replaced, and its part goes to the next that is free.

    Args:
        job: How many workers, and what each of them needs.
        work: What they do.
        parts: That are missing.
    """

    def __init__(self, job: EmbedJob, work: EmbedWork, parts: Sequence[PartRange]) -> None:
        self._job, self._images = job, work.images
        self._shared = [ray.put(work)]
        self._waiting = deque(parts)
        self._calls: dict[Any, tuple[ActorHandle, PartRange | None]] = {}
        self._losses: Tally[int] = Tally()
        self._sign = time.monotonic()

    def embedded(self, progress: Counter) -> Generator[EmbeddedPart]:
        """The parts as they come in.

        Raises:
            ResourceError: If no worker could be placed in time, or a part ended several of them.
            UserError: What a worker could not do.
        """
        try:
            for _ in range(min(self._job.workers, len(self._waiting))):
                self._start()
            while self._waiting or any(part is not None for _, part in self._calls.values()):
                ready, _ = ray.wait(list(self._calls), timeout=_LOOK_SECONDS)
                progress.update(0, self._note())
                for call in ready:
                    actor, part = self._calls.pop(call)
                    answer = self._answer(call, actor, part)
                    if part is not None and answer is not None:
                        yield answer
                        progress.update(part.stop - part.start)
                self._check_signs()
        finally:
            for actor, _ in self._calls.values():
                _end(actor)

    def _start(self) -> None:
        job = self._job
        actor = (
            ray.remote(EmbedWorker)
            .options(num_cpus=job.worker_cpus, num_gpus=job.worker_gpus, max_restarts=0, max_task_retries=0)
            .remote(max(1, int(job.worker_cpus)), job.worker_gpus > 0)
        )
        self._calls[actor.ready.remote()] = actor, None

    def _answer(self, call: Any, actor: ActorHandle, part: PartRange | None) -> EmbeddedPart | None:
        """What a worker hands in, after it was given the next part; None if it is up, or lost."""
        try:
            answer: EmbeddedPart | None = ray.get(call)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            self._replace(actor, part, error)
            return None
        self._sign = time.monotonic()
        self._losses[_STARTING] = 0
        if self._waiting:
            self._give(actor)
        else:
            _end(actor)
        return answer

    def _give(self, actor: ActorHandle) -> None:
        part = self._waiting.popleft()
        images = self._images.part(part.start, part.stop)
        self._calls[actor.embed.remote(self._shared, part.number, images)] = actor, part

    def _replace(self, actor: ActorHandle, part: PartRange | None, error: RayError) -> None:
        """Start a worker for one that is lost.

        Raises:
            ResourceError: If that has happened too often.
        """
        _end(actor)
        number = _STARTING if part is None else part.number
        self._losses[number] += 1
        if self._losses[number] >= MOST_LOSSES:
            what = "starting" if part is None else f"embedding part {number}, {self._named(part)}"
            raise ResourceError(
                f"workers={self._job.workers}: {MOST_LOSSES} workers ended while {what} ({in_one_line(error)}); "
                "finished parts are kept: lower batch_size or give workers more memory, then start the job again"
            )
        if part is not None:
            self._waiting.appendleft(part)
        if self._waiting:
            self._start()

    def _named(self, part: PartRange) -> str:
        listed = self._images.part(part.start, part.stop).listed
        first = f", from {listed[0].origin} on" if listed else ""
        return f"images {part.start} to {part.stop - 1}{first}"

    def _note(self) -> str:
        busy = sum(part is not None for _, part in self._calls.values())
        return f"{busy} of {self._job.workers} workers busy" if busy else "workers starting"

    def _check_signs(self) -> None:
        """See that somebody works, or has had less than the time to start.

        Raises:
            ResourceError: Otherwise.
        """
        working = any(part is not None for _, part in self._calls.values())
        if working:
            self._sign = time.monotonic()
        elif self._waiting and time.monotonic() - self._sign > self._job.start_timeout_s:
            job = self._job
            needs = f"{job.worker_cpus:g} CPUs" + (
                f" and {job.worker_gpus:g} GPUs" if job.worker_gpus else ""
            )
            raise ResourceError(
                f"workers={job.workers}: none of them, with {needs} each, was placed within "
                f"start_timeout_s={job.start_timeout_s:g}: the cluster is too small or busy; wait longer or ask less"
            )


def _end(actor: ActorHandle) -> None:
    with suppress(Exception):  # it may be gone, or Ray may be
        ray.kill(actor, no_restart=True)


def _trainer(job: EmbedJob) -> TrainerConfig:
    """What a session is opened for; where Ray is to run on this machine alone, that has been seen to be possible.

    Raises:
        ConfigError: Naming the setting and what would fit.
    """
    if not (job.address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()):
        for kind, each, have in (
            ("cpus", job.worker_cpus, available_cores()),
            ("gpus", job.worker_gpus, torch.cuda.device_count()),
        ):
            if job.workers * each > have:
                fits = int(have / each)
                fix = f"workers={fits}" if fits else f"worker_{kind}={have}"
                raise ConfigError(
                    f"workers={job.workers} x worker_{kind}={each:g} needs {job.workers * each:g} {kind.upper()[:3]}s "
                    f"but this machine has {have}: set {fix}"
                )
    return TrainerConfig(
        num_workers=job.workers, cpus_per_worker=job.worker_cpus, address=job.address, use_gpu=False
    )
