"""FAISS on the CPU or a GPU, flat or inverted lists: a shortlist in single precision, and distances that decide.

FAISS ranks by a float32 expansion of the distance, keeps whichever of tied rows it meets first, and differs between
CPU and GPU in both (faiss #808, #3816). So it is asked for a few rows more than wanted; these are put in order by
distances in float64, and a query whose last places rounding leaves in doubt is searched exactly in torch.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmetric.errors import ResourceError
from distmetric.evaluation.neighbors import BLOCK_BYTES
from distmetric.index.config import SearchConfig
from distmetric.index.search import Found, Searcher, as_queries, measured_recall, say_once
from distmetric.index.torch_search import TorchSearcher, listed_squares, nearest_first

FLAT_ROWS = 200_000
"""Most rows that kind=auto compares with all others: above, all rows against all take minutes on a few cores
(200,000^2 x 128 multiplications), and a rebuild would outlast the training steps between two snapshots."""
GPU_WIDTH = 2048
"""Most neighbors, and most lists, that FAISS's GPU code can select."""
RECALL_QUERIES, RECALL_K = 200, 10
"""Rows, and neighbors of each, that the recall of inverted lists is measured on."""

_QUERIES = 4096
"""Most queries handed over at once; FAISS's own block on the CPU."""
_PLACE_BYTES = 128
"""Memory for one candidate of a query until it is settled; `BLOCK_BYTES` bounds that of a block."""
_ROWS_PER_LIST = 64
"""Training rows for each list; FAISS warns below 39 and drops what is above 256."""
_TEMPORARY_BYTES = 512 * 2**20
"""Scratch memory that FAISS may keep on a GPU; its own default is three times that."""
_SEED = 0


class FaissSearcher:
    """Nearest rows by a FAISS index whose shortlists are ordered, and completed where in doubt, by exact distances.

    Args:
        rows: (N, D) float32 or float64, N >= 1, on the device where distances are to be computed.
        frame: How the rows were centered and scaled for the index.
        index: A FAISS index over them.
        device: "cpu" or "cuda", where the index is.
        name: What it says of itself.
        exact: Whether the index compares with all rows; then the result is what brute force finds.
        threads: CPU threads of FAISS; None leaves its own setting.
    """

    def __init__(
        self,
        rows: Tensor,
        frame: Frame,
        index: Any,
        *,
        device: str,
        name: str,
        exact: bool,
        threads: int | None,
    ) -> None:
        self.name, self.exact = name, exact
        self._rows, self._frame, self._index, self._threads = rows, frame, index, threads
        self._widest = GPU_WIDTH if device == "cuda" else len(rows)
        self._reference = TorchSearcher(rows, rows.device)
        # A GPU index must not be searched by two threads at once (faiss #985).
        self._lock = threading.Lock()

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> Found:
        """Find the k nearest rows of every query; see `Searcher`."""
        wanted = as_queries(queries, self._rows, k)
        count = min(k, len(self._rows))
        if count > self._widest:
            return self._reference.search(queries, k)
        found = Found.nothing(len(wanted), k, self._rows.device)
        width = min(count + max(8, count // 8), self._widest, len(self._rows))
        size = max(1, min(_QUERIES, BLOCK_BYTES // (_PLACE_BYTES * width)))
        for start in range(0, len(wanted), size):
            block = slice(start, start + size)
            rows, squares = self._search(wanted[block].to(self._rows.device), count, width)
            found.rows[block, :count], found.squares[block, :count] = rows, squares
        return Found.of(found.rows, found.squares).to(queries.device)

    def _search(self, queries: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows and squared distances of one block of queries, (B, count) each, from `width` candidates."""
        moved = self._frame.moved(queries)
        with self._lock, _threads(self._threads):
            found = self._index.search(moved.cpu().numpy(), width)
        scores, listed = (torch.from_numpy(one).to(self._rows.device) for one in found)
        squares = listed_squares(self._rows, queries, listed)
        # Too few rows in the lists that were probed, or a query too far away for single precision.
        open_ = (listed[:, :count] < 0).any(dim=1)
        rows, ordered = (one[:, :count].contiguous() for one in nearest_first(listed, squares))
        if self.exact and width < len(self._rows):
            open_ |= ~self._settled(moved, scores, squares, ordered[:, -1])
        doubtful = open_.nonzero().squeeze(1)
        if len(doubtful):
            exact = self._reference.search(queries[doubtful], count)
            rows[doubtful], ordered[doubtful] = exact.rows, exact.squares
        return rows, ordered

    def _settled(self, moved: Tensor, scores: Tensor, squares: Tensor, last: Tensor) -> Tensor:
        """Which queries of a shortlist have no row outside of it at a distance up to that of the last wanted one.

        A row r at a true distance d of query q has |r| <= |q| + d, and a score within
        c (|q|^2 + |r|^2) of d^2. Where some row of the shortlist breaks that bound, the multiplication was not in
        single precision (TF32, forced from outside), and nothing is concluded from its scores.
        """
        norms = moved.double().square().sum(dim=1)
        last, squares = last * self._frame.unit_square, squares * self._frame.unit_square
        unseen = last + self._frame.error(norms, last)
        sound = (scores.double() - squares).abs() <= self._frame.error(norms[:, None], squares)
        return (scores.amax(dim=1) > unseen) & sound.all(dim=1)


@dataclass(frozen=True)
class Frame:
    """Coordinates in which float32 scores are sharpest: centered, with the largest coordinate near 1.

    Attributes:
        center: (D,) float64 mean of the rows.
        scale: Power of two that the centered rows are divided by.
    """

    center: Tensor
    scale: float

    @classmethod
    def of(cls, rows: Tensor) -> Frame:
        """The frame of (N, D) rows, N >= 1."""
        center = rows.mean(dim=0, dtype=torch.float64)
        low, high = torch.aminmax(rows, dim=0)
        extent = float(torch.maximum(high - center, center - low).max())
        # Squares of larger and smaller units than these are no float64.
        return cls(center, 2.0 ** min(max(math.frexp(extent)[1], -500), 500) if extent > 0 else 1.0)

    @property
    def unit_square(self) -> float:
        """What turns squared distances of rows as they came into those of this frame."""
        return 1.0 / (self.scale * self.scale)

    def moved(self, rows: Tensor) -> Tensor:
        """(B, D) float32 coordinates in this frame."""
        moved = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        for target, part in zip(torch.split(moved, 8192), torch.split(rows, 8192), strict=True):
            target.copy_((part.double() - self.center).div_(self.scale))
        return moved

    def error(self, norms: Tensor, squares: Tensor) -> Tensor:
        """How far a float32 score of a row at a known squared distance of a query can be off.

        |score - d^2| <= c (|q|^2 + (|q| + d)^2), c = (D + 32) 2^-23

        Args:
            norms: Squared norms |q|^2 of the queries in this frame.
            squares: Squared distances d^2 in this frame, of a shape that goes with them.
        """
        allowance = (len(self.center) + 32) * torch.finfo(torch.float32).eps
        farthest = (norms.sqrt() + squares.sqrt()).square()
        return allowance * (norms + farthest) + len(self.center) * torch.finfo(torch.float32).tiny


def build_faiss_searcher(rows: Tensor, config: SearchConfig, threads: int | None = None) -> Searcher:
    """Prepare a FAISS index over rows; see `build_searcher`.

    Args:
        rows: (N, D) float32 or float64, finite, N >= 1.
        config: Its backend is not looked at.
        threads: CPU threads of FAISS.

    Returns:
        The searcher. One of inverted lists has its recall measured, and says it in its name.

    Raises:
        ResourceError: If a GPU was asked for by name and FAISS has none, or has no memory left.
    """
    frame = Frame.of(rows)
    moved = frame.moved(rows).cpu().numpy()
    flat = config.kind == "flat" or (config.kind == "auto" and len(rows) <= FLAT_ROWS)
    with _threads(threads):
        index, kind = (faiss.IndexFlatL2(rows.shape[1]), "flat") if flat else _trained_lists(moved, config)
        index.add(moved)
        index, device = _placed(index, moved.nbytes, rows, config)
    on_gpu = device == "cuda" and torch.cuda.is_available()
    kept = rows.to("cuda" if on_gpu else "cpu")
    frame = Frame(frame.center.to(kept.device), frame.scale)
    name = f"faiss {kind} on {device}"
    searcher = FaissSearcher(
        kept, frame, index, device=device, name=f"{name}, exact", exact=flat, threads=threads
    )
    if not flat:
        searcher.name = f"{name}, recall@{RECALL_K} {_recall(searcher, rows, threads):.2f}"
    return searcher


def faiss_sees_a_gpu() -> bool:
    """Whether this FAISS was built for GPUs and one is visible."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _trained_lists(moved: NDArray[np.float32], config: SearchConfig) -> tuple[Any, str]:
    """An index of inverted lists without rows yet, the same for the same rows, and what it is called."""
    size, dim = moved.shape
    wanted = config.lists or min(round(4 * math.sqrt(size)), size // 39)
    lists = min(max(wanted, 1), size)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    index.nprobe = min(config.probes, lists)
    index.cp.seed = 1 + _SEED
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _ROWS_PER_LIST
    sample = moved
    if size > _ROWS_PER_LIST * lists:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(_SEED))
        sample = moved[order[: _ROWS_PER_LIST * lists].sort().values.numpy()]
    index.train(sample)
    return index, f"ivf {lists}/{index.nprobe}"


def _recall(searcher: FaissSearcher, rows: Tensor, threads: int | None) -> float:
    """Recall on a sample of the rows against a flat index on the CPU, which is dropped afterwards."""
    sample = random.Random(_SEED).sample(range(len(rows)), min(RECALL_QUERIES, len(rows)))
    own = torch.tensor(sorted(sample), device=rows.device)
    flat = build_faiss_searcher(rows, SearchConfig(kind="flat", device="cpu"), threads)
    return measured_recall(searcher, flat, rows[own], RECALL_K, own)


def _placed(index: Any, nbytes: int, rows: Tensor, config: SearchConfig) -> tuple[Any, str]:
    """The index where the configuration wants it and memory allows, and where that is.

    Raises:
        ResourceError: If a GPU was asked for by name and cannot be had.
    """
    why = "" if config.device == "cpu" else _without_gpu(nbytes, rows)
    if config.device != "cpu" and not why:
        try:
            return _on_gpu(index), "cuda"
        except RuntimeError as error:  # FAISS reports a failed allocation as any other error
            why = f"FAISS could not put the index on the GPU ({' '.join(str(error).split())})"
    if config.device == "cuda":
        raise ResourceError(
            f"index.search.device=cuda: {why}; set index.search.device=auto to use the CPU then"
        )
    if why:
        known = torch.cuda.is_available() or faiss_sees_a_gpu()
        say_once(logging.WARNING if known else logging.INFO, f"{why}: FAISS searches on the CPU")
    return index, "cpu"


def _without_gpu(nbytes: int, rows: Tensor) -> str:
    """Why an index of that size cannot go to a GPU; empty when it may be tried."""
    if not hasattr(faiss, "StandardGpuResources"):
        there = torch.cuda.is_available()
        return "this FAISS is built without GPUs" if there else "no GPU for the index"
    if faiss.get_num_gpus() < 1:
        return "no GPU for the index"
    if not torch.cuda.is_available():
        return ""  # nobody here can ask for the free memory: FAISS will say
    # The index with its norms and ids, FAISS's scratch memory, and the rows for torch.
    needed = nbytes * 5 // 4 + 16 * len(rows) + _TEMPORARY_BYTES + rows.nbytes
    free = torch.cuda.mem_get_info()[0]
    if needed > free:
        return f"the index takes {needed / 2**30:.1f} GiB and the GPU has {free / 2**30:.1f} free"
    return ""


def _on_gpu(index: Any) -> Any:
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    options = faiss.GpuClonerOptions()
    options.useFloat16 = options.useFloat16CoarseQuantizer = False
    placed: Any = faiss.index_cpu_to_gpu(resources, 0, index, options)
    if hasattr(index, "nprobe"):
        placed.nprobe = min(index.nprobe, GPU_WIDTH)
    return placed


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let FAISS use that many threads here; the setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
