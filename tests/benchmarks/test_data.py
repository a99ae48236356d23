"""What is drawn is what it is said to be."""

from __future__ import annotations

import torch

from distmetric.benchmarks.data import clusters


def test_clusters_have_unit_rows_and_classes_of_one_size_but_for_the_last() -> None:
    rows, labels = clusters(22, 16, 5, 0.1, seed=0)
    assert rows.shape == (22, 16)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(22))
    assert labels.bincount().tolist() == [5, 5, 5, 5, 2]
    assert not torch.equal(labels, labels.sort().values)
    assert torch.equal(clusters(22, 16, 5, 0.1, seed=0)[0], rows)
    assert not torch.equal(clusters(22, 16, 5, 0.1, seed=1)[0], rows)


def test_the_spread_is_the_distance_from_the_center() -> None:
    for spread in (0.0, 0.01, 0.05):
        rows, labels = clusters(400, 64, 100, spread, seed=0)
        for label in range(4):
            members = rows[labels == label]
            radius = (members - members.mean(dim=0)).norm(dim=1).mean()
            torch.testing.assert_close(radius, torch.tensor(spread * 8.0), rtol=0.1, atol=1e-6)
