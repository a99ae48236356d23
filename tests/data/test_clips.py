"""Clips take the place of images: pixels by the row of a first frame, one augmentation for all frames, and ingest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from distmetric.data.augment import AugmentSpec, augment
from distmetric.data.catalog import Catalog
from distmetric.data.clips import ClipStore, check_has_tracklets, held_frames, sample_rows
from distmetric.data.decode import ImageStore
from distmetric.data.ingest import ingest
from distmetric.data.tracklets import FrameSampling
from distmetric.errors import InputError
from image_sources import FILES, make_folder, make_parquet, make_zip, png

FRAMES = {
    f"{name}/{name}{walk}/cam-{10 * frame + 1:02d}.png": png(100 * ord(name) + 10 * walk + frame)
    for name in "abcd"
    for walk in range(2)
    for frame in range(3 if walk else 11)
}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    folder = make_folder(tmp_path / "in", FRAMES)
    return Catalog.open(ingest([folder], tmp_path / "set.arrow", tracklet_folders=True).path)


def frame_of(catalog: Catalog, row: int) -> tuple[str, str, int]:
    path = catalog.source_path(row)
    *_, name, tracklet, file = path.split("/")
    return name, tracklet, int(file.removesuffix(".png").removeprefix("cam-"))


def test_folders_become_tracklets_in_the_order_of_their_numbers(catalog: Catalog) -> None:
    assert catalog.label_names == list("abcd")
    assert set(catalog.groups) == set("abcd")
    assert len(catalog.tracklets) == 8
    for first, length in zip(
        catalog.tracklets.rows, catalog.tracklets.lengths(catalog.tracklets.rows), strict=True
    ):
        name, tracklet, number = frame_of(catalog, first)
        assert (number, length) == (1, 3 if tracklet.endswith("1") else 11)
        frames = [frame_of(catalog, row) for row in catalog.tracklets.all_frames(np.array([first]))]
        # Sorted by name cam-101 would come before cam-11.
        assert frames == [(name, tracklet, 10 * place + 1) for place in range(length)]


def test_a_zip_gives_the_same_and_files_without_a_number_are_listed(tmp_path: Path, catalog: Catalog) -> None:
    files = FRAMES | {"a/a0/cover.png": png(1), "a/b.png": png(2)}
    found = ingest([make_zip(tmp_path / "in.zip", files)], tmp_path / "zip.arrow", tracklet_folders=True)
    reasons = {path.rpartition("/")[2]: reason for path, reason in found.bad_images}
    assert reasons == {
        "cover.png": "no frame number (its name has to end in one)",
        "b.png": "in no class folder",
    }
    assert found.fingerprint == catalog.fingerprint


def test_manifest_and_parquet_name_tracklets_in_columns(tmp_path: Path, catalog: Catalog) -> None:
    lines = ["path,label,tracklet,frame"]
    for path in FRAMES:
        name, tracklet, file = path.split("/")
        lines.append(f"{path},{name},{name}/{tracklet},{int(file[4:-4])}")
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    options: dict[str, Any] = {"manifest": str(tmp_path / "rows.csv")}
    listed = ingest([make_folder(tmp_path / "again", FRAMES)], tmp_path / "listed.arrow", **options)
    assert listed.fingerprint == catalog.fingerprint
    numbered = {
        name: place for place, name in enumerate(sorted({path.rpartition("/")[0] for path in FRAMES}))
    }
    paths = sorted(FRAMES)
    table = {
        "image": [FRAMES[path] for path in paths],
        "label": [path.split("/")[0] for path in paths],
        "tracklet": pa.array([numbered[path.rpartition("/")[0]] for path in paths], pa.int64()),
        "frame": pa.array(
            [int(path[-6:-4].lstrip("-")) if path[-7] == "-" else int(path[-7:-4]) for path in paths]
        ),
    }
    found = Catalog.open(ingest([make_parquet(tmp_path / "t.parquet", table)], tmp_path / "t.arrow").path)
    assert found.values("tracklet", found.tracklets.rows[:2]) == ["0", "1"]
    assert found.tracklets.lengths(found.tracklets.rows).tolist() == [11, 3] * 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"frame": ["1", "2"]}, "column frame is string; it has to be integer"),
        ({"frame": [1, 2], "tracklet": [0.5, 1.5]}, "column tracklet is double; it has to be string"),
        ({"frame": [1, 2], "tracklet": ["x", None]}, "has a frame and no tracklet; give both or neither"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    rows = {"image": [png(1), png(2)], "label": ["a", "b"]} | table
    with pytest.raises(InputError, match=message):
        ingest([make_parquet(tmp_path / "t.parquet", rows)], tmp_path / "out.arrow")


def test_folders_and_columns_do_not_go_together(tmp_path: Path) -> None:
    table = make_parquet(tmp_path / "t.parquet", {"image": [png(1)], "label": ["a"]})
    with pytest.raises(InputError, match="tracklet_folders=true, but Parquet says it in columns"):
        ingest([table], tmp_path / "out.arrow", tracklet_folders=True)


def test_a_manifest_with_a_frame_that_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("path,label,tracklet,frame\na/0.png,a,x,-1\n")
    folder = make_folder(tmp_path / "in", FILES)
    with pytest.raises(InputError, match=r"line 2: frame='-1' is no whole number from 0; number the frames"):
        ingest([folder], tmp_path / "out.arrow", manifest=str(tmp_path / "rows.csv"))


def test_clips_are_the_frames_of_their_tracklets(catalog: Catalog) -> None:
    images = ImageStore(catalog, (6, 7), 1)
    store = ClipStore(images, 4, FrameSampling("consecutive", 2), seed=3)
    rows = catalog.tracklets.rows[[3, 0, 3]]
    clips = store.images(rows)
    assert clips.shape == (3, 4, 1, 6, 7)
    for clip, frames in zip(clips, catalog.tracklets.spread(rows, 4), strict=True):
        assert torch.equal(clip, images.images(frames))
    expected = catalog.tracklets.drawn(rows, catalog.ids[rows], 4, FrameSampling("consecutive", 2), 3, 9)
    assert torch.equal(store.drawn(rows, 9), torch.stack([images.images(frames) for frames in expected]))
    assert len({store.drawn(rows, step).numpy().tobytes() for step in range(20)}) == 5, (
        "first frames 0 .. 4 of 11"
    )
    assert torch.equal(images.drawn(rows, 9), images.images(rows))


def test_samples_of_a_split_are_its_tracklets(catalog: Catalog) -> None:
    for split in catalog.splits:
        rows = sample_rows(catalog, split, 4)
        assert len(rows) == 2 * len(np.unique(catalog.labels[catalog.rows(split)]))
        assert sorted(held_frames(catalog, rows, 4)) == catalog.rows(split).tolist()
        assert np.array_equal(sample_rows(catalog, split, None), catalog.rows(split))


def test_a_catalog_of_images_is_refused_for_training_on_clips(tmp_path: Path) -> None:
    plain = Catalog.open(ingest([make_folder(tmp_path / "in", FILES)], tmp_path / "set.arrow").path)
    check_has_tracklets(plain, None)
    with pytest.raises(
        InputError, match=r"has no tracklets, and model\.frames_per_clip=4 makes clips of them: ingest"
    ):
        check_has_tracklets(plain, 4)


def test_all_frames_of_a_clip_get_one_augmentation() -> None:
    spec = AugmentSpec(
        rotation=20, scale_min=0.8, erase=0.5, brightness=0.2, contrast=0.3, noise=0.1, flip=0.5
    )
    clips = torch.randint(256, (5, 3, 3, 12, 10), dtype=torch.uint8)
    ids = torch.tensor([4, 9, 1, 7, 2])
    found = augment(clips, spec, 1, 2, ids)
    assert found.shape == clips.shape
    for frame in range(3):
        assert torch.equal(found[:, frame], augment(clips[:, frame], spec, 1, 2, ids))
    assert torch.equal(augment(clips[[3, 1]], spec, 1, 2, ids[[3, 1]]), found[[3, 1]])
    with pytest.raises(ValueError, match="need one integer id each"):
        augment(clips, spec, 1, 2, ids[:4])
