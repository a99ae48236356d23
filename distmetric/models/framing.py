"""What is drawn on an image, brought into its middle and to one size."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_FROM_BACKGROUND: Final = 0.25  # how far a pixel is from the background, of [0, 1], where something is drawn


def framed(images: Tensor, fraction: float) -> Tensor:
    """Images with their content in the middle, its longer side a fraction of theirs.

    Content is what differs by more than 0.25 from the background, the mean of the pixels along the border (and of the
    channels). Its bounding box is moved to the middle and enlarged or shrunk, its proportions kept.

    Args:
        images: (B, C, H, W) floating point in [0, 1].
        fraction: Of the image's side, above 0 and up to 1; where they differ, of the side along which it is longer.

    Returns:
        The same shape, resampled bilinearly; what comes in from outside is the border.

    Cost: a pass over the pixels for the box, and one to resample.

    Corner cases: an image without content stays as it is; so does, but for the size, one that is full of it.
    """
    height, width = images.shape[-2:]
    gray = images.detach().mean(1)
    rims = [gray[:, 0, :], gray[:, -1, :], gray[:, :, 0], gray[:, :, -1]]
    background = torch.cat(rims, 1).mean(1)
    drawn = ((gray - background[:, None, None]).abs() > _FROM_BACKGROUND).to(images.dtype)
    # From -1 to 1 over the image: middle and half length of the content along each axis.
    (down, half_height), (right, half_width) = _extent(drawn.amax(2)), _extent(drawn.amax(1))
    factor = torch.maximum(half_height, half_width) / fraction
    # Not `F.affine_grid`: its size would be a number that never changes in an export.
    across = factor[:, None] * _centers(width, images) + right[:, None]
    along = factor[:, None] * _centers(height, images) + down[:, None]
    grid = torch.stack(
        [across[:, None].expand(-1, height, -1), along[:, :, None].expand(-1, -1, width)], dim=3
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _extent(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half length of what is between the first and the last 1 of (B, L), the whole length without one."""
    length = lines.shape[1]
    place = torch.arange(length, device=lines.device, dtype=lines.dtype)
    outside = lines == 0
    first = torch.where(outside, length, place).amin(1)
    last = torch.where(outside, -1, place).amax(1)
    blank = last < 0
    first, last = torch.where(blank, 0, first), torch.where(blank, length - 1, last)
    return (first + last + 1) / length - 1, (last + 1 - first) / length


def _centers(count: int, like: Tensor) -> Tensor:
    """Of pixels, from -1 to 1."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1) / count - 1
