"""Folders, zip files and Parquet files with tiny images, and what a catalog made from them holds."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from distmetric.data.catalog import Catalog
from distmetric.data.ingest import IngestResult


def png(seed: int, size: int = 6) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + 1), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(top: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return str(top)


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def make_parquet(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path)
    return str(path)


FILES = {f"{name}/{i}.png": png(10 * number + i) for number, name in enumerate("abcd") for i in range(2)}


def rows_of(result: IngestResult) -> set[tuple[str, str, bytes]]:
    catalog = Catalog.open(result.path)
    return {
        (catalog.label_names[catalog.labels[row]], str(catalog.groups[row]), bytes(catalog.image_bytes(row)))
        for row in range(len(catalog))
    }
