"""The sections of suspected label errors and duplicates."""

from __future__ import annotations

import numpy as np
import torch

from distmetric.evaluation.neighbors import nearest
from distmetric.index.suspects import neighbor_distances
from distmetric.reports.page import Section
from distmetric.reports.suspects import SHOWN, Coincidence, Named, coincidences_section, suspects_sections
from html_page import Page, check_offline

HOSTILE = "<i>two</i>"


def sections(rows: np.ndarray, labels: np.ndarray, *, paths: bool = True) -> list[Section]:
    table = torch.from_numpy(rows)
    neighbors = nearest(table, torch.arange(len(rows)), min(10, len(rows) - 1))
    distances = neighbor_distances(table, neighbors)
    images = np.zeros((len(rows), 1, 6, 6), np.uint8)
    named = Named(
        [["one", HOSTILE][label] for label in labels],
        [f"photos/{number}&.png" for number in range(len(rows))] if paths else [],
    )
    return suspects_sections(rows, labels, neighbors.numpy(), distances.numpy(), images, named)


def two_clusters() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(40) // 20
    return (10 * labels[:, None] + random.standard_normal((40, 2))).astype(np.float32), labels


def test_a_wrong_label_is_shown_with_what_its_neighbors_say_and_its_path() -> None:
    rows, labels = two_clusters()
    labels[7] = 1
    errors, duplicates = sections(rows, labels)
    page = Page(errors.html())
    assert "3 nearest neighbors all agree on one other class: 1." in errors.lead
    assert page.texts("strong") == [HOSTILE, "one"]
    assert page.texts("code") == ["photos/7&.png"]
    assert [image["alt"] for image in page.all("img")] == [
        f"image labeled {HOSTILE}",
        *(f"neighbor {number}, labeled one" for number in (1, 2, 3)),
    ]
    check_offline(page)
    assert not duplicates.parts


def test_a_copy_under_another_label_is_shown_with_both_paths() -> None:
    rows, labels = two_clusters()
    rows[3] = rows[30]
    duplicates = sections(rows, labels)[1]
    page = Page(duplicates.html())
    assert duplicates.lead.endswith("the members of either class: 1.")
    assert "The embeddings are equal." in page.words
    assert page.texts("code") == ["photos/3&.png", "photos/30&.png"]
    assert len(page.all("img")) == 2


def test_many_suspects_are_counted_and_the_worst_shown() -> None:
    rows, labels = two_clusters()
    labels[[0, 2, 4, 6, 8, 20, 22, 24]] ^= 1
    errors = sections(rows, labels, paths=False)[0]
    page = Page(errors.html())
    assert errors.lead.endswith(f"The {SHOWN} most suspicious:")
    assert len(errors.parts) == SHOWN
    scores = [float(text.split()[4]) for text in page.texts("small") if text.startswith("Its own class")]
    assert scores == sorted(scores, reverse=True)
    assert all(text.startswith("image ") for text in page.texts("code"))


def test_clean_data_are_suspected_of_nothing() -> None:
    assert not any(section.parts for section in sections(*two_clusters()))


def test_coincidences_of_the_training_set_are_told_as_what_they_are() -> None:
    pair = Coincidence(
        names=("one", HOSTILE),
        paths=("a.png", "b.png"),
        images=np.zeros((2, 3, 6, 6), np.uint8),
        distance=0.0123,
        ratio=0.05,
        of_classes=True,
    )
    rows = Coincidence(**{**vars(pair), "of_classes": False})
    section = coincidences_section([pair, rows], total=9)
    page = Page(section.html())
    assert "under two labels: 9." in section.lead
    assert "The 2 most suspicious:" in section.lead
    assert page.texts("code") == ["a.png", "b.png"]  # of the images; of classes they would be examples only
    assert "The centers of the two classes are 0.0123 apart, 0.05 radii." in page.words
    assert [image["alt"] for image in page.all("img")][::2] == ["an example of one", "an image of one"]
    assert not coincidences_section([], 0).parts
