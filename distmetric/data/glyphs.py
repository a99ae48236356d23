"""The built-in data set: Unicode characters drawn in the sixteen text fonts that matplotlib ships.

It needs no download, has some two thousand classes with up to sixteen images each, and is drawn in seconds:
enough for tests and demonstrations of large-batch metric learning that anybody can repeat.
"""

from __future__ import annotations

import hashlib
import io
import struct
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.splits import by_ratio
from distmetric.errors import InputError, ResourceError
from distmetric.progress import Progress

FORMAT_VERSION = 2
_MIN_FONTS = 12
_OVERSAMPLING = 2
_COMPARED_PIXELS = 36
_EM, _BASELINE = 0.62, 0.68  # font size and height of the baseline, as shares of the image
_MAX_SHIFT, _MAX_SCALE, _MAX_SLANT = 0.05, 0.08, 0.12


@dataclass(frozen=True)
class Style:
    """What a font looks like."""

    file: str
    serif: bool = False
    mono: bool = False
    bold: bool = False
    italic: bool = False

    def attributes(self) -> dict[str, str]:
        """The same as attributes of a catalog."""
        flags = {"serif": self.serif, "mono": self.mono, "bold": self.bold, "italic": self.italic}
        return {name: "yes" if flag else "no" for name, flag in flags.items()}


def _styles() -> tuple[Style, ...]:
    sans, mono, serif, stix = "DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral"
    return (
        *(
            Style(sans + end, False, False, b, i)
            for end, b, i in _endings("", "-Bold", "-Oblique", "-BoldOblique")
        ),
        *(
            Style(mono + end, False, True, b, i)
            for end, b, i in _endings("", "-Bold", "-Oblique", "-BoldOblique")
        ),
        *(
            Style(serif + end, True, False, b, i)
            for end, b, i in _endings("", "-Bold", "-Italic", "-BoldItalic")
        ),
        *(Style(stix + end, True, False, b, i) for end, b, i in _endings("", "Bol", "Italic", "BolIta")),
    )


def _endings(*ends: str) -> Iterator[tuple[str, bool, bool]]:
    return zip(ends, (False, True, False, True), (False, False, True, True), strict=True)


@dataclass(frozen=True)
class Face:
    """A font: what it looks like, its file, and the characters it has."""

    style: Style
    file: Path
    code_points: frozenset[int]

    def font(self, pixels: int) -> ImageFont.FreeTypeFont:
        """The font with an em of that many pixels."""
        return ImageFont.truetype(str(self.file), pixels, layout_engine=ImageFont.Layout.BASIC)


def glyph_catalog(
    cache_dir: str | Path,
    size: int = 28,
    seed: int = 0,
    test_fraction: float = 1 / 3,
    max_classes: int | None = None,
) -> Path:
    """Draw the glyph data set, unless it was drawn before, and say where its catalog is.

    A class is a character (letters, digits, signs, symbols; no combining marks) that at least twelve of the
    sixteen fonts have. Characters that look exactly the same in some font (Latin A, Greek Alpha, Cyrillic A)
    are one class, also by way of a third one, and show as the one with the lowest number. Each font gives one
    image, a white glyph on black, shifted, scaled and slanted a little by a hash of (seed, character, font).
    Attributes: serif, mono, bold, italic, each "yes" or "no". Group: first word of the character's Unicode
    name.

    Args:
        cache_dir: Folder for the catalog; made if missing. The file name carries all parameters.
        size: Height and width of the images in pixels, at least 8.
        seed: Seed of the jitter, of the split and of the choice that `max_classes` makes.
        test_fraction: Share of the classes held out as the test split.
        max_classes: Draw at most so many classes, chosen at random; None for all.

    Returns:
        Path of the catalog.

    Raises:
        InputError: A parameter is out of range.
        ResourceError: matplotlib was installed without its fonts.

    The same parameters give the same file with the same versions of Pillow, FreeType and the fonts. Two
    processes that draw at once do not disturb each other: each puts the same complete catalog in place.
    """
    check_glyphs(size, max_classes)
    classes = "all" if max_classes is None else f"max{max_classes}"
    name = f"glyphs-v{FORMAT_VERSION}-size{size}-seed{seed}-test{float(test_fraction)!r}-{classes}.arrow"
    path = Path(cache_dir) / name
    try:
        return Catalog.open(path).path
    except InputError:
        _draw_catalog(path, size, seed, test_fraction, max_classes)
    return path.absolute()


def _draw_catalog(path: Path, size: int, seed: int, test_fraction: float, max_classes: int | None) -> None:
    faces = find_faces()
    classes = find_classes(faces, seed, max_classes)
    splits = by_ratio([class_name(members[0]) for members in classes], test_fraction, seed)
    pens = [_Pen(face, size, seed) for face in faces]
    progress = Progress("glyph classes drawn", total=len(classes))
    with CatalogWriter(path) as writer:
        for members in classes:
            _draw_class(writer, pens, members)
            progress.update()
        writer.finish(splits)
    progress.close()


def check_glyphs(size: int, max_classes: int | None) -> None:
    """Check what all glyph data sets are drawn by.

    Raises:
        InputError: A parameter is out of range.
    """
    if size < 8:
        raise InputError(f"size={size}: glyphs need at least 8 pixels")
    if max_classes is not None and max_classes < 2:
        raise InputError(f"max_classes={max_classes}: choose at least 2, or null for all")


def find_classes(faces: list[Face], seed: int, max_classes: int | None) -> list[list[int]]:
    """The characters of each class, in ascending order; of all there are, or of some chosen at random."""
    code_points = _shared_code_points(faces)
    if max_classes is not None:
        code_points.sort(key=lambda code_point: digest_of(seed, code_point))
        # A few more than asked for, because some will turn out to look alike.
        code_points = sorted(code_points[: max_classes + max_classes // 4 + 4])
    return _merge_lookalikes(faces, code_points)[:max_classes]


def find_faces() -> list[Face]:
    """The sixteen fonts.

    Raises:
        ResourceError: matplotlib was installed without one.
    """
    # Imported here because matplotlib costs a fifth of a second and only this function wants its fonts.
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = []
    for style in _styles():
        file = folder / f"{style.file}.ttf"
        if not file.is_file():
            raise ResourceError(f"{file}: matplotlib was installed without this font; install it with pip")
        faces.append(Face(style, file, frozenset(int(code) for code in FT2Font(str(file)).get_charmap())))
    return faces


def _shared_code_points(faces: list[Face]) -> list[int]:
    counts = Counter(code_point for face in faces for code_point in face.code_points)
    # Spaces and controls (Z, C) show nothing; combining marks (M) are drawn over a neighbor.
    return sorted(
        code_point
        for code_point, count in counts.items()
        if count >= _MIN_FONTS and unicodedata.category(chr(code_point))[0] not in "ZCM"
    )


def _merge_lookalikes(faces: list[Face], code_points: list[int]) -> list[list[int]]:
    """Code points by class, without those that show nothing; each class and the classes in ascending order."""
    blank: set[int] = set()
    parent = {code_point: code_point for code_point in code_points}

    def root(code_point: int) -> int:
        while parent[code_point] != code_point:
            parent[code_point] = code_point = parent[parent[code_point]]
        return code_point

    for face in faces:
        # Always compared at this size, so that the classes do not depend on the size that is drawn.
        font = face.font(_COMPARED_PIXELS)
        first_with: dict[bytes, int] = {}
        for code_point in code_points:
            if code_point in face.code_points:
                mask, offset = font.getmask2(chr(code_point), mode="L", anchor="ms")
                if mask.getbbox() is None:
                    blank.add(code_point)
                look = bytes(mask) + repr((mask.size, offset)).encode()
                low, high = sorted((root(first_with.setdefault(look, code_point)), root(code_point)))
                parent[high] = low
    classes: dict[int, list[int]] = defaultdict(list)
    for code_point in code_points:
        if code_point not in blank:
            classes[root(code_point)].append(code_point)
    return list(classes.values())


def class_name(code_point: int) -> str:
    """Name of the class that shows as this character."""
    return f"U+{code_point:04X} {unicodedata.name(chr(code_point), 'UNNAMED')}"


def group_name(code_point: int) -> str:
    """First word of the character's Unicode name."""
    return unicodedata.name(chr(code_point), "UNNAMED").split()[0]


def _draw_class(writer: CatalogWriter, pens: list[_Pen], members: list[int]) -> None:
    name = class_name(members[0])
    group = group_name(members[0])
    for pen in pens:
        shown = next((code_point for code_point in members if code_point in pen.face.code_points), None)
        if shown is None:
            continue
        buffer = io.BytesIO()
        pen.draw(shown).save(buffer, "PNG", compress_level=1)
        writer.add(
            buffer.getvalue(),
            name,
            group=group,
            path=f"{pen.face.style.file}/U+{shown:04X}",
            width=pen.size,
            height=pen.size,
            attributes=pen.attributes,
        )


class _Pen:
    """Draws the characters of one face, with jitter."""

    def __init__(self, face: Face, size: int, seed: int) -> None:
        self.face, self.size, self._seed = face, size, seed
        self.attributes = face.style.attributes()
        side = size * _OVERSAMPLING
        self._font = face.font(round(_EM * side))
        self._canvas = Image.new("L", (side, side))
        self._brush = ImageDraw.Draw(self._canvas)

    def draw(self, code_point: int) -> Image.Image:
        side = self.size * _OVERSAMPLING
        self._canvas.paste(0, (0, 0, side, side))
        self._brush.text(
            (side / 2, side * _BASELINE), chr(code_point), font=self._font, fill=255, anchor="ms"
        )
        digest = digest_of(self._seed, code_point, self.face.style.file)
        across, down, scale, slant = (part / 2**31 - 1 for part in struct.unpack("<4I", digest))
        # The inverse map that Pillow wants: from the small image to the place on the canvas. Bilinear
        # sampling at twice the pitch is the mean of two by two pixels, so the edges stay smooth.
        step = _OVERSAMPLING / (1 + _MAX_SCALE * scale)
        shear = step * _MAX_SLANT * slant
        x, y = self.size * (0.5 + _MAX_SHIFT * across), self.size * (0.5 + _MAX_SHIFT * down)
        inverse = (step, shear, side / 2 - step * x - shear * y, 0.0, step, side / 2 - step * y)
        return self._canvas.transform(
            (self.size, self.size), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
        )


def digest_of(*parts: int | str) -> bytes:
    """16 random bytes that are a function of the parts."""
    # A hash instead of a random generator: the same on every platform and in every order of drawing.
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
