from dataclasses import fields, replace

import pytest
import torch

from distmetric.data.augment import AugmentSpec, augment
from distmetric.errors import ConfigError
from distmetric.functional.counter_random import uniform

EVERYTHING = AugmentSpec(
    rotation=30,
    translate=0.1,
    scale_min=0.7,
    scale_max=1.3,
    shear=10,
    elastic=0.05,
    stroke=0.5,
    crop_area=0.4,
    flip=0.5,
    erase=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    noise=0.05,
    fill="reflection",
)
ONE_AT_A_TIME = {
    "rotation": AugmentSpec(rotation=30),
    "translate": AugmentSpec(translate=0.2, fill=1.0),
    "scale": AugmentSpec(scale_min=0.5, scale_max=1.5, fill="border"),
    "shear": AugmentSpec(shear=20),
    "elastic": AugmentSpec(elastic=0.1),
    "stroke": AugmentSpec(stroke=0.8),
    "crop": AugmentSpec(crop_area=0.3),
    "flip": AugmentSpec(flip=0.5),
    "erase": AugmentSpec(erase=0.9),
    "brightness": AugmentSpec(brightness=0.5),
    "contrast": AugmentSpec(contrast=0.5),
    "saturation": AugmentSpec(saturation=0.5),
    "noise": AugmentSpec(noise=0.1),
    "everything": EVERYTHING,
    "white": replace(EVERYTHING, fill=1.0),
}


def pictures(count: int = 7, channels: int = 3, height: int = 19, width: int = 13) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_bits_do_not_depend_on_the_batch(name):
    spec, images, ids = ONE_AT_A_TIME[name], pictures(), torch.tensor([4, 9, 2, 1000, 7, 5, 3])
    whole = augment(images, spec, 1, 5, ids)
    assert whole.dtype == torch.float32
    assert whole.shape == images.shape
    assert (whole >= 0).all()
    assert (whole <= 1).all()
    for i in range(len(images)):
        assert torch.equal(augment(images[i : i + 1], spec, 1, 5, ids[i : i + 1])[0], whole[i])
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.equal(augment(images[order], spec, 1, 5, ids[order]), whole[order])
    assert not torch.equal(augment(images, spec, 1, 6, ids), whole)
    assert not torch.equal(augment(images, spec, 2, 5, ids), whole)
    assert not torch.equal(augment(images, spec, 1, 5, ids + 1), whole)


def test_bits_do_not_depend_on_threads_layout_or_a_large_batch():
    images, ids = pictures(96, 3, 64, 64), torch.arange(96)
    whole = augment(images, EVERYTHING, 0, 0, ids)
    torch.set_num_threads(2)
    assert torch.equal(augment(images, EVERYTHING, 0, 0, ids), whole)
    assert torch.equal(augment(images[50:51], EVERYTHING, 0, 0, ids[50:51]), whole[50:51])
    torch.set_num_threads(1)
    laid_out = images.to(memory_format=torch.channels_last)
    assert torch.equal(augment(laid_out, EVERYTHING, 0, 0, ids), whole)


def test_input_is_left_alone_and_bytes_equal_floats():
    images, ids = pictures().float() / 255, torch.arange(7)
    before = images.clone()
    varied = augment(images, EVERYTHING, 0, 0, ids)
    assert torch.equal(images, before)
    assert torch.equal(augment(pictures(), EVERYTHING, 0, 0, ids), varied)
    assert augment(images.double(), EVERYTHING, 0, 0, ids).dtype == torch.float32


def test_defaults_are_the_identity():
    assert AugmentSpec().is_identity
    assert torch.equal(augment(pictures(), AugmentSpec(), 0, 0, torch.arange(7)), pictures().float() / 255)
    assert not any(spec.is_identity for spec in ONE_AT_A_TIME.values())


def test_an_empty_batch_stays_empty():
    assert augment(pictures(0), EVERYTHING, 0, 0, torch.arange(0)).shape == (0, 3, 19, 13)


def test_flip_mirrors_about_as_often_as_asked():
    images = pictures(1).expand(400, -1, -1, -1).float() / 255
    flipped = augment(images, AugmentSpec(flip=0.25), 0, 0, torch.arange(400))
    mirrored = (flipped - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    kept = (flipped - images).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all()
    assert mirrored.float().mean().item() == pytest.approx(0.25, abs=0.08)


def dot(height: int, width: int, row: float, column: float) -> torch.Tensor:
    """A blurred dot, so that its center of mass can be followed."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)[None]


def center_of_mass(image: torch.Tensor) -> tuple[float, float]:
    mass = image[0].double() / image[0].double().sum()
    rows, columns = mass.sum(1), mass.sum(0)
    middle = ((len(rows) - 1) / 2, (len(columns) - 1) / 2)
    return (
        (rows * torch.arange(len(rows))).sum().item() - middle[0],
        (columns * torch.arange(len(columns))).sum().item() - middle[1],
    )


@pytest.mark.parametrize("shape", [(41, 41), (41, 61)])
def test_rotation_keeps_distances_from_the_center(shape):
    ids = torch.arange(50)
    images = dot(*shape, 20, shape[1] // 2 + 10).expand(50, 1, *shape)
    angles = []
    for image in augment(images, AugmentSpec(rotation=45), 0, 0, ids):
        row, column = center_of_mass(image)
        assert (row**2 + column**2) ** 0.5 == pytest.approx(10, abs=0.1)
        angles.append(torch.rad2deg(torch.atan2(torch.tensor(row), torch.tensor(column))).item())
    drawn = (uniform(0, 0, ids, 1)[:, 0] * 90 - 45).tolist()
    assert [abs(angle) for angle in angles] == pytest.approx([abs(angle) for angle in drawn], abs=0.5)
    assert min(angles) < -20 < 20 < max(angles)


def test_shift_moves_by_at_most_the_fraction():
    images = dot(40, 60, 19.5, 29.5).expand(200, 1, 40, 60)
    moved = [
        center_of_mass(image)
        for image in augment(images, AugmentSpec(translate=0.2), 0, 0, torch.arange(200))
    ]
    rows, columns = zip(*moved, strict=True)
    assert 7 < max(rows) < 8.05
    assert -8.05 < min(rows) < -7
    assert 11 < max(columns) < 12.05
    assert -12.05 < min(columns) < -11


def test_scale_enlarges_the_content():
    images = dot(41, 41, 20, 30).expand(20, 1, 41, 41)
    for image in augment(images, AugmentSpec(scale_min=1.5, scale_max=1.5), 0, 0, torch.arange(20)):
        assert center_of_mass(image) == pytest.approx((0, 15), abs=0.2)


def test_shear_moves_rows_against_each_other():
    images = dot(41, 41, 10, 20).expand(50, 1, 41, 41)
    sheared = augment(images, AugmentSpec(shear=30), 0, 0, torch.arange(50))
    rows, columns = zip(*(center_of_mass(image) for image in sheared), strict=True)
    assert rows == pytest.approx([-10] * 50, abs=0.1)
    assert 4 < max(columns) < 10 * 0.58
    assert -10 * 0.58 < min(columns) < -4


def test_a_warp_shifts_the_points_of_its_grid_and_is_smooth_between_them():
    size, largest = 96, 0.1
    ramp = torch.linspace(0.5 / size, 1 - 0.5 / size, size)
    planes = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)])
    ids = torch.arange(5)
    warped = augment(planes.expand(5, 2, size, size), AugmentSpec(elastic=largest, fill="border"), 3, 8, ids)
    # Where a ramp goes from 0 to 1, how far a value is off is how far its place was shifted.
    shifts = (warped - planes)[..., 8:-8, 8:-8]
    assert shifts.abs().max() <= largest
    draws = uniform(3, 8, ids, 32, 32).view(5, 4, 4, 2) * 2 * largest - largest
    for row, column in ((1, 1), (1, 2), (2, 1), (2, 2)):
        down, right = (round(place / 3 * size) for place in (row, column))
        near = (warped - planes)[:, :, down - 1 : down + 1, right - 1 : right + 1].mean((2, 3))
        torch.testing.assert_close(near.double(), draws[:, row, column], atol=1e-3, rtol=0)
    # Between two points a third apart a shift changes by 2 x 0.1 at most, 1.5 times as fast in the middle.
    for axis in (-1, -2):
        assert shifts.diff(dim=axis).abs().max() <= 1.5 * 2 * largest / (size / 3) + 1e-5


def test_strokes_become_thicker_and_thinner_about_as_often():
    line = torch.zeros(200, 1, 9, 9)
    line[..., 4, :] = 1.0
    varied = augment(line, AugmentSpec(stroke=0.6), 0, 0, torch.arange(200))
    beside, on = varied[:, 0, 3, 4], varied[:, 0, 4, 4]
    thicker = beside > 0
    assert 70 < thicker.sum() < 130
    torch.testing.assert_close(on[thicker], torch.ones(int(thicker.sum())))
    assert (on[~thicker] < 1).all()
    assert 0.5 < beside.max() <= 0.6
    assert 0.4 <= on.min() < 0.5
    assert (varied[:, 0, [0, 1, 7, 8]] == 0).all()


def test_crop_shows_a_part_of_at_least_that_area():
    """A ramp shows where the window lies: left and right edge, top and bottom."""
    ramp = torch.linspace(0, 1, 101)
    images = torch.stack([ramp.expand(101, 101), ramp[:, None].expand(101, 101)]).expand(300, 2, 101, 101)
    cropped = augment(images, AugmentSpec(crop_area=0.3, fill="border"), 0, 0, torch.arange(300))
    width = cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]
    height = cropped[:, 1, -1, 0] - cropped[:, 1, 0, 0]
    assert (width * height).min() > 0.28
    assert (width * height).min() < 0.4
    assert (width * height).max() > 0.9
    assert ((width / height).log().abs() < 0.31).all()
    assert cropped[:, 0, 0, 0].max() > 0.3


@pytest.mark.parametrize(("fill", "expected"), [("zeros", 0.0), (1.0, 1.0), (0.25, 0.25), ("border", 0.6)])
def test_fill_is_what_comes_in_from_outside(fill, expected):
    images = torch.full((20, 1, 20, 20), 0.6)
    shrunk = augment(images, AugmentSpec(scale_min=0.4, scale_max=0.4, fill=fill), 0, 0, torch.arange(20))
    torch.testing.assert_close(shrunk[:, 0, 0, 0], torch.full((20,), expected))
    torch.testing.assert_close(shrunk[:, 0, 10, 10], torch.full((20,), 0.6))


def test_erase_blanks_a_rectangle_of_the_right_size():
    images = torch.ones(500, 2, 40, 40)
    spec = AugmentSpec(erase=0.5, erase_min=0.1, erase_max=0.3)
    erased = augment(images, spec, 0, 0, torch.arange(500)) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    area = erased[:, 0].float().mean((1, 2))
    hit = area > 0
    assert hit.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert area[hit].min() > 0.08
    assert area[hit].max() < 0.33
    assert area[hit].mean().item() == pytest.approx(0.2, abs=0.01)
    rows, columns = erased[:, 0].any(2).sum(1), erased[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, erased[:, 0].sum((1, 2)))


def test_colors_change_as_named():
    images, ids = pictures().float() / 255 * 0.4 + 0.2, torch.arange(7)
    ratio = augment(images, AugmentSpec(brightness=0.3), 0, 0, ids) / images
    assert ratio.amax((1, 2, 3)).tolist() == pytest.approx(ratio.amin((1, 2, 3)).tolist(), rel=1e-5)
    assert ratio.max() <= 1.3001
    gray = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    contrasted = augment(images, AugmentSpec(contrast=0.3), 0, 0, ids)
    torch.testing.assert_close(
        (contrasted * gray).sum(1).mean((1, 2)), (images * gray).sum(1).mean((1, 2)), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(contrasted, images)
    saturated = augment(images, AugmentSpec(saturation=0.3), 0, 0, ids)
    torch.testing.assert_close((saturated * gray).sum(1), (images * gray).sum(1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(saturated, images)


def test_noise_is_nearly_normal_and_fresh_for_every_pixel():
    images = torch.full((4, 1, 100, 100), 0.5)
    noise = (augment(images, AugmentSpec(noise=0.1), 0, 0, torch.arange(4)) - 0.5) / 0.1
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.68, abs=0.02)
    flat = noise.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05
    assert torch.corrcoef(torch.stack([flat[0, 1:], flat[0, :-1]]))[0, 1].abs() < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"shear": 90.0},
        {"flip": 1.5},
        {"scale_min": 0.0},
        {"scale_min": 2.0, "scale_max": 1.0},
        {"scale_max": float("inf")},
        {"erase_min": 0.5},
        {"noise": float("nan")},
        {"fill": 2.0},
        {"fill": "mirror"},
    ],
)
def test_fields_out_of_range_are_one_line(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
        AugmentSpec(**wrong)
    assert "\n" not in str(caught.value)


def test_every_field_may_be_an_integer():
    assert AugmentSpec(rotation=10, fill=1).fill == 1
    assert {field.name for field in fields(AugmentSpec)} >= {"rotation", "fill"}


def test_wrong_images_are_one_line():
    with pytest.raises(ConfigError, match="needs RGB images, these have 1 channels"):
        augment(pictures(2, 1), AugmentSpec(saturation=0.1), 0, 0, torch.arange(2))
    for ids in (torch.arange(3), torch.rand(2), torch.arange(2)[:, None]):
        with pytest.raises(ValueError, match="integer id"):
            augment(pictures(2), AugmentSpec(flip=0.5), 0, 0, ids)
