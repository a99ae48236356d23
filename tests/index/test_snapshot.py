"""Snapshots: immutable, saved and loaded to the last bit, refused when they are not whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import InputError
from distmetric.index import snapshot as module
from distmetric.index.arrays import read_arrays, write_arrays
from distmetric.index.snapshot import NeighborSnapshot
from snapshots import random_snapshot


def with_rows(seed: int, rows: int = 9) -> NeighborSnapshot:
    rng = np.random.default_rng(seed)
    lists = {
        "row_negatives": rng.integers(-1, rows, (rows, 3)).astype(np.int32),
        "row_negative_distances": np.where(rng.random((rows, 3)) < 0.2, np.inf, 1.5).astype(np.float32),
        "row_positives": rng.integers(-1, rows, (rows, 2)).astype(np.int32),
        "row_positive_distances": np.where(rng.random((rows, 2)) < 0.2, -np.inf, 0.5).astype(np.float32),
    }
    return dataclasses.replace(random_snapshot(5, 3, step=seed), seconds=0.1, coverage=1 / 3, **lists)


def assert_equal(left: NeighborSnapshot, right: NeighborSnapshot) -> None:
    for name, value in vars(left).items():
        other = getattr(right, name)
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            assert value.tobytes() == other.tobytes()
        else:
            assert (type(value), value) == (type(other), other)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), rows=st.booleans())
def test_a_loaded_snapshot_equals_the_saved_one_to_the_last_bit(tmp_path_factory, seed, rows) -> None:
    saved = with_rows(seed) if rows else random_snapshot(7, seed + 1)
    location = str(tmp_path_factory.mktemp("snapshot") / "s.arrow")
    saved.save(location)
    loaded = NeighborSnapshot.load(location)
    assert_equal(saved, loaded)
    assert loaded.has_rows == rows
    assert loaded.nbytes == saved.nbytes


@pytest.mark.parametrize("loaded", [False, True])
def test_nobody_can_change_a_snapshot(loaded, tmp_path) -> None:
    snapshot = with_rows(0)
    if loaded:
        snapshot.save(f"{tmp_path}/s")
        snapshot = NeighborSnapshot.load(f"{tmp_path}/s")
    for name, value in vars(snapshot).items():
        if isinstance(value, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(snapshot, name, value)


def test_it_counts_its_classes_and_bytes() -> None:
    snapshot = with_rows(0)
    assert snapshot.num_classes == 5
    classes = 5 * (4 + 3 * 4 + 3 * 4 + 2 * 4 * 4)  # count, centroid, radii, four neighbors and distances
    assert snapshot.nbytes == 4 * 8 + classes + 9 * (3 + 2) * 8


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(keep, tmp_path) -> None:
    path = tmp_path / "s"
    with_rows(0).save(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=r"s is damaged or not one of ours"):
        NeighborSnapshot.load(str(path))


def test_other_formats_and_other_arrays_are_refused(tmp_path, monkeypatch) -> None:
    with_rows(0).save(f"{tmp_path}/s")
    arrays, meta = read_arrays(f"{tmp_path}/s")
    write_arrays(f"{tmp_path}/less", {k: v for k, v in arrays.items() if k != "centroids"}, meta)
    with pytest.raises(InputError, match="no snapshot of format 1"):
        NeighborSnapshot.load(f"{tmp_path}/less")
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(InputError, match="no snapshot of format 2: use the version that wrote it"):
        NeighborSnapshot.load(f"{tmp_path}/s")
