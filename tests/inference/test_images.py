"""Images of catalogs, folders, zip files and single files come as the same batches, here and in other processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from catalogs import write_catalog
from distmetric.data.catalog import Catalog
from distmetric.data.decode import decode_image
from distmetric.errors import InputError
from distmetric.inference import images as module
from distmetric.inference.images import BadImages, ImageRows, image_batches, is_catalog, open_images
from distmetric.models.spec import ConvSpec
from image_sources import FILES, make_folder, make_zip, png

SMALL = ConvSpec(image_size=5)
NAMES = sorted(FILES)
ROWS = [(FILES[name], name[0], "test" if name[0] < "c" else "train") for name in NAMES]


def joined(batches: list[ImageRows]) -> ImageRows:
    extras = {name: [x for rows in batches for x in rows.extras[name]] for name in batches[0].extras}
    return ImageRows(
        [x for rows in batches for x in rows.ids],
        [x for rows in batches for x in rows.paths],
        [x for rows in batches for x in rows.label_names],
        torch.cat([rows.images for rows in batches]),
        extras,
    )


def pixels(names: list[str], spec: ConvSpec = SMALL) -> torch.Tensor:
    found = [decode_image(FILES[name], spec.image_size, spec.channels) for name in names]
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("small", [True, False], ids=["one thread", "threads"])
def test_a_folder_and_a_zip_are_read_in_sorted_order(tmp_path, zipped, small, monkeypatch) -> None:
    monkeypatch.setattr(module, "THREADS_PAY_BYTES", 10**9 if small else 0)
    source = make_zip(tmp_path / "in.zip", FILES) if zipped else make_folder(tmp_path / "in", FILES)
    batches = list(image_batches(source, SMALL, batch_size=3))
    assert [len(rows) for rows in batches] == [3, 3, 2]
    rows = joined(batches)
    assert (rows.ids, rows.paths) == (list(range(8)), NAMES)
    assert rows.label_names == rows.extras["group"] == [name[0] for name in NAMES]
    assert torch.equal(rows.images, pixels(NAMES))


def test_the_model_says_size_and_channels(tmp_path) -> None:
    spec = ConvSpec(image_size=9, channels=3)
    (rows,) = image_batches(make_folder(tmp_path, FILES), spec)
    assert rows.images.shape == (8, 3, 9, 9)
    assert torch.equal(rows.images, pixels(NAMES, spec))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 99])
def test_bad_images_leave_gaps_in_the_ids_wherever_batches_end(tmp_path, batch_size) -> None:
    source = make_folder(tmp_path / "in", FILES | {"a/0bad.png": b"", "b/0bad.png": b"x", "c/0bad.png": b""})
    bad: BadImages = []
    batches = list(image_batches(source, SMALL, batch_size=batch_size, bad=bad))
    rows = joined(batches)
    listed = sorted([*FILES, "a/0bad.png", "b/0bad.png", "c/0bad.png"])
    assert rows.ids == [listed.index(name) for name in NAMES]
    assert rows.paths == NAMES
    assert torch.equal(rows.images, pixels(NAMES))
    assert bad == [
        (f"{source}/a/0bad.png", "empty"),
        (f"{source}/b/0bad.png", "not an image"),
        (f"{source}/c/0bad.png", "empty"),
    ]
    assert all(len(each) for each in batches)
    with pytest.raises(InputError, match=r"a/0bad\.png: empty; remove or mend it"):
        list(image_batches(source, SMALL, batch_size=batch_size))


def test_a_single_image_and_loose_images_have_no_class(tmp_path) -> None:
    make_folder(tmp_path, {"one.png": FILES["a/0.png"], "two.PNG": FILES["a/1.png"]})
    (rows,) = image_batches(str(tmp_path / "one.png"), SMALL)
    assert (rows.ids, rows.paths, rows.label_names) == ([0], ["one.png"], [""])
    assert torch.equal(rows.images, pixels(["a/0.png"]))
    (rows,) = image_batches(str(tmp_path), SMALL)
    assert (rows.paths, rows.label_names) == (["one.png", "two.PNG"], ["", ""])


def catalog_of(path: Path) -> str:
    cameras = [3, None, 0, 1, 2, None, 5, 6]
    attributes = [{"hue": "red", "age": str(row)} if row % 3 else {} for row in range(8)]
    write_catalog(path, ROWS, id=list(range(100, 108)), camera=cameras, attributes=attributes)
    return str(path)


def test_a_catalog_brings_its_ids_and_columns(tmp_path) -> None:
    rows = joined(list(image_batches(catalog_of(tmp_path / "c"), SMALL, batch_size=3)))
    catalog = Catalog.open(tmp_path / "c")
    order = [row - 100 for row in rows.ids]
    assert rows.ids == catalog.ids.tolist()
    assert torch.equal(rows.images, pixels([NAMES[row] for row in order]))
    assert rows.paths == [f"in/{row}.png" for row in order]
    assert rows.label_names == [NAMES[row][0] for row in order]
    assert rows.extras == {
        "group": rows.label_names,
        "camera": [[3, -1, 0, 1, 2, -1, 5, 6][row] for row in order],
        "attribute.age": [str(row) if row % 3 else None for row in order],
        "attribute.hue": ["red" if row % 3 else None for row in order],
    }


def test_a_split_of_a_catalog(tmp_path) -> None:
    source = catalog_of(tmp_path / "c")
    rows = joined(list(image_batches(source, SMALL, split="test", batch_size=3)))
    assert sorted(rows.ids) == [100, 101, 102, 103]
    with pytest.raises(InputError, match="no split is called 'nope'"):
        list(image_batches(source, SMALL, split="nope"))
    write_catalog(tmp_path / "plain", ROWS)
    (rows,) = image_batches(str(tmp_path / "plain"), SMALL)
    assert rows.extras.keys() == {"group"}


@pytest.mark.parametrize("kind", ["folder", "zip", "catalog", "split"])
def test_parts_read_in_another_process_are_those_of_the_whole(tmp_path, kind) -> None:
    split = "test" if kind == "split" else None
    if kind == "folder":
        source = make_folder(tmp_path / "in", FILES | {"a/0bad.png": b""})
    elif kind == "zip":
        source = make_zip(tmp_path / "in.zip", FILES | {"a/0bad.png": b""})
    else:
        source = catalog_of(tmp_path / "c")
    images = open_images(source, split)
    whole = joined(list(images.rows(images.part(0, len(images)), SMALL, bad=[])))
    there = pickle.loads(pickle.dumps(images))
    assert there.columns == images.columns
    found = []
    for start in range(0, len(images), 3):
        part = pickle.loads(pickle.dumps(images.part(start, min(start + 3, len(images)))))
        found += list(there.rows(part, SMALL, 2, []))
    parts = joined(found)
    assert (parts.ids, parts.paths, parts.extras) == (whole.ids, whole.paths, whole.extras)
    assert torch.equal(parts.images, whole.images)


def test_a_source_pickles_small_whatever_the_number_of_images(tmp_path) -> None:
    images = open_images(make_folder(tmp_path, {f"a/{row}.png": b"" for row in range(300)}))
    assert len(pickle.dumps(images)) < 1000
    assert len(pickle.dumps(images.part(0, 10))) < 3000


def test_another_catalog_under_the_same_name_is_not_taken_for_it(tmp_path) -> None:
    sent = pickle.dumps(open_images(catalog_of(tmp_path / "c")))
    write_catalog(tmp_path / "c", ROWS[:4])
    with pytest.raises(InputError, match="was replaced"):
        pickle.loads(sent)


def test_fingerprints_tell_sources_and_splits_apart(tmp_path) -> None:
    source = catalog_of(tmp_path / "c")
    folder = make_folder(tmp_path / "in", FILES)
    found = [
        open_images(source),
        open_images(source, "test"),
        open_images(source, "train"),
        open_images(folder),
    ]
    assert len({images.fingerprint for images in found}) == 4
    assert open_images(source, "test").fingerprint == found[1].fingerprint


def test_what_cannot_be_a_source_is_one_line(tmp_path) -> None:
    folder = make_folder(tmp_path / "in", {"a/notes.txt": b"x"})
    (tmp_path / "text.txt").write_text("x")
    for source, split, says in (
        (folder, "test", f"split=test but source={folder} is no catalog"),
        (folder, None, f"source={folder}: there is no image in it"),
        (str(tmp_path / "gone"), None, "gone: does not exist"),
        (str(tmp_path / "text.txt"), None, "text.txt: is neither a folder nor"),
    ):
        with pytest.raises(InputError, match=says) as raised:
            list(image_batches(source, SMALL, split=split))
        assert "\n" not in str(raised.value)


def test_catalogs_are_recognized_by_content(tmp_path) -> None:
    assert is_catalog(catalog_of(tmp_path / "no_suffix"))
    (tmp_path / "c.arrow").write_text("ARROW")
    assert not is_catalog(str(tmp_path / "c.arrow"))
    assert not is_catalog(str(tmp_path))


def test_a_damaged_image_of_a_catalog_ends_it(tmp_path) -> None:
    write_catalog(tmp_path / "c", [(png(1), "a", "train"), (b"junk", "a", "train")])
    with pytest.raises(InputError, match=r"in/1\.png\) is unusable"):
        list(image_batches(str(tmp_path / "c"), SMALL, bad=[]))
