"""Which rows are frames of one tracklet, and which of them make a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalogs import tampered, write_catalog
from distmetric.data.catalog import Catalog
from distmetric.data.tracklets import FrameSampling, Tracklets
from distmetric.errors import InputError
from distmetric.functional.counter_random import uniform

ROWS = [
    (f"{i}".encode(), name, split)
    for i, (name, split) in enumerate([("a", "train")] * 4 + [("b", "test")] * 3)
]
TRACKLETS = ["x", "y", "x", None, "z", "z", None]
FRAMES = [7, 0, 3, None, 0, 1, None]


def columns(names: list[Any], frames: list[Any]) -> tuple[Any, Any]:
    return pa.array(names, pa.large_string()), pa.array(frames, pa.int64())


def of_lengths(*lengths: int) -> Tracklets:
    names = [f"t{number}" for number, length in enumerate(lengths) for _ in range(length)]
    frames = [frame for length in lengths for frame in range(length)]
    return Tracklets("set", *columns(names, frames), len(names))


def test_a_catalog_brings_its_tracklets_back(tmp_path: Path) -> None:
    write_catalog(tmp_path / "set.arrow", ROWS, tracklet=TRACKLETS, frame=FRAMES)
    catalog = Catalog.open(tmp_path / "set.arrow")
    found = catalog.tracklets
    assert found.known
    assert found.rows.tolist() == [1, 2, 3, 4, 6], "row 2 is the first frame of x, rows 3 and 6 are alone"
    assert found.lengths(found.rows).tolist() == [1, 2, 1, 2, 1]
    assert found.all_frames(np.array([4, 2])).tolist() == [4, 5, 2, 0]
    assert catalog.values("tracklet", np.array([2, 3])) == ["x", None]


def test_without_the_columns_every_row_is_a_tracklet_and_the_fingerprint_is_what_it_was(
    tmp_path: Path,
) -> None:
    plain = write_catalog(tmp_path / "plain.arrow", ROWS)
    catalog = Catalog.open(tmp_path / "plain.arrow")
    assert not catalog.tracklets.known
    assert catalog.tracklets.rows.tolist() == list(range(7))
    assert "tracklet" not in pa.ipc.open_file(str(catalog.path)).schema.names
    nothing = write_catalog(tmp_path / "set.arrow", ROWS, tracklet=[None] * 7, frame=[None] * 7)
    assert nothing == plain
    assert write_catalog(tmp_path / "set.arrow", ROWS, tracklet=TRACKLETS, frame=FRAMES) != plain


def test_the_fingerprint_sees_tracklets_and_frames(tmp_path: Path) -> None:
    prints = {
        write_catalog(tmp_path / "set.arrow", ROWS, tracklet=names, frame=frames)
        for names, frames in [
            (TRACKLETS, FRAMES),
            (["w", *TRACKLETS[1:]], FRAMES),
            (TRACKLETS, [8, *FRAMES[1:]]),
        ]
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tracklet": ["x"] * 7, "frame": list(range(7))},
            r"frames of tracklet 'x' have two values of label, 'a' and 'b': give all",
        ),
        ({"frame": [3, 0, 3, None, 0, 1, None]}, r"tracklet 'x' has frame 3 twice: number the frames"),
        ({"camera": [0, 1, 2, 3, 4, 4, 5]}, r"frames of tracklet 'x' have two values of camera, 2 and 0"),
        (
            {"frame": [7, 0, None, None, 0, 1, None]},
            r"in/2.png: has a tracklet and no frame; give both or neither",
        ),
        ({"tracklet": ["x", "y", "x", None, None, "z", None]}, r"in/4.png: has a frame and no tracklet"),
        (
            {"frame": [-7, 0, 3, None, 0, 1, None]},
            r"in/0.png: frame=-7 is negative; number the frames from 0",
        ),
    ],
)
def test_contradictions_are_one_line_and_write_nothing(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "set.arrow"
    with pytest.raises(InputError, match=message) as caught:
        write_catalog(path, ROWS, **({"tracklet": TRACKLETS, "frame": FRAMES} | change))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tracklet_has_one_split(tmp_path: Path) -> None:
    rows = [(b"1", "a", "train"), (b"2", "a", "test")]
    with pytest.raises(InputError, match="tracklet 'x' have two values of split, 'train' and 'test'"):
        write_catalog(tmp_path / "set.arrow", rows, tracklet=["x"] * 2, frame=[0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("frame"), r"row 0 has a tracklet and no frame: give both or neither"),
        (lambda c: c.pop("tracklet"), r"has a column frame and no column tracklet"),
        (
            lambda c: c.update(frame=pa.array([7, 0, None, None, 0, 1, None], pa.int64())),
            "row 2 has a tracklet and no",
        ),
        (
            lambda c: c.update(frame=pa.array([7, 0, 7, None, 0, 1, None], pa.int64())),
            "tracklet 'x' has frame 7 twice",
        ),
        (
            lambda c: c.update(
                tracklet=pa.array(["q"] * 7, pa.large_string()), frame=pa.array(range(7), pa.int64())
            ),
            "tracklet 'q' have two values of label, 0 and 1",
        ),
    ],
)
def test_catalogs_of_others_are_checked_when_clips_are_made(
    tmp_path: Path, change: Any, message: str
) -> None:
    write_catalog(tmp_path / "set.arrow", ROWS, tracklet=TRACKLETS, frame=FRAMES)
    catalog = Catalog.open(tampered(tmp_path / "set.arrow", change))
    with pytest.raises(InputError, match=message):
        catalog.tracklets  # noqa: B018


def test_columns_of_other_types_are_refused_at_once(tmp_path: Path) -> None:
    write_catalog(tmp_path / "set.arrow", ROWS, tracklet=TRACKLETS, frame=FRAMES)
    changed = tampered(tmp_path / "set.arrow", lambda c: c.update(frame=pa.array(["1"] * 7)))
    with pytest.raises(InputError, match="column frame is string, not int64; ingest again"):
        Catalog.open(changed)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 8))
def test_spread_frames_are_the_middles_of_equal_parts(lengths: list[int], count: int) -> None:
    found = of_lengths(*lengths)
    for row, length, frames in zip(found.rows, lengths, found.spread(found.rows, count), strict=True):
        for k, frame in enumerate(frames):
            assert frame - row == int(length * (k + 0.5) / count)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**40), st.integers(0, 10**6))
def test_segments_give_one_frame_each(length: int, count: int, key: int, step: int) -> None:
    found = of_lengths(3, length)
    (frames,) = found.drawn(np.array([3]), np.array([key]), count, FrameSampling("segments"), 1, step) - 3
    for k, frame in enumerate(frames):
        low, high = k * length // count, (k + 1) * length // count
        assert low <= frame < max(high, low + 1)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_consecutive_frames_follow_each_other(length: int, count: int, stride: int, step: int) -> None:
    found = of_lengths(length)
    sampling = FrameSampling("consecutive", stride)
    (frames,) = found.drawn(np.array([0]), np.array([5]), count, sampling, 1, step)
    assert 0 <= frames.min() <= frames.max() < length
    if length > (count - 1) * stride:
        assert np.diff(frames).tolist() == [stride] * (count - 1)
    else:
        assert frames.tolist() == found.spread(np.array([0]), count)[0].tolist()


@pytest.mark.parametrize("sampling", [FrameSampling("segments"), FrameSampling("consecutive", 2)])
def test_draws_are_a_function_of_seed_step_and_id(sampling: FrameSampling) -> None:
    found = of_lengths(*[12] * 50)
    ids = found.rows * 7

    def drawn(places: Any, seed: int = 3, step: int = 4) -> Any:
        rows = found.rows[places]
        return found.drawn(rows, ids[places], 4, sampling, seed, step) - rows[:, None]

    whole = drawn(slice(None))
    assert np.array_equal(drawn([30, 2, 30]), whole[[30, 2, 30]])
    for other in (drawn(slice(None), seed=4), drawn(slice(None), step=5)):
        assert (other != whole).any(1).mean() > 0.5
    assert len(np.unique(whole, axis=0)) > 5, "ids draw different frames"
    firsts = np.concatenate([drawn(slice(None), step=step)[:, 0] for step in range(40)])
    expected = 3 if sampling.how == "segments" else 6
    assert np.bincount(firsts, minlength=expected).tolist() == pytest.approx(
        [2000 / expected] * expected, rel=0.2
    )


def test_frames_are_drawn_apart_from_the_augmentation() -> None:
    """Else a rotation to one side would always come with early frames."""
    found, ids = of_lengths(1000), np.arange(400)
    rows = np.zeros(400, np.int64)
    first = found.drawn(rows, ids, 1, FrameSampling(), 0, 0)[:, 0]
    rotation = uniform(0, 0, torch.from_numpy(ids), 1)[:, 0].numpy()
    assert abs(np.corrcoef(first, rotation)[0, 1]) < 0.15


def test_a_row_that_is_no_first_frame_is_refused() -> None:
    with pytest.raises(IndexError, match="no first frames"):
        of_lengths(3, 2).spread(np.array([1]), 2)
