"""Tiny copies of published data sets: a few rendered images in the folders, names and lists of their archives."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

from distmetric.data.layouts.market1501_attributes import VALUES

Files = dict[str, bytes]


@cache
def jpg(kind: str, number: int, width: int = 24, height: int = 24) -> bytes:
    """Strokes in colors that are those of a kind, but for some jitter."""
    rng = np.random.default_rng(list(kind.encode()))
    strokes, colors = rng.integers(0, 24, (3, 4)), rng.integers(0, 200, (3, 3))
    jitter = np.random.default_rng([*kind.encode(), number]).integers(-2, 3, (3, 4))
    image = Image.new("RGB", (24, 24), "white")
    for stroke, color in zip(strokes + jitter, colors, strict=True):
        ImageDraw.Draw(image).line([int(end) for end in stroke], fill=tuple(map(int, color)), width=3)
    buffer = io.BytesIO()
    image.resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def lines(rows: list[Any]) -> bytes:
    """A text file: one line a row, fields separated by spaces."""
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()


def matlab(values: Mapping[str, Any]) -> bytes:
    """A MATLAB file, as MATLAB 5 and later write it."""
    buffer = io.BytesIO()
    savemat(buffer, dict(values), do_compression=True)
    return buffer.getvalue()


def cells(texts: list[str]) -> Any:
    """A row of cells, as MATLAB has lists of texts."""
    found = np.empty((1, len(texts)), object)
    found[0, :] = texts
    return found


def cub200(per_class: int = 2) -> Files:
    """CUB_200_2011.tgz: all 200 species with a few images of each."""
    classes = [(number, f"{number:03}.Bird_{number}") for number in range(1, 201)]
    shots = [
        (number, name, f"{name}/{name[4:]}_{k:04}_{1000 + k}.jpg")
        for number, name in classes
        for k in range(per_class)
    ]
    top = "CUB_200_2011"
    return {
        "attributes.txt": b"1 has_bill_shape::curved_(up_or_down)\n",
        f"{top}/README": b"...",
        f"{top}/attributes/image_attribute_labels.txt": b"1 1 0 3 27.7080\n",
        f"{top}/bounding_boxes.txt": b"1 60.0 27.0 325.0 304.0\n",
        f"{top}/classes.txt": lines(classes),
        f"{top}/images.txt": lines([(i, path) for i, (_, _, path) in enumerate(shots, 1)]),
        f"{top}/image_class_labels.txt": lines([(i, c) for i, (c, _, _) in enumerate(shots, 1)]),
        f"{top}/train_test_split.txt": lines([(i, i % 2) for i in range(1, len(shots) + 1)]),
        **{f"{top}/images/{path}": jpg(name, k) for k, (_, name, path) in enumerate(shots)},
    }


def cars196(per_class: int = 2) -> tuple[Files, bytes]:
    """car_ims.tgz and cars_annos.mat: all 196 models with a few images of each."""
    names = [f"Maker{number % 7} Model {number} 2012" for number in range(1, 197)]
    names[172] = "Ram C/V Cargo Van Minivan 2012"
    kind = [(name, object) for name in ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]
    structs = np.empty((1, 196 * per_class), dtype=[*kind, ("class", object), ("test", object)])
    files: Files = {}
    for place in range(196 * per_class):
        path, number = f"car_ims/{place + 1:06}.jpg", place // per_class + 1
        box = [np.uint8(value) for value in (3, 4, 20, 21)]
        structs[0, place] = (path, *box, np.uint8(number), np.uint8(place % 2))
        files[path] = jpg(names[number - 1], place)
    return files, matlab({"annotations": structs, "class_names": cells(names)})


def sop(products: int = 12, per_class: int = 3) -> Files:
    """Stanford_Online_Products.zip: a few products, half of them for training."""
    top, files = "Stanford_Online_Products", {}
    lists: dict[str, list[Any]] = {"train": [], "test": []}
    image = 0
    for product in range(1, products + 1):
        kind = ("bicycle", "chair")[product % 2]
        for k in range(per_class):
            image += 1
            path = f"{kind}_final/{111085122870 + product}_{k}.JPG"
            row = (image, product, 1 + product % 2, path)
            lists["train" if product <= products // 2 else "test"].append(row)
            files[f"{top}/{path}"] = jpg(f"product {product}", k)
    header = ("image_id", "class_id", "super_class_id", "path")
    for name, rows in lists.items():
        files[f"{top}/Ebay_{name}.txt"] = lines([header, *rows])
    files[f"{top}/Ebay_info.txt"] = lines([header, *lists["train"], *lists["test"]])
    files[f"{top}/bicycle_final.txt"] = b"111085122871_0.JPG http://ebay.example\n"
    return files


def inshop(items: int = 12, per_class: int = 4) -> tuple[Files, bytes]:
    """img.zip and list_eval_partition.txt: half of the items for training, the others with queries and a gallery."""
    files, rows = {}, []
    for item in range(1, items + 1):
        name, kind = f"id_{item:08}", ("WOMEN/Denim", "MEN/Shirts_Polos")[item % 2]
        for k in range(per_class):
            path = f"img/{kind}/{name}/{k + 1:02}_{k + 1}_front.jpg"
            status = "train" if item <= items // 2 else ("query", "gallery")[k % 2]
            rows.append((path, name, status))
            files[path] = jpg(name, k)
    return files, lines([(len(rows),), ("image_name", "item_id", "evaluation_status"), *rows])


def market1501(persons: int = 6) -> Files:
    """Market-1501-v15.09.15.zip: as many persons for training as with queries, distractors and junk in the gallery."""
    top, files = "Market-1501-v15.09.15", {}

    def image(folder: str, person: str, camera: int, number: int) -> None:
        name = f"{person}_c{camera}s1_{451 + 25 * number:06}_{number:02}.jpg"
        files[f"{top}/{folder}/{name}"] = jpg(person, number, 12, 24)

    for number in range(1, 2 * persons + 1):
        person, trains = f"{number:04}", number % 2 == 0
        for camera in (1, 2, 3):
            for k in range(2):
                image("bounding_box_train" if trains else "bounding_box_test", person, camera, k)
            if not trains:
                image("query", person, camera, 0)
                image("gt_bbox", person, camera, 7)
                files[f"{top}/gt_query/{person}_c{camera}s1_000451_00_good.mat"] = b"MATLAB"
    for k in range(4):
        image("bounding_box_test", "0000", 1 + k, k)
        image("bounding_box_test", "-1", 1 + k, k)
    files[f"{top}/bounding_box_test/Thumbs.db"] = files[f"{top}/query/Thumbs.db"] = b"thumbs"
    files[f"{top}/readme.txt"] = b"..."
    return files


def market_attribute(persons: int = 6) -> bytes:
    """market_attribute.mat of the persons of `market1501`."""
    parts = {}
    for part, first in (("train", 2), ("test", 1)):
        numbers = list(range(first, 2 * persons + 1, 2))
        rows = {
            name: np.array([[float(1 + (number * (place + 1)) % len(meanings)) for number in numbers]])
            for place, (name, meanings) in enumerate(VALUES.items())
        }
        parts[part] = {**rows, "image_index": cells([f"{number:04}" for number in numbers])}
    return matlab({"market_attribute": parts})


def webface(identities: int = 8, per_class: int = 3) -> Files:
    """CASIA-WebFace: a folder for each identity."""
    return {
        f"CASIA-WebFace/{number * 45:07}/{k + 1:03}.jpg": jpg(f"web {number}", k)
        for number in range(1, identities + 1)
        for k in range(per_class)
    }


def lfw(people: int = 20, per_class: int = 3) -> Files:
    """lfw.tgz: a folder for each person."""
    return {
        f"lfw/Face_{number:02}/Face_{number:02}_{k + 1:04}.jpg": jpg(f"face {number}", k)
        for number in range(people)
        for k in range(per_class)
    }


def pairs_txt(folds: int = 10, per_fold: int = 2) -> bytes:
    """pairs.txt of the people of `lfw`, two of them in each fold, as the official one has it."""
    rows = [f"{folds}\t{per_fold}"]
    for fold in range(folds):
        one, other = f"Face_{2 * fold:02}", f"Face_{2 * fold + 1:02}"
        rows += [f"{one}\t{1 + k % 3}\t{1 + (k + 1) % 3}" for k in range(per_fold)]
        rows += [f"{one}\t{1 + k % 3}\t{other}\t{1 + k % 3}" for k in range(per_fold)]
    return "".join(f"{row}\n" for row in rows).encode()


def make_tar(path: Path, files: Mapping[str, bytes]) -> str:
    """A tar file in the order of `files`, compressed where its name says so."""
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)
