"""Sources are read in order, as one; copies count once, and how many images there will be is known before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.data.sources import MAX_IMAGE_BYTES, Sources
from distmetric.data.tally import Tally
from image_sources import FILES, make_folder, make_parquet, make_zip, png, rows_of

OMNIGLOT = [
    Path(__file__).parents[3] / "shared" / "data" / "omniglot" / f"images_background_small{part}.zip"
    for part in (1, 2)
]


def test_folders_may_be_nested_to_any_depth(tmp_path: Path, out: Path) -> None:
    files = {"Greek/alpha/1.png": png(1), "Greek/sub/beta/1.png": png(2), "Latin/x.png": png(3)}
    result = ingest([make_folder(tmp_path / "in", files)], out, split_by="group", test_groups=["Latin"])
    assert rows_of(result) == {
        ("Greek/alpha", "Greek", png(1)),
        ("Greek/sub/beta", "Greek", png(2)),
        ("Latin", "Latin", png(3)),
    }
    assert result.splits == {"test": 1, "train": 2}


def test_only_a_root_above_class_folders_is_stripped(tmp_path: Path, out: Path) -> None:
    ingest([make_zip(tmp_path / "1.zip", {"r/s/a/1.png": png(1), "r/s/b/1.png": png(2)})], out)
    assert Catalog.open(out).label_names == ["s/a", "s/b"], "one level only"
    result = ingest([make_folder(tmp_path / "in", {"a/1.png": png(1), "a/b/1.png": png(2)})], out)
    assert Catalog.open(result.path).label_names == ["a", "a/b"], "a/1.png would be in no folder"


def test_sources_merge_by_class_and_copies_count_once(tmp_path: Path, out: Path) -> None:
    first = make_zip(
        tmp_path / "1.zip", {"one/a/1.png": png(1), "one/a/2.png": png(2), "one/b/1.png": png(3)}
    )
    second = make_zip(
        tmp_path / "2.zip", {"two/a/1.png": png(1), "two/a/2.png": png(9), "two/c/1.png": png(3)}
    )
    result = ingest([first, second], out)
    assert rows_of(result) == {
        ("a", "a", png(1)),
        ("a", "a", png(2)),
        ("a", "a", png(9)),
        ("b", "b", png(3)),
    } | {("c", "c", png(3))}, "same path with other bytes and same bytes under another path are both kept"
    assert result.duplicates_skipped == 1
    assert ingest([first, first], out).rows == 3


def test_what_is_no_image_is_ignored_but_counted(tmp_path: Path, out: Path) -> None:
    junk = {
        "a/notes.txt": b"x",
        ".DS_Store": b"x",
        "__MACOSX/a/._1.png": b"x",
        "a/.hidden.png": b"x",
        "README": b"",
    }
    assert ingest([make_zip(tmp_path / "1.zip", FILES | junk)], out).files_ignored == 5
    result = ingest([make_folder(tmp_path / "in", FILES | junk)], out)
    assert (result.files_ignored, result.rows, result.bad_images) == (5, 8, ())


def test_omniglot_merges_its_two_parts(tmp_path: Path, out: Path) -> None:
    if not all(path.is_file() for path in OMNIGLOT):
        pytest.skip("the Omniglot zip files are not beside the repository")
    result = ingest([str(path) for path in OMNIGLOT], out, split_by="group", test_groups=["Greek", "Latin"])
    assert (result.rows, result.classes, result.duplicates_skipped) == (4840, 242, 1000)
    assert result.bad_images == ()
    catalog = Catalog.open(out)
    assert len(set(catalog.groups)) == 8
    assert (np.bincount(catalog.labels) == 20).all()
    assert "Greek/character01" in catalog.label_names
    assert result.splits == {"test": 1000, "train": 3840}
    assert (catalog.widths == 105).all()


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_the_number_of_images_is_known_before_they_are_read(tmp_path: Path, kind: str) -> None:
    files = FILES | {"a/empty.png": b"", "a/notes.txt": b"x", "../evil.png": png(99)}
    if kind == "folder":
        source = make_folder(tmp_path / "in", {name: files[name] for name in files if ".." not in name})
    elif kind == "zip":
        source = make_zip(tmp_path / "in.zip", files)
    else:
        source = make_parquet(tmp_path / "in.parquet", {"image": [png(1), None, b""], "label": [1, 2, 3]})
    opened = Sources([source, source], None, MAX_IMAGE_BYTES)
    tally = Tally(stop_at_bad=False)
    assert len(list(opened.items(tally))) + tally.duplicates == tally.read == opened.total
    assert opened.total == 2 * {"folder": 9, "zip": 10, "parquet": 3}[kind]


def test_the_number_of_images_is_that_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label\na/0.png,x\ngone.png,y\n")
    opened = Sources([make_folder(tmp_path / "in", FILES)], str(tmp_path / "m.csv"), MAX_IMAGE_BYTES)
    tally = Tally(stop_at_bad=False)
    assert len(list(opened.items(tally))) == tally.read == opened.total == 2


def test_many_sources_are_opened_one_by_one(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "in.zip", FILES)
    opened = Sources([source] * 65, None, MAX_IMAGE_BYTES)
    tally = Tally(stop_at_bad=False)
    assert opened.total is None
    assert len(list(opened.items(tally))) == len(FILES)
    assert tally.read == 65 * len(FILES)
