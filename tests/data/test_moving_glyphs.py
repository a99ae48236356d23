"""The built-in clips are repeatable, split by class, and show what their attributes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distmetric.data.catalog import Catalog
from distmetric.data.clips import ClipStore
from distmetric.data.decode import ImageStore, check_image
from distmetric.data.moving_glyphs import ANGLES, MOTIONS, SPEEDS, moving_glyph_catalog
from distmetric.errors import InputError

FRAMES = 6


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.open(moving_glyph_catalog(tmp_path_factory.mktemp("moving"), 28, 0, 1 / 3, 60, 6, FRAMES))


def clips(catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    rows = catalog.tracklets.rows
    store = ClipStore(ImageStore(catalog, 28, 1), FRAMES)
    return rows, store.images(rows)[:, :, 0].numpy()


def test_every_class_has_its_tracklets_in_one_split(catalog: Catalog) -> None:
    rows = catalog.tracklets.rows
    assert (len(catalog), catalog.num_classes, len(rows)) == (60 * 6 * FRAMES, 60, 360)
    assert set(catalog.tracklets.lengths(rows)) == {FRAMES}
    assert np.bincount(catalog.labels[rows]).tolist() == [6] * 60
    train, test = (set(catalog.labels[catalog.rows(split)]) for split in ("train", "test"))
    assert (len(train), len(test), train & test) == (40, 20, set())
    assert check_image(catalog.image_bytes(0)) == (28, 28)


def test_attributes_are_those_of_the_tracklet_and_all_values_occur(catalog: Catalog) -> None:
    expected = {
        "motion": set(MOTIONS),
        "speed": set(SPEEDS),
        "angle": {str(angle) for angle in ANGLES},
        **{name: {"yes", "no"} for name in ("hidden", "serif", "mono", "bold", "italic")},
    }
    assert set(catalog.attribute_names) == set(expected)
    for name, values in expected.items():
        catalog.tracklets.check_agree(name, catalog.attribute(name))
        assert set(catalog.attribute(name)) == values


def test_glyphs_move_as_their_attributes_say(catalog: Catalog) -> None:
    rows, pixels = clips(catalog)
    seen = catalog.attribute("hidden")[rows] == "no"
    weights = pixels[seen].astype(float)
    total = weights.sum((2, 3))
    assert (total > 0).all()
    grid = np.arange(28)
    x, y = (weights * grid).sum((2, 3)) / total, (weights * grid[:, None]).sum((2, 3)) / total
    moved = np.stack([x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]], 1)
    motions, speeds = (catalog.attribute(name)[rows][seen] for name in ("motion", "speed"))
    for motion, direction in MOTIONS.items():
        for speed, way in SPEEDS.items():
            of = moved[(motions == motion) & (speeds == speed)]
            np.testing.assert_allclose(of.mean(0), np.array(direction) * way * 28, atol=0.8)
            assert len(of) > 5


def test_half_of_the_frames_of_hidden_tracklets_are_covered(catalog: Catalog) -> None:
    rows, pixels = clips(catalog)
    covered = ((pixels == 128).mean((2, 3)) > 0.5).sum(1)
    hidden = catalog.attribute("hidden")[rows] == "yes"
    assert set(covered[hidden]) == {FRAMES // 2}
    assert set(covered[~hidden]) == {0}
    assert 0.35 < hidden.mean() < 0.65


def test_the_same_parameters_give_the_same_set_and_others_another(catalog: Catalog, tmp_path: Path) -> None:
    again = Catalog.open(moving_glyph_catalog(tmp_path, 28, 0, 1 / 3, 60, 6, FRAMES))
    assert again.fingerprint == catalog.fingerprint
    other = Catalog.open(moving_glyph_catalog(tmp_path, 28, 1, 1 / 3, 60, 6, FRAMES))
    assert other.fingerprint != catalog.fingerprint
    assert len(list(tmp_path.iterdir())) == 2
    before = again.path.stat().st_mtime_ns
    assert moving_glyph_catalog(tmp_path, 28, 0, 1 / 3, 60, 6, FRAMES) == again.path
    assert again.path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 7}, "size=7: glyphs need at least 8 pixels"),
        ({"max_classes": 1}, "max_classes=1: choose at least 2"),
        ({"tracklets_per_class": 1}, "tracklets_per_class=1: choose at least 2"),
        ({"frames_per_tracklet": 1}, "frames_per_tracklet=1: choose at least 2"),
    ],
)
def test_parameters_out_of_range_are_one_line(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        moving_glyph_catalog(tmp_path, **wrong)
