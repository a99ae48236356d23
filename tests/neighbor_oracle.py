"""Nearest neighbors as loops over Python floats, and as one matrix in the arithmetic that decides ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from distmetric.evaluation.neighbors import _squared_distances

Rows = Sequence[Sequence[float]]


def nearest_by_loops(
    rows: Rows, queries: Rows, k: int, kept: Callable[[int, int], bool] = lambda query, row: True
) -> list[list[tuple[int, float]]]:
    """(row, squared distance) of the k nearest kept rows of each query, ties by row; fewer where there are fewer."""
    found = []
    for i, query in enumerate(queries):
        squares = [math.fsum((a - b) ** 2 for a, b in zip(query, row, strict=True)) for row in rows]
        order = sorted((j for j in range(len(rows)) if kept(i, j)), key=lambda j: (squares[j], j))
        found.append([(j, squares[j]) for j in order[:k]])
    return found


def nearest_by_matrix(rows: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(Q, min(k, N)) rows and squared distances from all distances in float64, ties by row."""
    every = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(rows)))
    squares = _squared_distances(queries[every[:, 0]], rows[every[:, 1]]).view(len(queries), len(rows))
    order = squares.argsort(dim=1, stable=True)[:, :k]
    return order, squares.gather(1, order)


def listed(rows: Tensor, squares: Tensor) -> list[list[tuple[int, float]]]:
    """What a search found, in the form of `nearest_by_loops`; nothing may follow the first -1."""
    found = []
    for some, apart in zip(rows.tolist(), squares.tolist(), strict=True):
        there = [(row, square) for row, square in zip(some, apart, strict=True) if row >= 0]
        rest = list(zip(some, apart, strict=True))[len(there) :]
        assert rest == [(-1, math.inf)] * len(rest)
        found.append(there)
    return found


@st.composite
def grids(draw: st.DrawFn, most: int = 60, dim: int = 2) -> Tensor:
    """Few rows on a small grid: exact squares, most distances tied, many rows equal."""
    size, seed = draw(st.integers(1, most)), draw(st.integers(0, 2**20))
    values = draw(st.sampled_from([2, 3, 6]))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-values, values + 1, (size, dim), generator=generator) / 4


@st.composite
def hard_to_tell(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows and queries whose distances single precision cannot tell apart: shifted, shrunk, repeated, far away."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dim = draw(st.sampled_from([1, 3, 16]))
    rows = torch.randn(draw(st.integers(30, 90)), dim, generator=generator, dtype=torch.float64)
    rows = torch.cat([rows, rows[: draw(st.integers(0, 30))], rows[:1].expand(draw(st.integers(0, 40)), -1)])
    rows = rows[torch.randperm(len(rows), generator=generator)]
    near = rows[:9] * draw(st.sampled_from([1.0, 1 + 2**-20, 1e6]))
    queries = torch.cat([near, torch.randn(3, dim, generator=generator, dtype=torch.float64)])
    spread, shift = draw(st.sampled_from([(1.0, 0.0), (1e-4, 100.0), (1e-30, 0.0), (1e30, 0.0)]))
    dtypes = st.sampled_from([torch.float32, torch.float64])
    return (rows * spread + shift).to(draw(dtypes)), (queries * spread + shift).to(draw(dtypes))
