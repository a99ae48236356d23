"""Small pictures of a data set's images inside a page: one file for each, light and dark alike."""

import base64
import io
from html import escape
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distmetric.errors import InputError

MAX_SIDE = 112
"""Pixels of the longer side of what is embedded."""
CRISP_SIDE = 64
"""Up to this side images are kept as they are and magnified without blur."""

Pixels = NDArray[np.uint8]


class Images(Protocol):
    """The images of a report: an array (N, C, H, W) of uint8, or anything that reads rows of one when asked."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Any, /) -> Any:
        """(n, C, H, W) uint8 of int64 (n,) row numbers."""


def pick(images: Images, rows: NDArray[np.int64]) -> Pixels:
    """Read some images.

    Args:
        images: where from.
        rows: (n,) int64 row numbers, repeated ones allowed.

    Returns:
        (n, C, H, W) uint8, one channel (gray) or three (RGB).

    Raises:
        InputError: when they are of another type or shape.
    """
    pixels = np.asarray(images[rows])
    check_images(pixels)
    return pixels


def check_images(images: Pixels) -> None:
    """Refuse images that cannot be drawn.

    Args:
        images: should be (N, C, H, W) uint8 with C of 1 or 3.

    Raises:
        InputError: when they are not.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.uint8:
        raise InputError(
            f"images must be uint8 of shape (N, 1, H, W) or (N, 3, H, W), got {images.dtype} {images.shape}"
        )


def thumbnail(image: Pixels, alt: str) -> str:
    """One image as HTML, at most `MAX_SIDE` pixels wide and high.

    Args:
        image: (C, H, W) uint8.
        alt: text alternative, any text.

    Returns:
        An `img` element that holds the picture: PNG where it is small, JPEG elsewhere.
    """
    picture = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
    crisp = max(picture.size) <= CRISP_SIDE
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if crisp:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=82, optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/{"png" if crisp else "jpeg"};base64,{content}" alt="{escape(alt)}"'
        f' width="{picture.width}" height="{picture.height}"{" class=small" if crisp else ""}>'
    )


def shot(image: Pixels, alt: str, caption: str = "", *, right: bool | None = None) -> str:
    """An image with a caption, framed and marked as right or wrong where it is one of them.

    Args:
        image: (C, H, W) uint8.
        alt: text alternative, any text; whether it is right is added.
        caption: any text below it.
        right: whether it is of the class that it should be; None where that is no question.

    Returns:
        The HTML text.
    """
    kind = {None: "", True: " right", False: " wrong"}[right]
    mark = {None: "", True: "<b>✓</b> ", False: "<b>✗</b> "}[right]
    alt = alt if right is None else f"{'right' if right else 'wrong'}: {alt}"
    told = f"<figcaption>{mark}{escape(caption)}</figcaption>"
    return f'<figure class="shot{kind}">{thumbnail(image, alt)}{told}</figure>'
