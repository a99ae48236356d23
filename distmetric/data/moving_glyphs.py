"""The built-in data set of clips: Unicode characters that move, turned and partly hidden, as tracklets with attributes.

It needs no download and is drawn in seconds. What changes within a class has names: the motion and its speed, the
angle, whether something passes in front, and the font. A single frame shows neither motion nor speed.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.glyphs import (
    Face,
    check_glyphs,
    class_name,
    digest_of,
    find_classes,
    find_faces,
    group_name,
)
from distmetric.data.splits import by_ratio
from distmetric.errors import InputError
from distmetric.progress import Progress

FORMAT_VERSION = 1
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slow": 0.12, "fast": 0.36}  # way from the first to the last frame, as a share of the image
ANGLES = (-40, -20, 0, 20, 40)  # degrees
_OVERSAMPLING = 2
_EM, _BASELINE = 0.6, 0.7  # font size and height of the baseline, as shares of the image
_JITTER, _WOBBLE = 0.02, 3.0  # per frame: share of the image, degrees
_HIDDEN = 0.55  # share of the image that what passes in front hides


def moving_glyph_catalog(
    cache_dir: str | Path,
    size: int = 28,
    seed: int = 0,
    test_fraction: float = 1 / 3,
    max_classes: int | None = 300,
    tracklets_per_class: int = 8,
    frames_per_tracklet: int = 8,
) -> Path:
    """Draw the data set of moving glyphs, unless it was drawn before, and say where its catalog is.

    Classes are those of `glyph_catalog`. A tracklet shows one character in one font that moves evenly along an axis,
    turned by an angle. Of half of the tracklets half of the frames, in a row, are hidden on one side. Everything is
    drawn from a hash of (seed, character, number of the tracklet, frame). Attributes: motion (left, right, up, down),
    speed (slow, fast), angle (-40, -20, 0, 20, 40), hidden (yes, no), and serif, mono, bold, italic of the font.

    Args:
        cache_dir: Folder for the catalog; made if missing. The file name carries all parameters.
        size: Height and width of the frames in pixels, at least 8.
        seed: Seed of all that is drawn, and of the split.
        test_fraction: Share of the classes held out as the test split.
        max_classes: Draw at most so many classes, chosen at random; None for all.
        tracklets_per_class: Tracklets of each class, at least 2.
        frames_per_tracklet: Frames of each tracklet, at least 2.

    Returns:
        Path of the catalog.

    Raises:
        InputError: A parameter is out of range.
        ResourceError: matplotlib was installed without its fonts.

    The same parameters give the same file with the same versions of Pillow, FreeType and the fonts.
    """
    check_glyphs(size, max_classes)
    for key, value in (
        ("tracklets_per_class", tracklets_per_class),
        ("frames_per_tracklet", frames_per_tracklet),
    ):
        if value < 2:
            raise InputError(f"{key}={value}: choose at least 2")
    classes = "all" if max_classes is None else f"max{max_classes}"
    name = (
        f"moving-glyphs-v{FORMAT_VERSION}-size{size}-seed{seed}-test{float(test_fraction)!r}-{classes}-"
        f"{tracklets_per_class}x{frames_per_tracklet}.arrow"
    )
    path = Path(cache_dir) / name
    try:
        return Catalog.open(path).path
    except InputError:
        _draw_catalog(
            path, size, seed, test_fraction, max_classes, (tracklets_per_class, frames_per_tracklet)
        )
    return path.absolute()


def _draw_catalog(
    path: Path, size: int, seed: int, test_fraction: float, max_classes: int | None, counts: tuple[int, int]
) -> None:
    faces = find_faces()
    classes = find_classes(faces, seed, max_classes)
    splits = by_ratio([class_name(members[0]) for members in classes], test_fraction, seed)
    pens = [_Pen(face, size) for face in faces]
    progress = Progress("moving glyph classes drawn", total=len(classes))
    with CatalogWriter(path) as writer:
        for members in classes:
            for number in range(counts[0]):
                _draw_tracklet(
                    writer,
                    pens,
                    members,
                    np.random.default_rng(_key(seed, members[0], number)),
                    number,
                    counts[1],
                )
            progress.update()
        writer.finish(splits)
    progress.close()


def _key(*parts: int) -> int:
    return int.from_bytes(digest_of(*parts), "little")


def _draw_tracklet(
    writer: CatalogWriter,
    pens: list[_Pen],
    members: list[int],
    random: np.random.Generator,
    number: int,
    frames: int,
) -> None:
    able = [pen for pen in pens if pen.face.code_points & set(members)]
    pen = able[random.integers(len(able))]
    shown = next(code_point for code_point in members if code_point in pen.face.code_points)
    motion = list(MOTIONS)[random.integers(len(MOTIONS))]
    speed = list(SPEEDS)[random.integers(len(SPEEDS))]
    turned = ANGLES[random.integers(len(ANGLES))]
    is_hidden = bool(random.integers(2))
    side, first_hidden = int(random.integers(4)), int(random.integers(frames - frames // 2 + 1))
    tracklet = f"U+{members[0]:04X}/{number}"
    attributes = {
        "motion": motion,
        "speed": speed,
        "angle": str(turned),
        "hidden": "yes" if is_hidden else "no",
        **pen.face.style.attributes(),
    }
    for frame in range(frames):
        in_front = side if is_hidden and first_hidden <= frame < first_hidden + frames // 2 else None
        along = SPEEDS[speed] * (frame / (frames - 1) - 0.5)
        across, down = (along * part + _JITTER * random.uniform(-1, 1) for part in MOTIONS[motion])
        angle = turned + _WOBBLE * random.uniform(-1, 1)
        buffer = io.BytesIO()
        pen.draw(shown, across, down, angle, in_front).save(buffer, "PNG", compress_level=1)
        writer.add(
            buffer.getvalue(),
            class_name(members[0]),
            group=group_name(members[0]),
            path=f"{pen.face.style.file}/{tracklet}/{frame}",
            width=pen.size,
            height=pen.size,
            attributes=attributes,
            tracklet=tracklet,
            frame=frame,
        )


class _Pen:
    """Draws the characters of one face."""

    def __init__(self, face: Face, size: int) -> None:
        self.face, self.size = face, size
        self._side = size * _OVERSAMPLING
        self._font = face.font(round(_EM * self._side))

    def draw(
        self, code_point: int, across: float, down: float, angle: float, in_front: int | None
    ) -> Image.Image:
        """A character in the middle, moved by shares of the image, turned by degrees, one side hidden or none."""
        side = self._side
        canvas = Image.new("L", (side, side))
        place = (side / 2, side * _BASELINE)
        ImageDraw.Draw(canvas).text(place, chr(code_point), font=self._font, fill=255, anchor="ms")
        # The inverse map that Pillow wants: from the small image to the place on the canvas.
        cosine, sine = (_OVERSAMPLING * f(math.radians(angle)) for f in (math.cos, math.sin))
        x, y = self.size * (0.5 + across), self.size * (0.5 + down)
        inverse = (
            *(cosine, sine, side / 2 - cosine * x - sine * y),
            *(-sine, cosine, side / 2 + sine * x - cosine * y),
        )
        frame = canvas.transform(
            (self.size, self.size), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
        )
        if in_front is not None:
            reach = round(_HIDDEN * self.size)
            low, high = (0, reach) if in_front % 2 == 0 else (self.size - reach, self.size)
            box = (low, 0, high, self.size) if in_front < 2 else (0, low, self.size, high)
            frame.paste(128, box)
        return frame
