"""Rows of the matrix of distances on a GPU: tiles are multiplied, looked at and forgotten by one kernel of Triton.

What `hardest_pairs` and the losses over rows find block by block. `is_fused` alone decides which way a batch goes.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmetric.functional.distances import Distance
from distmetric.functional.joint_batch import JointBatch
from distmetric.functional.label_bands import inverse, label_ranges
from distmetric.functional.pair_blocks import REFINE_BELOW

Counted = Literal["others", "negatives"]
"""Which columns of an anchor count: all but itself, or those of another label."""

DEVICES: tuple[str, ...] = ("cuda",)
# Tensor cores that multiply bfloat16 and TF32 came with Ampere.
LEAST_CAPABILITY = (8, 0)
# Tensor cores cut off digits when they add up: pairs count as near a little earlier than in blocks.
NEAR_BELOW = 4 * REFINE_BELOW[torch.float32]
# Longer rows than this make a gradient compute distances again too often.
MOST_WIDTH = 1024


# Rows up to here are multiplied in as few pieces as possible, longer ones in a loop.
SHORT = 128


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts the matrix of distances, and what it runs with; all but the last are powers of two.

    Args:
        rows: Left rows of a program.
        columns: Right rows of a tile.
        part: Of these, how many at a time where masks or exact differences are needed.
        inner: Most numbers of a row that are multiplied at a time.
        out: Most numbers of a gradient that a program computes; for each such part distances are computed again.
        warps: Of 32 threads, per program.
        stages: Loads that are in flight.
    """

    rows: int
    columns: int
    part: int
    inner: int
    out: int
    warps: int
    stages: int


Kernel = Literal["search", "gradient"]

# By kernel, bytes of a number, and whether rows are longer than SHORT. They are fixed rather than tuned on the machine:
# which is fastest would depend on the moment, and the order of a sum on the tile, so that no run would repeat itself.
TILES: dict[tuple[Kernel, int, bool], Tiles] = {
    ("search", 2, False): Tiles(rows=128, columns=128, part=32, inner=128, out=128, warps=8, stages=3),
    ("search", 2, True): Tiles(rows=128, columns=128, part=32, inner=64, out=256, warps=8, stages=3),
    ("search", 4, False): Tiles(rows=128, columns=64, part=32, inner=64, out=128, warps=8, stages=2),
    ("search", 4, True): Tiles(rows=128, columns=64, part=32, inner=64, out=128, warps=8, stages=2),
    ("gradient", 2, False): Tiles(rows=128, columns=64, part=32, inner=128, out=128, warps=8, stages=2),
    ("gradient", 2, True): Tiles(rows=128, columns=64, part=16, inner=64, out=256, warps=8, stages=2),
    ("gradient", 4, False): Tiles(rows=128, columns=32, part=16, inner=32, out=128, warps=8, stages=2),
    ("gradient", 4, True): Tiles(rows=128, columns=32, part=16, inner=32, out=128, warps=8, stages=2),
}


def is_fused(batch: JointBatch) -> bool:
    """Whether rows of a batch are left to the kernels: on a GPU of at least LEAST_CAPABILITY, in float32, with Triton.

    Everything else (the CPU, float64, no Triton, rows longer than MOST_WIDTH, nothing to compare) goes block by block.

    Args:
        batch: As `prepared` leaves it.
    """
    anchors, columns = batch.anchors, batch.columns
    return (
        anchors.device.type in DEVICES
        and anchors.dtype == columns.dtype == torch.float32
        and 0 < anchors.shape[1] <= MOST_WIDTH
        and 0 < len(anchors) <= 2**31 - 1
        and 0 < len(columns) <= 2**31 - 1
        and _is_able(anchors.device)
        and has_triton()
    )


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is not imported for that."""
    return importlib.util.find_spec("triton") is not None


@cache
def _is_able(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def _kernels() -> ModuleType:
    # Importing Triton takes a while, and fails where it is not installed.
    return importlib.import_module("distmetric.functional.triton_kernels")


@torch.no_grad()
def fused_hardest(batch: JointBatch, distance: Distance) -> tuple[Tensor, Tensor, Tensor]:
    """What `hardest_pairs` returns, for a batch that `is_fused`.

    Near pairs are compared by exact distances, as there; ties go to the first column in the order of labels. Cost:
    B N D multiplications; memory O((B + N) D) and a number per tile.
    """
    pairs = _TiledPairs(batch, "squared_euclidean" if distance == "euclidean" else distance)
    farthest, nearest = pairs.hardest()
    anchors, columns = pairs.anchors, pairs.columns
    num_same = anchors.last - anchors.first
    valid = (num_same > (anchors.own >= 0)) & (num_same < len(columns.wide))
    found = [columns.order[farthest.long()], columns.order[nearest.long()], valid]
    positive, negative, is_valid = (anchors.in_callers_order(part) for part in found)
    return positive, negative, is_valid


def fused_logsumexp(batch: JointBatch, scale: float, distance: Distance, counted: Counted) -> Tensor:
    """For every anchor the log of a sum of exponentials over its columns, with gradient, for a batch that `is_fused`.

    Formula: l_a = log sum_c e^{-scale d_ac} over the c that are counted; -inf with gradient 0 where there is none.

    Near pairs have distances and gradients from differences, all of them, where blocks give up above a number. The
    gradient takes one more pass of 2 B N D where anchors and columns are the same rows, else one for each side; every
    sum is one program's, in a fixed order, and so the same in every run. For embeddings that came in bfloat16 the
    weights of the gradient are rounded to it, too, as their owner rounds the gradient. Memory O((B + N) D) and a number
    per tile.
    """
    values: Tensor = _FusedLogSumExp.apply(  # type: ignore[no-untyped-call]
        batch.anchors, batch.columns, batch, scale, distance, counted
    )
    return values


class _FusedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _anchors: Tensor,
        _columns: Tensor,
        batch: JointBatch,
        scale: float,
        distance: Distance,
        counted: Counted,
    ) -> Tensor:
        ctx.pairs, ctx.scale, ctx.counted = _TiledPairs(batch, distance), scale, counted
        ctx.logs = ctx.pairs.logs(scale / math.log(2), counted)
        values: Tensor = ctx.pairs.anchors.in_callers_order(ctx.logs * math.log(2))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pairs: _TiledPairs = ctx.pairs
        pull = pairs.anchors.padded(grad[pairs.anchors.order[: len(grad)]], 0.0) * -ctx.scale
        to_anchors, to_columns = pairs.gradients(
            ctx.logs, pull, ctx.scale / math.log(2), ctx.counted, ctx.needs_input_grad[1]
        )
        return to_anchors, to_columns, None, None, None, None


@dataclass
class _Side:
    """Anchors or columns, sorted by label and padded to whole tiles.

    Attributes:
        rows: (P, D) what is multiplied: embeddings as they came if those are narrow, else moved to the common origin.
        scale: (P,) what makes a product of rows one of embeddings.
        constant: (P,) this side's part of a distance.
        wide: (n, W) embeddings in the caller's order and in float32, for differences.
        order: (P,) int64, which embedding comes at which place.
        first, last: (P,) int32 range of the other side's rows of the same label.
        own: (P,) int32 place of the same embedding on the other side, or -1.
    """

    rows: Tensor
    scale: Tensor
    constant: Tensor
    wide: Tensor
    order: Tensor
    first: Tensor
    last: Tensor
    own: Tensor

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """(n,) values in sorted order, with others for the padding."""
        return F.pad(values, (0, len(self.rows) - len(values)), value=fill)

    def in_callers_order(self, values: Tensor) -> Tensor:
        """(n,) values, of (P,) sorted and padded ones."""
        number = len(self.wide)
        return torch.empty_like(values[:number]).index_copy_(0, self.order[:number], values[:number])


class _TiledPairs:
    """The counterpart of `SortedPairs`: two sides, ready for kernels.

    Args:
        batch: One that `is_fused`.
        distance: Which one.
    """

    def __init__(self, batch: JointBatch, distance: Distance) -> None:
        self._kernels = _kernels()
        self._kind = {"euclidean": 1, "squared_euclidean": 2}.get(distance, 0)
        self._is_cosine = distance == "cosine"
        narrow = batch.narrow_rows()
        self._rows_type = torch.float32 if narrow is None else narrow[0].dtype
        self._is_one = batch.columns is batch.anchors and batch.anchor_index is not None
        self._width = batch.anchors.shape[1]
        with torch.autocast(batch.anchors.device.type, enabled=False):
            self._prepare(batch, narrow)

    def _prepare(self, batch: JointBatch, narrow: tuple[Tensor, Tensor] | None) -> None:
        anchors, columns = batch.anchors.detach().contiguous(), batch.columns.detach().contiguous()
        column_labels, order = torch.sort(batch.column_labels, stable=True)
        labels, anchor_order = torch.sort(batch.labels, stable=True)
        own = torch.full_like(anchor_order, -1)
        column_own = torch.full_like(order, -1)
        if batch.anchor_index is not None:
            own = inverse(order)[batch.anchor_index[anchor_order]]
            column_own[own] = torch.arange(len(own), device=own.device)
        # A common origin makes rounding errors smallest; narrow rows stay what they are, since products of them are
        # exact and near pairs are taken from differences anyway.
        origin = columns.mean(0) if self._kind and narrow is None else None
        rows = (None, None) if narrow is None else narrow
        ranges = label_ranges(labels, column_labels)
        self.anchors = self._side(anchors, rows[0], origin, anchor_order, ranges, own)
        self.columns = self.anchors
        if not self._is_one:
            ranges = label_ranges(column_labels, labels)
            self.columns = self._side(columns, rows[1], origin, order, ranges, column_own)
        squares = self.columns.constant[: len(columns)]
        self._near_below = squares.mean(0, keepdim=True) * NEAR_BELOW

    def _side(
        self,
        wide: Tensor,
        narrow: Tensor | None,
        origin: Tensor | None,
        order: Tensor,
        ranges: tuple[Tensor, Tensor],
        own: Tensor,
    ) -> _Side:
        number = len(wide)
        scale = torch.ones_like(wide[:, 0])
        if narrow is None:
            rows = wide if origin is None else wide - origin
            squares = rows.square().sum(1)
        else:
            lengths, squares = narrow.float().norm(dim=1), wide.square().sum(1)
            alive = (lengths > 0) & (squares > 0)
            rows = torch.where(alive[:, None], narrow, 0)
            scale = torch.where(alive, squares.sqrt() / torch.where(alive, lengths, 1), 1)
        constant = squares if self._kind else torch.full_like(scale, 0.5 if self._is_cosine else 0.0)
        largest = max(max(tiles.rows, tiles.columns) for tiles in TILES.values())
        padding = -number % largest
        return _Side(
            rows=F.pad(rows[order], (0, self._row_size() - self._width, 0, padding)),
            scale=F.pad(scale[order], (0, padding), value=1.0),
            constant=F.pad(constant[order], (0, padding), value=1e38),
            wide=wide,
            order=F.pad(order, (0, padding)),
            first=F.pad(ranges[0], (0, padding), value=2**31 - 1).int(),
            last=F.pad(ranges[1], (0, padding)).int(),
            own=F.pad(own, (0, padding), value=-1).int(),
        )

    def _row_size(self) -> int:
        """D: numbers of a row with those that no kernel has to ask about, a multiple of what each takes at a time."""
        if self._width <= SHORT:
            return max(16, 1 << (self._width - 1).bit_length())
        kernels: tuple[Kernel, ...] = ("search", "gradient")
        step = max(max(tiles.inner, tiles.out) for tiles in map(self._tiles, kernels))
        return -(-self._width // step) * step

    def _tiles(self, kernel: Kernel) -> Tiles:
        return TILES[kernel, self._rows_type.itemsize, self._width > SHORT]

    def hardest(self) -> tuple[Tensor, Tensor]:
        """Places of the farthest positive and of the nearest negative column of each sorted anchor, (P,) int32."""
        farthest, nearest = (torch.zeros_like(self.anchors.own) for _ in range(2))
        self._launch("hardest_kernel", "search", self.anchors, self.columns, [], [farthest, nearest])
        return farthest, nearest

    def logs(self, power: float, counted: Counted) -> Tensor:
        """log2 of the sum over columns of 2^(-power d), (P,) of sorted anchors; -inf where there is no column."""
        logs = torch.full_like(self.anchors.constant, -torch.inf)
        self._launch("logsumexp_kernel", "search", self.anchors, self.columns, [], [logs], power, counted)
        return logs

    def gradients(
        self, logs: Tensor, pull: Tensor, power: float, counted: Counted, needs_columns: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of anchors and columns, of sum_i pull_i logs_i in units of distance.

        Returns:
            Both in the caller's order; for the columns None where nobody needs it, or where the anchors' has it all.
        """
        is_counted = logs > -torch.inf
        # What has no column to count weighs nothing, whatever comes from upstream.
        of_anchors = logs.masked_fill(~is_counted, 1e30), pull.masked_fill(~is_counted, 0.0)
        if self._kind == 2:
            of_anchors = of_anchors[0], of_anchors[1] * 2
        nothing = torch.zeros_like(self.columns.constant)
        whole = self._is_one and needs_columns
        of_columns = of_anchors if whole else (nothing, nothing)

        def gradient(
            left: _Side, right: _Side, *logs_and_pulls: Tensor, left_sums: bool, right_sums: bool
        ) -> Tensor:
            result = torch.empty_like(left.wide)
            self._launch(
                *("gradient_kernel", "gradient", left, right, list(logs_and_pulls), [result], power, counted),
                left_sums=left_sums,
                right_sums=right_sums,
            )
            return result

        to_anchors = gradient(
            self.anchors, self.columns, *of_anchors, *of_columns, left_sums=True, right_sums=whole
        )
        if whole or not needs_columns:
            return to_anchors, None
        return to_anchors, gradient(
            self.columns, self.anchors, nothing, nothing, *of_anchors, left_sums=False, right_sums=True
        )

    def _launch(
        self,
        name: str,
        kernel: Kernel,
        left: _Side,
        right: _Side,
        given: list[Tensor],
        results: list[Tensor],
        power: float = 0.0,
        counted: Counted | None = None,
        left_sums: bool | None = None,
        right_sums: bool | None = None,
    ) -> None:
        """Run a kernel over all rows of the left side."""
        kernels, tiles, size = self._kernels, self._tiles(kernel), left.rows.shape[1]
        num_tiles = -(-len(right.wide) // tiles.columns)
        grid = [-(-len(left.wide) // tiles.rows)]
        constants: dict[str, Any] = {}
        sizes = [num_tiles, self._width] if left_sums is None else [num_tiles, len(left.wide), self._width]
        if counted is not None:
            constants["COUNTED"] = {"others": 0, "negatives": 1}[counted]
        if left_sums is not None:
            block = min(size, tiles.out)
            grid.append(size // block)
            constants |= {"BLOCK_D": block, "OF_LEFT": left_sums, "OF_RIGHT": right_sums}
            constants["WEIGHT"] = kernels.weight_type(self._rows_type)
        notes = left.order.new_empty(math.prod(grid) * num_tiles if self._kind else 1, dtype=torch.int32)
        settings = F.pad(self._near_below, (0, 1), value=power)
        with torch.cuda.device_of(left.rows):  # type: ignore[no-untyped-call]
            getattr(kernels, name)[tuple(grid)](
                *(left.rows, left.scale, left.constant, left.wide, left.order),
                *(right.rows, right.scale, right.constant, right.wide, right.order),
                *(left.first, left.last, left.own, settings, notes),
                *given,
                *results,
                *sizes,
                **constants,
                D=size,
                BLOCK_K=min(size, tiles.inner),
                BLOCK_M=tiles.rows,
                BLOCK_N=tiles.columns,
                PART=tiles.part,
                KIND=self._kind,
                PRECISION=kernels.precision(self._rows_type),
                DOT=kernels.dot_type(self._rows_type),
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
