"""Small catalogs of made-up bytes, and what becomes of them where others write or damage them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from distmetric.data.catalog_format import CHECKSUM
from distmetric.data.catalog_writer import CatalogWriter


def write_catalog(path: Path, rows: list[tuple[bytes, str, str]], **more: Any) -> str:
    with CatalogWriter(path) as writer:
        for number, (image, name, split) in enumerate(rows):
            extra = {key: values[number] for key, values in more.items()}
            writer.add(
                image, name, group=name[0], path=f"in/{number}.png", width=3, height=2, split=split, **extra
            )
    assert writer.fingerprint is not None
    return writer.fingerprint


ROWS = [(b"one", "b", "train"), (b"three", "c", "test"), (b"four!", "a", "train"), (b"6", "b", "train")]


def tampered(path: Path, change: Any, metadata: dict[bytes, bytes] | None = None, batches: int = 1) -> Path:
    """Write a catalog again with `change` applied to its columns, as others would: without a checksum."""
    batch = pa.ipc.open_file(str(path)).get_batch(0)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    change(columns)
    written = {key: value for key, value in batch.schema.metadata.items() if key != CHECKSUM}
    meta = written if metadata is None else metadata
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=meta)
    target = path.with_suffix(".changed")
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for _ in range(batches):
            writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return target


def flip(path: Path, at: int, bit: int = 0x10) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(bytes(data))
