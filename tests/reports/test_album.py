"""How figures and images get into a page."""

from __future__ import annotations

import base64
import io
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from distmetric.errors import InputError
from distmetric.reports.album import Album
from distmetric.reports.figures import panel_figure
from distmetric.reports.panels import PANELS
from distmetric.reports.step_times import PHASES, time_split
from distmetric.reports.theme import DARK, LIGHT, darkened
from distmetric.reports.thumbnails import MAX_SIDE, pick, shot, thumbnail
from html_page import Page, check_offline

HOSTILE = '<b>"x"</b>&amp;'
HISTORY = {
    **{line.metric: [(step, 0.5 + step / 100) for step in range(30)] for line in PANELS[2].lines},
    **{f"time/{phase}": [(1, 0.01)] for phase in PHASES},
}


def decoded(address: str) -> bytes:
    return base64.b64decode(address.split(";base64,")[1])


def colors_of(svg: bytes) -> list[str]:
    return re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.decode())


@pytest.mark.parametrize("draw", [partial(panel_figure, PANELS[2], HISTORY), partial(time_split, HISTORY)])
def test_the_dark_chart_is_what_the_dark_theme_draws(draw) -> None:
    page = Page(Album().chart("a", draw, "a chart"))
    light, dark = page.all("img")[0]["src"], page.all("source")[0]["srcset"]
    drawn = [
        Page(Album().chart("a", lambda _, theme=theme: draw(theme), "a chart")) for theme in (LIGHT, DARK)
    ]
    expected = [decoded(each.all("img")[0]["src"]) for each in drawn]
    assert decoded(light) == expected[0]
    assert colors_of(decoded(dark)) == colors_of(expected[1])
    assert colors_of(decoded(dark)) != colors_of(decoded(light))


def test_every_color_has_one_dark_counterpart() -> None:
    def roles(theme):
        return [theme.background, theme.text, theme.muted, *theme.colors.values(), *theme.series]

    style = "; ".join(f"fill: {color}" for color in roles(LIGHT))
    assert darkened(style) == "; ".join(f"fill: {color}" for color in roles(DARK))
    assert len(set(LIGHT.series)) == len(set(DARK.series)) == 10
    assert darkened('fill: #123456; href="#0072b2"; #0072b2') == 'fill: #123456; href="#0072b2"; #0072b2'


def test_charts_are_kept_as_files_where_they_are_wanted(tmp_path) -> None:
    album = Album(keep=True)
    album.chart("curve", partial(panel_figure, PANELS[2], HISTORY), "a chart")
    album.dots("dots", partial(time_split, HISTORY), "a chart")
    album.extra("more", partial(time_split, HISTORY))
    album.save(tmp_path / "figures")
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert files.keys() == {"curve.svg", "dots.png", "more.png"}
    assert files["curve.svg"].startswith(b"<?xml")
    assert Image.open(io.BytesIO(files["dots.png"])).width > 500


def test_nothing_is_drawn_for_files_that_nobody_wants() -> None:
    Album().extra("more", lambda _: pytest.fail("drawn"))


@pytest.mark.parametrize(("channels", "side", "kind"), [(1, 28, "png"), (3, 64, "png"), (3, 224, "jpeg")])
def test_small_images_are_kept_as_they_are_and_large_ones_reduced(channels, side, kind) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, side, side), dtype=np.uint8)
    (image,) = Page(thumbnail(pixels, HOSTILE)).all("img")
    assert image["alt"] == HOSTILE
    assert image["src"].startswith(f"data:image/{kind};")
    picture = Image.open(io.BytesIO(decoded(image["src"])))
    assert picture.size == (min(side, MAX_SIDE),) * 2 == (int(image["width"]), int(image["height"]))
    if kind == "png":
        shown = np.asarray(picture).reshape(side, side, channels)
        assert np.array_equal(np.moveaxis(shown, -1, 0), pixels)


def test_the_aspect_of_an_image_is_kept() -> None:
    (image,) = Page(thumbnail(np.zeros((3, 100, 400), np.uint8), "wide")).all("img")
    assert (image["width"], image["height"]) == (str(MAX_SIDE), str(MAX_SIDE // 4))


def test_right_and_wrong_are_told_without_color() -> None:
    pixels = np.zeros((1, 4, 4), np.uint8)
    right, wrong, neither = (Page(shot(pixels, "cat", "a cat", right=kind)) for kind in (True, False, None))
    assert (right.all("img")[0]["alt"], right.texts("b")) == ("right: cat", ["✓"])
    assert (wrong.all("img")[0]["alt"], wrong.texts("b")) == ("wrong: cat", ["✗"])
    assert (neither.all("img")[0]["alt"], neither.texts("b")) == ("cat", [])
    check_offline(right)


def test_images_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="images must be uint8"):
        pick(np.zeros((3, 2, 4, 4), np.uint8), np.array([0]))
