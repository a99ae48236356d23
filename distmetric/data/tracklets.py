"""Tracklets: which rows of a catalog are frames of one moving thing, in which order, and which frames make a clip."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from distmetric.data.catalog_format import Integers
from distmetric.errors import InputError
from distmetric.functional.counter_random import uniform

# Beyond all draws of the augmentation, its noise of one number per value included.
_FIRST_DRAW = 1 << 40


@dataclass(frozen=True)
class FrameSampling:
    """How the frames of a training clip are drawn from a tracklet.

    Args:
        how: "segments" cuts the tracklet into as many equal segments as the clip has frames and draws one frame of each
            (Wang et al. 2016, arXiv 1608.00859); "consecutive" draws the first frame, the others follow it.
        stride: With "consecutive": frames from one to the next.
    """

    how: Literal["segments", "consecutive"] = "segments"
    stride: int = 1


class Tracklets:
    """The rows of a catalog by tracklet, each in the order of its frames.

    A tracklet stands for its first frame's row: that row's id, label and path are those of the tracklet. A row that is
    in no tracklet is one of its own, with one frame.

    Args:
        where: How to name the catalog in errors.
        names: Arrow text, the tracklet of each row or null; None where no row has one.
        frames: Arrow int64, the place in its tracklet of each row that has one.
        num_rows: Rows N of the catalog.

    Attributes:
        rows: (M,) int64, ascending: the first frame's row of every tracklet.
        known: Whether any row names a tracklet.

    Raises:
        InputError: A row has a tracklet without a frame or the other way round, or a tracklet a frame twice.

    Cost: one sort of N rows; 24 bytes a row are held.
    """

    def __init__(self, where: str | os.PathLike[str], names: Any, frames: Any, num_rows: int) -> None:
        self._where, self._names = where, names
        self.known = names is not None
        codes, number = np.arange(num_rows), np.zeros(num_rows, np.int64)
        if frames is not None and not self.known:
            raise InputError(f"{where}: has a column frame and no column tracklet; give both or neither")
        if self.known:
            self._check_both_given(frames)
            encoded = names.dictionary_encode()
            given = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
            codes = np.where(given, encoded.indices.fill_null(0).to_numpy(), len(encoded.dictionary) + codes)
            number = frames.fill_null(0).to_numpy()
        self._order = np.lexsort((number, codes))
        begins = np.flatnonzero(np.diff(codes[self._order], prepend=-1))
        first = self._order[begins]
        by_row = np.argsort(first)
        self.rows: Integers = first[by_row]
        self._starts: Integers = begins[by_row]
        self._lengths: Integers = np.diff(begins, append=num_rows)[by_row]
        self._check_frames_differ(codes, number)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, rows: Integers) -> Integers:
        """Number of frames of the tracklets that some rows stand for, (B,)."""
        return self._lengths[self._places(rows)]

    def all_frames(self, rows: Integers) -> Integers:
        """Rows of all frames of the tracklets that some rows stand for, tracklet by tracklet."""
        places = self._places(rows)
        parts = [self._order[self._starts[p] : self._starts[p] + self._lengths[p]] for p in places]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def spread(self, rows: Integers, count: int) -> Integers:
        """Evenly spaced frames: of n frames number  floor((2 k + 1) n / (2 T)),  k = 0 .. T - 1.

        Args:
            rows: (B,) rows that tracklets stand for, from `rows`; repeated ones are allowed.
            count: Frames T of a clip.

        Returns:
            (B, T) rows, in the order of the frames; a tracklet of fewer than T frames repeats some.

        Raises:
            IndexError: A row stands for no tracklet.
        """
        places = self._places(rows)
        return self._rows_at(places, _spread(self._lengths[places], count))

    def drawn(
        self, rows: Integers, ids: Integers, count: int, sampling: FrameSampling, seed: int, step: int
    ) -> Integers:
        """Frames drawn at random, as a pure function of (seed, step, id) and the length of the tracklet.

        Args:
            rows: (B,) rows that tracklets stand for, from `rows`; repeated ones are allowed.
            ids: (B,) what tells them apart.
            count: Frames T of a clip.
            sampling: How they are drawn.
            seed: Of the run.
            step: Optimizer step.

        Returns:
            (B, T) rows, in the order of the frames. Where there are not enough frames, those are evenly spaced, and
            repeated if there are fewer than T.

        Raises:
            IndexError: A row stands for no tracklet.
        """
        places = self._places(rows)
        lengths = self._lengths[places][:, None]
        numbers = uniform(seed, step, torch.from_numpy(np.asarray(ids)), count, first=_FIRST_DRAW).numpy()
        k = np.arange(count)
        if sampling.how == "segments":
            low, high = k * lengths // count, (k + 1) * lengths // count
            chosen = low + (numbers * np.maximum(high - low, 1)).astype(np.int64)
        else:
            room = lengths - (count - 1) * sampling.stride
            begin = (numbers[:, :1] * np.maximum(room, 1)).astype(np.int64)
            chosen = np.where(room > 0, begin + k * sampling.stride, _spread(lengths[:, 0], count))
        return self._rows_at(places, chosen)

    def check_agree(self, what: str, values: npt.NDArray[Any]) -> None:
        """See that the frames of a tracklet have one value.

        Args:
            what: What the values are, in one word.
            values: (N,) of every row of the catalog.

        Raises:
            InputError: Naming the first tracklet that has two.
        """
        if not self.known:
            return
        begins = np.argsort(self._starts)
        owner = np.repeat(self.rows[begins], self._lengths[begins])
        differs = np.flatnonzero(values[self._order] != values[owner])
        if len(differs):
            place = differs[0]
            row = int(self._order[place])
            one, other = values[[owner[place], row]].tolist()
            raise InputError(
                f"{self._where}: the frames of tracklet {self._name(row)!r} have two values of {what}, {one!r} and "
                f"{other!r}: give all frames of a tracklet one"
            )

    def _check_both_given(self, frames: Any) -> None:
        missing = {} if frames is not None else {"frame": np.arange(len(self._names))}
        if frames is not None:
            named, placed = (
                column.is_valid().to_numpy(zero_copy_only=False) for column in (self._names, frames)
            )
            missing = {"frame": np.flatnonzero(named & ~placed), "tracklet": np.flatnonzero(placed & ~named)}
        for column, rows in missing.items():
            if len(rows):
                other = "tracklet" if column == "frame" else "frame"
                raise InputError(
                    f"{self._where}: row {rows[0]} has a {other} and no {column}: give both or neither"
                )

    def _check_frames_differ(self, codes: Integers, number: Integers) -> None:
        ordered, of = number[self._order], codes[self._order]
        repeated = np.flatnonzero((np.diff(ordered) == 0) & (np.diff(of) == 0))
        if len(repeated):
            row = int(self._order[repeated[0]])
            raise InputError(
                f"{self._where}: tracklet {self._name(row)!r} has frame {number[row]} twice: number the frames of a "
                "tracklet in their order, each once"
            )

    def _name(self, row: int) -> str:
        return str(self._names[row])

    def _places(self, rows: Integers) -> Integers:
        rows = np.asarray(rows, np.int64)
        places = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        if not np.array_equal(self.rows[places], rows):
            raise IndexError(f"{self._where}: rows that are no first frames of a tracklet")
        return places

    def _rows_at(self, places: Integers, numbers: Integers) -> Integers:
        found: Integers = self._order[self._starts[places][:, None] + numbers]
        return found


def _spread(lengths: Integers, count: int) -> Integers:
    return (2 * np.arange(count) + 1) * lengths[:, None] // (2 * count)
