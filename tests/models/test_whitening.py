"""Whitening within classes: what it is, and where a model does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmetric.models.build import build_embedder
from distmetric.models.spec import ConvSpec
from distmetric.models.whitening import within_class_whitening

SMALL = {"widths": [4, 4], "embedding_dim": 8, "image_size": 12}


def scattered(classes: int, images: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that scatter about their class, much along some directions and little along others."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(dim, dim)) * np.logspace(0, -2, dim)[:, None]
    rows = np.repeat(draw.normal(size=(classes, dim)), images, 0)
    rows += draw.normal(size=rows.shape) @ mixing
    return torch.from_numpy(rows), torch.from_numpy(np.repeat(np.arange(classes) * 7, images))


def covariance(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Within classes, pair by pair of coordinates."""
    dim, total = rows.shape[1], np.zeros((rows.shape[1],) * 2)
    for label in set(labels.tolist()):
        own = rows[labels == label]
        mean = sum(own) / len(own)
        for row in own:
            for i in range(dim):
                for j in range(dim):
                    total[i, j] += (row[i] - mean[i]) * (row[j] - mean[j])
    return total / (len(rows) - len(set(labels.tolist())))


@given(st.integers(2, 6), st.integers(2, 5), st.integers(1, 4), st.sampled_from([0.03, 0.1, 0.5]))
def test_it_is_the_inverse_root_of_the_shrunk_covariance(
    classes: int, images: int, dim: int, shrinkage: float
) -> None:
    rows, labels = scattered(classes, images, dim)
    expected = covariance(rows.numpy(), labels.numpy())
    mean = np.trace(expected) / dim
    shrunk = (1 - shrinkage) * expected / mean + shrinkage * np.eye(dim)
    found = within_class_whitening(rows, labels, shrinkage).numpy()
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    np.testing.assert_allclose(found @ shrunk @ found, np.eye(dim), atol=1e-9)
    assert np.linalg.eigvalsh(found).min() > 0


def test_classes_scatter_equally_along_every_direction_after_it() -> None:
    rows, labels = scattered(20, 10, 5)
    assert np.linalg.cond(covariance(rows.numpy(), labels.numpy())) > 100
    white = rows @ within_class_whitening(rows, labels, 0.0)
    after = covariance(white.numpy(), labels.numpy())
    np.testing.assert_allclose(after / after[0, 0], np.eye(5), atol=1e-9)


def test_neither_places_of_classes_nor_sizes_of_embeddings_nor_order_matter() -> None:
    rows, labels = scattered(5, 4, 3)
    expected = within_class_whitening(rows, labels)
    moved = 3.0 * (rows + labels[:, None] ** 2)
    torch.testing.assert_close(within_class_whitening(moved, labels), expected)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(within_class_whitening(rows[order], labels[order]), expected)
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q
    torch.testing.assert_close(within_class_whitening(rows @ turn, labels), turn.T @ expected @ turn)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("classes", [0, 1, 4])
def test_nothing_is_whitened_where_nothing_differs_within_a_class(classes: int, images: int) -> None:
    rows = torch.rand(classes, 3, generator=torch.Generator().manual_seed(0)).repeat_interleave(images, 0)
    labels = torch.arange(classes).repeat_interleave(images)
    assert torch.equal(within_class_whitening(rows, labels), torch.eye(3, dtype=torch.float64))
    rows, labels = scattered(4, 3, 3)
    torch.testing.assert_close(within_class_whitening(rows, labels, 1.0), torch.eye(3, dtype=torch.float64))


def test_directions_in_which_nothing_differs_are_not_stretched_without_a_limit() -> None:
    rows, labels = scattered(4, 3, 3)
    rows[:, 1] = labels
    for shrinkage in (0.0, 0.1):
        assert within_class_whitening(rows, labels, shrinkage).isfinite().all()
    assert within_class_whitening(rows, labels).max() < 0.1**-0.5 + 1e-9


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_whitens_where_it_is_not_trained(normalize: bool) -> None:
    plain, whitening = (
        build_embedder(ConvSpec(**SMALL, normalize=normalize, whitening=on), seed=1) for on in (False, True)
    )
    assert plain.whitening is None
    assert "whitening" not in plain.state_dict()
    assert "whitening" in whitening.state_dict()
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    plain.eval()
    whitening.eval()
    torch.testing.assert_close(whitening(images), plain(images))  # nothing was computed yet
    matrix = within_class_whitening(*scattered(5, 4, 8))
    whitening.whitening.copy_(matrix)
    rows = plain(images) @ matrix.float()
    expected = rows / rows.norm(dim=1, keepdim=True) if normalize else rows
    torch.testing.assert_close(whitening(images), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = plain(images)
        found = whitening(images)
    torch.testing.assert_close(
        found, torch.nn.functional.normalize(rows @ matrix.float()) if normalize else rows @ matrix.float()
    )
    with whitening.not_whitened():
        torch.testing.assert_close(whitening(images), plain(images))
    plain.train()
    whitening.train()
    torch.testing.assert_close(whitening(images), plain(images))


def test_views_are_averaged_before_they_are_whitened() -> None:
    one, several = (
        build_embedder(ConvSpec(**SMALL, views=3, whitening=on), seed=1).eval() for on in (False, True)
    )
    several.whitening.copy_(within_class_whitening(*scattered(5, 4, 8)))
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    rows = one(images) @ several.whitening
    torch.testing.assert_close(several(images), rows / rows.norm(dim=1, keepdim=True))
