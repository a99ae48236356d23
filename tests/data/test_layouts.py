"""Archives of published data sets become catalogs with the published splits; what is wrong is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import published
from distmetric.config.compose import load
from distmetric.config.jobs import IngestJob
from distmetric.config.jobs.ingest import LayoutName
from distmetric.data.catalog import Catalog
from distmetric.data.ingest import ingest
from distmetric.data.layouts import LAYOUTS
from distmetric.data.layouts.market1501_attributes import VALUES
from distmetric.data.tally import IngestResult
from distmetric.errors import InputError
from image_sources import make_folder, make_parquet, make_zip, png
from published import Files, lines, make_tar, matlab


def copy(name: str) -> tuple[Files, bytes | None]:
    """A data set's archive, and the list that lies beside it."""
    match name:
        case "cars196" | "inshop":
            return getattr(published, name)()
        case "market1501":
            return published.market1501(), published.market_attribute()
        case _:
            return getattr(published, name)(), None


def ingested(
    name: str, tmp_path: Path, pack: Callable[[Path, Files], str] = make_zip, **options: Any
) -> IngestResult:
    files, beside = copy(name)
    if beside is not None:
        options["manifest"] = str(tmp_path / "list")
        (tmp_path / "list").write_bytes(beside)
    return ingest([pack(tmp_path / "in.zip", files)], tmp_path / "c.arrow", layout=name, **options)


SPLITS: dict[str, dict[str, tuple[int, int]]] = {  # images and classes of the copies in published.py
    "cub200": {"train": (200, 100), "test": (200, 100)},
    "cars196": {"train": (196, 98), "test": (196, 98)},
    "sop": {"train": (18, 6), "test": (18, 6)},
    "inshop": {"train": (24, 6), "query": (12, 6), "gallery": (12, 6)},
    "market1501": {"train": (36, 6), "query": (18, 6), "gallery": (44, 8)},
    "webface": {"train": (24, 8)},
    "lfw": {"test": (60, 20)},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_are_the_published_ones_and_no_image_is_lost(name: str, tmp_path: Path) -> None:
    result = ingested(name, tmp_path)
    assert {split: (result.splits[split], result.split_classes[split]) for split in result.splits} == SPLITS[
        name
    ]
    assert result.bad_images == ()
    others = ("gt_bbox", "gt_query")
    images = [n for n in copy(name)[0] if n.lower().endswith(".jpg") and not any(o in n for o in others)]
    assert result.rows == len(images)


def test_the_setting_names_every_layout() -> None:
    assert set(get_args(LayoutName)) == set(LAYOUTS) == set(SPLITS)
    assert load("ingest", IngestJob, ["source=[a,b]", "out=c", "layout=[webface,lfw]"]).layout == [
        "webface",
        "lfw",
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_folder_zip_and_tar_give_the_same_catalog(name: str, tmp_path: Path) -> None:
    (tmp_path / "zip").mkdir()
    zipped = ingested(name, tmp_path / "zip")
    for number, pack in enumerate((_as_folder, _as_tar, _as_tgz)):
        (tmp_path / str(number)).mkdir()
        assert ingested(name, tmp_path / str(number), pack).fingerprint == zipped.fingerprint


def _as_folder(path: Path, files: Files) -> str:
    return make_folder(path.with_name("folder"), files)


def _as_tar(path: Path, files: Files) -> str:
    return make_tar(path.with_name("in.tar"), dict(reversed(files.items())))


def _as_tgz(path: Path, files: Files) -> str:
    return make_tar(path.with_name("in.tgz"), files)


@pytest.mark.parametrize("name", ["cars196", "inshop", "market1501"])
def test_the_list_may_lie_in_the_source(name: str, tmp_path: Path) -> None:
    files, beside = copy(name)
    assert beside is not None
    inside = files | {f"Eval/{LAYOUTS[name].annotation}": beside}
    source = make_folder(tmp_path / "in", {f"all of it/{path}": data for path, data in inside.items()})
    found = ingest([source], tmp_path / "a.arrow", layout=name)
    assert found.fingerprint == ingested(name, tmp_path).fingerprint
    assert rows(tmp_path / "a.arrow") == rows(tmp_path / "c.arrow")


def rows(path: Path) -> list[tuple[Any, ...]]:
    """Split, class, group, camera and attributes of every row."""
    catalog = Catalog.open(path)
    cameras = [-1] * len(catalog) if catalog.cameras is None else catalog.cameras.tolist()
    attributes = [catalog.attribute(name) for name in catalog.attribute_names]
    split_of = {row: split for split in catalog.splits for row in catalog.rows(split).tolist()}
    return [
        (
            split_of[row],
            catalog.label_names[catalog.labels[row]],
            catalog.groups[row],
            cameras[row],
            *(column[row] for column in attributes),
        )
        for row in range(len(catalog))
    ]


def test_birds_and_cars_are_divided_by_number(tmp_path: Path) -> None:
    ingested("cub200", tmp_path)
    names = {row[:2] for row in rows(tmp_path / "c.arrow")}
    assert names == {("train" if n <= 100 else "test", f"{n:03}.Bird_{n}") for n in range(1, 201)}
    ingested("cars196", tmp_path)
    found = rows(tmp_path / "c.arrow")
    assert ("test", "Ram C/V Cargo Van Minivan 2012", "Ram C/V Cargo Van Minivan 2012", -1) in found
    assert {row[1] for row in found if row[0] == "train"} == {
        f"Maker{n % 7} Model {n} 2012" for n in range(1, 99)
    }


def test_products_and_clothes_are_grouped_by_kind(tmp_path: Path) -> None:
    ingested("sop", tmp_path)
    assert {row[:3] for row in rows(tmp_path / "c.arrow")} == {
        ("train" if n <= 6 else "test", f"{kind}/{n}", kind)
        for n in range(1, 13)
        for kind in (("bicycle", "chair")[n % 2],)
    }
    ingested("inshop", tmp_path)
    assert {row[:3] for row in rows(tmp_path / "c.arrow")} == {
        (split, f"id_{n:08}", ("WOMEN/Denim", "MEN/Shirts_Polos")[n % 2])
        for n in range(1, 13)
        for split in (("train",) if n <= 6 else ("query", "gallery"))
    }


def test_persons_have_cameras_and_attributes_and_distractors_have_none(tmp_path: Path) -> None:
    ingested("market1501", tmp_path)
    catalog = Catalog.open(tmp_path / "c.arrow")
    assert catalog.cameras is not None
    assert len(catalog.attribute_names) == len(VALUES) == 27
    assert set(catalog.attribute_names) == set(VALUES)
    for row in range(len(catalog)):
        person = catalog.label_names[catalog.labels[row]]
        file = catalog.source_path(row).rpartition("/")[2]
        assert (person, int(catalog.cameras[row])) == (
            file.partition("_")[0],
            int(file.partition("_c")[2][0]),
        )
        for place, (name, meanings) in enumerate(VALUES.items()):
            known = None
            if person not in ("-1", "0000"):
                known = meanings[int(person) * (place + 1) % len(meanings)]
            assert catalog.attribute(name)[row] == known
    junk = {catalog.labels[row] for row in catalog.rows("gallery")} - {
        catalog.labels[row] for row in catalog.rows("query")
    }
    assert {catalog.label_names[label] for label in junk} == {"-1", "0000"}


def test_market_without_attributes_has_none(tmp_path: Path) -> None:
    ingest([make_zip(tmp_path / "in.zip", published.market1501())], tmp_path / "c.arrow", layout="market1501")
    assert Catalog.open(tmp_path / "c.arrow").attribute_names == ()


def test_faces_to_learn_from_and_faces_to_verify_make_one_catalog(tmp_path: Path) -> None:
    sources = [
        make_folder(tmp_path / "web", published.webface()),
        make_tar(tmp_path / "lfw.tgz", published.lfw()),
    ]
    found = ingest(sources, tmp_path / "c.arrow", layout=["webface", "lfw"])
    assert (found.splits, found.split_classes) == (
        {"train": 24, "test": 60},
        {"train": 8, "test": 20},
    )


def test_what_is_listed_and_not_there_or_no_image_is_reported(tmp_path: Path) -> None:
    files = published.sop()
    gone, broken = sorted(name for name in files if name.endswith(".JPG"))[:2]
    del files[gone]
    files[broken] = b"<html>"
    result = ingest([make_zip(tmp_path / "in.zip", files)], tmp_path / "c.arrow", layout="sop")
    assert result.rows == 34
    assert dict(result.bad_images) == {
        f"{tmp_path}/in.zip/{gone}": "listed, but not in the source",
        f"{tmp_path}/in.zip/{broken}": "not an image",
    }
    with pytest.raises(InputError, match="listed, but not in the source; remove or mend it"):
        ingest(
            [make_zip(tmp_path / "in.zip", files | {broken: files[sorted(files)[-1]]})],
            tmp_path / "c.arrow",
            layout="sop",
            on_bad_image="error",
        )


def edit(name: str, old: bytes, new: bytes) -> Callable[[Files], None]:
    """Replace a part of the one file whose path ends so."""

    def change(files: Files) -> None:
        (path,) = (each for each in files if each.endswith(name))
        assert old in files[path]
        files[path] = files[path].replace(old, new, 1)

    return change


def without(text: str) -> Callable[[Files], None]:
    """Leave out all files with a text in their path."""

    def change(files: Files) -> None:
        for path in [each for each in files if text in each]:
            del files[path]

    return change


def with_file(path: str, data: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({path: data})


M, J = "Market-1501-v15.09.15", published.jpg("any", 0)
LIST = "LIST"  # the file beside the source
WRONG: list[tuple[str, Callable[[Files], None], str]] = [
    ("cub200", without("images.txt"), r"in.zip: has no file images.txt; add it"),
    ("cub200", without("image_class_labels"), r"has no file image_class_labels.txt; add it"),
    (
        "cub200",
        with_file("images.txt", b"1 a/b.jpg\n"),
        r"has two files images.txt \(.* and .*\); remove one",
    ),
    (
        "cub200",
        edit("/classes.txt", b"200 200.Bird_200\n", b""),
        r"lists 199 classes, not those from 1 to 200",
    ),
    (
        "cub200",
        edit("class_labels.txt", b"\n2 1\n", b"\n"),
        r"images.txt, line 2: image_class_labels.txt has no image 2",
    ),
    (
        "cub200",
        edit("class_labels.txt", b"\n2 1\n", b"\n2 7\n"),
        r"is of class 7 \(007.Bird_7\) by image_class_labels",
    ),
    (
        "cub200",
        edit("class_labels.txt", b"\n2 1\n", b"\n1 1\n"),
        r"labels.txt, line 2: image_id 1 is there twice",
    ),
    (
        "cub200",
        edit("class_labels.txt", b"\n2 1\n", b"\ntwo 1\n"),
        r"line 2: image_id 'two' is no number from 1 on",
    ),
    (
        "cub200",
        edit("images.txt", b"2 001.Bird_1/Bird_1_0001_1001.jpg", b"2"),
        r"line 2: has 1 of the 2 fields",
    ),
    ("cub200", edit("images.txt", b"2 001.Bird_1/", b"2 ../001.Bird_1/"), r"line 2: path .* leads outside"),
    ("cub200", edit("images.txt", b"0001_1001", b"0000_1000"), r"line 2: .*_0000_1000.jpg is listed twice"),
    ("cub200", edit("images.txt", b"001", b"\xff\xfe"), r"images.txt: is not UTF-8"),
    ("cars196", with_file(LIST, b"no MATLAB"), r"list: is no usable MATLAB file"),
    ("cars196", with_file(LIST, matlab({"annotations": 1})), r"list: has no variable class_names"),
    (
        "cars196",
        with_file(LIST, matlab({"class_names": published.cells(["a", "b"])})),
        r"has 2 different names, not",
    ),
    (
        "cars196",
        with_file(
            LIST, matlab({"class_names": published.cells(list(map(str, range(196)))), "annotations": 3.0})
        ),
        r"annotations\(1\): has no relative_im_path and class; name cars_annos.mat, not the files of the devkit",
    ),
    (
        "cars196",
        without("car_ims"),
        r"has none of the images that .*list lists \(the first is 'car_ims/000001.jpg'\)",
    ),
    ("sop", without("Ebay_test"), r"has no file Ebay_test.txt; add it"),
    (
        "sop",
        edit("Ebay_train.txt", b"image_id", b"id"),
        r"Ebay_train.txt: does not begin with image_id class_id",
    ),
    (
        "sop",
        edit("Ebay_test.txt", b"\n19 7 ", b"\n19 6 "),
        r"Ebay_test.txt, line 2: class_id 6 is in Ebay_train.txt",
    ),
    (
        "inshop",
        edit(LIST, b" query\n", b" val\n"),
        r"evaluation_status 'val' is none of train, query, gallery",
    ),
    ("inshop", edit(LIST, b"48\n", b"52712\n"), r"list: says that it lists 52712 images and lists 48"),
    (
        "inshop",
        edit(LIST, b"image_name", b"image"),
        r"list: line 2 is not image_name item_id evaluation_status",
    ),
    (
        "inshop",
        edit(LIST, b"id_00000007 query", b"id_00000001 query"),
        r"class 'id_00000001' is in train and in query",
    ),
    ("market1501", without("/query/"), r"in.zip: has no images in a folder query; get the archive again"),
    (
        "market1501",
        with_file(f"{M}/query/me.jpg", J),
        r"query/me.jpg: is not named like 0002_c1s1_000451_03.jpg",
    ),
    (
        "market1501",
        with_file(f"{M}/query/-1_c1s1_000451_03.jpg", J),
        r"is no person, and only the gallery may have",
    ),
    (
        "market1501",
        with_file(f"{M}/query/0099_c1s1_000451_03.jpg", J),
        r"person 0099 is not in market_attribute.mat",
    ),
    (
        "market1501",
        with_file(LIST, published.market_attribute(5)),
        r"person 0011 is not in market_attribute.mat",
    ),
    (
        "market1501",
        with_file(LIST, matlab({"market_attribute": {"test": 1}})),
        r"market_attribute.train is not there",
    ),
    (
        "market1501",
        with_file(LIST, matlab({"market_attribute": {"train": {"image_index": published.cells(["0002"])}}})),
        r"market_attribute.train.age is not 1 numbers, one for each person",
    ),
    ("webface", with_file("loose.jpg", J), r"in.zip/loose.jpg: is in no folder"),
    ("webface", with_file("more/0000045/1.jpg", J), r"0000045 and .*0000045 would be one identity"),
    (
        "lfw",
        with_file("lfw/Face_01/Face_02_0001.jpg", J),
        r"is not named like Aaron_Eckhart/Aaron_Eckhart_0001.jpg",
    ),
    ("lfw", without("lfw/"), r"in.zip: has no image; name the folder lfw or lfw.tgz"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=[f"{n} {m[:40]}" for n, _, m in WRONG])
def test_what_is_missing_or_contradicts_itself_is_one_sentence(
    name: str, change: Callable[[Files], None], message: str, tmp_path: Path
) -> None:
    files, beside = copy(name)
    every = files | ({} if beside is None else {LIST: beside})
    change(every)
    options: dict[str, Any] = {}
    if LIST in every:
        options["manifest"] = str(tmp_path / "list")
        (tmp_path / "list").write_bytes(every.pop(LIST))
    with pytest.raises(InputError, match=message) as caught:
        ingest([make_zip(tmp_path / "in.zip", every)], tmp_path / "out" / "c.arrow", layout=name, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_recordio_is_refused(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "in.zip", {"faces_emore/train.rec": b"x", "faces_emore/train.idx": b"x"})
    with pytest.raises(InputError, match="holds RecordIO, which is not read; unpack it"):
        ingest([source], tmp_path / "c.arrow", layout="webface")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "cub"}, "layout='cub': choose one of cub200, cars196, sop"),
        ({"layout": "sop", "split_by": "ratio"}, "split_by=ratio: layout=sop has splits; leave split_by out"),
        ({"layout": "sop", "manifest": "x.csv"}, "manifest=x.csv: layout=sop has its lists in the source"),
        ({"layout": ["sop", "lfw", "lfw"]}, "3 layouts for 1 sources; give one for all, or one for each"),
        ({"layout": "inshop", "manifest": "nowhere.txt"}, "nowhere.txt: cannot be read"),
    ],
)
def test_options_that_do_not_fit_a_layout(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest([make_zip(tmp_path / "in.zip", published.sop())], tmp_path / "c.arrow", **options)


def test_parquet_has_no_layout(tmp_path: Path) -> None:
    source = make_parquet(tmp_path / "in.parquet", {"image": [png(1)], "label": ["a"]})
    with pytest.raises(InputError, match="a layout cannot describe Parquet; leave layout out"):
        ingest([source], tmp_path / "c.arrow", layout="lfw")


def test_lists_with_line_ends_of_windows_and_long_spaces_are_read(tmp_path: Path) -> None:
    files = published.sop()
    for name in [each for each in files if each.endswith(".txt") and "Ebay" in each]:
        files[name] = lines([]) + files[name].replace(b"\n", b"\r\n").replace(b" ", b"   ")
    result = ingest([make_zip(tmp_path / "in.zip", files)], tmp_path / "c.arrow", layout="sop")
    assert result.rows == 36
