"""The configuration of jobs/ingest.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LayoutName = Literal["cub200", "cars196", "sop", "inshop", "market1501", "webface", "lfw"]


@dataclass(kw_only=True, frozen=True)
class IngestJob:
    """jobs/ingest.py: images and labels into one catalog; see `distmetric.data.ingest.ingest`."""

    source: str | list[str]
    """Image folder, zip, tar, Parquet file or folder of them; several are merged by class name."""
    out: str
    """Catalog file to write."""
    layout: LayoutName | list[LayoutName] | None = None
    """Published data set whose archive the source is (cub200, cars196, sop, inshop, market1501, webface, lfw), or one
    for each source; null: each folder is a class."""
    manifest: str | None = None
    """CSV of paths and labels, for other layouts; of a published data set, its list, where it is not in the source."""
    tracklet_folders: bool = False
    """Whether the innermost folders are tracklets, whose frames are numbered at the end of their names."""
    split_by: Literal["ratio", "group", "given"] | None = None
    """How classes are divided into training and test: ratio, group or given; null: given with a layout, else ratio."""
    test_fraction: float = 0.5
    """Share of the classes for testing (ratio)."""
    validation_fraction: float = 0.0
    """Share of the classes for validation (ratio)."""
    test_groups: list[str] = field(default_factory=list)
    """Groups for testing (group)."""
    validation_groups: list[str] = field(default_factory=list)
    """Groups for validation (group)."""
    seed: int = 0
    """Key of the split (ratio), and of joined classes."""
    turned_classes: bool = False
    """Whether classes for training are there four times, turned by quarters as classes of their own (group, given)."""
    joined_classes: int = 0
    """How many classes for training are added, each two or three others drawn into one (group, given)."""
    allow_shared_classes: bool = False
    """Accept a class in training and in test (given)."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """List unusable images, or stop at the first."""
    max_image_bytes: int = 64 << 20
    """Most bytes of one image file, unpacked."""
    max_pixels: int = 100_000_000
    """Most pixels of one image."""
