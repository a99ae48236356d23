"""Catalogs to read: glyphs, and photograph-like JPEG images that are drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from distmetric.data.augment import AugmentSpec
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.glyphs import glyph_catalog

_PER_CLASS = 8
_SMALL = AugmentSpec(rotation=10, translate=0.1, scale_min=0.9, scale_max=1.1)
_LARGE = AugmentSpec(crop_area=0.3, flip=0.5, fill="border")


@dataclass(frozen=True)
class ImageSet:
    """Images, and what becomes of them.

    Args:
        make: Writes the catalog with at least so many images into a folder.
        size: Side that they are decoded to.
        channels: 1 or 3.
        held: Whether they are decoded once, before.
        augment: How they vary.
        described: In words.
    """

    make: Callable[[Path, int], Path]
    size: int
    channels: int
    held: bool
    augment: AugmentSpec
    described: str


def _glyphs(folder: Path, images: int) -> Path:
    return glyph_catalog(folder, max_classes=max(60, -(-images // _PER_CLASS)))


def _jpegs(side: int) -> Callable[[Path, int], Path]:
    def make(folder: Path, images: int) -> Path:
        path = folder / f"jpeg{side}.arrow"
        with CatalogWriter(path) as writer:
            for number in range(images):
                name = str(number // _PER_CLASS)
                writer.add(
                    _jpeg(side, number),
                    name,
                    group=name,
                    path=f"{number}.jpg",
                    width=side,
                    height=side,
                    split="train",
                )
        return path

    return make


def _jpeg(side: int, seed: int) -> bytes:
    """Blobs of color at several scales with a little noise, which takes about as many bytes as a photograph."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64):
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    pixels = pixels * (200 / pixels.max()) + generator.normal(0, 4, pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


SETS = {
    "glyphs_held": ImageSet(_glyphs, 28, 1, True, _SMALL, "PNG 28 px, decoded once"),
    "glyphs": ImageSet(_glyphs, 28, 1, False, _SMALL, "PNG 28 px"),
    "jpeg256_held": ImageSet(_jpegs(256), 224, 3, True, _LARGE, "JPEG 256 px to 224, decoded once"),
    "jpeg256": ImageSet(_jpegs(256), 224, 3, False, _LARGE, "JPEG 256 px to 224"),
    "jpeg512": ImageSet(_jpegs(512), 224, 3, False, _LARGE, "JPEG 512 px to 224"),
}


def open_set(name: str, folder: Path, images: int) -> Catalog:
    """The catalog of a set, drawn into a folder; all rows that count are in its split train."""
    return Catalog.open(SETS[name].make(folder, images))
