"""Exact nearest neighbors in bounded memory, with ties in the order of the gallery."""

import torch
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation.gallery import FOLD, Gallery, build_gallery
from distmetric.evaluation.inputs import Array, as_embeddings, as_tensor

BLOCK_BYTES = 192 * 2**20
"""Memory for one block of queries, in bytes."""


@torch.no_grad()
def nearest(embeddings: Array, queries: Array, k: int, *, block_bytes: int = BLOCK_BYTES) -> Tensor:
    """Find the k nearest other rows of some rows of an embedding table.

    neighbors_i = the k indices j != query_i with the smallest (|x_query_i - x_j|, j), in that order

    Args:
        embeddings: (N, D) real numbers, finite.
        queries: (Q,) int64 indices into `embeddings`.
        k: number of neighbors, 1 <= k < N.
        block_bytes: memory for one block of queries, in bytes.

    Returns:
        (Q, k) int64 indices into `embeddings`, nearest first, on the device of the embeddings.

    Raises:
        InputError: when embeddings are not finite or not (N, D), a query is no row, or k is out of range.

    Cost: Q * N * D multiplications, `block_bytes` and two copies of the embeddings.

    A row is never its own neighbor, but an equal row at another index is one, at distance 0. Ties go to the
    lower index, whatever the block size, the number of threads or the device.
    """
    rows = as_embeddings(embeddings)
    wanted = as_tensor(queries).to(device=rows.device, dtype=torch.int64)
    if not 1 <= k < len(rows):
        raise InputError(f"k must be from 1 to {len(rows) - 1}, the number of other rows, got {k}")
    if len(wanted) and not (int(wanted.min()) >= 0 and int(wanted.max()) < len(rows)):
        raise InputError(f"queries must be row indices from 0 to {len(rows) - 1}")
    gallery = build_gallery(rows, k)
    found = torch.empty(len(wanted), k, dtype=torch.int64, device=rows.device)
    size = queries_per_block(gallery, k, block_bytes)
    buffer = gallery.scores_buffer(min(size, len(wanted)))
    for start in range(0, len(wanted), size):
        block = wanted[start : start + size]
        found[start : start + size] = ranked(gallery, rows[block], block, k, block_bytes, buffer)
    return found


def queries_per_block(gallery: Gallery, count: int, block_bytes: int) -> int:
    """How many queries `ranked` can take at once within `block_bytes`."""
    scores = gallery.centered.shape[0] * gallery.centered.element_size()
    width = min(_width(count), len(gallery.rows))
    # Scores and their folded minima take the first term; candidates, their bounds and orders the second.
    per_query = scores * (FOLD + 2) // FOLD + 160 * width + 12 * FOLD * width + 32 * gallery.rows.shape[1]
    return max(1, block_bytes * 3 // 4 // per_query)


def ranked(
    gallery: Gallery,
    queries: Tensor,
    own: Tensor | None,
    count: int,
    block_bytes: int,
    buffer: Tensor | None = None,
) -> Tensor:
    """Rank the gallery for one block of queries.

    Fast scores pick candidates; wherever their error bound leaves an order open, distances decide that are
    computed in float64 in one fixed order of operations, and then the gallery index.

    Args:
        gallery: from `build_gallery` with at least this `count`.
        queries: (B, D).
        own: (B,) gallery index of each query, to be left out; None when queries are no gallery members.
        count: number of neighbors; at most the gallery's size, less one when `own` is given.
        block_bytes: memory for the block, in bytes.
        buffer: from `gallery.scores_buffer`, where there are several blocks.

    Returns:
        (B, count) int64 gallery indices, nearest first.
    """
    scores, squared_norms = gallery.lower_bounds(queries, buffer)
    if own is not None:
        place = gallery.place[own]
        searched = (place >= 0).nonzero().squeeze(1)
        scores[searched, place[searched]] = torch.inf
    found = _settle(gallery, queries, scores, squared_norms, count, _width(count), block_bytes)
    return gallery.members[found]


def _width(count: int) -> int:
    return count + max(8, count // 4)


def _settle(
    gallery: Gallery,
    queries: Tensor,
    scores: Tensor,
    squared_norms: Tensor,
    count: int,
    width: int,
    block_bytes: int,
) -> Tensor:
    """Rank the first `count` of every query among `width` candidates, and of more where these leave doubt."""
    width = min(width, len(gallery.rows))
    lower, ids = smallest(scores, width)
    ids.clamp_(max=len(gallery.rows) - 1)  # padding, never among the first `count`
    lower = lower.double()
    gaps = gallery.gaps(squared_norms[:, None], gallery.squared_norms[ids])
    upper = (lower + gaps).cummax(dim=1).values
    apart = upper[:, :-1] < lower[:, 1:]
    runs = torch.nn.functional.pad(apart.cumsum(dim=1), (1, 0))
    last = runs[:, count - 1 : count]
    settled = (last < runs[:, -1:]).squeeze(1) if width < len(gallery.rows) else last.squeeze(1) >= 0
    open_pairs = torch.nn.functional.pad(~apart, (1, 0)) | torch.nn.functional.pad(~apart, (0, 1))
    open_pairs &= (runs <= last) & settled[:, None]
    if bool(open_pairs.any()):
        ids = _reorder(gallery, queries, ids, runs, open_pairs, block_bytes // 4)
    found = ids[:, :count]
    rest = (~settled).nonzero().squeeze(1)
    if len(rest):
        found = found.clone()
        wider = min(4 * width, len(gallery.rows))
        size = max(1, block_bytes // 8 // (160 * wider + scores.shape[1] * scores.element_size()))
        for part in torch.split(rest, size):
            found[part] = _settle(
                gallery, queries[part], scores[part], squared_norms[part], count, wider, block_bytes
            )
    return found


def smallest(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` smallest scores of every row, ascending, and their columns; any of those tied at the edge.

    The columns are folded into groups first: only the `width` groups with the smallest minima can hold any of
    them, and reading a row once for its minima is several times faster than selecting from all of it.
    """
    groups = scores.shape[1] // FOLD
    if 4 * width > groups:
        values, ids = scores.topk(width, dim=1, largest=False)
        return values, ids
    folded = scores.view(-1, groups, FOLD)
    chosen = folded.amin(dim=2).topk(width, dim=1, largest=False, sorted=False).indices
    values, at = listed_groups(folded, chosen).topk(width, dim=1, largest=False)
    return values, chosen.gather(1, at // FOLD) * FOLD + at % FOLD


def listed_groups(folded: Tensor, chosen: Tensor, rows: Tensor | None = None) -> Tensor:
    """Values of some groups of columns.

    Args:
        folded: (B, groups, FOLD).
        chosen: (b, w) int64 groups of each of the rows.
        rows: (b,) int64; None for all, b = B.

    Returns:
        (b, w * FOLD).
    """
    rows = torch.arange(len(folded), device=folded.device) if rows is None else rows
    listed = (chosen + rows[:, None] * folded.shape[1]).flatten()
    return folded.flatten(0, 1).index_select(0, listed).view(len(rows), -1)


def _reorder(
    gallery: Gallery, queries: Tensor, ids: Tensor, runs: Tensor, open_pairs: Tensor, scratch_bytes: int
) -> Tensor:
    """Sort candidates by run, inside a run by exact distance, at equal distance by gallery index."""
    exact = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    rows, columns = open_pairs.nonzero(as_tuple=True)
    size = max(1, scratch_bytes // (32 * queries.shape[1]))
    for row, column in zip(torch.split(rows, size), torch.split(columns, size), strict=True):
        exact[row, column] = _squared_distances(queries[row], gallery.rows[ids[row, column]])
    order = ids.argsort(dim=1)
    for key in (exact, runs):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return ids.gather(1, order)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared distances of row pairs, the same to the last bit on any device and in any batch."""
    return sum_by_halves((left.double() - right.double()).square_())


def sum_by_halves(terms: Tensor) -> Tensor:
    """Sum over the last dimension, in one fixed order of additions, overwriting the terms.

    Library sums may associate differently from one shape, device or number of threads to the next.

    Args:
        terms: (..., D), D >= 1.

    Returns:
        (...,), a view of the terms.
    """
    while terms.shape[-1] > 1:
        half = (terms.shape[-1] + 1) // 2
        rest = terms.shape[-1] - half
        terms[..., :rest] += terms[..., half:]
        terms = terms[..., :half]
    return terms[..., 0]
