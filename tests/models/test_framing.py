"""Content in the middle of an image and of one size, wherever and however large it was drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmetric.models.build import build_embedder
from distmetric.models.framing import framed
from distmetric.models.spec import ConvSpec

LIGHT, DARK = 1.0, 0.0


def bar(
    height: int, width: int, rows: tuple[int, int], columns: tuple[int, int], ink: float = DARK
) -> torch.Tensor:
    """(1, H, W) a filled rectangle on what is the other of light and dark; ends are exclusive."""
    image = torch.full((1, height, width), LIGHT - ink)
    image[:, rows[0] : rows[1], columns[0] : columns[1]] = ink
    return image


def box(image: torch.Tensor, ink: float = DARK) -> tuple[int, int, int, int]:
    """First and last row and column of the pixels that are nearer to the ink than to the background."""
    places = ((image[0] - ink).abs() < 0.5).nonzero()
    return (*places.amin(0).tolist(), *places.amax(0).tolist())


@given(
    *(st.integers(0, 20), st.integers(8, 20), st.integers(0, 30), st.integers(8, 30)),
    *(st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from([LIGHT, DARK])),
)
def test_a_bar_is_in_the_middle_with_its_longer_side_a_fraction(
    top: int, tall: int, left: int, wide: int, fraction: float, ink: float
) -> None:
    height, width = 44, 64
    image = bar(height, width, (1 + top, 1 + top + tall), (1 + left, 1 + left + wide), ink)
    found = framed(image[None], fraction)[0]
    factor = fraction / max(tall / height, wide / width)
    first_row, first_column, last_row, last_column = box(found, ink)
    for first, last, side, length in (
        (first_row, last_row, height, factor * tall),
        (first_column, last_column, width, factor * wide),
    ):
        assert abs(first + last - (side - 1)) <= 1.01, "in the middle"
        assert abs(last + 1 - first - length) < 2, "of its size, to a pixel"


def test_where_and_how_large_it_was_makes_no_difference() -> None:
    drawn = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).round()
    drawn[0], drawn[:, 0], drawn[-1], drawn[:, -1] = 0, 0, 0, 0
    drawn[1, 1], drawn[-2, -2] = 1, 1  # its box is known
    images = torch.zeros(3, 1, 48, 48)
    images[0, 0, 2:14, 3:15] = drawn
    images[1, 0, 30:42, 20:32] = drawn
    images[2, 0, 6:42, 9:45] = drawn.repeat_interleave(3, 0).repeat_interleave(3, 1)
    first, second, larger = framed(images, 0.75)[:, 0]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert (first - larger).abs().mean() < 0.15  # three times as large is sharper
    assert ((first > 0.5) == (larger > 0.5)).double().mean() > 0.9


def test_every_image_of_a_batch_is_framed_as_it_is_alone() -> None:
    images = torch.stack([bar(20, 20, (2, 9), (1, 4)), bar(20, 20, (8, 11), (5, 19)), torch.ones(1, 20, 20)])
    together = framed(images, 0.8)
    for image, found in zip(images, together, strict=True):
        torch.testing.assert_close(framed(image[None], 0.8)[0], found)


def test_an_image_without_content_stays_and_one_full_of_it_is_resized() -> None:
    blank = torch.full((1, 1, 16, 16), 0.4)
    torch.testing.assert_close(framed(blank, 1.0), blank)
    faint = blank + 0.2 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(framed(faint, 1.0), faint)
    checks = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).double()[None, None]
    torch.testing.assert_close(framed(checks, 1.0), checks)
    assert framed(checks, 0.5).dtype == torch.float64


def test_colors_count_as_their_mean_and_are_moved_together() -> None:
    image = torch.ones(1, 3, 20, 20)
    image[:, :, 3:7, 4:8] = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    found = framed(image, 0.5)
    torch.testing.assert_close(found[0, 0], torch.ones(20, 20))
    torch.testing.assert_close(found[0, 1], found[0, 2])
    assert box(found[0, 1:2]) == (5, 5, 14, 14)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_embedder_frames_what_it_is_given(is_training: bool) -> None:
    settings = {"widths": [4, 4], "embedding_dim": 8, "image_size": 16, "pooling": "flatten"}
    framing, plain = (
        build_embedder(ConvSpec(**settings, framing=fraction), seed=1).train(is_training)
        for fraction in (0.8, 0.0)
    )
    images = torch.stack([bar(16, 16, (1 + i, 5 + i), (2, 5 + i)) for i in range(6)])
    torch.testing.assert_close(framing(images), plain(framed(images, 0.8)))
    assert not torch.allclose(plain(images), plain(framed(images, 0.8)), atol=1e-3)
    torch.testing.assert_close(framing((255 * images).to(torch.uint8)), framing(images))


def test_a_fraction_that_is_none_is_refused() -> None:
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"framing={wrong} is wrong: give a fraction of the image"):
            ConvSpec(framing=wrong)
