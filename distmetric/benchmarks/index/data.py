"""The rows that are searched: drawn, or of a file."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distmetric.benchmarks.data import clusters
from distmetric.errors import InputError
from distmetric.evaluation.inputs import as_embeddings


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
        InputError: If the file is not one of `jobs/embed.py`.
    """
    try:
        file = pq.ParquetFile(embeddings)
        kind = file.schema_arrow.field("embedding").type
        file.schema_arrow.field("label_name")
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise InputError(
            f"embeddings={embeddings} is no file of jobs/embed.py: {' '.join(str(error).split())}"
        ) from None
    if not pa.types.is_fixed_size_list(kind) or file.metadata.num_rows < 2:
        raise InputError(f"embeddings={embeddings} has no column of two or more embeddings of one size")
    return file.metadata.num_rows, kind.list_size


def _read(embeddings: str) -> tuple[Tensor, Tensor]:
    size, dim = size_of(embeddings)
    table = pq.read_table(embeddings, columns=["embedding", "label_name"]).combine_chunks()
    values = table["embedding"].chunk(0).flatten().to_numpy(zero_copy_only=False)
    labels = table["label_name"].chunk(0).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    rows = as_embeddings(
        torch.tensor(values, dtype=torch.float32).view(size, dim), f"embeddings={embeddings}"
    )
    return rows, torch.tensor(labels, dtype=torch.int64)
