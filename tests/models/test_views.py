"""Views of an image at test time: what each of them is, and the mean of their embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmetric.models.build import build_embedder
from distmetric.models.spec import MAX_VIEWS, ConvSpec
from distmetric.models.views import _VIEWS, view

SMALL = {"widths": [4, 4], "embedding_dim": 8, "image_size": 12}


def blob(height: int, width: int, row: float, column: float) -> torch.Tensor:
    """(1, 1, H, W) a soft spot."""
    down, right = torch.arange(height)[:, None] - row, torch.arange(width) - column
    return torch.exp(-(down**2 + right**2) / 8.0)[None, None]


def center_of(image: torch.Tensor) -> tuple[float, float]:
    """(row, column) of the mass of an image."""
    mass = image[0, 0].double()
    rows, columns = torch.arange(mass.shape[0]), torch.arange(mass.shape[1])
    return float((mass.sum(1) * rows).sum() / mass.sum()), float((mass.sum(0) * columns).sum() / mass.sum())


@pytest.mark.parametrize("number", range(MAX_VIEWS))
def test_a_view_turns_shifts_and_scales_about_the_center(number) -> None:
    height, width, row, column = 40, 60, 12.0, 41.0
    found = center_of(view(blob(height, width, row, column), number))
    scale, sine, right, down = (1.0, 0.0, 0.0, 0.0) if number == 0 else _VIEWS[number - 1]
    # In pixels from the center, where y points down and a positive sine turns counterclockwise on the screen.
    x, y = column - (width - 1) / 2, row - (height - 1) / 2
    cosine = (1 - sine**2) ** 0.5
    x, y = scale * (cosine * x + sine * y), scale * (-sine * x + cosine * y)
    expected = (
        y + down * height / 2 * scale + (height - 1) / 2,
        x + right * width / 2 * scale + (width - 1) / 2,
    )
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_there_are_as_many_as_settings_allow() -> None:
    assert 1 + len(_VIEWS) == MAX_VIEWS
    with pytest.raises(ValueError, match="views=10 is wrong: 1 to 9 are known"):
        ConvSpec(name="conv", views=10)
    with pytest.raises(ValueError, match="views=0 is wrong"):
        ConvSpec(name="conv", views=0)


def test_the_embedding_is_the_mean_over_views_where_nothing_is_trained() -> None:
    one, three = (build_embedder(ConvSpec(**SMALL, views=count), seed=1) for count in (1, 3))
    images = torch.randint(256, (5, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(images), three(images))  # in training
    one.eval()
    three.eval()
    rows = torch.stack([one(view(images / 255, number)) for number in range(3)]).mean(0)
    torch.testing.assert_close(three(images), rows / rows.norm(dim=1, keepdim=True))
    assert not torch.allclose(three(images), one(images), atol=1e-3)
    torch.testing.assert_close(three(images / 255), three(images))


def test_clips_and_attributes_are_seen_in_views_too() -> None:
    values = {"hue": ["red", "blue"]}
    spec = ConvSpec(**SMALL, views=4, frames_per_clip=3, attributes=["hue"])
    plain = ConvSpec(**SMALL, frames_per_clip=3, attributes=["hue"])
    clips = torch.rand(2, 3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    several, one = (build_embedder(each, 1, attribute_values=values).eval() for each in (spec, plain))
    seen = [
        one(view(clips.flatten(0, 1), number).view_as(clips), with_attributes=True) for number in range(4)
    ]
    rows = torch.stack([embeddings for embeddings, _ in seen]).mean(0)
    embeddings, logits = several(clips, with_attributes=True)
    torch.testing.assert_close(embeddings, rows / rows.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits["hue"], torch.stack([each["hue"] for _, each in seen]).mean(0))
