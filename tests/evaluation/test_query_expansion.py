"""Alpha query expansion against plain loops, and what it does to a search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from distmetric.errors import InputError
from distmetric.evaluation import evaluate, expand_queries
from reranking_oracle import expanded_query


def unit(num: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 6), st.integers(0, 12)),
    neighbors=st.integers(1, 15),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    block_bytes=st.sampled_from([1, 2**27]),
)
def test_expanded_queries_equal_plain_loops(seed, sizes, neighbors, alpha, block_bytes) -> None:
    queries, gallery = unit(sizes[0], 5, seed), unit(sizes[1], 5, seed + 1)
    own = torch.arange(sizes[0]) % (sizes[1] + 1) - 1
    found = expand_queries(
        queries, gallery, neighbors=neighbors, alpha=alpha, query_index=own, block_bytes=block_bytes
    )
    expected = [
        expanded_query(query, gallery.tolist(), neighbors, alpha, int(index))
        for query, index in zip(queries.tolist(), own, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_ties_go_to_the_lower_index() -> None:
    """Two items at the same angle on either side: only the first is averaged in."""
    side = 0.6
    gallery = np.array([[0.8, side], [0.8, -side], [0.8, side]])
    found = expand_queries(np.array([[1.0, 0.0]]), gallery, neighbors=1, alpha=0.0)
    assert found[0].tolist() == pytest.approx([1.8 / np.hypot(1.8, side), side / np.hypot(1.8, side)])
    swapped = expand_queries(np.array([[1.0, 0.0]]), gallery[[1, 0, 2]], neighbors=1, alpha=0.0)
    assert swapped[0].tolist() == pytest.approx((found[0] * torch.tensor([1, -1])).tolist())


def test_what_points_away_counts_nothing_and_a_sum_of_zero_leaves_the_query() -> None:
    query = np.array([[1.0, 0.0]])
    assert expand_queries(query, -query, neighbors=3).tolist() == query.tolist()
    assert expand_queries(query, -query, neighbors=3, alpha=0.0).tolist() == query.tolist()
    assert expand_queries(query, query[:0]).tolist() == query.tolist()
    assert expand_queries(query[:0], query).shape == (0, 2)


def test_dtype_stays_and_nothing_depends_on_blocks_or_threads() -> None:
    queries, gallery = unit(50, 16, 1).float(), unit(400, 16, 2).float()
    expected = expand_queries(queries, gallery)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(50))
    torch.set_num_threads(2)
    for block_bytes in (1, 100_000):
        assert torch.equal(expand_queries(queries, gallery, block_bytes=block_bytes), expected)
    half = expand_queries(queries.half(), gallery.half())
    torch.testing.assert_close(half, expected, atol=2e-2, rtol=0)


def test_it_ranks_noisy_classes_better() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(50, 32, generator=generator).repeat_interleave(9, dim=0)
    rows = normalize(centers + 1.3 * torch.randn(450, 32, generator=generator), dim=1)
    labels = torch.arange(50).repeat_interleave(9)
    is_query = torch.arange(450) % 9 == 0

    def r_precision(queries: Tensor) -> float:
        return evaluate(
            queries,
            labels[is_query],
            gallery_embeddings=rows[~is_query],
            gallery_labels=labels[~is_query],
        ).r_precision

    plain = r_precision(rows[is_query])
    assert plain < 0.8
    assert r_precision(expand_queries(rows[is_query], rows[~is_query], neighbors=5)) > plain + 0.03


GOOD = np.eye(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": 2 * GOOD}, "queries row 0 has length 2, .* normalize the embeddings"),
        ({"gallery": np.concatenate([GOOD, GOOD / 2])}, "gallery row 3 has length 0.5"),
        ({"gallery": GOOD[:, :2]}, "3 dimensions but the gallery has 2"),
        ({"neighbors": 0}, "neighbors must be 1 or more, got 0"),
        ({"alpha": -1.0}, "alpha must be a number of 0 or more, got -1"),
        ({"alpha": float("nan")}, "alpha must be a number of 0 or more"),
        ({"query_index": np.array([0, 1])}, "query_index must have shape"),
        ({"query_index": np.array([0, 1, 3])}, "from 0 to 2, or -1"),
        ({"gallery": np.full((3, 3), np.inf)}, "gallery row 0 is not finite"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        expand_queries(**{"queries": GOOD, "gallery": GOOD, **arguments})
    assert "\n" not in str(caught.value)
