"""Small variations of an image whose embeddings are averaged where a model is used, not trained."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

# Of each view, beside the image itself: how many times as large, sine of its turn, shift to the right and down as
# fractions of half a side.
_VIEWS: Final = (
    (1.0, 0.26, 0.0, 0.0),
    (1.0, -0.26, 0.0, 0.0),
    (1.0, 0.0, 0.07, 0.07),
    (1.0, 0.0, -0.07, -0.07),
    (1.0, 0.0, 0.07, -0.07),
    (1.0, 0.0, -0.07, 0.07),
    (1.1, 0.0, 0.0, 0.0),
    (0.9, 0.0, 0.0, 0.0),
)


def view(images: Tensor, number: int) -> Tensor:
    """A view of images: 0 is the images; 1, 2 turn them by 15 degrees, 3 to 6 shift them, 7, 8 enlarge and shrink them.

    Args:
        images: (B, C, H, W) floating point.
        number: 0 .. `spec.MAX_VIEWS` - 1.

    Returns:
        The same shape, resampled bilinearly; what comes in from outside is the border.
    """
    if number == 0:
        return images
    scale, sine, right, down = _VIEWS[number - 1]
    height, width = images.shape[-2:]
    cosine = (1 - sine * sine) ** 0.5
    # From places of the view to those of the image, from -1 to 1; angles hold in pixels.
    rows = [
        [cosine / scale, -sine / scale * height / width, -right],
        [sine / scale * width / height, cosine / scale, -down],
    ]
    matrix = torch.tensor(rows, dtype=images.dtype, device=images.device)
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    # Not `len`, which an export would take for a number that never changes.
    grid = grid.expand(images.shape[0], height, width, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
