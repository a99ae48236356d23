"""From encoded images to uint8 pixels: checking, decoding, and a store that decodes small sets once."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from PIL import __version__ as PILLOW

from distmetric.data.catalog import Catalog
from distmetric.data.locations import readable
from distmetric.data.pixel_file import PixelFile
from distmetric.errors import InputError
from distmetric.progress import Progress

log = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
# An image above this is decoded while no other of its kind is: threads times the largest image would be too much.
_LARGE_PIXELS = 16_000_000
_one_large = threading.Lock()
# Below this mean size a thread spends more time waiting for the interpreter than decoding.
THREADS_PAY_BYTES = 8192
# Named one by one, because Pillow hands some other formats (EPS) to programs outside.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = npt.NDArray[np.uint8]

# What Pillow has to say about damaged or large images is in the reasons here, and not printed beside them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImageError(Exception):
    """An image cannot be used.

    Args:
        reason: A few words from a fixed set, so that equal reasons can be counted.
        detail: What is particular to this image.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


def check_image(data: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Decode an image completely to see that it can be.

    Args:
        data: The encoded image: PNG, JPEG, GIF, BMP, WebP, TIFF, PPM or JPEG 2000. Of an animation or a file
            with several pages only the first one counts.
        max_pixels: Most pixels to accept; checked before any pixel is decoded. Pillow's own limit of 179
            million stays in force.

    Returns:
        Width and height in pixels, upright (after the EXIF orientation was applied).

    Raises:
        BadImageError: It is empty, not an image, truncated, damaged, in CIELAB colors or has too many pixels.
    """
    with _opened(data, max_pixels) as image:
        _load(image)
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def decode_image(
    data: bytes | memoryview,
    size: int | tuple[int, int],
    channels: int = 3,
    max_pixels: int | None = MAX_PIXELS,
) -> Pixels:
    """Decode an image to pixels of one size.

    The whole image is resized, so its aspect ratio is not kept. Transparent parts become white; 16-bit values
    are scaled to 8 bits and floating-point values stretched from their own range; CMYK becomes RGB; the EXIF
    orientation is applied; color becomes luma where one channel is asked for.

    Args:
        data: The encoded image, as `check_image` takes it.
        size: Height and width of the result in pixels; one number for a square.
        channels: 1 (gray) or 3 (RGB).
        max_pixels: As for `check_image`; None for an image that was checked before.

    Returns:
        uint8 (channels, height, width), contiguous.

    Raises:
        BadImageError: The image cannot be decoded.
    """
    height, width = (size, size) if isinstance(size, int) else size
    # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time; twice the target leaves the quality.
    with upright_image(data, max_pixels, 2 * max(height, width)) as image:
        flat = flatten(image, "L" if channels == 1 else "RGB")
        if flat.size != (width, height):
            flat = flat.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        pixels = np.asarray(flat)
    return pixels[None].copy() if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def upright_image(
    data: bytes | memoryview, max_pixels: int | None = None, side: int | None = None
) -> Iterator[Image.Image]:
    """An image, decoded, and turned as its EXIF orientation says.

    Args:
        data: The encoded image, as `check_image` takes it.
        max_pixels: As for `decode_image`.
        side: Pixels of a side that are enough, where less than all cost less to decode; None for all.

    Raises:
        BadImageError: It cannot be decoded.
    """
    with _opened(data, max_pixels) as image:
        if side is not None:
            image.draft(image.mode, (side, side))
        _load(image)
        turn = _TURNS.get(_orientation(image))
        yield image if turn is None else image.transpose(turn)


@contextmanager
def _opened(data: bytes | memoryview, max_pixels: int | None) -> Iterator[Image.Image]:
    """An image whose header was read, a large one while no other large one is open; what fails is its damage."""
    image = _open(data, max_pixels)
    large = image.width * image.height > _LARGE_PIXELS
    try:
        with image, _one_large if large else nullcontext():
            yield image
    except BadImageError:
        raise
    except Exception as error:  # see _open
        raise _damage(error) from None


def _open(data: bytes | memoryview, max_pixels: int | None) -> Image.Image:
    if not len(data):
        raise BadImageError("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError("too many pixels", "more than Pillow accepts") from None
    except Exception as error:  # damaged headers make Pillow's readers raise almost anything
        raise _damage(error) from None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise BadImageError("too many pixels", f"{image.width} x {image.height}, limit {max_pixels:,}")
    return image


def _load(image: Image.Image) -> None:
    image.load()
    if image.mode == "LAB":  # the one mode that Pillow reads but cannot turn into RGB
        raise BadImageError("unsupported colors", image.mode)


def _damage(error: Exception) -> BadImageError:
    if isinstance(error, MemoryError):
        return BadImageError("does not fit in memory")
    text = readable(" ".join(str(error).split()))[:80]
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return BadImageError("truncated")
    return BadImageError("damaged", text or type(error).__name__)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block does not make the pixels worse
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def flatten(image: Image.Image, mode: str) -> Image.Image:
    """An image in 8 bits of gray (L) or colors (RGB), on white where it is transparent; see `decode_image`."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    elif image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        colored = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored)
    return image if image.mode == mode else image.convert(mode)


def flat_mode(image: Image.Image) -> Literal["L", "RGB"]:
    """What `flatten` loses no colors by: L for an image that has none by its mode, else RGB."""
    return "L" if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")) else "RGB"


def _to_8_bit(values: npt.NDArray[np.generic]) -> Pixels:
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = float(finite.min()), float(finite.max())
        return np.asarray((finite - low) * (255.0 / max(high - low, 1e-300)) + 0.5, np.uint8)
    # Mode "I" is 32 bits wide, but Pillow fills it from 16-bit files only, except for rare TIFFs.
    wide = np.clip(values.astype(np.int64), 0, 65_535)
    return np.asarray((wide + 128) // 257, np.uint8)


class ImageStore:
    """Pixels of a catalog by row number, all of one size.

    Where the rows it is asked to hold fit the limit they are decoded once, here and now, and a batch is one
    gather; otherwise each batch is decoded from the memory-mapped catalog by a thread pool.

    Args:
        catalog: Where the images are.
        size: Height and width in pixels; one number for a square. See `decode_image`.
        channels: 1 (gray) or 3 (RGB).
        memory_limit_bytes: Most bytes to hold; 0 decodes every batch.
        threads: Threads that decode; by default the CPU cores that this process may use. Where the encoded images are
            small (below 8 KiB on average) it is one in any case.
        rows: int64 row numbers to hold; None for all. Other rows can still be asked for and are decoded then.
        shared: Whether processes of this machine that hold the same rows decode them together and share one copy
            (`PixelFile`); where that cannot be, each has its own.

    Raises:
        InputError: An image to hold cannot be decoded.
    """

    def __init__(
        self,
        catalog: Catalog,
        size: int | tuple[int, int],
        channels: int = 3,
        memory_limit_bytes: int = 2 << 30,
        threads: int | None = None,
        rows: npt.NDArray[np.int64] | None = None,
        shared: bool = False,
    ) -> None:
        if channels not in (1, 3):
            raise InputError(f"channels={channels}: an image has 1 (gray) or 3 (RGB)")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise InputError(f"size={size}: height and width are at least 1 pixel")
        self.catalog = catalog
        self.image_shape = (channels, height, width)
        self._threads = (threads or available_cores()) if _threads_pay(catalog) else 1
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._held: torch.Tensor | None = None
        self._file: PixelFile | None = None
        held_rows = np.arange(len(catalog)) if rows is None else np.unique(self._checked(rows))
        self._slots = np.full(len(catalog), -1, np.int64)
        if 0 < len(held_rows) * int(np.prod(self.image_shape)) <= memory_limit_bytes:
            self._held = torch.from_numpy(self._decoded_once(held_rows, shared))
            self._slots[held_rows] = np.arange(len(held_rows))

    def _decoded_once(self, rows: npt.NDArray[np.int64], shared: bool) -> Pixels:
        progress = Progress("images decoded", total=len(rows))
        pixels = self._decoded_together(rows, progress.update) if shared else None
        if pixels is None:
            pixels = self._decoded(rows, progress.update)
        progress.close()
        return pixels

    def _decoded_together(self, rows: npt.NDArray[np.int64], done: Callable[[int], None]) -> Pixels | None:
        """Pixels that the processes of this machine share; None where that cannot be."""
        try:
            digest = hashlib.sha256(rows.tobytes()).hexdigest()
            code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
            key = f"{self.catalog.fingerprint} {digest} {code} {PILLOW}"
            self._file = PixelFile(key, (len(rows), *self.image_shape))
            return self._file.fill(lambda part: self._decoded(rows[part]), done)
        except OSError as error:
            log.warning("every worker decodes images for itself: %s", error)
            return None

    def _decoded(self, rows: npt.NDArray[np.int64], done: Callable[[int], None] | None = None) -> Pixels:
        pixels = np.empty((len(rows), *self.image_shape), np.uint8)
        self._decode(rows, pixels, np.arange(len(rows)), done)
        return pixels

    @property
    def held_bytes(self) -> int:
        """Bytes of decoded pixels that are held; 0 where each batch is decoded anew."""
        return 0 if self._held is None else self._held.numel()

    def images(self, rows: npt.NDArray[np.int64], pinned: bool = False) -> torch.Tensor:
        """Pixels of some rows.

        Args:
            rows: int64 (B,) row numbers in any order, repeated ones allowed.
            pinned: Whether to put them into page-locked memory, from which a GPU copies while the host goes on.

        Returns:
            uint8 (B, channels, height, width), a copy that the caller may change.

        Raises:
            IndexError: There is no such row.
            InputError: An image cannot be decoded.
        """
        rows = self._checked(rows)
        slots = self._slots[rows]
        pixels = torch.empty((len(rows), *self.image_shape), dtype=torch.uint8, pin_memory=pinned)
        if self._held is not None and (slots >= 0).all():
            return torch.index_select(self._held, 0, torch.from_numpy(slots), out=pixels)
        held, absent = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
        if self._held is not None and len(held):
            pixels[torch.from_numpy(held)] = self._held[torch.from_numpy(slots[held])]
        self._decode(rows[absent], pixels.numpy(), absent)
        return pixels

    def drawn(self, rows: npt.NDArray[np.int64], step: int, pinned: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Pixels of some rows as a training step sees them: `images`, since of an image nothing is to be drawn."""
        return self.images(rows, pinned)

    def close(self) -> None:
        """Stop the threads and let go of what is shared; the store can be used on, and starts new threads then."""
        if self._file is not None:
            self._file.release()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _checked(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self.catalog)):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} of a catalog with {len(self.catalog)} rows")
        return rows

    def _decode(
        self,
        rows: npt.NDArray[np.int64],
        out: Pixels,
        places: npt.NDArray[np.int64],
        done: Callable[[int], None] | None = None,
    ) -> None:
        def fill(start: int) -> int:
            stop = min(start + step, len(rows))
            for i in range(start, stop):
                out[places[i]] = self._decode_row(int(rows[i]))
            return stop - start

        # A few parts per thread even out large and small images; single images would cost more in calls.
        step = max(1, min(256, -(-len(rows) // (4 * self._threads))))
        starts = range(0, len(rows), step)
        for count in map(fill, starts) if self._threads == 1 else self._threads_at_work().map(fill, starts):
            if done is not None:
                done(count)

    def _decode_row(self, row: int) -> Pixels:
        channels, height, width = self.image_shape
        try:
            return decode_image(self.catalog.image_bytes(row), (height, width), channels, max_pixels=None)
        except BadImageError as error:
            raise InputError(f"{self.catalog.described(row)} is unusable: {error}; ingest again") from None

    def _threads_at_work(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
            return self._pool


def _threads_pay(catalog: Catalog) -> bool:
    return catalog.image_nbytes >= THREADS_PAY_BYTES * len(catalog)


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
