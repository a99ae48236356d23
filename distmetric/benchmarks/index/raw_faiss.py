"""FAISS's flat index as one uses it without us: what our searches are compared with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distmetric.benchmarks.cell import Device
from distmetric.errors import ResourceError
from distmetric.index.search import Found
from distmetric.index.torch_search import listed_squares


class RawFlat:
    """All rows searched in single precision, ties in no order.

    Args:
        embeddings: (N, D) float32.
        metric: IndexFlatL2, or IndexFlatIP, which finds the same rows where all have length one.
        device: Where.

    Attributes:
        name: What it is.
        exact: No: rounding decides between rows that are nearly as far.

    Raises:
        ResourceError: If FAISS is not installed, or has no GPU where one is wanted.
    """

    exact = False

    def __init__(self, embeddings: Tensor, metric: Literal["l2", "ip"], device: Device) -> None:
        faiss = _faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._embeddings = embeddings
        self._rows = np.ascontiguousarray(embeddings.cpu().numpy())
        dim = embeddings.shape[1]
        index = faiss.IndexFlatL2(dim) if metric == "l2" else faiss.IndexFlatIP(dim)
        self.name = f"{type(index).__name__} of FAISS {faiss.__version__} on {device}"
        if device == "cuda":
            if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
                raise ResourceError("FAISS has no GPU here: pip install faiss-gpu")
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, 0, index)
        index.add(self._rows)
        self._index = index

    def find_all(self, k: int) -> None:
        """The k nearest rows of every row, which are rows themselves."""
        self._index.search(self._rows, k)

    def search(self, queries: Tensor, k: int) -> Found:
        """What it finds, with exact distances; see `Searcher`."""
        listed = torch.from_numpy(self._index.search(queries.cpu().numpy(), k)[1]).to(queries.device)
        return Found.of(listed, listed_squares(self._embeddings, queries, listed))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ResourceError("FAISS is not installed: pip install faiss-cpu") from None
    return faiss
