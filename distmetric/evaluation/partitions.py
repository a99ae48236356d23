"""How much two divisions of the same rows agree, from their sparse contingency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.errors import InputError
from distmetric.evaluation.inputs import Array, as_tensor

_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Contingency:
    """How many rows each class and each cluster have in common.

    Attributes:
        classes: (n,) int64 class number of each pair that has rows in common.
        clusters: (n,) int64 cluster number of it.
        counts: (n,) int64 rows in common, above 0.
        class_sizes: (C,) int64.
        cluster_sizes: (K,) int64.
    """

    classes: NDArray[np.int64]
    clusters: NDArray[np.int64]
    counts: NDArray[np.int64]
    class_sizes: NDArray[np.int64]
    cluster_sizes: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """N, the number of rows."""
        return int(self.class_sizes.sum())

    @property
    def is_match(self) -> bool:
        """Whether both divisions are the same but for names."""
        return len(self.counts) == len(self.class_sizes) == len(self.cluster_sizes)


def contingency(labels: Array, clusters: Array) -> Contingency:
    """Count the rows that classes and clusters have in common.

    Args:
        labels: (N,) integer classes.
        clusters: (N,) integer clusters.

    Returns:
        The table; at most N entries.

    Raises:
        InputError: when these are not integers, not equally many or none.
    """
    sides = [as_tensor(labels), as_tensor(clusters)]
    for name, side in zip(("labels", "clusters"), sides, strict=True):
        if side.ndim != 1 or side.is_floating_point() or side.is_complex():
            raise InputError(f"{name} must be integers of shape (N,), got {side.dtype} {tuple(side.shape)}")
    if len(sides[0]) != len(sides[1]) or not len(sides[0]):
        raise InputError(
            f"labels and clusters must be of the same rows, one or more: {len(sides[0])}, {len(sides[1])}"
        )
    (_, a, a_sizes), (_, b, b_sizes) = (
        torch.unique(side.cpu().long(), return_inverse=True, return_counts=True) for side in sides
    )
    pairs, counts = torch.unique(a * len(b_sizes) + b, return_counts=True)
    return Contingency(
        (pairs // len(b_sizes)).numpy(),
        (pairs % len(b_sizes)).numpy(),
        counts.numpy(),
        a_sizes.numpy(),
        b_sizes.numpy(),
    )


def normalized_mutual_information(labels: Array, clusters: Array) -> float:
    """How much a row's cluster says about its class: NMI, with the arithmetic mean of the entropies.

    NMI = 2 I(classes; clusters) / (H(classes) + H(clusters))

    Args:
        labels: (N,) integer classes.
        clusters: (N,) integer clusters.

    Returns:
        0..1; 1 for the same division, also for a single class and a single cluster. It grows with the number of
        clusters even where they are drawn by lot; `adjusted_mutual_information` does not.

    Raises:
        InputError: as `contingency`.
    """
    table = contingency(labels, clusters)
    if table.is_match:
        return 1.0
    mean = (_entropy(table.class_sizes) + _entropy(table.cluster_sizes)) / 2
    return min(_mutual_information(table) / mean, 1.0)


def adjusted_mutual_information(labels: Array, clusters: Array) -> float:
    """NMI with what chance alone would give taken off.

    AMI = (I - E[I]) / ((H(classes) + H(clusters)) / 2 - E[I]), E over all divisions with the same sizes

    Args:
        labels: (N,) integer classes.
        clusters: (N,) integer clusters.

    Returns:
        At most 1, which the same division has; about 0 for a division by lot, also below; 0 where one side is a single
        class or cluster and the other is not.

    Raises:
        InputError: as `contingency`.

    Cost: a sum over the different pairs (class size, cluster size) of the smaller of the two, however many classes and
    clusters have these sizes.

    Source: Vinh, Epps and Bailey, Information theoretic measures for clusterings comparison, JMLR 2010.
    """
    table = contingency(labels, clusters)
    if table.is_match:
        return 1.0
    if 1 in (len(table.class_sizes), len(table.cluster_sizes)):
        return 0.0
    expected = expected_mutual_information(table.class_sizes, table.cluster_sizes)
    mean = (_entropy(table.class_sizes) + _entropy(table.cluster_sizes)) / 2
    # The sides differ, so that mean > I >= 0, and chance gives less than the mean.
    return (_mutual_information(table) - expected) / max(mean - expected, float(np.finfo(np.float64).eps))


def pairwise_f1(labels: Array, clusters: Array) -> tuple[float, float, float]:
    """How right "of one cluster" is as an answer to "of one class?", over all pairs of rows.

    precision = #{pairs of one class and cluster} / #{pairs of one cluster}, recall = the same / #{pairs of one class},
    F1 = 2 precision recall / (precision + recall)

    Args:
        labels: (N,) integer classes.
        clusters: (N,) integer clusters.

    Returns:
        F1, precision, recall, 0..1; a ratio of no pairs to no pairs is 1.

    Raises:
        InputError: as `contingency`.
    """
    table = contingency(labels, clusters)
    both, classes, clustered = (
        int((sizes * (sizes - 1) // 2).sum())
        for sizes in (table.counts, table.class_sizes, table.cluster_sizes)
    )
    f1 = 2 * both / (classes + clustered) if classes + clustered else 1.0
    return f1, both / clustered if clustered else 1.0, both / classes if classes else 1.0


def purity(labels: Array, clusters: Array) -> float:
    """Fraction of the rows that are of the most frequent class of their cluster.

    Args:
        labels: (N,) integer classes.
        clusters: (N,) integer clusters.

    Returns:
        0..1; 1 whenever every cluster is a single row.

    Raises:
        InputError: as `contingency`.
    """
    table = contingency(labels, clusters)
    most = np.zeros(len(table.cluster_sizes), dtype=np.int64)
    np.maximum.at(most, table.clusters, table.counts)
    return int(most.sum()) / table.rows


def expected_mutual_information(class_sizes: NDArray[np.int64], cluster_sizes: NDArray[np.int64]) -> float:
    """The mean mutual information, in nats, over all divisions into classes and clusters of these sizes.

    E[I] = sum_ij sum_n (n / N) ln(N n / (a_i b_j)) P(n), P hypergeometric: b_j of N rows are drawn, a_i are wanted

    Args:
        class_sizes: (C,) a, each at least 1.
        cluster_sizes: (K,) b, of the same sum N.

    Returns:
        At least 0.
    """
    N = int(class_sizes.sum())
    a, a_times = np.unique(class_sizes, return_counts=True)
    b, b_times = np.unique(cluster_sizes, return_counts=True)
    log_factorial = torch.lgamma(torch.arange(N + 2, dtype=torch.float64).clamp_min_(1)).numpy()[1:]
    total = 0.0
    for size, times in zip(a.tolist(), a_times.tolist(), strict=True):
        low, high = np.maximum(1, size + b - N), np.minimum(size, b)
        lengths = high - low + 1
        # As many clusters at a time as have about _CHUNK terms together.
        cuts = np.searchsorted(lengths.cumsum(), np.arange(_CHUNK, lengths.sum(), _CHUNK))
        for part in np.split(np.arange(len(b)), np.unique(cuts)):
            if len(part):
                terms = _terms(N, size, b[part], low[part], lengths[part], log_factorial)
                total += times * float((terms * b_times[part]).sum())
    return total


def _terms(
    N: int,
    size: int,
    others: NDArray[np.int64],
    low: NDArray[np.int64],
    lengths: NDArray[np.int64],
    log_factorial: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The sum over n for a class of one size and clusters of some sizes."""
    ends = lengths.cumsum()
    which = np.repeat(np.arange(len(others)), lengths)
    b = others[which]
    n = np.arange(len(which)) - (ends - lengths)[which] + low[which]
    f = log_factorial
    fixed = f[size] + f[N - size] - f[N] + f[b] + f[N - b]
    log_probability = fixed - f[n] - f[size - n] - f[b - n] - f[N - size - b + n]
    information = n / N * (np.log(n) + np.log(N) - np.log(size) - np.log(b))
    return np.add.reduceat(information * np.exp(log_probability), ends - lengths)


def _mutual_information(table: Contingency) -> float:
    share = table.counts / table.rows
    a, b = table.class_sizes[table.classes], table.cluster_sizes[table.clusters]
    logs = np.log(table.counts) + np.log(table.rows) - np.log(a) - np.log(b)
    return max(float((share * logs).sum()), 0.0)


def _entropy(sizes: NDArray[np.int64]) -> float:
    share = sizes / sizes.sum()
    return max(float(-(share * np.log(share)).sum()), 0.0)
