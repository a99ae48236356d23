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
)
_FIRST_NOISE_DRAW = 64
_CHUNK = 1 << 18
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
        """Whether any of rotation, shift, scale, shear, crop and flip is on."""
        scaled = (self.scale_min, self.scale_max) != (1.0, 1.0)
        return scaled or any((self.rotation, self.translate, self.shear, self.crop_area, self.flip))

    @property
    def is_identity(self) -> bool:
        """Whether images come out as they went in."""
        colors = (self.brightness, self.contrast, self.saturation, self.noise)
        return not (self.moves_pixels or self.erase or any(colors))


def augment(images: Tensor, spec: AugmentSpec, seed: int, step: int, ids: Tensor) -> Tensor:
    """Vary images at random, each in a way that only (seed, step, its id) decide.

    Rotation, shift, scale, shear, crop and flip are one bilinear resampling; then a rectangle is erased; then
    brightness, contrast, saturation and noise change, and values are clamped.

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

    Cost: about 4 floats of memory per value; one 64-bit hash per value if there is noise, else 18 per image.

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
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if spec.is_identity:
        return pixels
    ids = ids.to(images.device, torch.int64)
    draw = dict(zip(_PARAMETERS, uniform(seed, step, ids, len(_PARAMETERS)).unbind(1), strict=True))
    if spec.moves_pixels:
        pixels = _resample(
            pixels, _output_to_source(draw, spec, images.shape[2] / images.shape[3]), spec.fill
        )
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


def _resample(pixels: Tensor, matrices: Tensor, fill: str | float) -> Tensor:
    # Not F.affine_grid: its batched matrix product may round differently for another batch size.
    height, width = pixels.shape[2:]
    m = matrices.float()[..., None]
    x, y = (
        (torch.arange(n, device=pixels.device, dtype=torch.float64) * 2 + 1).div(n).sub(1).float()
        for n in (width, height)
    )
    grid = pixels.new_empty(pixels.shape[0], height, width, 2)
    for axis in (0, 1):
        along_x = m[:, axis, 0] * x + m[:, axis, 2]
        torch.add(along_x[:, None, :], (m[:, axis, 1] * y)[:, :, None], out=grid[..., axis])
    if isinstance(fill, str):
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=fill, align_corners=False)
    return F.grid_sample(
        pixels - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    ).add_(fill)


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
