"""How far metrics might lie from where these queries put them: bootstrap intervals of means."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_tensor

_DRAWS = 2**19
"""Draws made at once: their counts stay in the cache."""


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of a measure of several independent runs, and Student's interval for where the mean of all such runs lies.

    mean -+ t s / sqrt(n), with t the (1 + level) / 2 quantile of Student's distribution of n - 1 degrees of freedom and
    s the standard deviation with n - 1 in the denominator

    Args:
        values: (n,) one number a run.
        level: share of such intervals that hold the mean, 0 < level < 1.

    Returns:
        Mean, lower and upper end. Of one run nothing is known of others: its interval is infinite.

    Raises:
        InputError: when there is no value, or level is out of range.

    Exact for normally distributed values. With three runs t is 4.3: the interval is as wide as one knows little.

    Reference: Student, The Probable Error of a Mean, Biometrika 1908.
    """
    if not values or not 0 < level < 1:
        raise InputError(f"{len(values)} values at level={level}: give one or more, and 0 < level < 1")
    mean, count = math.fsum(values) / len(values), len(values)
    if count == 1:
        return mean, -math.inf, math.inf
    from scipy.special import stdtrit  # takes a fifth of a second to load, which no training is to wait for

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * deviation / math.sqrt(count)
    return mean, mean - half, mean + half


@torch.no_grad()
def bootstrap_intervals(
    values: Array, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Tensor:
    """Percentile bootstrap intervals of the means of several measures of the same queries.

    With resample s drawing Q of the Q queries with replacement, query q c_sq times:
    mean_sm = sum_q c_sq v_qm / sum_q c_sq [v_qm is a number];
    interval_m = the (1 - level) / 2 and (1 + level) / 2 quantiles of mean_sm over s, interpolated linearly

    Args:
        values: (Q, M) a row of measures for each query; NaN where a measure has no value. Rows of NaN only are no
            queries and are never drawn.
        resamples: how often the queries are drawn, S >= 1.
        seed: any integer; the same one gives the same intervals, to the last bit, on any machine and device.
        level: share of the means that an interval holds, 0 < level < 1.

    Returns:
        (2, M) float64, lower and upper ends, on the device of the values; NaN where a measure has no values.

    Raises:
        InputError: when values are not (Q, M) or infinite, or resamples or level are out of range.

    Cost: S * Q draws and S * Q * M multiplications on the CPU (a second for 1,000 resamples of 50,000 queries by 8
    measures); S * M means and a few MB are held, never S * Q counts.

    The queries are what is drawn: intervals speak of other queries to the same gallery, not of another gallery, nor of
    another training run. All measures see the same resamples. So that neither the number of threads nor the order of
    additions can be seen, values are rounded to a grid on which all sums are exact: 36 bits below the largest value
    for 50,000 queries.

    Reference: Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 1979.
    """
    table = as_tensor(values)
    if table.ndim != 2 or table.is_complex():
        raise InputError(
            f"values must be real numbers of shape (Q, M), got {table.dtype} {tuple(table.shape)}"
        )
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, got {level}")
    if bool(table.isinf().any()):
        raise InputError("values must be finite, or NaN where there is none")
    device, table = table.device, table.to(device="cpu", dtype=torch.float64)
    table = table[~table.isnan().all(dim=1)]
    if table.numel() == 0:
        return torch.full((2, table.shape[1]), torch.nan, dtype=torch.float64, device=device)
    present = ~table.isnan()
    table, unit = _on_grid(table.nan_to_num(nan=0.0))
    sums = _resampled_sums(torch.cat([table, present.double()], dim=1), resamples, seed)
    means = sums[:, : table.shape[1]] / sums[:, table.shape[1] :] * unit
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return means.nanquantile(ends, dim=0).to(device)


def _on_grid(values: Tensor) -> tuple[Tensor, float]:
    """Values as multiples of a power of two, so few of it that float64 holds any sum of as many of them."""
    largest = math.frexp(float(values.abs().max()))[1]
    exponent = max(largest + math.ceil(math.log2(len(values))) - 52, -1000)
    return (values * 2.0**-exponent).round_(), 2.0**exponent


def _resampled_sums(values: Tensor, resamples: int, seed: int) -> Tensor:
    """(S, M) sums of the drawn rows of (Q, M) values."""
    random = np.random.Generator(np.random.PCG64(seed % 2**64))
    size, at_once = len(values), max(1, _DRAWS // len(values))
    sums = values.new_empty(resamples, values.shape[1])
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        counts = torch.from_numpy(np.bincount(drawn.ravel(), minlength=rows * size)).view(rows, size)
        sums[start : start + rows] = counts.double() @ values
    return sums
