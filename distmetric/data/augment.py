"""Augmentation as a pure function of (images, seed, step, ids), on whatever device the images are.

Bits do not depend on the order or size of the batch, nor on the number of workers. Three rules keep it so.
Random numbers are hashes of (seed, step, id, draw) in integer arithmetic. All that is computed from them uses
only +, -, *, / and square roots, which IEEE fixes to the last bit; library sines differ between the body and
the tail of a vector loop. Sums over pixels are sums of integers, which do not depend on their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distmetric.errors import ConfigError
from distmetric.functional.counter_random import hashes, uniform

_PARAMETERS = (
    "rotation",
    "scale",
    "shear",
    "shift_x",
    "shift_y",
    "crop_area",
    "crop_ratio",
    "crop_x",
    "crop_y",
    "flip",
    "erase",
    "erase_area",
    "erase_ratio",
    "erase_x",
    "erase_y",
    "brightness",
    "contrast",
    "saturation",
    "stroke",
)
# Points of a warp's grid along each axis; both directions of all of them are draws before those of the noise.
_POINTS = 4
_FIRST_WARP_DRAW, _FIRST_NOISE_DRAW = 32, 64
_CHUNK = 1 << 18
# Values that a CPU varies at a time: what is read and written a dozen times over stays in its caches. Measured 3 times
# as fast as whole batches of 256 images of 3 x 224 x 224.
_CACHE_VALUES = 1 << 20
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """How far random variations of the training images may go; the defaults change nothing."""

    rotation: float = 0.0
    """Largest rotation to either side in degrees."""
    translate: float = 0.0
    """Largest shift along each axis as a fraction of the side."""
    scale_min: float = 1.0
    """Smallest factor by which the content is enlarged."""
    scale_max: float = 1.0
    """Largest factor by which the content is enlarged."""
    shear: float = 0.0
    """Largest shear to either side in degrees."""
    elastic: float = 0.0
    """Largest shift of the points of a 4 x 4 grid, smoothly followed by all between them, as a fraction of the side."""
    stroke: float = 0.0
    """How far lines may become thicker or thinner, between the image and its brightest or darkest of 3 x 3 pixels."""
    crop_area: float = 0.0
    """Smallest fraction of the area that a random crop keeps, stretched to the full image; 0 for no crop."""
    flip: float = 0.0
    """Probability of a mirror image, left to right."""
    erase: float = 0.0
    """Probability of blanking out a random rectangle."""
    erase_min: float = 0.02
    """Smallest area of that rectangle as a fraction of the image."""
    erase_max: float = 0.2
    """Largest area of that rectangle as a fraction of the image."""
    brightness: float = 0.0
    """Largest relative change of brightness: factors from 1 - b to 1 + b."""
    contrast: float = 0.0
    """Largest relative change of contrast around the image's mean gray."""
    saturation: float = 0.0
    """Largest relative change of saturation; RGB images only."""
    noise: float = 0.0
    """Standard deviation of the noise on every value, for images in [0, 1]."""
    fill: Literal["zeros", "border", "reflection"] | float = "zeros"
    """What lies outside the image: zeros, its border, its reflection, or a gray value (1.0 is white)."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A field is out of its range.
        """
        above = {"rotation": 180.0, "shear": 80.0}
        for field in fields(self):
            value = getattr(self, field.name)
            high = (
                math.inf if field.name in ("scale_min", "scale_max", "noise") else above.get(field.name, 1.0)
            )
            if not isinstance(value, str) and not 0 <= value <= high:
                raise ValueError(f"{field.name}={value} must be between 0 and {high:g}")
        if not 0 < self.scale_min <= self.scale_max < math.inf or self.noise == math.inf:
            raise ValueError(
                f"scale_min={self.scale_min} and scale_max={self.scale_max} must be positive, in that "
                "order, and finite like noise"
            )
        if isinstance(self.fill, str) and self.fill not in ("zeros", "border", "reflection"):
            raise ValueError(f"fill={self.fill} must be zeros, border, reflection or a number from 0 to 1")
        if self.erase_min > self.erase_max:
            raise ValueError(f"erase_min={self.erase_min} must not exceed erase_max={self.erase_max}")

    @property
    def moves_pixels(self) -> bool:
        """Whether any of rotation, shift, scale, shear, warp, crop and flip is on."""
        scaled = (self.scale_min, self.scale_max) != (1.0, 1.0)
        moves = (self.rotation, self.translate, self.shear, self.elastic, self.crop_area, self.flip)
        return scaled or any(moves)

    @property
    def is_identity(self) -> bool:
        """Whether images come out as they went in."""
        colors = (self.brightness, self.contrast, self.saturation, self.noise)
        return not (self.moves_pixels or self.stroke or self.erase or any(colors))


def augment(images: Tensor, spec: AugmentSpec, seed: int, step: int, ids: Tensor) -> Tensor:
    """Vary images at random, each in a way that only (seed, step, its id) decide.

    Rotation, shift, scale, shear, warp, crop and flip are one bilinear resampling; then lines become thicker or
    thinner; then a rectangle is erased; then brightness, contrast, saturation and noise change, and values are clamped.

    Args:
        images: (B, C, H, W), or (B, T, C, H, W) for clips, uint8 or floating point in [0, 1]. Never changed in place.
        spec: Which variations, and how far.
        seed: Seed of the run.
        step: Optimizer step, so that an image looks different each time.
        ids: (B,) integers that tell the images apart. Equal ids in one step get equal variations.

    Returns:
        float32 of the same shape in [0, 1]; the input itself if it is float32 and the spec is the identity.

    Raises:
        ConfigError: Saturation for images that are not RGB.
        ValueError: The ids do not match the images.

    Cost: about 4 floats of memory per value (of 2^20 at a time on a CPU, beside the result); one 64-bit hash per value
    if there is noise, else 19 per image, and 32 more for a warp.

    Corner cases: all frames of a clip get the same variation. On one kind of device results are bit-equal for any
    batch around an image; between CPU and GPU the draws are bit-equal, while resampling differs in the last bits.
    """
    if images.dim() == 5 and len(ids) == len(images):
        frames = augment(images.flatten(0, 1), spec, seed, step, ids.repeat_interleave(images.shape[1]))
        return frames.reshape(images.shape)
    if images.dim() != 4 or ids.shape != images.shape[:1] or ids.is_floating_point():
        raise ValueError(
            f"images {tuple(images.shape)} need one integer id each, not {tuple(ids.shape)} {ids.dtype}"
        )
    if spec.saturation and images.shape[1] != 3:
        raise ConfigError(
            f"augment.saturation={spec.saturation} needs RGB images, these have {images.shape[1]} channels"
        )
    if spec.is_identity:
        return _as_floats(images)
    ids = ids.to(images.device, torch.int64)
    rows = max(1, _CACHE_VALUES // max(1, images[:1].numel()))
    if images.device.type != "cpu" or len(images) <= rows:
        return _varied(images, spec, seed, step, ids)
    varied = torch.empty(images.shape)
    for first in range(0, len(images), rows):
        part = slice(first, first + rows)
        varied[part] = _varied(images[part], spec, seed, step, ids[part])
    return varied


def _as_floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _varied(images: Tensor, spec: AugmentSpec, seed: int, step: int, ids: Tensor) -> Tensor:
    pixels = _as_floats(images)
    draw = dict(zip(_PARAMETERS, uniform(seed, step, ids, len(_PARAMETERS)).unbind(1), strict=True))
    if spec.moves_pixels:
        grid = _grid(_output_to_source(draw, spec, images.shape[2] / images.shape[3]), pixels)
        if spec.elastic:
            grid += _warp(uniform(seed, step, ids, 2 * _POINTS**2, _FIRST_WARP_DRAW), spec.elastic, pixels)
        pixels = _resample(pixels, grid, spec.fill)
    if spec.stroke:
        pixels = _change_strokes(pixels, _between(draw["stroke"], -spec.stroke, spec.stroke))
    if spec.erase:
        pixels = _erase(pixels, draw, spec)
    pixels = _recolor(pixels, draw, spec)
    if spec.noise:
        pixels = _add_noise(pixels, spec.noise, seed, step, ids)
    return pixels.clamp(0, 1)


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return draw * (high - low) + low


def _aspect(draw: Tensor, limit: float) -> Tensor:
    """A ratio from 1 / limit to limit, as often below 1 as above."""
    signed = draw * 2 - 1
    wide = signed.abs() * (limit - 1) + 1
    return torch.where(signed < 0, 1 / wide, wide)


def _sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of |angle| <= pi by their Taylor series, to 1e-10."""
    square = angle * angle
    sine, cosine = torch.zeros_like(angle), torch.zeros_like(angle)
    for k in range(11, -1, -1):
        sine = sine * square + (-1) ** k / math.factorial(2 * k + 1)
        cosine = cosine * square + (-1) ** k / math.factorial(2 * k)
    return sine * angle, cosine


def _output_to_source(draw: dict[str, Tensor], spec: AugmentSpec, height_by_width: float) -> Tensor:
    """The matrices (B, 2, 3) from output to source coordinates, both from -1 to 1.

    An output pixel lies in the crop window of the moved image; undoing the move leads to the source.
    """
    sine, cosine = _sine_cosine(_between(draw["rotation"], -1, 1) * math.radians(spec.rotation))
    shear_sine, shear_cosine = _sine_cosine(_between(draw["shear"], -1, 1) * math.radians(spec.shear))
    slant, zoom = shear_sine / shear_cosine, 1 / _between(draw["scale"], spec.scale_min, spec.scale_max)
    # Angles hold in pixels, so that the two axes of a rectangle are not mixed one to one.
    xx, xy = (cosine + slant * sine) * zoom, (slant * cosine - sine) * zoom * height_by_width
    yx, yy = sine * zoom / height_by_width, cosine * zoom
    width, height, center_x, center_y = _crop_window(draw, spec.crop_area)
    left_x = center_x - _between(draw["shift_x"], -2, 2) * spec.translate
    left_y = center_y - _between(draw["shift_y"], -2, 2) * spec.translate
    width = torch.where(draw["flip"] < spec.flip, -width, width)
    rows = (
        xx * width,
        xy * height,
        xx * left_x + xy * left_y,
        yx * width,
        yy * height,
        yx * left_x + yy * left_y,
    )
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _crop_window(draw: dict[str, Tensor], smallest: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width and height as fractions of the image, and the center from -1 to 1."""
    area = _between(draw["crop_area"], smallest, 1.0) if smallest else torch.ones_like(draw["crop_area"])
    ratio = _aspect(draw["crop_ratio"], 4 / 3) if smallest else area
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    return (
        width,
        height,
        _between(draw["crop_x"], -1, 1) * (1 - width),
        _between(draw["crop_y"], -1, 1) * (1 - height),
    )


def _grid(matrices: Tensor, pixels: Tensor) -> Tensor:
    """(B, H, W, 2) places (x, y) of the source, from -1 to 1, for each pixel."""
    # Not F.affine_grid: its batched matrix product may round differently for another batch size.
    height, width = pixels.shape[2:]
    m = matrices.float()[..., None]
    x, y = (_centers(n, pixels.device).float() for n in (width, height))
    grid = pixels.new_empty(pixels.shape[0], height, width, 2)
    for axis in (0, 1):
        along_x = m[:, axis, 0] * x + m[:, axis, 2]
        torch.add(along_x[:, None, :], (m[:, axis, 1] * y)[:, :, None], out=grid[..., axis])
    return grid


def _centers(count: int, device: torch.device) -> Tensor:
    """(n,) centers of pixels, from -1 to 1."""
    return (torch.arange(count, device=device, dtype=torch.float64) * 2 + 1).div(count).sub(1)


def _warp(draws: Tensor, largest: float, pixels: Tensor) -> Tensor:
    """(B, H, W, 2) shifts in units of `_grid`, smooth between the points of a grid, from (B, 32) draws."""
    points = _between(draws, -2 * largest, 2 * largest).float().view(-1, _POINTS, _POINTS, 2)
    down, right = (_weights(n, pixels.device) for n in pixels.shape[2:])
    # Sums over the points of an axis one by one, which round alike for any batch.
    rows = sum(down[:, i, None, None] * points[:, i, None] for i in range(_POINTS))
    assert isinstance(rows, Tensor)
    shifts = sum(right[:, i, None] * rows[:, :, i, None] for i in range(_POINTS))
    assert isinstance(shifts, Tensor)
    return shifts


def _weights(count: int, device: torch.device) -> Tensor:
    """(n, points) weights of the points for each pixel along an axis: of the two around it, with no kink there."""
    places = (_centers(count, device) + 1) * (_POINTS - 1) / 2
    away = (places[:, None] - torch.arange(_POINTS, device=device)).abs().clamp_max(1)
    return (1 - away * away * (3 - 2 * away)).float()


def _resample(pixels: Tensor, grid: Tensor, fill: str | float) -> Tensor:
    if isinstance(fill, str):
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=fill, align_corners=False)
    return F.grid_sample(
        pixels - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    ).add_(fill)


def _change_strokes(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Go by |amount| from each pixel to the brightest of the 3 x 3 around it, or, below 0, to the darkest."""
    shares = amounts.float()[:, None, None, None]
    brightest = F.max_pool2d(pixels, 3, stride=1, padding=1)
    darkest = -F.max_pool2d(-pixels, 3, stride=1, padding=1)
    return pixels + (torch.where(shares > 0, brightest, darkest) - pixels) * shares.abs()


def _erase(pixels: Tensor, draw: dict[str, Tensor], spec: AugmentSpec) -> Tensor:
    area = _between(draw["erase_area"], spec.erase_min, spec.erase_max)
    area = torch.where(draw["erase"] < spec.erase, area, 0)
    ratio = _aspect(draw["erase_ratio"], 3.0)
    inside = []
    for side, where, n in (
        ((area / ratio).sqrt(), draw["erase_y"], pixels.shape[2]),
        ((area * ratio).sqrt(), draw["erase_x"], pixels.shape[3]),
    ):
        size = side.clamp(max=1)[:, None]
        start = where[:, None] * (1 - size)
        centers = (torch.arange(n, device=pixels.device, dtype=torch.float64) + 0.5) / n
        inside.append((centers >= start) & (centers < start + size))
    blank = spec.fill if isinstance(spec.fill, float | int) else 0.0 if spec.fill == "zeros" else 0.5
    return pixels.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], blank)


def _recolor(pixels: Tensor, draw: dict[str, Tensor], spec: AugmentSpec) -> Tensor:
    def factor(name: str, strength: float) -> Tensor:
        return _between(draw[name], 1 - strength, 1 + strength).float()[:, None, None, None]

    if spec.brightness:
        pixels = pixels * factor("brightness", spec.brightness)
    if spec.contrast:
        mean = _mean_gray(pixels)
        pixels = (pixels - mean).mul_(factor("contrast", spec.contrast)).add_(mean)
    if spec.saturation:
        gray = _gray(pixels)
        pixels = (pixels - gray).mul_(factor("saturation", spec.saturation)).add_(gray)
    return pixels


def _gray(pixels: Tensor) -> Tensor:
    if pixels.shape[1] != 3:
        return pixels
    red, green, blue = (pixels[:, i : i + 1] * weight for i, weight in enumerate(_LUMA))
    return red + green + blue


def _mean_gray(pixels: Tensor) -> Tensor:
    steps = (_gray(pixels) * 65536).round().to(torch.int32)
    count = steps[0].numel() if len(steps) else 1
    return (steps.sum((1, 2, 3), keepdim=True).double() / (count * 65536)).float()


def _add_noise(pixels: Tensor, strength: float, seed: int, step: int, ids: Tensor) -> Tensor:
    """Add the sum of four uniform numbers, scaled: nearly normal, within 3.47 standard deviations."""
    deviation = math.sqrt((65536**2 - 1) / 3)
    values = pixels[0].numel() if len(pixels) else 1
    noisy, rows = (
        [],
        max(1, _CHUNK // values),
    )  # hashes take 8 bytes each: never those of a large batch at once
    for start in range(0, len(pixels), rows):
        part, part_ids = pixels[start : start + rows], ids[start : start + rows]
        numbers = hashes(seed, step, part_ids, values, _FIRST_NOISE_DRAW)
        total = numbers & 0xFFFF
        for bits in (16, 32, 48):
            total += (numbers >> bits).bitwise_and_(0xFFFF)
        noise = total.float().sub_(131070).mul_(strength / deviation)
        noisy.append(part + noise.view(part.shape))
    return torch.cat(noisy) if noisy else pixels
