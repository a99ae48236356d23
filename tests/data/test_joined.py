"""Classes made of others: what is for training in new arrangements, nothing else, and the same ones again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.data.items import Item, Labels
from distmetric.data.joined import Joiner
from distmetric.errors import InputError
from image_sources import make_folder

SIDE = 40


def stored(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def drawn(color: tuple[int, int, int], background: int = 255, side: int = SIDE) -> bytes:
    """A bar of one color, off the middle."""
    pixels = np.full((side, side, 3), background, np.uint8)
    pixels[side // 4 : side // 2, side // 8 : side - side // 4] = color
    return stored(pixels)


def joined(images: dict[str, list[bytes]], count: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    joiner = Joiner(count, seed)
    for name, kept in images.items():
        for place, data in enumerate(kept):
            joiner.keep(Item(f"{name}/{place}", f"{name}/{place}", Labels(name), data))
    found = [item for images in joiner.joined() for item, _ in images]
    return [(item.class_name, np.asarray(Image.open(io.BytesIO(item.data)))) for item in found]


def test_a_joined_image_shows_every_part_and_only_lines_of_parts() -> None:
    # What is darker wins, channel by channel: a red and a blue bar keep their colors, and are black where they cross.
    found = joined({"red": [drawn((255, 0, 0))] * 3, "blue": [drawn((0, 0, 255))] * 5}, 60)
    assert len({name for name, _ in found}) == 60
    both = 0
    for _, pixels in found:
        assert pixels.shape == (SIDE, SIDE, 3)
        assert (pixels[..., 1] == np.minimum(pixels[..., 0], pixels[..., 2])).all(), (
            "green is gone with either"
        )
        red, blue = (pixels[..., 2] < 128).sum(), (pixels[..., 0] < 128).sum()
        assert red + blue > 0
        # A bar is 10 x 25 of 40 x 40 pixels, squeezed to 0.45 to 0.8 of either side, and there at most three times.
        assert red + blue <= 3 * 250 * 0.8**2 * 1.3
        both += bool(red and blue)
    assert 0.3 < both / len(found) < 1  # a class may be of one part twice


def test_lines_may_be_brighter_than_what_they_are_on() -> None:
    found = joined({"a": [drawn((255, 255, 0), 0)] * 2, "b": [drawn((255, 255, 0), 0)] * 2}, 5)
    for _, pixels in found:
        assert (pixels[..., 2] == 0).all()
        assert pixels[..., 0].max() == 255
        assert np.median(pixels[..., 0]) == 0


def test_every_image_of_a_part_is_in_a_class_once_at_most() -> None:
    gray = {
        name: [stored(np.full((9, 9), value, np.uint8)) for value in values]
        for name, values in {"a": (10, 20, 30), "b": (50, 60, 70, 80, 90)}.items()
    }
    found = joined(gray, 30)
    for name in {name for name, _ in found}:
        pixels = [image for other, image in found if other == name]
        assert len(pixels) in (3, 5)
        assert len({image.tobytes() for image in pixels}) == len(pixels)
        assert all(image.ndim == 2 for image in pixels), "gray parts make gray images"


def test_the_same_seed_makes_the_same_classes_and_more_of_them_begin_alike() -> None:
    images = {name: [drawn((40 * i, 0, 9))] * 2 for i, name in enumerate("abcd")}
    first, again, more, other = (joined(images, *given) for given in ((4,), (4,), (7,), (4, 1)))
    assert [pixels.tobytes() for _, pixels in first] == [pixels.tobytes() for _, pixels in again]
    assert [pixels.tobytes() for _, pixels in first] == [pixels.tobytes() for _, pixels in more[: len(first)]]
    assert [pixels.tobytes() for _, pixels in first] != [pixels.tobytes() for _, pixels in other]


def test_ingest_joins_what_is_for_training_alone(tmp_path: Path, out: Path) -> None:
    colors = {"train": (0, 0, 0), "test": (255, 0, 0), "check": (0, 255, 0)}
    files = {
        f"{group}/{i}/{k}.png": drawn(color)
        for group, color in colors.items()
        for i in range(3)
        for k in range(4)
    }
    source = make_folder(tmp_path / "in", files)
    options = {"split_by": "group", "test_groups": ["test"], "validation_groups": ["check"]}
    result = ingest([source], out, **options, joined_classes=5)
    assert result.split_classes == {"test": 3, "train": 8, "validation": 3}
    assert result.splits == {"test": 12, "train": 12 + 20, "validation": 12}
    catalog = Catalog.open(out)
    for row in range(len(catalog)):
        if catalog.label_names[catalog.labels[row]].startswith("joined/"):
            pixels = np.asarray(Image.open(io.BytesIO(catalog.image_bytes(row))))
            assert (pixels == pixels[..., :1]).all(), "of black parts alone"
    again = ingest([source], out, **options, joined_classes=5)
    assert again.fingerprint == result.fingerprint
    assert ingest([source], out, **options, joined_classes=5, seed=1).fingerprint != result.fingerprint
    both = ingest([source], out, **options, joined_classes=5, turned_classes=True)
    assert both.split_classes["train"] == 3 * 4 + 5


def test_what_cannot_be_joined_is_told_and_leaves_the_catalog_as_it_was(tmp_path: Path, out: Path) -> None:
    files = {f"{name}/0/{k}.png": drawn((0, 0, 0)) for name in ("joined", "b", "c") for k in range(2)}
    source = make_folder(tmp_path / "in", files)
    for options, message in (
        ({"split_by": "group", "test_groups": ["b"]}, "class 'joined/0' is named like a joined one"),
        (
            {"split_by": "group", "test_groups": ["b"], "validation_groups": ["joined"]},
            "class 'joined/0' is named like a joined one",
        ),
        ({}, "joined_classes=3 needs to know beforehand which classes are for training"),
        ({"joined_classes": -1}, "joined_classes=-1 is wrong"),
    ):
        with pytest.raises(InputError, match=message):
            ingest([source], out, **{"joined_classes": 3, **options})
    lone = make_folder(tmp_path / "lone", {name: files[name] for name in files if not name.startswith("j")})
    with pytest.raises(
        InputError, match="joins classes for training, of which there are 1: leave two or more"
    ):
        ingest([lone], out, split_by="group", test_groups=["b"], joined_classes=3)
    assert not out.exists()
