"""Small catalogs of made-up bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
