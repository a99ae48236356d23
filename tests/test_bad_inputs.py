"""Every bad input of every job is one sentence that names it, an exit code, and nothing written."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fuzzed_data
from catalogs import flip, tampered, write_catalog
from distmetric.config.command import run_command
from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.config.schema import Config
from distmetric.errors import InputError
from distmetric.index.embedding_writer import EmbeddingWriter, embedding_batch, embedding_schema
from distmetric.training.run_folder import RunFolder
from distmetric.training.saved_model import config_dict
from image_sources import FILES, make_folder, make_parquet, make_zip, png
from runs import ListTracker, run_once, tiny_config

JOBS = Path(__file__).parents[1] / "jobs"
CONFIGS = {"train": "config"}
LARGE = pa.large_string()
ROWS = [
    (png(10 * number + i), name, "train" if name < "c" else "test")
    for number, name in enumerate("abcd")
    for i in range(3)
]
VECTORS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


def catalog_at(path: Path) -> Path:
    write_catalog(path, ROWS)
    return path


def embeddings_at(path: Path, vectors: Any = VECTORS) -> Path:
    schema = embedding_schema(vectors.shape[1], [], {})
    names = [f"c{row % 3}" for row in range(len(vectors))]
    with EmbeddingWriter(str(path), schema) as writer:
        ids = list(range(len(vectors)))
        writer.write(embedding_batch(schema, ids, [f"{row}.png" for row in ids], names, vectors, {}))
    return path


# ---- what can be in place of a file; each makes it at the path and may return another one


def missing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("hello\n" * 50)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def memory(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


# ---- catalogs


def cut(fraction: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = catalog_at(path).read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])

    return make


def with_column(name: str, values: Any, kind: Any) -> Callable[[Path], Path]:
    return lambda path: tampered(
        catalog_at(path), lambda columns: columns.update({name: pa.array(values, kind)})
    )


def without_column(path: Path) -> Path:
    return tampered(catalog_at(path), lambda columns: columns.pop("label"))


def no_rows(path: Path) -> Path:
    return tampered(catalog_at(path), lambda columns: columns.update({n: c[:0] for n, c in columns.items()}))


def two_batches(path: Path) -> Path:
    return tampered(catalog_at(path), lambda _: None, batches=2)


def newer(path: Path) -> Path:
    return tampered(catalog_at(path), lambda _: None, metadata={b"format_version": b"9", b"fingerprint": b""})


def embeddings_file(path: Path) -> None:
    embeddings_at(path.with_suffix(".arrow")).rename(path)


def flipped_label(path: Path) -> None:
    catalog_at(path)
    labels = pa.ipc.open_file(str(path)).get_batch(0).column("label").to_numpy().tobytes()
    flip(path, path.read_bytes().rindex(labels) + 8)


def wild_offset(path: Path) -> None:
    """The offsets of the paths point far outside of the file."""
    catalog_at(path)
    offsets = bytes(pa.ipc.open_file(str(path)).get_batch(0).column("path").buffers()[1])
    data = path.read_bytes()
    at = data.rindex(offsets)
    path.write_bytes(data[: at + 8] + struct.pack("<q", 1 << 40) + data[at + 16 :])


def flipped_image(row: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        catalog_at(path)
        flip(path, path.read_bytes().rindex(ROWS[row][0]) + 40)

    return make


def catalog_of(*rows: tuple[str, str]) -> Callable[[Path], None]:
    """A catalog of one image for each class name and split."""

    def make(path: Path) -> None:
        write_catalog(path, [(png(row), *names) for row, names in enumerate(rows)])

    return make


ONE_CLASS = catalog_of(*[("a", "train")] * 4, *[("b", "test")] * 2)
SINGLE_IMAGES = catalog_of(*[(name, "train") for name in "abcdefghijkl"], ("x", "test"), ("x", "test"))
LONE_TEST = catalog_of(*[(name, "train") for name in "aabbcc"], ("x", "test"), ("y", "test"))
NO_TEST = catalog_of(*[(name, "train") for name in "aabbcc"])

# ---- sources of ingest


def folder_of(**files: bytes) -> Callable[[Path], None]:
    return lambda path: void(
        make_folder(path, {name.replace("__", "/").replace("_", "."): d for name, d in files.items()})
    )


def void(_: object) -> None:
    pass


def zip_of(files: dict[str, bytes], change: Callable[[bytes], bytes] = bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        make_zip(path, files)
        path.write_bytes(change(path.read_bytes()))

    return make


def encrypted(data: bytes) -> bytes:
    """With the flag in every header."""
    found = bytearray(data)
    for signature, at_flag in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := found.find(signature, at + 1)) >= 0:
            found[at + at_flag] |= 1
    return bytes(found)


def parquet_of(**columns: Any) -> Callable[[Path], None]:
    return lambda path: void(make_parquet(path, columns))


def parquet_cut(path: Path) -> None:
    make_parquet(path, {"image": [png(1), png(2)], "label": ["a", "b"]})
    path.write_bytes(path.read_bytes()[:-20])


TWO = [png(1), png(2)]
NOT_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(struct.pack("<3i", 0, 2, 4)), pa.py_buffer(b"\xff\xfeab")]
)
TWICE = pa.table([pa.array(TWO), pa.array(["a", "b"]), pa.array(["a", "b"])], ["image", "label", "label"])

# ---- files of embeddings


def vectors(change: Callable[[Any], None], ending: str = ".parquet") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        changed = VECTORS.copy()
        change(changed)
        return embeddings_at(path.with_suffix(ending), changed)

    return make


def table_of(**columns: Any) -> Callable[[Path], Path]:
    """A valid file of embeddings with some columns changed."""

    def make(path: Path) -> Path:
        target = path.with_suffix(".parquet")
        table = pq.read_table(embeddings_at(target))
        for name, values in columns.items():
            table = table.set_column(table.schema.names.index(name), name, values)
        pq.write_table(table, target)
        return target

    return make


def embeddings_cut(ending: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        target = embeddings_at(path.with_suffix(ending))
        target.write_bytes(target.read_bytes()[:-25])
        return target

    return make


def column_twice(path: Path) -> Path:
    target = path.with_suffix(".parquet")
    table = pq.read_table(embeddings_at(target))
    pq.write_table(table.append_column("id", table["id"]), target)
    return target


LISTS = VECTORS.tolist()
NAN, INF = float("nan"), float("inf")


class Bad(NamedTuple):
    """A bad input of a job: what makes it, the settings, and what is said. `{bad}` is where it is."""

    job: str
    make: Callable[[Path], Path | None]
    settings: str
    says: str
    code: int = 2


TRAIN = "data=catalog data.path={bad} debug=tiny tracking=none output_dir={out}"
PLAIN = TRAIN + " sampler.classes_per_batch=2 sampler.samples_per_class=2"
EVALUATE = "checkpoint={run} data.path={bad} data.split=test out={out}/e.json"
EMBED = "checkpoint={run} source={bad} out={out}/e.parquet"
QUERY = "checkpoint={run} query={bad} gallery={images} out={out}/e.json"
SEARCH = "checkpoint={run} gallery={bad} queries={images} out={out}/s"
EXPORT = "checkpoint={run} images={bad} out={out}/x 'formats=[safetensors]'"
INGEST = "source={bad} out={out}/c.arrow"
STRICT = INGEST + " on_bad_image=error"
MANIFEST = "source={images} manifest={bad} out={out}/c.arrow"
MINE = "embeddings={bad} out={out}/m"
FILE = "embeddings={bad} out={out}/e.json"
BOTH = "query={bad} gallery={vectors} out={out}/e.json"
FIND = "gallery={bad} queries={vectors} out={out}/s"

CATALOGS = [
    Bad("train", missing, TRAIN, r"{bad}: does not exist; make a catalog with jobs/ingest\.py"),
    Bad("train", empty, TRAIN, r"{bad}: is no catalog or is damaged \(it is empty\)"),
    Bad("train", text, TRAIN, r"{bad}: is no catalog or is damaged"),
    Bad("train", a_folder, TRAIN, r"{bad}: is a folder, not a catalog file"),
    Bad("train", a_pipe, TRAIN, r"{bad}: cannot be read \(not a regular file\)"),
    Bad("train", a_socket, TRAIN, r"{bad}: cannot be read \(not a regular file\)"),
    Bad("train", a_device, TRAIN, r"cannot be read \(not a regular file\)"),
    Bad("train", dangling, TRAIN, r"nowhere: does not exist"),
    Bad("train", memory, TRAIN, r"is no catalog or is damaged \(it is empty\)"),
    Bad("train", cut(0.5), TRAIN, r"{bad}: is no catalog or is damaged .*; ingest again"),
    Bad("train", cut(0.99), TRAIN, r"{bad}: is no catalog or is damaged .*; ingest again"),
    Bad("train", flipped_label, TRAIN, r"{bad}: is damaged \(its checksum does not fit its columns\)"),
    Bad("train", wild_offset, TRAIN, r"{bad}: is no catalog or is damaged .*; ingest again"),
    Bad("train", without_column, TRAIN, r"{bad}: the column label is missing; ingest again"),
    Bad("train", with_column("label", ["a"] * 12, LARGE), TRAIN, r"column label is large_string, not int64"),
    Bad(
        "train",
        with_column("label", [0, None] * 6, pa.int64()),
        TRAIN,
        r"{bad}: column label has empty values \(the first in row 1\)",
    ),
    Bad(
        "train", with_column("label", [0] * 12, pa.int64()), TRAIN, r"label and label_name are not one to one"
    ),
    Bad("train", with_column("id", [1] * 12, pa.int64()), TRAIN, r"{bad}: the column id repeats a value"),
    Bad(
        "train",
        with_column("id", range(-1, 11), pa.int64()),
        TRAIN,
        r"the column id has -1 in row 0; .* from 0",
    ),
    Bad("train", no_rows, TRAIN, r"{bad}: has no rows; ingest again"),
    Bad("train", two_batches, TRAIN, r"{bad}: has 2 record batches instead of one"),
    Bad("train", newer, TRAIN, r"{bad}: is a catalog of version '9'; ingest again with this version"),
    Bad("train", embeddings_file, TRAIN, r"{bad}: is an Arrow file, but no catalog"),
    Bad("train", ONE_CLASS, TRAIN, r"classes_per_batch=\d+ but the training split has 1 classes: set "),
    Bad(
        "train",
        SINGLE_IMAGES,
        PLAIN,
        r"the largest training class has 1 rows: set sampler\.samples_per_class",
    ),
    Bad("train", LONE_TEST, PLAIN, r"{bad}, data\.test_split=test: every class has one image only"),
    Bad("train", NO_TEST, PLAIN, r"{bad}: no split is called 'test'; choose one of train"),
    Bad(
        "train",
        catalog_at,
        PLAIN + " data.train_split=nope",
        r"no split is called 'nope'; choose one of train, test",
    ),
    Bad("evaluate", missing, EVALUATE, r"{bad}: does not exist"),
    Bad("evaluate", a_folder, EVALUATE, r"data\.path={bad} is no catalog"),
    Bad("evaluate", a_pipe, EVALUATE, r"data\.path={bad} is no catalog"),
    Bad("evaluate", flipped_label, EVALUATE, r"{bad}: is damaged \(its checksum does not fit"),
    Bad("evaluate", flipped_image(7), EVALUATE, r"the image of row 7, id 7 \(in/7\.png\) is damaged"),
    Bad("evaluate", LONE_TEST, EVALUATE, r"data\.path={bad}: none of 2 queries has a relevant"),
    Bad("evaluate", wild_offset, QUERY, r"query: {bad}: is no catalog or is damaged"),
    Bad("embed", wild_offset, EMBED, r"{bad}: is no catalog or is damaged"),
    Bad("embed", flipped_image(7), EMBED, r"the image of row 7, id 7 \(in/7\.png\) is damaged: its checksum"),
    Bad("embed", catalog_at, EMBED + " split=nope", r"no split is called 'nope'"),
    Bad("embed", missing, EMBED, r"{bad}: does not exist"),
    Bad("embed", a_pipe, EMBED, r"{bad}: is a pipe, socket or device"),
    Bad("embed", memory, EMBED, r"/mem: is neither a folder nor"),
    Bad("search", flipped_label, SEARCH, r"gallery: {bad}: is damaged \(its checksum"),
    Bad("search", flipped_image(0), SEARCH, r"the image of row 0, id 0 \(in/0\.png\) is damaged"),
    Bad("export", flipped_image(0), EXPORT, r"the image of row 0, id 0 \(in/0\.png\) is damaged"),
    Bad("export", missing, EXPORT, r"{bad}: does not exist"),
]
SOURCES = [
    Bad("ingest", missing, INGEST, r"{bad}: does not exist; name a folder, an archive or Parquet"),
    Bad("ingest", text, INGEST, r"{bad}: is neither a folder nor \.zip, \.tar, "),
    Bad("ingest", a_pipe, INGEST, r"{bad}: is a pipe, socket or device"),
    Bad("ingest", a_socket, INGEST, r"{bad}: is a pipe, socket or device"),
    Bad("ingest", a_device, INGEST, r"{bad}: is a pipe, socket or device"),
    Bad("ingest", a_loop, INGEST, r"{bad}: (does not exist|cannot be read)"),
    Bad("ingest", a_folder, INGEST, r"no usable image; unusable: none; ignored files: 0"),
    Bad("ingest", folder_of(a__1_txt=b"x"), INGEST, r"no usable image; .* ignored files: 1"),
    Bad("ingest", folder_of(a__1_png=png(1), a__2_png=png(2)), INGEST, r"one class only \('a'\)"),
    Bad("ingest", folder_of(a__1_png=b"", b__1_png=b""), INGEST, r"no usable image; unusable: 2 empty"),
    Bad("ingest", folder_of(a__1_png=b""), STRICT, r"{bad}/a/1\.png: empty; remove or mend it"),
    Bad("ingest", folder_of(a__1_png=png(1, 40)[:900]), STRICT, r"{bad}/a/1\.png: truncated"),
    Bad("ingest", folder_of(a__1_jpg=b"<html>"), STRICT, r"{bad}/a/1\.jpg: not an image"),
    Bad(
        "ingest",
        folder_of(a__1_png=png(1, 40)),
        STRICT + " max_pixels=99",
        r"1\.png: too many pixels \(41 x 40",
    ),
    Bad(
        "ingest",
        folder_of(a__1_png=png(1)),
        STRICT + " max_image_bytes=9",
        r"1\.png: too many bytes \(limit 9\)",
    ),
]
ZIPS = [
    Bad("ingest", missing, INGEST, r"{bad}: does not exist"),
    Bad("ingest", empty, INGEST, r"{bad}: is no usable zip file"),
    Bad("ingest", text, INGEST, r"{bad}: is no usable zip file"),
    Bad("ingest", a_pipe, INGEST, r"{bad}: is a pipe, socket or device"),
    Bad("ingest", zip_of({}), INGEST, r"no usable image"),
    Bad("ingest", zip_of(FILES, lambda data: data[:300]), INGEST, r"{bad}: is no usable zip file"),
    Bad("ingest", zip_of(FILES, encrypted), INGEST, r"no usable image; unusable: 8 encrypted"),
    Bad("ingest", zip_of({"../a/1.png": png(1)}), STRICT, r"{bad}/\.\./a/1\.png: unsafe member name"),
    Bad("ingest", zip_of({"/etc/1.png": png(1)}), STRICT, r"unsafe member name"),
    Bad("ingest", zip_of({"C:/a/1.png": png(1)}), STRICT, r"unsafe member name"),
    Bad("ingest", zip_of({"a/1.png": bytes(1 << 20)}), STRICT + " max_image_bytes=1000", r"too many bytes"),
    Bad(
        "ingest",
        zip_of({"ä/1.png": png(1)}, lambda data: data.replace("ä".encode(), b"\xff\xff")),
        INGEST,
        r"{bad}: has member names that are not UTF-8; pack it again",
    ),
    Bad("embed", zip_of(FILES, encrypted), EMBED, r"source={bad}: no image in it can be read"),
    Bad("embed", zip_of({"a.txt": b""}), EMBED, r"source={bad}: there is no image in it"),
]
PARQUETS = [
    Bad("ingest", empty, INGEST, r"{bad}: is no usable Parquet file"),
    Bad("ingest", text, INGEST, r"{bad}: is no usable Parquet file"),
    Bad("ingest", a_pipe, INGEST, r"{bad}: is a pipe, socket or device"),
    Bad("ingest", parquet_cut, INGEST, r"{bad}: is no usable Parquet file"),
    Bad("ingest", parquet_of(image=TWO), INGEST, r"{bad}: the column label is missing; it has: image"),
    Bad("ingest", parquet_of(image=TWO, label=[1.5, 2.5]), INGEST, r"column label is double; it has to be"),
    Bad("ingest", parquet_of(image=TWO, label=[None, None]), INGEST, r"column label is null; it has to be"),
    Bad(
        "ingest",
        parquet_of(image=[None, None], label=["a", "b"]),
        INGEST,
        r"column image is null; it has to be",
    ),
    Bad("ingest", parquet_of(image=["a", "b"], label=["a", "b"]), INGEST, r"column image is string"),
    Bad("ingest", parquet_of(image=[[b"a"], None], label=["a", "b"]), INGEST, r"column image is list"),
    Bad(
        "ingest", parquet_of(image=[{"path": "x"}, None], label=["a", "b"]), INGEST, r"column image is struct"
    ),
    Bad("ingest", parquet_of(image=TWO, label=pa.array(["a", None])), STRICT, r"{bad}#1: no label"),
    Bad(
        "ingest",
        parquet_of(image=[None, {"bytes": None, "path": "x"}, {"bytes": b"", "path": None}], label=[1, 2, 3]),
        INGEST,
        r"no usable image; unusable: 2 no bytes, 1 empty",
    ),
    Bad(
        "ingest",
        parquet_of(image=pa.array([], pa.binary()), label=pa.array([], pa.string())),
        INGEST,
        r"no usable",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"], camera=[0, -1]),
        INGEST,
        r"{bad}#1: camera=-1 is negative",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"], camera=pa.array([0, 2**64 - 1], pa.uint64())),
        INGEST,
        r"{bad}#1: camera=18446744073709551615 is too large",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"], split=[["x"], None]),
        INGEST,
        r"column split is list",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"], attributes=[{"x": [1]}, None]),
        INGEST,
        r"column attributes is struct<x: list<.*; make it a struct of strings",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=NOT_TEXT),
        INGEST,
        r"{bad}#0: column label has text that is not UTF-8",
    ),
    Bad(
        "ingest", lambda path: pq.write_table(TWICE, path), INGEST, r"{bad}: the column label is there twice"
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"]),
        INGEST + " split_by=given",
        r"{bad}#0: has no split",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"], split=["train", "tset"]),
        INGEST + " split_by=given",
        r"class 'b' is in split 'tset'; rename the split to one of train, validation, test",
    ),
    Bad(
        "ingest",
        parquet_of(image=TWO, label=["a", "b"]),
        MANIFEST.replace("{images}", "{bad}"),
        "cannot describe Parquet|cannot be read",
    ),
    Bad("embed", parquet_of(image=TWO, label=["a", "b"]), EMBED, r"{bad}: holds Parquet; name a folder"),
]


def manifest(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: void(path.write_bytes(data))


MANIFESTS = [
    Bad("ingest", missing, MANIFEST, r"{bad}: cannot be read .*; it has to be CSV in UTF-8"),
    Bad("ingest", a_pipe, MANIFEST, r"{bad}: cannot be read \(.*not a regular file"),
    Bad("ingest", a_folder, MANIFEST, r"{bad}: cannot be read \(.*is a folder"),
    Bad("ingest", empty, MANIFEST, r"{bad}: the column path is missing; it has: none"),
    Bad(
        "ingest", manifest("path,label\na/0.png,x\n".encode("utf-16")), MANIFEST, r"it has to be CSV in UTF-8"
    ),
    Bad("ingest", manifest(b"path,label\n\xe4.png,x\n"), MANIFEST, r"{bad}: cannot be read .* CSV in UTF-8"),
    Bad(
        "ingest",
        manifest("path;label\na/0.png;x\n"),
        MANIFEST,
        r"the column path is missing; it has: path;label",
    ),
    Bad("ingest", manifest("path,label,label\n"), MANIFEST, r"{bad}: the column label is there twice"),
    Bad("ingest", manifest("path,lable\n"), MANIFEST, r"the column label is missing; it has: path, lable"),
    Bad(
        "ingest",
        manifest('path,label\n"a/0.png,x\n'),
        MANIFEST,
        r"{bad}, line \d: is no CSV .*; mend its quotes",
    ),
    Bad("ingest", manifest('path,label\n"a\n/0.png",\n'), MANIFEST, r"{bad}, line 3: label is empty"),
    Bad("ingest", manifest("path,label\na/0.png," + "x" * 200_000), MANIFEST, r"{bad}, line 1: is no CSV"),
    Bad(
        "ingest",
        manifest("path,label\na/0.png,x\n./a/0.png,y\n"),
        MANIFEST,
        r"line 3: path .* is given twice",
    ),
    Bad(
        "ingest",
        manifest("path,label\n../../a.png,x\n"),
        MANIFEST,
        r"line 2: path .* leads outside the source",
    ),
    Bad(
        "ingest",
        manifest(f"path,label,camera\na/0.png,x,{9**40}\n"),
        MANIFEST,
        r"line 2: camera=.* no whole number",
    ),
    Bad(
        "ingest",
        manifest("path,label\nnope.png,x\n"),
        MANIFEST,
        r"no usable image; unusable: 1 named in the manifest",
    ),
    Bad("ingest", manifest("path,label\n"), MANIFEST, r"no usable image"),
]
EMBEDDINGS = [
    *(
        Bad(job, make, settings, says)
        for job, settings in (("mine", MINE), ("evaluate", FILE))
        for make, says in (
            (missing, r"embeddings={bad} does not exist: give a file that jobs/embed\.py wrote"),
            (a_folder, r"embeddings={bad} is no usable Parquet or Arrow file \(.*is a folder"),
            (a_pipe, r"embeddings={bad} is no usable Parquet or Arrow file \(.*not a regular file"),
            (empty, r"embeddings={bad} is no usable Parquet or Arrow file"),
            (text, r"embeddings={bad} is no usable Parquet or Arrow file"),
            (embeddings_cut(".parquet"), r"embeddings={bad} is no usable Parquet or Arrow file"),
            (embeddings_cut(".arrow"), r"embeddings={bad} is no usable Parquet or Arrow file"),
            (vectors(lambda rows: rows.__setitem__((5, 1), NAN)), r"embeddings={bad} row 5 is not finite"),
            (
                vectors(lambda rows: rows.__setitem__((5, 1), INF), ".arrow"),
                r"embeddings={bad} row 5 is not finite",
            ),
            (
                table_of(embedding=pa.array([*LISTS[:7], [1.0, 2.0], *LISTS[8:]])),
                r"embeddings={bad}: the embedding in row 7 has another length \(2 numbers\) than it should have \(4\)",
            ),
            (
                table_of(embedding=pa.array([[]] * 12, pa.list_(pa.float32()))),
                r"embedding in row 0 has another length \(0 numbers\)",
            ),
            (table_of(embedding=pa.array(["x"] * 12)), r"column embedding is string, not lists of numbers"),
            (table_of(embedding=pa.array([None, *LISTS[1:]])), r"column embedding has no value in row 0"),
            (table_of(embedding=pa.array([[1e300, 0.0]] * 12)), r"embeddings={bad} row 0 is not finite"),
            (table_of(id=pa.array([3] * 12)), r"id 3 is in row 0 and again in row 1: give every row its own"),
            (table_of(id=pa.array(range(-2, 10))), r"id -2 in row 0 is negative: number the rows from 0"),
            (table_of(id=pa.array(["x"] * 12)), r"column id is string, not integers"),
            (
                table_of(label_name=pa.array([None] * 12, pa.string())),
                r"column label_name has no value in row 0",
            ),
            (column_twice, r"embeddings={bad} has two columns called id: keep one of them"),
        )
    ),
    Bad(
        "mine",
        lambda path: embeddings_at(path.with_suffix(".arrow"), VECTORS[:0]),
        MINE,
        r"{bad} has no rows",
    ),
    Bad(
        "mine",
        lambda path: embeddings_at(path.with_suffix(".parquet"), VECTORS[:1]),
        MINE,
        r"has one class only, c0",
    ),
    Bad("mine", vectors(lambda rows: rows.fill(1)), MINE, r"all embeddings are equal"),
    Bad(
        "evaluate",
        vectors(lambda rows: rows.__setitem__((0, 0), NAN)),
        BOTH,
        r"query={bad} row 0 is not finite",
    ),
    Bad(
        "evaluate",
        lambda path: embeddings_at(path.with_suffix(".parquet"), VECTORS[:, :3].copy()),
        BOTH,
        r"query={bad} has embeddings of 3 numbers and gallery=.* of 4",
    ),
    Bad("search", vectors(lambda rows: rows.__setitem__((2, 0), NAN)), FIND, r"{bad} row 2 is not finite"),
    Bad(
        "search",
        lambda path: embeddings_at(path.with_suffix(".parquet"), VECTORS[:, :3].copy()),
        FIND,
        r"queries=.* has embeddings of 4 numbers, gallery={bad} of 3",
    ),
    Bad("search", a_pipe, FIND.replace("{bad}", "{bad}.parquet"), r"does not exist"),
]
PLACES = [
    Bad("ingest", text, "source={images} out={bad}/c.arrow", r"{bad}/c\.arrow: cannot be written"),
    Bad(
        "ingest", a_folder, "source={images} out={bad}", r"{bad}: is a folder; name the catalog file to write"
    ),
    Bad(
        "embed",
        text,
        "checkpoint={run} source={images} out={bad}/e.parquet",
        r"{bad}/e\.parquet.* cannot be",
        3,
    ),
    Bad(
        "mine",
        text,
        "embeddings={vectors} out={bad}/m",
        r"{bad}/m/hardest_pairs\.parquet cannot be written",
        3,
    ),
    Bad("evaluate", text, "embeddings={vectors} out={bad}/e.json", r"out={bad}/e\.json cannot be written", 3),
    Bad("search", text, "gallery={vectors} queries={vectors} out={bad}/s", r"{bad}/s.* cannot be written", 3),
    Bad(
        "export", text, "checkpoint={run} out={bad}/x formats=[safetensors]", r"{bad}/x cannot be written", 3
    ),
]
TABLE = [
    *((bad, "c.arrow") for bad in CATALOGS),
    *((bad, "source") for bad in SOURCES),
    *((bad, "in.zip") for bad in ZIPS),
    *((bad, "in.parquet") for bad in PARQUETS),
    *((bad, "m.csv") for bad in MANIFESTS),
    *((bad, "e.parquet") for bad in EMBEDDINGS),
    *((bad, "place") for bad in PLACES),
]


@pytest.fixture(scope="module")
def good(glyph_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run, images and embeddings that are as they should be."""
    top = tmp_path_factory.mktemp("good")
    config = tiny_config(glyph_cache, "train.steps=1", "model.widths=[4]", "model.embedding_dim=4")
    worker, _, _ = run_once(config, top / "run")
    RunFolder(str(top / "run"), "run", config_dict(config), worker.catalog.fingerprint, "0.1.0").write()
    images = make_folder(top / "images", FILES)
    return {"run": str(top / "run"), "images": images, "vectors": str(embeddings_at(top / "v.parquet"))}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is not refused fails here, before it starts anything."""
    from distmetric.cluster import fit

    def started(*_: object) -> Iterator[None]:
        raise AssertionError("not refused")

    monkeypatch.setattr(fit, "ray_session", started)


def job_named(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bad_inputs_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def contents(top: Path) -> dict[str, str]:
    """Everything below a folder."""
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in top.rglob("*")
    }


def refused(job: str, arguments: list[str], out: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a job that has to be refused: its exit code and its one line."""
    (out / "kept").mkdir(parents=True)
    (out / "kept" / "file").write_text("kept")
    before = contents(out)
    script = job_named(job)
    capfd.readouterr()
    code = run_command(CONFIGS.get(job, job), str(script.__doc__), script.main, arguments)
    shown = capfd.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, shown.err
    assert shown.err.splitlines()[-1] == lines[0], "nothing follows the sentence"
    assert shown.out == ""
    for noise in ("Traceback", "Warning", 'File "'):
        assert noise not in shown.err
    assert contents(out) == before
    return code, lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("bad", "name"), TABLE, ids=[f"{number:03}-{bad.job}-{name}" for number, (bad, name) in enumerate(TABLE)]
)
def test_a_bad_input_is_one_sentence_and_leaves_nothing(
    bad: Bad, name: str, good: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    place = bad.make(place) or place
    values = {**good, "bad": str(place), "out": str(tmp_path / "out")}
    arguments = [part.format(**values).strip("'") for part in bad.settings.split()]
    code, said = refused(bad.job, arguments, tmp_path / "out", capfd)
    assert code == bad.code
    assert re.search(bad.says.replace("{bad}", re.escape(str(place))), said), said


def done(job: str, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run a job that has to succeed: its result."""
    script = job_named(job)
    capfd.readouterr()
    assert run_command(CONFIGS.get(job, job), str(script.__doc__), script.main, arguments) == 0
    result: dict[str, Any] = json.loads(capfd.readouterr().out.splitlines()[-1])
    return result


def test_images_of_every_kind_are_read_and_bad_ones_listed_by_every_job(
    good: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Animated, CMYK, 16 bits, 1 x 1, palettes, transparency, turned by EXIF, wrong endings; and what is none."""
    top = tmp_path / "in"
    fine = {f"{'ab'[number % 2]}/{number}.jpg": data for number, data in enumerate(fuzzed_data.images())}
    lab = [
        name
        for name, data in fine.items()
        if data[:2] == b"II" and Image.open(io.BytesIO(data)).mode == "LAB"
    ]
    bad = dict.fromkeys(lab, "unsupported colors (LAB)")
    files = fine | {
        "a/one.gif": png(1, 1),
        "b/empty.png": b"",
        "a/page.jpg": b"<html>",
        "b/cut.jpg": png(2, 40)[:999],
    }
    bad |= {"b/empty.png": "empty", "a/page.jpg": "not an image", "b/cut.jpg": "truncated"}
    make_folder(top, files)
    os.mkfifo(top / "a" / "pipe.png")
    (top / "b" / "gone.png").symlink_to(top / "nowhere")
    bad |= {
        "a/pipe.png": "unreadable (not a regular file)",
        "b/gone.png": "unreadable (No such file or directory)",
    }
    assert len(lab) == 1
    assert len(bad) == 6
    expected = {f"{top}/{name}": reason for name, reason in bad.items()}
    rows = len(files) + 2 - len(bad)
    ingested = done("ingest", [f"source={top}", f"out={tmp_path}/c.arrow"], capfd)
    assert dict(ingested["bad_images"]) == expected
    assert ingested["rows"] == rows
    run = f"checkpoint={good['run']}"
    for source, listed in ((top, expected), (tmp_path / "c.arrow", {})):
        embedded = done("embed", [run, f"source={source}", f"out={tmp_path}/e.parquet"], capfd)
        assert {each["path"]: each["reason"] for each in embedded["bad_images"]} == listed
        assert embedded["rows"] == rows
        measured = done("evaluate", [run, f"query={source}", "protocol.resamples=0"], capfd)
        assert {each["path"]: each["reason"] for each in measured["bad_images"]} == listed
        assert measured["images"] == rows


CLASSES = [
    (png(30 * number + i), name, "train" if name < "s" else "test")
    for number, name in enumerate("abcdst")
    for i in range(4)
]
LEARNING = (
    *("data=catalog", "sampler.classes_per_batch=4", "sampler.samples_per_class=2", "train.steps=2"),
    *("eval.every_steps=2", "checkpoint.every_steps=1", "model.image_size=8", "model.widths=[4]"),
    *("model.embedding_dim=4", "tracking=none", "data.memory_limit_gib=0"),
)


def learning(catalog: Path) -> Config:
    """A tiny run on a catalog, which decodes every batch from it."""
    tiny = ("debug=tiny", *LEARNING, f"data.path={catalog}")
    return decode(Config, compose("config", tiny))


def test_an_image_that_was_damaged_after_ingest_ends_training_with_its_row_id_and_path(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.arrow"
    write_catalog(path, CLASSES, id=[100 + row for row in range(len(CLASSES))])
    run_once(learning(path), tmp_path / "good")
    for row in range(4):  # all images of a class that every batch has
        flip(path, path.read_bytes().rindex(CLASSES[row][0]) + 40)
    with pytest.raises(InputError) as raised:
        run_once(learning(path), tmp_path / "bad")
    row = int(re.search(r"row (\d)", str(raised.value))[1])  # type: ignore[index]
    assert str(raised.value) == (
        f"{path}: the image of row {row}, id {100 + row} (in/{row}.png) is damaged: its checksum does not fit; "
        "ingest again"
    )


def test_a_catalog_that_is_replaced_while_a_run_trains_is_the_old_one_to_the_end_and_refused_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "c.arrow", tmp_path / "other.arrow"
    write_catalog(path, CLASSES)
    write_catalog(other, CLASSES[::-1])
    config = learning(path)

    class Replacing(ListTracker):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            if other.exists():
                other.replace(path)
            super().log(step, metrics)

    worker, result, _ = run_once(config, tmp_path / "run", Replacing())
    assert not other.exists()
    assert result.step == 2
    folder = RunFolder(str(tmp_path / "run"), "run", config_dict(config), worker.catalog.fingerprint, "0.1.0")
    folder.write()
    before = contents(tmp_path / "run")
    code, said = refused("train", [f"resume={tmp_path / 'run'}"], tmp_path / "out", capfd)
    assert code == 2
    assert re.search(r"the data has changed since .*: resume with the same catalog, or start a new run", said)
    assert contents(tmp_path / "run") == before
    with pytest.raises(InputError, match=r"the data has changed since .*: resume with the same catalog"):
        run_once(config, tmp_path / "run")


def test_a_catalog_that_is_cut_off_while_a_run_trains_ends_it_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.arrow"
    write_catalog(path, CLASSES)
    whole = path.stat().st_size

    class Cutting(ListTracker):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            if path.stat().st_size == whole:
                with path.open("r+b") as file:
                    file.truncate(whole // 2)
            super().log(step, metrics)

    config = decode(Config, {**config_dict(learning(path)), "resume": None})
    config = replace(config, train=replace(config.train, steps=20, log_every=1))
    with pytest.raises(
        InputError, match=r"c\.arrow: was changed while in use; start again with the catalog as it is"
    ):
        run_once(config, tmp_path / "run", Cutting())


def test_the_table_is_no_shorter_than_it_was() -> None:
    assert len(TABLE) >= 120
    assert {bad.job for bad, _ in TABLE} == {
        "train",
        "ingest",
        "embed",
        "evaluate",
        "search",
        "mine",
        "export",
    }
