"""Ingest makes one catalog of equal images, lists what it leaves out, and never leaves half of one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distmetric.data.catalog import Catalog
from distmetric.data.decode import decode_image
from distmetric.data.ingest import ingest
from distmetric.errors import InputError
from image_sources import FILES, make_folder, make_parquet, make_zip, png, rows_of


def test_a_folder_and_the_zip_of_it_give_the_same_catalog(tmp_path: Path, out: Path) -> None:
    folder = ingest([make_folder(tmp_path / "in", FILES)], out)
    zipped = ingest([make_zip(tmp_path / "in.zip", dict(reversed(FILES.items())))], out)
    rooted = ingest([make_zip(tmp_path / "in2.zip", {f"all/{n}": d for n, d in FILES.items()})], out)
    assert folder.fingerprint == zipped.fingerprint == rooted.fingerprint
    assert rows_of(rooted) == {(name[0], name[0], data) for name, data in FILES.items()}
    assert (folder.rows, folder.classes, folder.splits) == (8, 4, {"test": 4, "train": 4})
    assert folder.split_classes == {"test": 2, "train": 2}
    catalog = Catalog.open(rooted.path)
    assert (catalog.widths[0], catalog.heights[0]) == (7, 6)
    assert catalog.source_path(0) == f"{tmp_path}/in2.zip/all/a/0.png"
    assert json.loads(json.dumps(folder.to_dict()))["fingerprint"] == catalog.fingerprint


def bad_files() -> dict[str, bytes]:
    large = png(1, size=40)
    return {
        "a/empty.png": b"",
        "a/page.jpg": b"<html>",
        "a/short.png": large[: len(large) // 2],
        "a/wide.png": png(3, size=64),
        "a/long.png": png(4, size=50) + bytes(200_000),
        "loose.png": png(5),
    }


BAD = {
    "a/empty.png": "empty",
    "a/page.jpg": "not an image",
    "a/short.png": "truncated",
    "a/wide.png": "too many pixels (65 x 64, limit 4,000)",
    "a/long.png": "too many bytes (limit 100,000)",
    "loose.png": "in no class folder",
}


LIMITS = {"max_pixels": 4_000, "max_image_bytes": 100_000}


@pytest.mark.parametrize("zipped", [True, False])
def test_bad_images_are_listed_with_path_and_reason(tmp_path: Path, out: Path, zipped: bool) -> None:
    files = FILES | bad_files()
    source = make_zip(tmp_path / "in.zip", files) if zipped else make_folder(tmp_path / "in", files)
    result = ingest([source], out, **LIMITS)  # type: ignore[arg-type]
    assert dict(result.bad_images) == {f"{source}/{name}": reason for name, reason in BAD.items()}
    assert result.bad_counts == {reason.partition(" (")[0]: 1 for reason in BAD.values()}
    assert rows_of(result) == {(name[0], name[0], data) for name, data in FILES.items()}


@pytest.mark.parametrize("name", sorted(BAD))
def test_on_bad_image_error_stops_and_leaves_nothing(tmp_path: Path, out: Path, name: str) -> None:
    source = make_folder(tmp_path / "in", FILES | {name: bad_files()[name]})
    with pytest.raises(InputError, match="set on_bad_image=skip") as caught:
        ingest([source], out, on_bad_image="error", **LIMITS)  # type: ignore[arg-type]
    assert f"{source}/{name}: {BAD[name]}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.parent.exists()


def test_too_little_is_left(tmp_path: Path, out: Path) -> None:
    for files, message in (
        ({"a/1.png": png(1), "a/2.png": png(2)}, r"one class only \('a'\)"),
        ({"a/1.txt": b""}, "no usable image; unusable: none; ignored files: 1"),
        ({"1.png": png(1), "2.png": png(2)}, "no usable image; unusable: 2 in no class folder"),
    ):
        with pytest.raises(InputError, match=message):
            ingest([make_zip(tmp_path / "in.zip", files)], out)
        assert not out.parent.exists()


def test_a_failed_ingest_keeps_the_old_catalog(tmp_path: Path, out: Path) -> None:
    old = ingest([make_folder(tmp_path / "in", FILES)], out)
    with pytest.raises(InputError):
        ingest([make_zip(tmp_path / "in.zip", FILES | {"a/9.png": b"x"})], out, on_bad_image="error")
    assert Catalog.open(out).fingerprint == old.fingerprint
    assert list(out.parent.iterdir()) == [out]
    new = ingest([make_zip(tmp_path / "in.zip", FILES | {"a/9.png": png(9)})], out)
    assert Catalog.open(out).fingerprint == new.fingerprint != old.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_by": "chance"}, "split_by='chance': choose ratio, group or given"),
        ({"split_by": "group"}, "split_by=group needs test_groups"),
        ({"split_by": "group", "test_groups": ["e"]}, "no group is called 'e'"),
        ({"split_by": "given"}, "a/0.png: has no split"),
        ({"test_fraction": 1.5}, "test_fraction=1.5"),
        ({"on_bad_image": "ignore"}, "on_bad_image='ignore': choose skip or error"),
        (
            {"turned_classes": True},
            "turned_classes=true .* set split_by=group with test_groups, or split_by=given",
        ),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, out: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest([make_folder(tmp_path / "in", FILES)], out, **options)


def test_classes_for_training_are_turned_by_quarters_and_others_are_not(tmp_path: Path, out: Path) -> None:
    files = {f"{group}/{i}/{k}.png": png(10 * i + k) for group in "xyz" for i in range(2) for k in range(3)}
    source = make_folder(tmp_path / "in", files)
    grouped = {"split_by": "group", "test_groups": ["y"], "validation_groups": ["z"], "turned_classes": True}
    result = ingest([source], out, **grouped)
    assert result.split_classes == {"test": 2, "train": 8, "validation": 2}
    assert result.splits == {"test": 6, "train": 24, "validation": 6}
    catalog = Catalog.open(out)
    images: dict[str, list[np.ndarray]] = {}
    for row in range(len(catalog)):
        pixels = np.asarray(Image.open(io.BytesIO(catalog.image_bytes(row))))
        images.setdefault(catalog.label_names[catalog.labels[row]], []).append(pixels)
        assert (catalog.heights[row], catalog.widths[row]) == pixels.shape[:2]
    assert {name for name in images if "@" in name} == {
        f"x/{i}@{turn}" for i in (0, 1) for turn in (90, 180, 270)
    }
    for i in (0, 1):
        for quarters in (1, 2, 3):
            for turned, image in zip(images[f"x/{i}@{90 * quarters}"], images[f"x/{i}"], strict=True):
                np.testing.assert_array_equal(turned, np.rot90(image, quarters))
    again = ingest([source], out, **grouped)
    assert again.fingerprint == result.fingerprint


def test_what_png_cannot_hold_and_orientations_are_minded(tmp_path: Path, out: Path) -> None:
    colors = Image.new("CMYK", (5, 3), (10, 200, 30, 0))
    upright = Image.new("L", (5, 3), 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    kept: dict[str, bytes] = {}
    for name, image, more in (("cmyk", colors, {}), ("exif", upright, {"exif": exif})):
        stored = io.BytesIO()
        image.save(stored, "JPEG", **more)
        kept[name] = stored.getvalue()
    files = {f"x/{name}/{k}.jpg": data for name, data in kept.items() for k in range(2)}
    source = make_folder(tmp_path / "in", files | {"y/0/0.png": png(1)})
    ingest([source], out, split_by="group", test_groups=["y"], turned_classes=True)
    catalog = Catalog.open(out)
    sizes = {
        catalog.label_names[label]: (width, height)
        for label, width, height in zip(catalog.labels, catalog.widths, catalog.heights, strict=True)
    }
    assert (sizes["x/cmyk@90"], sizes["x/cmyk@180"]) == ((3, 5), (5, 3))
    assert (sizes["x/exif@90"], sizes["x/exif@180"]) == ((5, 3), (3, 5))


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_deep_gray_images_turned_are_trained_on_as_the_others_are(
    mode: str, dtype: Any, tmp_path: Path, out: Path
) -> None:
    stored = io.BytesIO()
    values = np.arange(15, dtype=dtype).reshape(3, 5) * 4000
    Image.fromarray(values).save(stored, "TIFF")
    assert Image.open(io.BytesIO(stored.getvalue())).mode == mode
    source = make_folder(tmp_path / "in", {"x/0/0.tif": stored.getvalue(), "y/0/0.png": png(1)})
    ingest([source], out, split_by="group", test_groups=["y"], turned_classes=True)
    catalog = Catalog.open(out)
    rows = {catalog.label_names[label]: catalog.image_bytes(row) for row, label in enumerate(catalog.labels)}
    upright = decode_image(rows["x/0"], (3, 5), 1)
    assert len(np.unique(upright)) == 15
    for degrees, size in ((90, (5, 3)), (180, (3, 5)), (270, (5, 3))):
        turned = decode_image(rows[f"x/0@{degrees}"], size, 1)
        np.testing.assert_array_equal(turned[0], np.rot90(upright[0], degrees // 90))


def test_ratio_splits_are_seeded_and_class_disjoint(tmp_path: Path, out: Path) -> None:
    files = {f"class {i}/{k}.png": png(k) for i in range(20) for k in range(2)}
    source = make_folder(tmp_path / "in", files)
    result = ingest([source], out, test_fraction=0.25, validation_fraction=0.1)
    assert result.split_classes == {"test": 5, "train": 13, "validation": 2}
    catalog = Catalog.open(out)
    seen = [set(catalog.labels[catalog.rows(split)].tolist()) for split in catalog.splits]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20
    assert ingest([source], out, test_fraction=0.25, seed=1).fingerprint != result.fingerprint


def test_given_splits_have_to_be_disjoint(tmp_path: Path, out: Path) -> None:
    columns = {
        "image": [png(1), png(2), png(3)],
        "label": ["a", "a", "b"],
        "split": ["train", "test", "train"],
    }
    source = make_parquet(tmp_path / "in.parquet", columns)
    with pytest.raises(InputError, match="class 'a' is in train and in test"):
        ingest([source], out, split_by="given")
    assert ingest([source], out, split_by="given", allow_shared_classes=True).splits == {
        "test": 1,
        "train": 2,
    }


def test_a_class_in_two_groups_cannot_be_split_by_group(tmp_path: Path, out: Path) -> None:
    columns = {"image": [png(1), png(2), png(3)], "label": ["a", "a", "b"], "group": ["x", "y", "z"]}
    source = make_parquet(tmp_path / "in.parquet", columns)
    with pytest.raises(InputError, match=r"class 'a' is in several groups \(x, y\)"):
        ingest([source], out, split_by="group", test_groups=["x"])
    assert ingest([source], out).rows == 3


def test_large_images_are_checked_by_threads_in_order(tmp_path: Path, out: Path) -> None:
    files = {f"{'ab'[i % 2]}/{i:02}.png": png(i, size=110) for i in range(12)} | {
        "b/05.png": png(5, 110)[:9000]
    }
    one, three = (ingest([make_folder(tmp_path / "in", files)], out, threads=threads) for threads in (1, 3))
    assert one.fingerprint == three.fingerprint
    assert one.bad_counts == three.bad_counts == {"truncated": 1}
