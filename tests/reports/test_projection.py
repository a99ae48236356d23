"""The map of the embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from distmetric.reports import projection as module
from distmetric.reports.album import Album
from distmetric.reports.projection import COLORED, map_figure, project, projection_section, sample
from drawings import reaches
from html_page import Page


def clusters(classes: int, each: int, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random, labels = np.random.default_rng(0), np.arange(classes).repeat(each)
    centers = 4 * random.standard_normal((classes, dim))
    return (centers[labels] + 0.2 * random.standard_normal((len(labels), dim))).astype(np.float32), labels


def test_small_sets_are_shown_whole() -> None:
    assert sample(np.arange(30) // 3, seed=0).tolist() == list(range(30))


def test_large_sets_are_shown_in_whole_classes(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", 100)
    labels = np.random.default_rng(0).permutation(np.arange(600) % 60)
    rows = sample(labels, seed=3)
    counts = np.bincount(labels[rows], minlength=60)
    assert set(counts) == {0, 10}
    assert len(rows) == 100
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, sample(labels, seed=3))
    assert not np.array_equal(rows, sample(labels, seed=4))


def test_large_classes_are_shown_in_part(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", 100)
    labels = np.arange(400) % 4
    rows = sample(labels, seed=0)
    assert len(rows) == len(set(rows.tolist())) == 100
    assert (np.bincount(labels[rows], minlength=4) > 10).all()


def test_pca_keeps_the_directions_of_largest_variance() -> None:
    random = np.random.default_rng(0)
    spread = np.array([9.0, 3.0, 0.1, 0.1])
    rows = random.standard_normal((60, 4)) * spread
    found = project(rows, np.arange(60) // 3, seed=0)
    centered = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    expected = (left * values)[:, :2]
    assert np.allclose(np.abs(found.pca), np.abs(expected), atol=1e-8)
    assert found.explained == pytest.approx(tuple(np.square(values)[:2] / np.square(values).sum()))


def test_tsne_keeps_neighbors_together_and_is_repeatable() -> None:
    rows, labels = clusters(5, 12)
    found, again = (project(rows, labels, seed=1) for _ in range(2))
    assert np.array_equal(found.tsne, again.tsne)
    distances = np.square(found.tsne[:, None] - found.tsne).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.95


@pytest.mark.parametrize(
    "rows", [np.ones((50, 4), np.float32), np.eye(11, dtype=np.float32), np.arange(50.0)[:, None]]
)
def test_what_has_no_map_is_left_out(rows: np.ndarray) -> None:
    labels = np.arange(len(rows)) // 2
    assert project(rows, labels, seed=0) is None
    section = projection_section(rows, labels, ["x"] * len(rows), {}, 0, Album())
    assert not section.parts


def test_the_most_frequent_values_are_colored_and_the_rest_is_gray() -> None:
    values = [f"v{number:02d}" for number in range(14) for _ in range(20 - number)] + [None] * 30
    points = np.random.default_rng(0).standard_normal((len(values), 2))
    figure = map_figure(points, values, "$t$", explained=(0.5, 0.25))
    (axes,) = figure.axes
    gray, *colored = axes.collections
    assert len(colored) == COLORED
    assert [len(each.get_offsets()) for each in colored] == [20 - number for number in range(10)]
    assert len(gray.get_offsets()) == len(values) - sum(len(each.get_offsets()) for each in colored)
    at = [number for number, value in enumerate(values) if value == "v03"]
    assert np.array_equal(colored[3].get_offsets(), points[at])
    assert len({tuple(each.get_facecolor()[0]) for each in colored}) == COLORED
    assert len({each.get_paths()[0].vertices.tobytes() for each in colored}) == COLORED
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["all others", *(f"v{number:02d}" for number in range(10))]
    assert "direction 1: 50%" in axes.get_xlabel()


def test_long_names_stay_inside() -> None:
    values = [f"a very long name of a class, number {number % 12}" for number in range(60)]
    points = np.random.default_rng(0).standard_normal((60, 2))
    assert reaches(map_figure(points, values, "t" * 30, explained=(0.5, 0.5))) <= 0


def test_the_section_has_a_map_for_each_attribute_that_says_something() -> None:
    rows, labels = clusters(4, 6)
    attributes = {
        "alphabet": ["Latin", "Greek"] * 12,
        "always": ["same"] * 24,
        "rarely": [None] * 23 + ["known"],
        "partly": [None, "a", "b"] * 8,
    }
    section = projection_section(rows, labels, [f"c{label}" for label in labels], attributes, 0, Album())
    alts = [image["alt"] for image in Page(section.html()).all("img")]
    assert [alt.partition(":")[0] for alt in alts] == [
        *("PCA by class", "t-SNE by class", "t-SNE by alphabet", "t-SNE by partly")
    ]
    assert "colored are Greek, Latin" in alts[2]
    assert section.lead.startswith("All evaluated images")


def test_attributes_beyond_the_limit_are_named(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_ATTRIBUTES", 0)
    rows, labels = clusters(4, 6)
    section = projection_section(rows, labels, ["x"] * 24, {"hue": ["a", "b"] * 12}, 0, Album())
    assert "Not shown: hue." in section.lead
