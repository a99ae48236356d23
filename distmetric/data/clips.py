"""Clips of T frames as samples: a tracklet takes the place that an image has otherwise, and stays one row."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from distmetric.data.catalog import Catalog
from distmetric.data.catalog_format import Integers
from distmetric.data.decode import ImageStore
from distmetric.data.tracklets import FrameSampling
from distmetric.errors import InputError


class SampleStore(Protocol):
    """Pixels of samples by catalog row: of images (B, C, H, W), or of clips (B, T, C, H, W)."""

    @property
    def catalog(self) -> Catalog:
        """Where the rows are."""

    def images(self, rows: Integers) -> Tensor:
        """Pixels of some rows as evaluation sees them, uint8."""

    def drawn(self, rows: Integers, step: int, pinned: bool = False) -> Tensor:
        """Pixels of some rows as the training step of that number sees them, before augmentation, uint8."""

    def close(self) -> None:
        """Let go of what is shared; see `ImageStore.close`."""


class ClipStore:
    """Clips by the row of their tracklet's first frame.

    Args:
        images: Reads frames.
        frames: Frames T of a clip.
        sampling: How training draws them.
        seed: Of the draws.
    """

    def __init__(
        self, images: ImageStore, frames: int, sampling: FrameSampling | None = None, seed: int = 0
    ) -> None:
        self._images, self._frames, self._seed = images, frames, seed
        self._sampling = sampling or FrameSampling()

    @property
    def catalog(self) -> Catalog:
        """Where the rows are."""
        return self._images.catalog

    def images(self, rows: Integers) -> Tensor:
        """Clips of evenly spaced frames.

        Args:
            rows: (B,) int64 rows of first frames, in any order, repeated ones allowed.

        Returns:
            uint8 (B, T, channels, height, width).

        Raises:
            IndexError: A row is no first frame.
            InputError: An image cannot be decoded.
        """
        return self._read(self.catalog.tracklets.spread(rows, self._frames))

    def drawn(self, rows: Integers, step: int, pinned: bool = False) -> Tensor:
        """Clips of frames that (seed, step, id) draw; otherwise as `images`."""
        ids = self.catalog.ids[rows]
        tracklets = self.catalog.tracklets
        return self._read(tracklets.drawn(rows, ids, self._frames, self._sampling, self._seed, step), pinned)

    def close(self) -> None:
        """Let go of what is shared; the store can be used on."""
        self._images.close()

    def _read(self, frames: Integers, pinned: bool = False) -> Tensor:
        pixels = self._images.images(frames.reshape(-1), pinned)
        return pixels.reshape(*frames.shape, *pixels.shape[1:])


def sample_rows(catalog: Catalog, split: str | None, frames: int | None) -> Integers:
    """The rows that samples are known by: those of images, or of the first frames of tracklets.

    Args:
        catalog: Where they are.
        split: One of its splits; None for all.
        frames: Frames of a clip; None for images.

    Returns:
        int64 (R,), ascending.

    Raises:
        InputError: The catalog has no such split.
    """
    rows = np.arange(len(catalog)) if split is None else catalog.rows(split)
    return rows if frames is None else rows[np.isin(rows, catalog.tracklets.rows, assume_unique=True)]


def held_frames(catalog: Catalog, rows: Integers, frames: int | None) -> Integers:
    """The rows of all images that samples are made of."""
    return rows if frames is None else catalog.tracklets.all_frames(rows)


def check_has_tracklets(catalog: Catalog, frames: int | None) -> None:
    """See that a catalog can be trained on as clips.

    Raises:
        InputError: If clips are wanted and no row of it is in a tracklet.
    """
    if frames is not None and not catalog.tracklets.known:
        raise InputError(
            f"{catalog.path}: has no tracklets, and model.frames_per_clip={frames} makes clips of them: ingest it with "
            "columns tracklet and frame, or set model.frames_per_clip=null"
        )
