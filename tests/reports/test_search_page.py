"""The pictures of a search: what is drawn, framed, named; and what is not known stays neutral."""

import io
import re

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from distmetric.errors import InputError
from distmetric.reports.grid import RIGHT_MARK, WRONG_MARK, retrieval_grid
from distmetric.reports.search_page import (
    FoundPicture,
    QueryPicture,
    file_name,
    grid_png,
    search_page,
    short,
)
from distmetric.reports.theme import LIGHT


def image(value: int) -> np.ndarray:
    return np.full((3, 9, 9), value, np.uint8)


def queries() -> list[QueryPicture]:
    found = [
        FoundPicture(image(20), "in/a.png", "cat", 0.125, "same", True),
        FoundPicture(image(30), "in/b.png", "dog", 0.5, "different", False),
        FoundPicture(image(40), "in/<c>.png", "", 0.75, "different", None),
    ]
    return [
        QueryPicture(image(10), "q/one.png", "cat", found),
        QueryPicture(image(50), "q/two.png", "", found[:1]),
    ]


def test_grid_leaves_unknown_neighbors_neutral_and_missing_ones_out() -> None:
    images = np.stack([image(value) for value in (10, 20, 30, 40)])
    correct = np.array([[True, False, True], [True, True, True]])
    known = np.array([[True, True, False], [False, True, True]])
    neighbors = np.array([[1, 2, 3], [2, -1, -1]])
    titles = [["one\n0.1", "t" * 20 + "\n0.2", ""], ["x", "", ""]]
    figure = retrieval_grid(images, np.array([0, 1]), neighbors, correct, (), titles, known=known)
    assert len(figure.axes) == 4 + 2
    marks = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert marks == [[], [RIGHT_MARK], [WRONG_MARK], [], [], []]
    for axes in (figure.axes[3], figure.axes[5]):
        assert all(colors.same_color(spine.get_edgecolor(), LIGHT.muted) for spine in axes.spines.values())
    assert [axes.get_title() for axes in figure.axes[1:3]] == ["one\n0.1", "t" * 13 + "…\n0.2"]
    plain = retrieval_grid(images, np.array([0]), neighbors[:1], None)
    assert [axes.texts[:] for axes in plain.axes] == [[]] * 4
    assert figure.get_size_inches()[1] / 2 > plain.get_size_inches()[1]  # room for the second line
    with pytest.raises(InputError, match="must have shapes"):
        retrieval_grid(images, np.array([0, 1]), neighbors[:1], None)


def test_titles_of_two_lines_do_not_reach_into_the_row_above() -> None:
    images = np.stack([image(10)] * 2)
    neighbors = np.ones((5, 2), np.int64)
    titles = [["name\n0.1 different"] * 2] * 5
    figure = retrieval_grid(images, np.zeros(5, np.int64), neighbors, None, (), titles)
    figure.canvas.draw()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    tops = [axes.title.get_window_extent().y1 for axes in figure.axes]
    for row in range(1, 5):
        assert max(tops[3 * row : 3 * row + 3]) <= min(box.y0 for box in boxes[3 * row - 3 : 3 * row])
    assert max(tops) <= figure.bbox.y1


def test_png_is_drawn() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(grid_png(queries()))).convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 200
    for value in (10, 20, 30, 40, 50):
        assert (pixels == value).all(axis=2).sum() > 1000
    lonely = [QueryPicture(image(10), "q.png", "", [])]
    assert Image.open(io.BytesIO(grid_png(lonely))).width > 100


def test_page_shows_and_names_everything_and_loads_nothing() -> None:
    page = search_page("2 queries", queries(), about="Up to <i>.", notes=["a note <b>"])
    assert page.count("<img") == 2 + 4
    assert page.count("data:image/") == page.count("src=") == 6
    assert "<script" not in page
    assert "<c>" not in page
    assert "&lt;c&gt;.png" in page
    assert "a note &lt;b&gt;" in page
    assert "with the distance. Up to &lt;i&gt;." in page
    assert len(re.findall(r'class="shot right"', page)) == 2
    assert len(re.findall(r'class="shot wrong"', page)) == 1
    assert "0.125 · same · a.png · cat" in page
    assert all(text for text in re.findall(r'alt="([^"]*)"', page))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("exactly_14.png", "exactly_14.png"),
        ("IMG_20240131_000123.jpg", "IMG_2…0123.jpg"),
    ],
)
def test_long_names_lose_their_middle(name, expected) -> None:
    assert short(name) == expected


def test_a_file_is_called_by_its_last_part() -> None:
    assert [file_name(path) for path in ("a/b.png", "b.png", "s3://x/y/", "")] == ["b.png", "b.png", "y", ""]
