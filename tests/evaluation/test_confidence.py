"""Bootstrap intervals: against resampling by hand, exact sums, coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from distmetric.errors import InputError
from distmetric.evaluation import bootstrap_intervals


def hits(n: int, rate: float, seed: int) -> torch.Tensor:
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < rate).double()


def test_intervals_are_those_of_the_resampled_means():
    """The definition: draw rows, average what is a number, take quantiles."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    values[5:12, 1] = torch.nan
    values[30] = torch.nan  # no query at all
    rows = values[~values.isnan().all(dim=1)].numpy()
    random = np.random.Generator(np.random.PCG64(7))
    means = [np.nanmean(rows[random.integers(39, size=39)], axis=0) for _ in range(300)]
    expected = np.quantile(means, [0.05, 0.95], axis=0)
    found = bootstrap_intervals(values, resamples=300, seed=7, level=0.9)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_intervals_agree_with_scipy_as_far_as_chance_allows():
    values = torch.rand(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    found = bootstrap_intervals(values, resamples=4000, seed=0)
    for column in range(2):
        peer = bootstrap(
            (values[:, column].numpy(),), np.mean, n_resamples=4000, method="percentile", rng=0
        ).confidence_interval
        width = peer.high - peer.low
        assert abs(found[0, column] - peer.low) < width / 10
        assert abs(found[1, column] - peer.high) < width / 10


def test_95_of_100_intervals_hold_the_truth():
    held = 0
    for seed in range(200):
        low, high = bootstrap_intervals(hits(150, 0.7, seed)[:, None], resamples=200, seed=seed)[:, 0]
        held += bool(low <= 0.7 <= high)
    assert 0.9 <= held / 200 <= 0.985


def test_neither_threads_nor_other_columns_change_a_bit():
    values = torch.rand(3000, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = bootstrap_intervals(values, resamples=50, seed=-1)
    torch.set_num_threads(2)
    assert torch.equal(bootstrap_intervals(values.numpy(), resamples=50, seed=-1), expected)
    for column in range(5):
        assert torch.equal(
            bootstrap_intervals(values[:, column, None], resamples=50, seed=-1)[:, 0], expected[:, column]
        )
    assert not torch.equal(bootstrap_intervals(values, resamples=50, seed=1), expected)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_constant_values_of_any_size_have_no_width(scale):
    found = bootstrap_intervals(torch.full((17, 1), 0.75 * scale, dtype=torch.float64), resamples=20)
    torch.testing.assert_close(found / scale, torch.full((2, 1), 0.75, dtype=torch.float64))
    assert found[0] == found[1]


def test_measures_without_values_have_no_interval():
    values = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
    found = bootstrap_intervals(values, resamples=100)
    assert found[:, 0].tolist() == [0.0, 1.0]
    assert found[:, 1].isnan().all()
    assert bootstrap_intervals(values[:0]).isnan().all()
    assert bootstrap_intervals(values[:, :0]).shape == (2, 0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.zeros(3), {}, r"shape \(Q, M\)"),
        (torch.zeros(3, 1), {"resamples": 0}, "resamples must be at least 1"),
        (torch.zeros(3, 1), {"level": 1.0}, "between 0 and 1"),
        (torch.tensor([[np.inf]]), {}, "must be finite"),
    ],
)
def test_mistakes_get_one_clear_line(values, options, message):
    with pytest.raises(InputError, match=message) as caught:
        bootstrap_intervals(values, **options)
    assert "\n" not in str(caught.value)
