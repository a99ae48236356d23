"""Kernels of Triton over tiles of the matrix of distances, which is never in memory: extremes, sums, gradients of rows.

`fused_rows` prepares what they take and is the only one to import this file, since not every machine has Triton.

The rows of the left side are searched or differentiated; those of the right side are what they are compared with. Both
are sorted by label and padded to whole tiles. A distance before its root is linear in the product of two rows,

    v_ij = left_constant_i + right_constant_j + factor left_scale_i right_scale_j (left_i . right_j),

with factor -2 where that is a squared distance and -1 otherwise; padding has a constant of `ABSENT`. The right rows of
a left row's label are first_i .. last_i - 1, and own_i is the left row itself (-1 where it is not there).

A program takes a block of left rows. Tiles without a right row of one of their labels need no mask and go through a
loop that Triton can pipeline. The others follow, and after them tiles that have turned out to hold a pair with v <
near_below, which float32 has cancelled: such pairs are taken from differences. Of such a tile the first loop counts
nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ABSENT = tl.constexpr(1e38)  # the distance of what does not count; finite, so that it may be multiplied by 0
PRESENT_BELOW = tl.constexpr(1e18)  # smaller than its root

# What a distance is made of: kinds of `Distance`, and which right rows count.
LINEAR, EUCLIDEAN, SQUARED_EUCLIDEAN = (tl.constexpr(kind) for kind in range(3))
ALL, NEGATIVES = tl.constexpr(0), tl.constexpr(1)

_TYPES = {torch.float16: tl.float16, torch.float32: tl.float32}
# The interpreter, with which machines without a GPU test all this, has no products of bfloat16.
_TYPES[torch.bfloat16] = tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16


def dot_type(rows: torch.dtype) -> tl.dtype:
    """In which type rows are multiplied: their own."""
    return _TYPES[rows]


def weight_type(rows: torch.dtype) -> tl.dtype:
    """To which type a gradient's weights are rounded; float16 has too short a range for them."""
    return tl.float32 if rows == torch.float16 else _TYPES[rows]


def precision(rows: torch.dtype) -> str:
    """How float32 is multiplied: TF32 says exactly what narrow rows hold; float32 takes three of its products."""
    return "tf32x3" if rows == torch.float32 else "tf32"


@triton.jit
def _chunk(side, rows, k, D: tl.constexpr, BLOCK_K: tl.constexpr):
    return tl.load(side + rows[:, None] * D + (k + tl.arange(0, BLOCK_K))[None, :])


@triton.jit
def _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant, columns,
            D: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
            DOT: tl.constexpr):  # fmt: skip
    """Distances before their root, and the first chunk of the right rows; `kept` is that of the left ones."""
    chunk = _chunk(right, columns, 0, D, BLOCK_K).to(DOT)
    products = tl.dot(kept, tl.trans(chunk), input_precision=PRECISION)
    for k in range(BLOCK_K, D, BLOCK_K):
        a = _chunk(left, rows, k, D, BLOCK_K).to(DOT)
        b = _chunk(right, columns, k, D, BLOCK_K).to(DOT)
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
    scale, constant = tl.load(right_scale + columns), tl.load(right_constant + columns)
    factor = -row_scale if KIND == LINEAR else -2.0 * row_scale
    # With the factor where a row is cheaper than a tile.
    values = (products * scale[None, :]) * factor[:, None] + (row_constant[:, None] + constant[None, :])
    return values, chunk


@triton.jit
def _same(columns, row_first, row_last):
    return (columns[None, :] >= row_first[:, None]) & (columns[None, :] < row_last[:, None])


@triton.jit
def _exact(values, left_wide, left_at, right_wide, right_at, WIDTH, near_below):
    """Squared distances, those of near pairs as sums of squared differences."""
    if tl.min(values) < near_below:
        squares = tl.zeros_like(values)
        for d in range(WIDTH):
            a, b = tl.load(left_wide + left_at + d), tl.load(right_wide + right_at + d)
            difference = a[:, None] - b[None, :]
            squares += difference * difference
        values = tl.where(values < near_below, squares, values)
    return values


@triton.jit
def _finished(values, KIND: tl.constexpr):
    """Distances: the root where there is one."""
    if KIND == EUCLIDEAN:
        return tl.sqrt(tl.maximum(values, 0.0))
    if KIND == SQUARED_EUCLIDEAN:
        return tl.maximum(values, 0.0)
    return values


@triton.jit
def _band(first, last, rows, BLOCK_N: tl.constexpr):
    """Which tiles hold right rows of the labels of these left rows: from, how many."""
    start = tl.min(tl.load(first + rows)) // BLOCK_N
    stop = tl.cdiv(tl.max(tl.load(last + rows)), BLOCK_N)
    return start, tl.maximum(stop - start, 0)


@triton.jit
def _careful_columns(step, start, width, notes, BLOCK_N: tl.constexpr, PART: tl.constexpr):
    """The next columns of the band's tiles, then of those that were noted; few at a time, as much is kept of each."""
    index, part = step // (BLOCK_N // PART), step % (BLOCK_N // PART)
    tile = start + index
    if index >= width:
        tile = tl.load(notes + index - width)
    return tile * BLOCK_N + part * PART + tl.arange(0, PART)


@triton.jit
def _noted(smallest, near_below, notes, count, tile):
    """Note a tile for later if the smallest value of one of its rows is near; 1 if so."""
    is_near = (tl.min(smallest) < near_below).to(tl.int32)
    tl.store(notes + count, tile, mask=is_near > 0)
    return is_near


@triton.jit
def _farther(values, columns, best, best_at):
    """Keep the largest value of each row and where it is, the leftmost of equal ones."""
    top = tl.max(values, 1)
    at = tl.min(tl.where(values == top[:, None], columns[None, :], 2**31 - 1), 1)
    better = (top > best) | ((top == best) & (at < best_at))
    return tl.where(better, top, best), tl.where(better, at, best_at)


@triton.jit
def hardest_kernel(
    left, left_scale, left_constant, left_wide, left_order, right, right_scale, right_constant, right_wide,
    right_order, first, last, own, settings, notes, farthest, nearest, num_tiles, WIDTH,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PART: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Where the farthest right row of the same label and the nearest of another one are: (rows,) int32 each."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    near_below, notes = tl.load(settings), notes + tl.program_id(0).to(tl.int64) * num_tiles
    row_scale, row_constant = tl.load(left_scale + rows), tl.load(left_constant + rows)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    row_own, kept = tl.load(own + rows), _chunk(left, rows, 0, D, BLOCK_K).to(DOT)
    start, width = _band(first, last, rows, BLOCK_N)
    far, far_at = tl.full((BLOCK_M,), -ABSENT, tl.float32), tl.zeros((BLOCK_M,), tl.int32)
    near, near_at = tl.full((BLOCK_M,), -ABSENT, tl.float32), tl.zeros((BLOCK_M,), tl.int32)
    count = 0
    for step in range(num_tiles - width):
        tile = tl.where(step < start, step, step + width)
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        values, _ = _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant,
                            columns.to(tl.int64), D, BLOCK_K, KIND, PRECISION, DOT)  # fmt: skip
        top, at = _farther(-values, columns, near, near_at)
        if KIND != LINEAR:
            is_near = _noted(-top, near_below, notes, count, tile)
            count += is_near
            # Of a noted tile nothing counts yet.
            top, at = tl.where(is_near > 0, near, top), tl.where(is_near > 0, near_at, at)
        near, near_at = top, at
    tl.debug_barrier()
    left_at = tl.load(left_order + rows) * WIDTH
    for step in range((width + count) * (BLOCK_N // PART)):
        columns = _careful_columns(step, start, width, notes, BLOCK_N, PART)
        values, _ = _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant,
                            columns.to(tl.int64), D, BLOCK_K, KIND, PRECISION, DOT)  # fmt: skip
        values = tl.where(columns[None, :] == row_own[:, None], ABSENT, values)
        if KIND != LINEAR:
            right_at = tl.load(right_order + columns) * WIDTH
            values = _exact(values, left_wide, left_at, right_wide, right_at, WIDTH, near_below)
            values = tl.maximum(values, 0.0)
        same = _same(columns, row_first, row_last)
        near, near_at = _farther(tl.where(same, -ABSENT, -values), columns, near, near_at)
        others = same & (columns[None, :] != row_own[:, None])
        far, far_at = _farther(tl.where(others, values, -ABSENT), columns, far, far_at)
    tl.store(farthest + rows, far_at)
    tl.store(nearest + rows, near_at)


@triton.jit
def _excluded(columns, row_first, row_last, row_own, COUNTED: tl.constexpr):
    own = columns[None, :] == row_own[:, None]
    if COUNTED == ALL:
        return own
    return own | _same(columns, row_first, row_last)


@triton.jit
def _summed(values, smallest, total, power, KIND: tl.constexpr, MASKED: tl.constexpr):
    """Add 2^(-power d) of a tile to running sums, which are relative to the smallest distance so far."""
    least = tl.minimum(smallest, _finished(tl.min(values, 1), KIND))
    powers = tl.exp2((least[:, None] - _finished(values, KIND)) * power)
    if MASKED:
        powers = tl.where(values < PRESENT_BELOW, powers, 0.0)
    return least, total * tl.exp2((least - smallest) * power) + tl.sum(powers, 1)


@triton.jit
def logsumexp_kernel(
    left, left_scale, left_constant, left_wide, left_order, right, right_scale, right_constant, right_wide,
    right_order, first, last, own, settings, notes, logs, num_tiles, WIDTH,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PART: tl.constexpr, KIND: tl.constexpr, COUNTED: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """log2 of the sum of 2^(-power d) over the right rows that count, (rows,); -inf where there is none."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    near_below, power = tl.load(settings), tl.load(settings + 1)
    notes += tl.program_id(0).to(tl.int64) * num_tiles
    row_scale, row_constant = tl.load(left_scale + rows), tl.load(left_constant + rows)
    kept = _chunk(left, rows, 0, D, BLOCK_K).to(DOT)
    start, width = _band(first, last, rows, BLOCK_N)
    smallest, total = tl.full((BLOCK_M,), ABSENT, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    count = 0
    for step in range(num_tiles - width):
        tile = tl.where(step < start, step, step + width)
        columns = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        values, _ = _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant,
                            columns, D, BLOCK_K, KIND, PRECISION, DOT)  # fmt: skip
        least, added = _summed(values, smallest, total, power, KIND, False)
        if KIND != LINEAR:
            is_near = _noted(tl.min(values, 1), near_below, notes, count, tile)
            count += is_near
            # Of a noted tile nothing counts yet.
            least, added = tl.where(is_near > 0, smallest, least), tl.where(is_near > 0, total, added)
        smallest, total = least, added
    tl.debug_barrier()
    left_at = tl.load(left_order + rows) * WIDTH
    row_first, row_last, row_own = tl.load(first + rows), tl.load(last + rows), tl.load(own + rows)
    for step in range((width + count) * (BLOCK_N // PART)):
        columns = _careful_columns(step, start, width, notes, BLOCK_N, PART).to(tl.int64)
        values, _ = _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant,
                            columns, D, BLOCK_K, KIND, PRECISION, DOT)  # fmt: skip
        values = tl.where(_excluded(columns, row_first, row_last, row_own, COUNTED), ABSENT, values)
        if KIND != LINEAR:
            right_at = tl.load(right_order + columns) * WIDTH
            values = _exact(values, left_wide, left_at, right_wide, right_at, WIDTH, near_below)
        smallest, total = _summed(values, smallest, total, power, KIND, True)
    tl.store(logs + rows, tl.log2(total) - power * smallest)


@triton.jit
def _weights(values, row_log, row_pull, column_log, column_pull, power,
             KIND: tl.constexpr, OF_LEFT: tl.constexpr, OF_RIGHT: tl.constexpr):  # fmt: skip
    """Derivative by the distance, over the distance where the direction needs its length; 0 where rows coincide."""
    exponents = _finished(values, KIND) * -power
    weights = tl.zeros_like(values)
    if OF_LEFT:
        weights += row_pull[:, None] * tl.exp2(exponents - row_log[:, None])
    if OF_RIGHT:
        weights += column_pull[None, :] * tl.exp2(exponents - column_log[None, :])
    if KIND == EUCLIDEAN:
        weights *= tl.where(values > 0, tl.rsqrt(tl.maximum(values, 1e-37)), 0.0)
    return weights


@triton.jit
def _pulled(weights, chunk, right, right_scale, columns, inner, pulled, row_weight,
            D: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WEIGHT: tl.constexpr):  # fmt: skip
    """Add sum_j w_ij right_j, and to the sum of the weights what they are once rounded, so that both go together."""
    scale = tl.load(right_scale + columns)
    rounded = (weights * scale[None, :]).to(WEIGHT)
    part = chunk
    if D > BLOCK_K:
        part = tl.load(right + columns[:, None] * D + inner[None, :])
    pulled = tl.dot(rounded, part.to(WEIGHT), pulled, input_precision=PRECISION)
    return pulled, row_weight + tl.sum(rounded.to(tl.float32) * (1.0 / scale)[None, :], 1)


@triton.jit
def _pulled_near(weights, left_wide, left_at, right_wide, right_at, inner, pulled, WIDTH):
    """Take sum_j w_ij (left_i - right_j) away, number by number of the rows, from differences."""
    if tl.max(tl.abs(weights)) > 0.0:
        stop = tl.minimum(tl.max(inner) + 1, WIDTH)
        for d in range(tl.min(inner), stop):
            a, b = tl.load(left_wide + left_at + d), tl.load(right_wide + right_at + d)
            pull = tl.sum(weights * (a[:, None] - b[None, :]), 1)
            pulled = tl.where((inner == d)[None, :], pulled - pull[:, None], pulled)
    return pulled


@triton.jit
def gradient_kernel(
    left, left_scale, left_constant, left_wide, left_order, right, right_scale, right_constant, right_wide,
    right_order, first, last, own, settings, notes, left_log, left_pull, right_log, right_pull,
    gradient, num_tiles, num_rows, WIDTH,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PART: tl.constexpr, KIND: tl.constexpr, COUNTED: tl.constexpr, OF_LEFT: tl.constexpr, OF_RIGHT: tl.constexpr,
    PRECISION: tl.constexpr, DOT: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradient of the left rows, BLOCK_D numbers of each, in the caller's order, from sums of left or right rows.

    With w_ij = sum over whose sums they are of pull 2^(-power d_ij - log) and, for euclidean distances, divided by d:
    w_i. left_i - sum_j w_ij right_j; without a length (`LINEAR`) only the second part.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    near_below, power = tl.load(settings), tl.load(settings + 1)
    notes += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * num_tiles
    row_scale, row_constant = tl.load(left_scale + rows), tl.load(left_constant + rows)
    row_log, row_pull = tl.load(left_log + rows), tl.load(left_pull + rows)
    kept = _chunk(left, rows, 0, D, BLOCK_K).to(DOT)
    start, width = _band(first, last, rows, BLOCK_N)
    pulled, row_weight = tl.zeros((BLOCK_M, BLOCK_D), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    count = 0
    for step in range(num_tiles - width):
        tile = tl.where(step < start, step, step + width)
        columns = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        values, chunk = _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant,
                                columns, D, BLOCK_K, KIND, PRECISION, DOT)  # fmt: skip
        weights = _weights(values, row_log, row_pull, tl.load(right_log + columns), tl.load(right_pull + columns),
                           power, KIND, OF_LEFT, OF_RIGHT)  # fmt: skip
        if KIND != LINEAR:
            is_near = _noted(tl.min(values, 1), near_below, notes, count, tile)
            count += is_near
            weights = tl.where(is_near > 0, 0.0, weights)
        pulled, row_weight = _pulled(weights, chunk, right, right_scale, columns, inner, pulled, row_weight,
                                     D, BLOCK_K, PRECISION, WEIGHT)  # fmt: skip
    tl.debug_barrier()
    left_at = tl.load(left_order + rows) * WIDTH
    row_first, row_last, row_own = tl.load(first + rows), tl.load(last + rows), tl.load(own + rows)
    for step in range((width + count) * (BLOCK_N // PART)):
        columns = _careful_columns(step, start, width, notes, BLOCK_N, PART).to(tl.int64)
        values, chunk = _linear(left, kept, rows, row_scale, row_constant, right, right_scale, right_constant,
                                columns, D, BLOCK_K, KIND, PRECISION, DOT)  # fmt: skip
        values = tl.where(_excluded(columns, row_first, row_last, row_own, COUNTED), ABSENT, values)
        right_at = tl.load(right_order + columns) * WIDTH
        is_near = values < near_below
        if KIND != LINEAR:
            values = _exact(values, left_wide, left_at, right_wide, right_at, WIDTH, near_below)
        weights = _weights(values, row_log, row_pull, tl.load(right_log + columns), tl.load(right_pull + columns),
                           power, KIND, OF_LEFT, OF_RIGHT)  # fmt: skip
        weights = tl.where(values < PRESENT_BELOW, weights, 0.0)
        if KIND != LINEAR:
            pulled = _pulled_near(tl.where(is_near, weights, 0.0), left_wide, left_at, right_wide, right_at, inner,
                                  pulled, WIDTH)  # fmt: skip
            weights = tl.where(is_near, 0.0, weights)
        pulled, row_weight = _pulled(weights, chunk, right, right_scale, columns, inner, pulled, row_weight,
                                     D, BLOCK_K, PRECISION, WEIGHT)  # fmt: skip
    if KIND == LINEAR:
        pulled = -pulled
    else:
        own_rows = tl.load(left + rows[:, None] * D + inner[None, :]).to(tl.float32) * row_scale[:, None]
        pulled = own_rows * row_weight[:, None] - pulled
    kept_rows = (rows[:, None] < num_rows) & (inner[None, :] < WIDTH)
    tl.store(gradient + left_at[:, None] + inner[None, :], pulled, mask=kept_rows)
