"""Published data sets as their archives have them: what is said about each image, in splits as published.

A layout is one module with one function, from the names and lists of a source to labels by path. It looks at no
image. What it does not name is ignored, and what it names and the source does not have is listed as unusable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distmetric.data.items import Labels
from distmetric.data.layouts import (
    cars196,
    cub200,
    inshop,
    lfw,
    market1501,
    market1501_attributes,
    sop,
    webface,
)
from distmetric.data.layouts.annotations import LayoutFiles

__all__ = ["LAYOUTS", "Layout"]


@dataclass(frozen=True)
class Layout:
    """How a published data set is read.

    Attributes:
        read: From files to labels by path within the source.
        annotation: The file that people have beside the archive, and may name as `manifest`; None if there is none.
    """

    read: Callable[[LayoutFiles], Mapping[str, Labels]]
    annotation: str | None = None


LAYOUTS: dict[str, Layout] = {
    "cub200": Layout(cub200.read),
    "cars196": Layout(cars196.read, cars196.ANNOTATION),
    "sop": Layout(sop.read),
    "inshop": Layout(inshop.read, inshop.ANNOTATION),
    "market1501": Layout(market1501.read, market1501_attributes.ANNOTATION),
    "webface": Layout(webface.read),
    "lfw": Layout(lfw.read),
}
