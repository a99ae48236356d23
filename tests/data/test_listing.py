"""Images are listed by names alone, in an order that stays, and read one by one in any process."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from distmetric.data.decode import BadImageError
from distmetric.data.listing import ImageListing
from distmetric.errors import InputError
from image_sources import FILES, make_folder, make_parquet, make_zip, png


def make(path: Path, files: dict[str, bytes], zipped: bool) -> str:
    return make_zip(path.with_suffix(".zip"), files) if zipped else make_folder(path, files)


@pytest.mark.parametrize("zipped", [True, False])
def test_images_are_listed_in_order_of_their_names_less_what_holds_all(tmp_path: Path, zipped: bool) -> None:
    files = {f"all/{name}": data for name, data in reversed(FILES.items())} | {"all/a/notes.txt": b"x"}
    source = make(tmp_path / "in", files, zipped)
    listing = ImageListing(source)
    images = listing.images(0, len(listing))
    found = [(image.path, image.class_name, listing.reader.read(image)) for image in images]
    assert found == [(name, name[0], data) for name, data in sorted(FILES.items())]
    assert images[3].origin == f"{source}/all/{images[3].path}"
    assert listing.images(3, 5) == images[3:5]


@pytest.mark.parametrize("zipped", [True, False])
def test_another_process_reads_what_this_one_listed(tmp_path: Path, zipped: bool) -> None:
    listing = ImageListing(make(tmp_path / "in", FILES, zipped))
    small = pickle.dumps(listing.reader)
    assert len(small) < 1000
    reader, images = pickle.loads(small), pickle.loads(pickle.dumps(listing.images(0, 99)))
    assert [reader.read(image) for image in images] == [data for _, data in sorted(FILES.items())]


def test_loose_images_have_no_class_and_groups_are_the_first_part_of_classes(tmp_path: Path) -> None:
    files = {"1.png": png(1), "Greek/alpha/1.png": png(2), "Latin/1.png": png(3)}
    images = ImageListing(make_folder(tmp_path / "in", files)).images(0, 3)
    assert [(image.class_name, image.group) for image in images] == [
        ("", ""),
        ("Greek/alpha", "Greek"),
        ("Latin", "Latin"),
    ]


def test_a_single_image_is_a_list_of_one(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/.odd.png": png(1)})
    listing = ImageListing(str(tmp_path / "a" / ".odd.png"))
    (image,) = listing.images(0, 9)
    assert (image.path, image.class_name) == (".odd.png", "")
    assert image.origin == str(tmp_path / "a" / ".odd.png")
    assert pickle.loads(pickle.dumps(listing.reader)).read(image) == png(1)
    with_uri = ImageListing((tmp_path / "a" / ".odd.png").as_uri())
    assert with_uri.reader.read(*with_uri.images(0, 1)) == png(1)


def test_a_folder_may_be_called_like_an_image(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "album.jpg", {"a/1.png": png(1)})
    assert [image.path for image in ImageListing(source).images(0, 9)] == ["a/1.png"]


def test_what_cannot_be_read_keeps_its_place(tmp_path: Path) -> None:
    files = {"../evil.png": png(1), "a/1.png": bytes(5000), "a/2.png": png(2)}
    listing = ImageListing(make_zip(tmp_path / "in.zip", files), limit=1000)
    evil, large, good = listing.images(0, len(listing))
    assert listing.reader.read(good) == png(2)
    for image, says in ((evil, "unsafe member name"), (large, r"too many bytes \(limit 1,000\)")):
        with pytest.raises(BadImageError, match=says):
            listing.reader.read(image)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_fingerprint_changes_with_every_change(tmp_path: Path, zipped: bool) -> None:
    def fingerprint(name: str, files: dict[str, bytes]) -> str:
        source = make(tmp_path / name, files, zipped)
        for path in Path(source).rglob("*.png"):
            os.utime(path, (1, 1))
        return ImageListing(source).fingerprint

    first = fingerprint("1", FILES)
    assert fingerprint("2", FILES | {"a/notes.txt": b"x"}) == first, "files that are no images do not count"
    others = [
        FILES | {"a/9.png": png(1)},
        FILES | {"a/0.png": png(1, 9)},
        {name.replace("a/0", "a/3"): data for name, data in FILES.items()},
    ]
    if zipped:
        others.append(FILES | {"a/0.png": FILES["a/0.png"][:-1] + b"x"})
    found = {fingerprint(str(3 + number), files) for number, files in enumerate(others)}
    assert len({first, *found}) == 1 + len(others)


def test_a_touched_file_is_another_one(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", FILES)
    before = ImageListing(source).fingerprint
    os.utime(tmp_path / "in" / "a" / "0.png", (1, 1))
    assert ImageListing(source).fingerprint != before


def test_sources_of_other_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds Parquet"):
        ImageListing(make_parquet(tmp_path / "in.parquet", {"image": [png(1)], "label": [1]}))
    with pytest.raises(InputError, match=r"gone\.png: does not exist"):
        ImageListing(str(tmp_path / "gone.png"))
