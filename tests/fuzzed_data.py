"""Damaged files of every kind that we read, made from seeds, and what becomes of those who read them.

As a program it runs in a process of its own, as native code may crash on damaged files: one that crashes, hangs or
takes too much memory ends this process and no other, and the last case that it noted is the one that did it.

    python tests/fuzzed_data.py FOLDER FIRST_SEED CASES KIND...

A case is a pure function of kind and seed. The last line is a JSON object: for each kind, how many files were read and
how many were refused with a sentence.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, PngImagePlugin

import published
from catalogs import tampered
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.decode import BadImageError, ImageStore, check_image, decode_image
from distmetric.data.ingest import ingest
from distmetric.data.items import Item, Labels
from distmetric.data.joined import Joiner
from distmetric.data.layouts import inshop
from distmetric.data.layouts.annotations import Annotation, LayoutFiles
from distmetric.data.layouts.market1501_attributes import VALUES, read_attributes
from distmetric.data.locations import locate
from distmetric.data.manifest import read_manifest
from distmetric.data.splits import SPLITS
from distmetric.data.trees import open_tree
from distmetric.data.turned import turned
from distmetric.errors import UserError
from distmetric.index.arrays import read_arrays, write_arrays
from distmetric.index.embedding_file import embedding_shape, read_embedding_file
from distmetric.index.embedding_writer import EmbeddingWriter, embedding_batch, embedding_schema
from distmetric.training.checkpoint import CheckpointStore, read_checkpoint
from distmetric.training.run_folder import RunFolder, read_run
from image_sources import make_folder

SECONDS_A_CASE = 120
MEMORY_BYTES = 3 << 30
"""Address space that a case may take beside what the process has; images of 100 megapixels need a part of it."""


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A damaged copy, by one to three kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_DAMAGES)(bytearray(data), rng, others)
    return data


def _flip_bits(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _edit_start(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    for _ in range(rng.choice((1, 2, 4))):
        if data:
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    return bytes(data)


def _edit_end(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    for _ in range(rng.choice((1, 2, 4))):
        if data:
            data[-1 - rng.randrange(min(len(data), 300))] = rng.randrange(256)
    return bytes(data)


def _odd_number(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A size or an offset that is none."""
    form = rng.choice(("<h", ">h", "<i", ">i", "<q"))
    size = struct.calcsize(form)
    highest = (1 << (8 * size - 1)) - 1
    value = rng.choice((0, 1, -1, highest, -highest - 1, highest // 2, rng.randrange(highest)))
    at = rng.randrange(max(1, len(data) - size))
    data[at : at + size] = struct.pack(form, value)
    return bytes(data)


def _truncate(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _cut_out(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return bytes(data[:start] + data[start + rng.randrange(1, 200) :])


def _repeat(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return bytes(data[: start + rng.randrange(1, 200)] + data[start:])


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return bytes(data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :])


def _blank(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    size = min(rng.randrange(1, 100), len(data) - start)
    data[start : start + size] = bytes([rng.choice((0, 255))]) * size
    return bytes(data)


_DAMAGES = (
    *(_flip_bits, _flip_bits, _edit_start, _edit_end, _odd_number, _odd_number),
    *(_truncate, _cut_out, _repeat, _splice, _blank),
)

# ---- images


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def images() -> list[bytes]:
    """One image, or more, of every format and mode that we read, animations and rotated ones among them."""
    colors = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    colors[4:12] = 90
    rgb = Image.fromarray(colors)
    gray, palette = rgb.convert("L"), rgb.quantize(8)
    rgba = rgb.convert("RGBA")
    rgba.putalpha(gray)
    wide = np.arange(17 * 23, dtype=np.uint16).reshape(17, 23) * 150
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = bytes(range(128)) * 2
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 300, zip=True)
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180)]}
    found = [
        _encoded(image, kind)
        for kind, several in (
            ("PNG", (rgb, gray, palette, rgba, rgba.convert("LA"), gray.convert("1"))),
            ("JPEG", (rgb, gray, rgb.convert("CMYK"))),
            ("GIF", (palette, gray)),
            ("BMP", (rgb, gray, palette, gray.convert("1"))),
            ("WEBP", (rgb, rgba)),
            ("TIFF", (rgb, gray, palette, rgba, rgb.convert("CMYK"), rgb.convert("LAB"), gray.convert("1"))),
            ("PPM", (rgb, gray, gray.convert("1"))),
            ("JPEG2000", (rgb, gray)),
        )
        for image in several
    ]
    found += [_encoded(wide, kind) for kind in ("PNG", "TIFF", "PPM", "JPEG2000")]
    found += [
        _encoded(gray, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    ]
    found += [
        _encoded(gray.convert("F"), "TIFF"),
        _encoded(rgb, "TIFF", compression="jpeg"),
        _encoded(gray.convert("1"), "TIFF", compression="group4"),
        _encoded(rgb, "PNG", exif=exif, icc_profile=profile, pnginfo=text),
        _encoded(palette, "PNG", transparency=b"\x00\x80\xff"),
        _encoded(rgb, "JPEG", exif=exif, icc_profile=profile, progressive=True, quality=30),
        _encoded(rgb, "WEBP", lossless=True, exif=exif),
        *(_encoded(rgb, kind, **frames) for kind in ("PNG", "GIF", "WEBP", "TIFF")),
        _encoded(rgb, "MPO", **frames),
    ]
    return found


def _read_image(path: Path) -> bool:
    data, size, reason = path.read_bytes(), None, "none"
    try:
        size = check_image(data)
    except BadImageError as error:
        reason = str(error)
    assert reason.strip()
    assert reason.isprintable(), reason
    for channels in (1, 3):
        try:
            pixels = decode_image(data, (7, 9), channels)
        except BadImageError:
            assert size is None, "what was checked has to be decoded when it is trained on"
        else:
            assert (pixels.shape, pixels.dtype) == ((channels, 7, 9), np.uint8)
    if size is not None:
        _make_others_of(data)
    return size is not None


def _make_others_of(image: bytes) -> None:
    """What ingest makes of an image that it takes, turned and joined, has to be one that it takes."""
    item, joiner = Item("x.png", "x.png", Labels("a"), image), Joiner(2, seed=0)
    joiner.keep(item)
    joiner.keep(replace(item, labels=Labels("b")))
    for made, size in chain(turned(item), *joiner.joined()):
        assert check_image(made.data) == size


# ---- sources of ingest


def _few_pngs() -> list[bytes]:
    return [_encoded(np.full((3, 4), 20 * value, np.uint8), "PNG") for value in range(8)]


def _zips() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for prefix in ("", "ä/"):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", method) as archive:
                for number, data in enumerate(_few_pngs()):
                    archive.writestr(f"{prefix}{'abcd'[number % 4]}/{number}.png", data)
                archive.comment = b"a comment"
            found.append(buffer.getvalue())
    return found


def _tars() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for number, data in enumerate(_few_pngs()):
                info = tarfile.TarInfo(f"{'ä' * 45}/{'abcd'[number % 4]}/{number}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found += [buffer.getvalue(), gzip.compress(buffer.getvalue())]
    return found


def _market_attributes() -> list[bytes]:
    return [published.market_attribute()]


def _read_market_attributes(path: Path) -> bool:
    for person, values in read_attributes(Annotation(path.name, None, path.read_bytes())).items():
        assert isinstance(person, str)
        assert values.keys() == VALUES.keys()
    return True


def _partitions() -> list[bytes]:
    return [published.inshop(4, 2)[1]]


def _read_partition(path: Path) -> bool:
    """The list of In-shop, of which every image is there: all of them, or none."""
    folder = Path(WORK[0]) / "inshop"
    if not folder.exists():
        make_folder(folder, published.inshop(4, 2)[0])
    found = inshop.read(LayoutFiles(open_tree(locate(str(folder))), str(path)))
    assert all(labels.class_name and labels.split in SPLITS for labels in found.values())
    return True


def _parquets() -> list[bytes]:
    data = _few_pngs()
    labels = [f"class {number % 3}" for number in range(8)]
    features = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"]}}}}
    plain = {
        "image": data,
        "label": labels,
        "split": ["train", "test"] * 4,
        "group": ["g"] * 7 + [None],
        "camera": [0, None] * 4,
        "path": [f"{number}.png" for number in range(8)],
        "attributes": [{"hue": "red", "age": 3}, None] * 4,
    }
    hugging_face = {
        "image": [{"bytes": each, "path": None} for each in data],
        "label": pa.array([number % 3 for number in range(8)]),
    }
    nested = {"image": [None, *data[1:]], "label": pa.array(labels).dictionary_encode()}
    tables = [pa.table(plain), pa.table(hugging_face), pa.table(nested)]
    tables[1] = tables[1].replace_schema_metadata({"huggingface": json.dumps(features)})
    found = []
    for table in tables:
        for compression in ("none", "snappy", "zstd"):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression=compression, row_group_size=3)
            found.append(buffer.getvalue())
    return found


def _ingested(path: Path) -> bool:
    """Ingest a source: a catalog that can be opened, or nothing."""
    out = path.parent / "out" / "c.arrow"
    try:
        result = ingest([str(path)], out, threads=1)
        catalog = Catalog.open(out)
        assert len(catalog) == result.rows
        assert all(check_image(catalog.image_bytes(row)) for row in range(len(catalog)))
        assert [each.name for each in out.parent.iterdir()] == [out.name]
        shutil.rmtree(out.parent)
    finally:
        assert not out.parent.exists(), "something was left"
    return True


def _manifests() -> list[bytes]:
    rows = ["path,label,split,group,camera,attribute.hue"]
    rows += [f'a/{number}.png,"class ""{number % 2}"", x",train,g,{number},red' for number in range(6)]
    text = "\r\n".join(rows)
    return [text.encode(), b"\xef\xbb\xbf" + text.encode(), b'path,label\n"a\nb.png","x\ny"\n']


def _read_manifest(path: Path) -> bool:
    for name, labels in read_manifest(str(path)).items():
        assert name
        assert labels.class_name
        assert labels.camera is None or 0 <= labels.camera < 1 << 63
    return True


# ---- catalogs


def _catalogs() -> list[bytes]:
    """Written by us, and by an older release, which had no checksums."""
    folder = Path(WORK[0])
    path = folder / "seed.arrow"
    with CatalogWriter(path) as writer:
        for number, data in enumerate(_few_pngs()):
            writer.add(
                data,
                f"class {number % 3}",
                group="g",
                path=f"in/{number}.png",
                width=4,
                height=3,
                split="train" if number % 3 else "test",
                camera=number if number % 2 else None,
                attributes={"hue": "red"} if number % 4 else {},
            )
    old = tampered(path, lambda columns: columns.pop("crc32"))
    found = [path.read_bytes(), old.read_bytes(), old.read_bytes()]
    path.unlink()
    old.unlink()
    return found


def _read_catalog(path: Path) -> bool:
    catalog = Catalog.open(path)
    rows = np.concatenate([catalog.rows(split) for split in catalog.splits])
    assert sorted(rows.tolist()) == list(range(len(catalog)))
    assert (len(catalog.label_names), len(np.unique(catalog.labels))) == (catalog.num_classes,) * 2
    assert len(catalog.groups) == len(catalog)
    assert catalog.cameras is None or len(catalog.cameras) == len(catalog)
    for name in catalog.attribute_names:
        assert len(catalog.attribute(name)) == len(catalog)
    for row in range(len(catalog)):
        assert isinstance(catalog.source_path(row), str)
    store = ImageStore(catalog, 5, 1, memory_limit_bytes=0, threads=1)
    assert store.images(rows).shape == (len(catalog), 1, 5, 5)
    return True


# ---- embeddings and arrays


def _embeddings() -> list[bytes]:
    folder = Path(WORK[0])
    vectors = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    extras = {"camera": [0, -1] * 10, "group": ["g", None] * 10}
    found = []
    for ending in ("parquet", "arrow"):
        path = folder / f"seed.{ending}"
        schema = embedding_schema(5, list(extras), {"step": "1", "checkpoint": "x"})
        with EmbeddingWriter(str(path), schema) as writer:
            for part in (slice(0, 12), slice(12, 20)):
                ids, some = range(20)[part], {name: values[part] for name, values in extras.items()}
                names, paths = [f"c{row % 3}" for row in ids], [f"{row}.png" for row in ids]
                writer.write(embedding_batch(schema, ids, paths, names, vectors[part], some))
        found.append(path.read_bytes())
        path.unlink()
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"id": [1, 2], "path": ["a", "b"], "label_name": ["x", "y"], "embedding": [[1.0], [2.0]]}),
        buffer,
    )
    return [*found, buffer.getvalue()]


def _read_embeddings(path: Path) -> bool:
    try:
        file = read_embedding_file(str(path))
    except UserError:
        with suppress(UserError):  # it reads less, and may see nothing wrong
            embedding_shape(str(path))
        raise
    rows = len(file.ids)
    assert file.embeddings.shape == embedding_shape(str(path))
    assert bool(file.embeddings.isfinite().all())
    assert len(set(file.ids.tolist())) == rows == len(file.paths.to_pylist()) == len(file.labels)
    assert file.labels.max() < len(file.label_names)
    return True


def _arrays() -> list[bytes]:
    path = Path(WORK[0]) / "seed.arrow"
    content = {
        "vectors": np.arange(60, dtype=np.float32).reshape(12, 5),
        "places": np.arange(12),
        "no": np.zeros((0, 3)),
    }
    write_arrays(str(path), content, {"rows": 12, "name": "x"})
    data = path.read_bytes()
    path.unlink()
    return [data]


def _read_arrays(path: Path) -> bool:
    arrays, meta = read_arrays(str(path))
    assert meta == {"rows": 12, "name": "x"}
    assert arrays["vectors"].tolist() == np.arange(60.0).reshape(12, 5).tolist()
    assert arrays["places"].tolist() == list(range(12))
    return True


# ---- what a run leaves


@cache
def _run_folder() -> Path:
    top = Path(WORK[0]) / "run"
    config = {"checkpoint": {"best_metric": "recall_at_1"}, "seed": 0}
    RunFolder(str(top), "run", config, "f" * 64, "0.1.0").write()
    store = CheckpointStore(str(top / "checkpoints"), 2, "recall_at_1")
    meta = {"version": "0.1.0", "metrics": {"recall_at_1": 0.5}, "config": config, "fingerprint": "f" * 64}
    store.save(3, {"model": {"weight": torch.arange(6.0)}}, meta)
    return top


def _run_file(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_run_folder() / name).read_bytes()]


def _read_run(path: Path) -> bool:
    folder = path.parent / "one"
    shutil.copytree(_run_folder(), folder)
    try:
        path.rename(folder / "run.json")
        found = read_run(str(folder))
        assert found.name == "run"
        assert found.fingerprint == "f" * 64
    finally:
        shutil.rmtree(folder)
    return True


def _read_checkpoint_with(name: str) -> Callable[[Path], bool]:
    def read(path: Path) -> bool:
        folder = path.parent / "step_00000003"
        shutil.copytree(_run_folder() / "checkpoints" / "step_00000003", folder)
        try:
            path.rename(folder / name)
            found = read_checkpoint(str(folder))
            assert found.step == 3
            assert found.metrics == {"recall_at_1": 0.5}
            assert found.tensors("model")["weight"].tolist() == list(range(6))
        finally:
            shutil.rmtree(folder)
        return True

    return read


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: How a damaged one is called.
        seeds: Makes intact ones.
        read: Reads one: True for a result, False for a refusal that is no error; errors of the user may leave it.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], bool]


_STEP = "checkpoints/step_00000003"
KINDS = {
    "image": Kind("x.png", images, _read_image),
    "zip": Kind("x.zip", _zips, _ingested),
    "tar": Kind("x.tar", _tars, _ingested),
    "market_attribute.mat": Kind("x.mat", _market_attributes, _read_market_attributes),
    "list_eval_partition.txt": Kind("x.txt", _partitions, _read_partition),
    "parquet": Kind("x.parquet", _parquets, _ingested),
    "manifest": Kind("x.csv", _manifests, _read_manifest),
    "catalog": Kind("x.arrow", _catalogs, _read_catalog),
    "embeddings": Kind("x.parquet", _embeddings, _read_embeddings),
    "arrays": Kind("x.arrow", _arrays, _read_arrays),
    "run.json": Kind("x.json", _run_file("run.json"), _read_run),
    "meta.json": Kind("x.json", _run_file(f"{_STEP}/meta.json"), _read_checkpoint_with("meta.json")),
    "manifest.json": Kind(
        "x.json", _run_file(f"{_STEP}/manifest.json"), _read_checkpoint_with("manifest.json")
    ),
    "model.pt": Kind("x.pt", _run_file(f"{_STEP}/model.pt"), _read_checkpoint_with("model.pt")),
}
WORK: list[str] = []
_seeds = cache(lambda kind: KINDS[kind].seeds())


def run_case(kind: str, seed: int, folder: Path) -> str:
    """Read one damaged file: "read" or "refused".

    Raises:
        AssertionError: If the result contradicts itself, or the refusal is not one line.
        Exception: Whatever else a reader lets out.
    """
    rng = random.Random(f"{kind} {seed}")
    seeds = _seeds(kind)
    path = folder / KINDS[kind].name
    path.write_bytes(mutated(rng.choice(seeds), rng, seeds))
    try:
        return "read" if KINDS[kind].read(path) else "refused"
    except UserError as error:
        said = str(error)
        assert said.strip()
        assert said.isprintable(), said
        return "refused"
    finally:
        path.unlink(missing_ok=True)


def main(folder: str, first: int, cases: int, kinds: Sequence[str]) -> dict[str, dict[str, int]]:
    """Run cases of some kinds; see the top."""
    WORK[:] = [folder]
    found: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for kind in kinds:
        _seeds(kind)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    note = Path(folder) / "case"
    for seed in range(first, first + cases):
        for kind in kinds:
            note.write_text(f"{kind} {seed}")
            faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
            found[kind][run_case(kind, seed, Path(folder))] += 1
    faulthandler.cancel_dump_traceback_later()
    return {kind: dict(counts) for kind, counts in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # type: ignore[assignment]  # a disk takes longer than all the rest
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
