"""Every kind of image decodes to the right pixels, and every broken one gets a short reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from distmetric.data import decode
from distmetric.data.catalog import Catalog
from distmetric.data.catalog_writer import CatalogWriter
from distmetric.data.decode import BadImageError, ImageStore, check_image, decode_image
from distmetric.errors import InputError


def encode(image: Image.Image | npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def reason_of(data: bytes, **options: Any) -> str:
    with pytest.raises(BadImageError) as caught:
        check_image(data, **options)
    return caught.value.reason


def test_good_images_tell_their_size() -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        assert check_image(encode(NOISE, kind)) == (50, 40), kind
    assert check_image(memoryview(encode(NOISE[:1, :1]))) == (1, 1)


def test_broken_images_get_a_reason() -> None:
    assert reason_of(b"") == "empty"
    assert reason_of(b"hello") == "not an image"
    assert reason_of(b"\x89PNG\r\n\x1a\n") in ("not an image", "damaged", "truncated")
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        data = encode(NOISE, kind)
        assert reason_of(data[: len(data) // 2]) in ("truncated", "damaged", "not an image"), kind
    for kind in ("PNG", "JPEG"):
        data = encode(NOISE, kind)
        assert reason_of(data[: len(data) // 2]) == "truncated", kind
    data = bytearray(encode(NOISE))
    data[60:90] = b"\xff" * 30
    assert reason_of(bytes(data)) == "damaged"


def test_formats_that_start_other_programs_are_no_images() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert reason_of(postscript) == "not an image"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_seen_before_decoding() -> None:
    bomb = png_header(11_000, 11_000)
    # Decoding it would have said "truncated": there are no pixels in it.
    with pytest.raises(BadImageError, match=r"too many pixels \(11000 x 11000, limit 100,000,000\)"):
        check_image(bomb)
    assert reason_of(bomb, max_pixels=200_000_000) == "truncated"
    assert reason_of(png_header(2_000_000, 2_000_000), max_pixels=1 << 60) == "too many pixels"
    assert reason_of(encode(NOISE), max_pixels=1999) == "too many pixels"
    assert check_image(encode(NOISE), max_pixels=2000) == (50, 40)


def test_shapes_and_channels() -> None:
    data = encode(NOISE)
    assert decode_image(data, (30, 20)).shape == (3, 30, 20)
    gray = decode_image(data, 16, channels=1)
    assert (gray.shape, gray.dtype, gray.flags.c_contiguous) == ((1, 16, 16), np.uint8, True)
    assert decode_image(data, 16).flags.c_contiguous
    assert np.array_equal(decode_image(data, (40, 50)), NOISE.transpose(2, 0, 1))
    assert (decode_image(encode(NOISE[:1, :1]), 5) == NOISE[0, 0, :, None, None]).all()


def test_reduction_averages_instead_of_picking() -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode_image(encode(stripes), 16, 1).astype(int)[:, 1:-1, 1:-1] - 127).max() <= 3


def solid(mode: str, color: Any, kind: str = "PNG", **options: Any) -> list[int]:
    """The color that a plain image of this mode decodes to."""
    pixels = decode_image(encode(Image.new(mode, (8, 8), color), kind, **options), 4)
    assert (pixels == pixels[:, :1, :1]).all()
    return [int(value) for value in pixels[:, 0, 0]]


def test_modes() -> None:
    assert solid("1", 1) == [255] * 3
    assert solid("L", 77) == [77] * 3
    assert solid("LA", (0, 0)) == [255] * 3, "transparent is white"
    assert solid("RGBA", (255, 0, 0, 255)) == [255, 0, 0]
    assert solid("RGBA", (0, 0, 0, 128)) == [127] * 3, "half transparent is half white"
    assert solid("RGB", (1, 2, 3), transparency=(1, 2, 3)) == [255] * 3
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert decode_image(encode(palette), 4)[:, 0, 0].tolist() == [10, 200, 30]
    assert decode_image(encode(palette, transparency=1), 4)[:, 0, 0].tolist() == [255] * 3
    red, green, blue = solid("CMYK", (0, 255, 255, 0), "JPEG", quality=95)
    assert red > 245
    assert max(green, blue) < 10


def test_gray_of_a_palette_is_luma_not_the_index() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 200, 200])
    assert decode_image(encode(palette), 4, 1).tolist() == [[[200] * 4] * 4]
    assert decode_image(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF"), 4, 1).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_values_are_scaled_not_clipped(kind: str) -> None:
    levels = np.array([[0, 257, 1000, 32_896, 65_535]], np.uint16)
    data = encode(levels, kind)
    assert decode_image(data, (1, 5), 1).tolist() == [[[0, 1, 4, 128, 255]]]
    assert decode_image(data, (1, 5), 3)[2].tolist() == [[0, 1, 4, 128, 255]]


def test_colors_that_cannot_become_rgb_are_refused() -> None:
    data = encode(Image.new("LAB", (4, 4)), "TIFF")
    assert reason_of(data) == "unsupported colors"
    with pytest.raises(BadImageError, match="LAB"):
        decode_image(data, 4)


def test_floats_are_stretched() -> None:
    data = encode(np.array([[0.0, 0.5, 1.0]], np.float32), "TIFF")
    assert decode_image(data, (1, 3), 1).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(orientation: int) -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert check_image(data) == upright.shape[::-1]
    assert np.array_equal(decode_image(data, upright.shape, 1)[0], upright)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert check_image(data) == (8, 8)
    assert decode_image(data, 8, 1).max() == 10


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "MPO"])
def test_of_an_animation_or_several_pages_in_any_format_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (10, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert check_image(data) == (8, 8)
    assert np.abs(decode_image(data, 8, 1).astype(int) - 10).max() <= 2


def test_a_palette_with_several_transparencies_is_laid_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 100, 100, 100])
    palette.putpixel((1, 0), 1)
    data = encode(palette, transparency=b"\x00\xff")
    assert decode_image(data, (1, 2), 1).tolist() == [[[255, 100]]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_profiles_and_exif_that_are_none_do_not_make_the_pixels_worse(kind: str) -> None:
    plain = check_image(encode(NOISE, kind))
    wrong = {"icc_profile": b"no profile" * 9, "exif": b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40}
    data = encode(NOISE, kind, **({"icc_profile": wrong["icc_profile"]} if kind == "TIFF" else wrong))
    assert check_image(data) == plain
    assert decode_image(data, 9).shape == (3, 9, 9)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_nobody_checked_have_a_limit_too() -> None:
    bomb = png_header(11_000, 11_000)
    with pytest.raises(BadImageError, match=r"too many pixels \(11000 x 11000, limit 100,000,000\)"):
        decode_image(bomb, 4)
    with pytest.raises(BadImageError, match="truncated"):
        decode_image(bomb, 4, max_pixels=None)
    assert decode_image(encode(NOISE), 4, max_pixels=2000).shape == (3, 4, 4)


def test_one_large_image_at_a_time_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder of images of 100 megapixels does not take as many of them in memory as there are cores."""
    open_now, most = [0], [0]
    load = decode._load

    def watched(image: Image.Image) -> Any:
        open_now[0] += 1
        most[0] = max(most[0], open_now[0])
        time.sleep(0.005)
        open_now[0] -= 1
        return load(image)

    monkeypatch.setattr(decode, "_load", watched)
    data = encode(NOISE)
    for limit, expected in ((len(NOISE) * 50 - 1, {1}), (1 << 30, {2, 3, 4})):
        monkeypatch.setattr(decode, "_LARGE_PIXELS", limit)
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(check_image, [data] * 16)) == [(50, 40)] * 16
        assert most[0] in expected


def test_what_pillow_warns_of_is_not_printed_beside_our_sentence(tmp_path: Path) -> None:
    program = (
        "import sys; from distmetric.data.decode import check_image, BadImageError\n"
        "for name in sys.argv[1:]:\n"
        "    try: check_image(open(name, 'rb').read())\n"
        "    except BadImageError as error: print(error)"
    )
    tiff = bytearray(encode(NOISE, "TIFF"))
    tiff[4:8] = struct.pack("<I", len(tiff) - 6)
    (tmp_path / "large").write_bytes(png_header(9_400, 9_600))
    (tmp_path / "tiff").write_bytes(bytes(tiff))
    files = [str(tmp_path / "large"), str(tmp_path / "tiff")]
    with pytest.warns(Image.DecompressionBombWarning), suppress(BadImageError):
        check_image((tmp_path / "large").read_bytes())
    with pytest.warns(UserWarning, match="EXIF"), suppress(BadImageError):
        check_image((tmp_path / "tiff").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    with CatalogWriter(tmp_path / "set.arrow") as writer:
        for number in range(20):
            writer.add(
                encode(np.roll(NOISE, number, axis=0)),
                f"class {number % 4}",
                group="g",
                path=f"{number}.png",
                width=50,
                height=40,
                split="train",
            )
    return Catalog.open(tmp_path / "set.arrow")


@pytest.mark.parametrize("threads", [1, 3])
def test_held_and_decoded_batches_are_equal(catalog: Catalog, threads: int) -> None:
    held = ImageStore(catalog, (20, 24), 3, threads=threads)
    fresh = ImageStore(catalog, (20, 24), 3, memory_limit_bytes=0, threads=threads)
    rows = np.array([7, 0, 7, 19])
    batch = held.images(rows)
    assert (batch.shape, batch.dtype) == ((4, 3, 20, 24), torch.uint8)
    assert torch.equal(batch, fresh.images(rows))
    assert torch.equal(batch[1], torch.from_numpy(decode_image(encode(NOISE), (20, 24), 3)))
    assert (held.held_bytes, fresh.held_bytes) == (20 * 3 * 20 * 24, 0)
    batch.zero_()
    assert torch.equal(held.images(rows), fresh.images(rows)), "a batch is the caller's own"
    assert held.images(np.array([], np.int64)).shape == (0, 3, 20, 24)
    fresh.close()
    assert torch.equal(held.images(rows), fresh.images(rows)), "a closed store opens again"


def test_only_what_fits_is_held(catalog: Catalog) -> None:
    every, rows = 3 * 8 * 8, np.array([1, 3, 5])
    assert ImageStore(catalog, 8, memory_limit_bytes=20 * every - 1).held_bytes == 0
    store = ImageStore(catalog, 8, memory_limit_bytes=3 * every, rows=rows)
    assert store.held_bytes == 3 * every
    mixed = np.array([5, 0, 1])
    assert torch.equal(store.images(mixed), ImageStore(catalog, 8).images(mixed))


def test_wrong_requests(catalog: Catalog) -> None:
    store = ImageStore(catalog, 8, memory_limit_bytes=0)
    for row in (-1, 20):
        with pytest.raises(IndexError, match="catalog with 20 rows"):
            store.images(np.array([0, row]))
    with pytest.raises(InputError, match="channels=4"):
        ImageStore(catalog, 8, channels=4)
    with pytest.raises(InputError, match="size=0"):
        ImageStore(catalog, 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_image_in_a_catalog_is_named(tmp_path: Path, threads: int) -> None:
    with CatalogWriter(tmp_path / "set.arrow") as writer:
        for number, data in enumerate((encode(NOISE), b"hello")):
            writer.add(data, "a", group="a", path=f"in/{number}.png", width=1, height=1, split="train")
    with pytest.raises(InputError, match=r"the image of row 1, id 1 \(in/1.png\) is unusable: not an image"):
        ImageStore(Catalog.open(tmp_path / "set.arrow"), 8, threads=threads)
