"""k-reciprocal re-ranking against plain loops over sets: ties, copies, tiny galleries, bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import evaluate, rerank
from distmetric.evaluation.reciprocal_sets import neighbors_and_reach
from reranking_oracle import reranked

# Few values with exact squares: most distances are tied, and many rows are equal.
coarse = st.integers(-2, 2).map(lambda value: value / 4)


def drawn(num: int, dim: int, seed: int) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def assert_as_oracle(
    found: tuple[Tensor, Tensor], queries: Tensor, gallery: Tensor, k1, k2, share, own=None
) -> None:
    expected = reranked(queries.tolist(), gallery.tolist(), k1, k2, share, own)
    others = len(gallery) - (own is not None)
    assert found[0].shape == found[1].shape == (len(queries), others)
    for line, indices, distances in zip(expected, *found, strict=True):
        torch.testing.assert_close(
            distances, distances.new_tensor([one[0] for one in line]), rtol=0, atol=1e-12
        )
        by_index = {item: (final, square) for final, square, item in line}
        assert len(set(indices.tolist())) == others
        # Sums in another order may part what is equal by a rounding; what differs by more is in one order.
        for before, after in zip(indices.tolist(), indices.tolist()[1:], strict=False):
            first, second = by_index[before], by_index[after]
            assert first[0] < second[0] + 1e-13
            if first[0] == second[0]:
                assert (first[1], before) < (second[1], after)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (5, 2), (6, 6), (7, 3), (20, 6)])
@pytest.mark.parametrize("block_bytes", [1, 2**27])
def test_distances_and_order_equal_plain_loops(k1, k2, share, block_bytes) -> None:
    gallery = torch.cat([drawn(9, 3, 1) + 0.4 * drawn(9, 3, seed) for seed in range(4)])
    queries = drawn(9, 3, 1)[:5] + 0.4 * drawn(5, 3, 7)
    found = rerank(queries, gallery, k1=k1, k2=k2, lambda_value=share, block_bytes=block_bytes)
    assert_as_oracle(found, queries.double(), gallery.double(), k1, k2, share)


def test_sets_are_expanded_by_neighbors_that_share_more_than_two_thirds() -> None:
    """On a line: 0 and 1 are each other's nearest, 2 lies farther on; k1 = 2, k1/2 = 1."""
    line = torch.tensor([[0.0], [1.0], [2.2], [9.0], [9.5]]).double()
    found = rerank(line[:1], line[1:], k1=2, k2=1, lambda_value=0.0)
    assert_as_oracle(found, line[:1], line[1:], 2, 1, 0.0)
    assert found[0][0, :2].tolist() == [0, 1]
    assert found[1][0, 2:].tolist() == [1.0, 1.0]  # nothing in common with the far pair


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.tuples(coarse, coarse), min_size=2, max_size=18),
    num_queries=st.integers(1, 6),
    k1=st.integers(1, 25),
    data=st.data(),
    share=st.sampled_from([0.0, 0.25, 1.0]),
    block_bytes=st.sampled_from([1, 5000, 2**27]),
)
def test_ties_copies_and_k1_beyond_the_gallery_equal_plain_loops(
    values, num_queries, k1, data, share, block_bytes
) -> None:
    rows = torch.tensor(values, dtype=torch.float64)
    cut = min(num_queries, len(rows) - 1)
    k2 = data.draw(st.integers(1, k1))
    found = rerank(rows[:cut], rows[cut:], k1=k1, k2=k2, lambda_value=share, block_bytes=block_bytes)
    assert_as_oracle(found, rows[:cut], rows[cut:], k1, k2, share)


@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(st.tuples(coarse, coarse), min_size=2, max_size=15),
    k1=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.3]),
    block_bytes=st.sampled_from([1, 2**27]),
    data=st.data(),
)
def test_leave_one_out_equals_plain_loops_over_the_gallery_alone(values, k1, share, block_bytes, data):
    rows = torch.tensor(values, dtype=torch.float64)
    own = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    k2 = data.draw(st.integers(1, k1))
    settings = {"k1": k1, "k2": k2, "lambda_value": share, "query_index": torch.tensor(own)}
    found = rerank(rows[own], rows, **settings, block_bytes=block_bytes)
    assert_as_oracle(found, rows[own], rows, k1, k2, share, own)
    if len(rows) > 3:
        first = rerank(rows[own], rows, **settings, k=2)
        assert all(torch.equal(one, other[:, :2]) for one, other in zip(first, found, strict=True))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 90), share=st.sampled_from([0.0, 0.3]))
def test_the_first_k_are_the_first_of_the_whole_ranking(seed, k, share) -> None:
    queries, gallery = drawn(7, 5, seed), drawn(80, 5, seed + 1)
    gallery[10:14] = gallery[3]
    whole = rerank(queries, gallery, k1=8, k2=3, lambda_value=share)
    some = rerank(queries, gallery, k1=8, k2=3, lambda_value=share, k=k)
    assert all(torch.equal(one, other[:, :k]) for one, other in zip(some, whole, strict=True))


def test_nothing_depends_on_blocks_threads_or_where_the_embeddings_lie() -> None:
    queries, gallery = drawn(20, 24, 1), drawn(200, 24, 2)
    expected = rerank(queries, gallery, k=30)
    for block_bytes in (1, 200_000, 2**22):
        found = rerank(queries, gallery, k=30, block_bytes=block_bytes)
        assert all(map(torch.equal, found, expected))
    torch.set_num_threads(2)
    assert all(map(torch.equal, rerank(queries, gallery, k=30), expected))
    far = rerank(queries.double() * 2**-40, gallery.double() * 2**-40, k=30)
    assert all(map(torch.equal, far, expected))


def test_equal_rows_are_at_distance_zero_and_ranked_by_index() -> None:
    row = torch.full((1, 4), 0.1)
    indices, distances = rerank(row.expand(3, 4), row.expand(30, 4), k1=5, k2=2)
    assert indices.tolist() == [list(range(30))] * 3 or bool((distances.diff(dim=1) >= 0).all())
    assert_as_oracle((indices, distances), row.expand(3, 4), row.expand(30, 4), 5, 2, 0.3)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_farthest_row_is_found_exactly_whatever_the_spread(width) -> None:
    for rows in (drawn(300, 12, 1), drawn(300, 12, 1) * 1e-3 + 300, drawn(300, 12, 1).sign()):
        listed, reach = neighbors_and_reach(rows, width, 2**16)
        squares = (rows[:, None].double() - rows.double()).square().sum(dim=2)
        torch.testing.assert_close(reach, squares.amax(dim=1), rtol=1e-14, atol=0)
        squares.fill_diagonal_(-1.0)
        assert torch.equal(listed, squares.argsort(dim=1, stable=True)[:, :width]) or width > 1


def test_it_ranks_noisy_classes_better() -> None:
    """What it is for: classes that lie on curved sheets, of which a query sees the near end only."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(60, 10, generator=generator) * 1.2
    sheet = torch.stack([angle.cos(), angle.sin()], dim=2)
    rows = (torch.randn(60, 1, 6, generator=generator) * 0.5).repeat(1, 10, 1)
    rows[:, :, :2] += 2 * sheet
    rows = (rows + 0.12 * torch.randn(rows.shape, generator=generator)).flatten(0, 1)
    labels = torch.arange(60).repeat_interleave(10)
    is_query = torch.arange(600) % 10 == 0
    plain = evaluate(
        rows[is_query],
        labels[is_query],
        gallery_embeddings=rows[~is_query],
        gallery_labels=labels[~is_query],
        ks=(1,),
    )
    indices, _ = rerank(rows[is_query], rows[~is_query], k=9)
    hits = labels[~is_query][indices] == labels[is_query][:, None]
    assert plain.r_precision < 0.9
    assert float(hits.double().mean()) > plain.r_precision + 0.02


GOOD = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": GOOD * np.nan}, "queries row 0 is not finite"),
        ({"gallery": GOOD[:, :1]}, "2 dimensions but the gallery has 1"),
        ({"gallery": GOOD[:0]}, "nothing to rank"),
        ({"gallery": GOOD[:1], "query_index": np.zeros(6, np.int64)}, "nothing to rank"),
        ({"query_index": np.array([1])}, r"query_index must have shape \(6,\)"),
        ({"query_index": np.arange(1, 7)}, "from 0 to 5"),
        ({"k1": 0}, "k1 must be 1 or more, got 0"),
        ({"k2": 0}, "k2 must be from 1 to k1=4, got 0"),
        ({"k2": 5}, "k2 must be from 1 to k1=4, got 5"),
        ({"lambda_value": 1.5}, "from 0 to 1, got 1.5"),
        ({"k": 0}, "k must be 1 or more, got 0"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rerank(**{"queries": GOOD, "gallery": GOOD, "k1": 4, "k2": 2, **arguments})
    assert "\n" not in str(caught.value)


def test_no_queries_give_no_rows_and_half_precision_is_accepted() -> None:
    assert [one.shape for one in rerank(GOOD[:0], GOOD, k=3)] == [(0, 3), (0, 3)]
    half = torch.from_numpy(GOOD).half()
    assert all(map(torch.equal, rerank(half, half, k1=2, k2=1), rerank(GOOD, GOOD, k1=2, k2=1)))


MEMORY = """
import resource, torch
from distmetric.evaluation import rerank
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
rows = torch.randn(2000, 8, generator=generator).repeat(3, 1) + 0.3 * torch.randn(6000, 8, generator=generator)
rerank(rows[:20], rows[:600], k=5, block_bytes=2**23)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
rerank(rows[:1000], rows[1000:], k=50, block_bytes=2**23)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in KiB on Linux only")
def test_memory_is_that_of_the_sparse_encodings() -> None:
    """All distances would take 144 MB in single precision, dense encodings 288 MB more."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60
