"""The rows that are searched: drawn, or of a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmetric.benchmarks.data import clusters
from distmetric.errors import InputError
from distmetric.index.embedding_file import embedding_shape, read_embedding_file


@dataclass(frozen=True)
class Rows:
    """A data set to search.

    Args:
        embeddings: (N, D) float32.
        labels: (N,) int64 on the same device, 0..C-1.
    """

    embeddings: Tensor
    labels: Tensor

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.labels.max()) + 1

    def few(self, count: int) -> Rows:
        """At most `count` of them, evenly spread, their classes numbered anew."""
        step = max(1, len(self.labels) // count)
        some = torch.arange(0, len(self.labels), step, device=self.labels.device)[:count]
        return Rows(self.embeddings[some], torch.unique(self.labels[some], return_inverse=True)[1])


def load(
    size: int, dim: int, per_class: int, spread: float, embeddings: str | None, device: torch.device
) -> Rows:
    """Rows of a file where one is named, else drawn ones.

    Raises:
        InputError: If the file is not one of `jobs/embed.py`.
    """
    if embeddings is None:
        rows, labels = clusters(size, dim, per_class, spread, seed=0)
    else:
        rows, labels = _read(embeddings)
    return Rows(rows.to(device), labels.to(device))


def size_of(embeddings: str) -> tuple[int, int]:
    """N and D of a file, without reading its rows.

    Raises:
        InputError: If the file is not one of `jobs/embed.py`, or has one row only.
    """
    rows, dim = embedding_shape(embeddings)
    if rows < 2:
        raise InputError(f"embeddings={embeddings} has one row only: give a file of two or more")
    return rows, dim


def _read(embeddings: str) -> tuple[Tensor, Tensor]:
    size_of(embeddings)
    file = read_embedding_file(embeddings)
    return file.embeddings, torch.from_numpy(file.labels)
