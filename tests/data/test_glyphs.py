"""The built-in data set is repeatable, honest about lookalikes, and neither trivial nor impossible."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distmetric.data import glyphs
from distmetric.data.catalog import Catalog
from distmetric.data.decode import ImageStore, check_image
from distmetric.data.glyphs import glyph_catalog
from distmetric.errors import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.open(glyph_catalog(tmp_path_factory.mktemp("glyphs")))


def test_it_is_large_and_varied(whole: Catalog) -> None:
    assert 2000 < whole.num_classes < 2300
    assert 26_000 < len(whole) < 31_000
    per_class = np.bincount(whole.labels)
    assert (per_class.min() >= 12, per_class.max()) == (True, 16)
    assert len(set(whole.groups)) > 20
    assert {"LATIN", "GREEK", "CYRILLIC"} <= set(whole.groups)
    assert check_image(whole.image_bytes(0)) == (28, 28) == (whole.widths[0], whole.heights[0])


def test_splits_are_class_disjoint(whole: Catalog) -> None:
    train, test = (set(whole.labels[whole.rows(split)].tolist()) for split in ("train", "test"))
    assert not train & test
    assert len(test) == round(whole.num_classes / 3)
    assert len(train) + len(test) == whole.num_classes


def test_attributes_tell_the_font(whole: Catalog) -> None:
    assert whole.attribute_names == ("bold", "italic", "mono", "serif")
    rows = {whole.source_path(row): row for row in range(16)}
    told = {
        path.partition("/")[0]: "".join(str(whole.attribute(name)[row])[0] for name in whole.attribute_names)
        for path, row in rows.items()
    }
    assert len(told) == 16
    assert told["DejaVuSans"] == "nnnn"
    assert told["DejaVuSansMono-BoldOblique"] == "yyyn"
    assert told["STIXGeneralBol"] == "ynny"


def test_lookalikes_are_one_class(whole: Catalog) -> None:
    names = {name.partition(" ")[0] for name in whole.label_names}
    assert "U+0041" in names, "Latin A"
    assert not names & {"U+0391", "U+0410"}, "Greek Alpha and Cyrillic A look the same"
    assert "U+0392" not in names, "so does Greek Beta"
    assert {"U+0393", "U+0414"} <= names, "Greek Gamma and Cyrillic De do not"


def test_raw_pixels_find_some_neighbors_but_not_most(whole: Catalog) -> None:
    rows = whole.rows("test")
    store = ImageStore(whole, 28, channels=1, rows=rows)
    pixels = torch.nn.functional.normalize(store.images(rows).flatten(1).float(), dim=1)
    labels = torch.from_numpy(whole.labels[rows].copy())
    hits = 0
    for queries in torch.arange(0, len(rows), 4).split(512):
        similarity = pixels[queries] @ pixels.T
        similarity[torch.arange(len(queries)), queries] = -1
        hits += int((labels[similarity.argmax(1)] == labels[queries]).sum())
    assert 0.38 < 4 * hits / len(rows) < 0.50


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    def draw(folder: str, **parameters: int) -> Catalog:
        return Catalog.open(glyph_catalog(tmp_path / folder, **{"max_classes": 12, **parameters}))

    first = draw("a")
    assert first.num_classes == 12
    assert draw("b").fingerprint == first.fingerprint
    other = draw("a", seed=1)
    assert other.path != first.path
    assert other.label_names != first.label_names
    larger = draw("a", size=40)
    assert larger.label_names == first.label_names, "the classes do not depend on the size"
    assert check_image(larger.image_bytes(0)) == (40, 40)


def test_images_of_one_class_are_jittered_apart(whole: Catalog) -> None:
    images = {bytes(whole.image_bytes(int(row))) for row in np.flatnonzero(whole.labels == 5)}
    assert len(images) == int((whole.labels == 5).sum())


def test_the_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = glyph_catalog(tmp_path, max_classes=4)
    stamp = path.stat().st_mtime_ns
    monkeypatch.delattr(glyphs, "_draw_catalog")
    start = time.monotonic()
    assert glyph_catalog(tmp_path, max_classes=4) == path
    assert time.monotonic() - start < 0.5
    assert path.stat().st_mtime_ns == stamp


def test_a_damaged_cache_is_drawn_again(tmp_path: Path) -> None:
    path = glyph_catalog(tmp_path, max_classes=4)
    fingerprint = Catalog.open(path).fingerprint
    path.write_bytes(path.read_bytes()[:1000])
    assert Catalog.open(glyph_catalog(tmp_path, max_classes=4)).fingerprint == fingerprint


def test_two_processes_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    wish = {"cache_dir": tmp_path, "max_classes": 30}
    workers = [context.Process(target=glyph_catalog, kwargs=wish) for _ in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    (path,) = tmp_path.iterdir()
    assert Catalog.open(path).num_classes == 30
    assert glyph_catalog(tmp_path, max_classes=30) == path


def test_wrong_parameters(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size=4"):
        glyph_catalog(tmp_path, size=4)
    with pytest.raises(InputError, match="max_classes=1"):
        glyph_catalog(tmp_path, max_classes=1)
    with pytest.raises(InputError, match="test_fraction=1"):
        glyph_catalog(tmp_path, max_classes=3, test_fraction=1.0)
    assert list(tmp_path.iterdir()) == []
