"""An image on its way from a source to a catalog, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distmetric.data.decode import BadImageError

NO_FOLDER = "in no class folder"


@dataclass(frozen=True)
class Labels:
    """What is said about an image.

    Args:
        class_name: Name of its class; "" where there is none.
        group: Group of that class, if it is not the first part of the class's name.
        split: Split that the source puts it in.
        camera: Number of the camera.
        attributes: Attribute values by name.
        tracklet: Name of the tracklet that it is a frame of.
        frame: Its place there.
    """

    class_name: str
    group: str | None = None
    split: str | None = None
    camera: int | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict)
    tracklet: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Item:
    """An image as a source gives it.

    Args:
        path: Its path within the source.
        origin: How to name it to people: source and path.
        labels: What is said about it.
        data: The encoded image.
        problem: Why it cannot be used, or None.
    """

    path: str
    origin: str
    labels: Labels = Labels("")
    data: bytes = b""
    problem: BadImageError | None = None

    @property
    def class_name(self) -> str:
        """Name of its class; "" where there is none."""
        return self.labels.class_name

    @property
    def group(self) -> str:
        """Its group; by default the first part of the class's name."""
        return self.labels.group or self.class_name.partition("/")[0]
