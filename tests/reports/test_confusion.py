"""Confused classes, counted as plain loops count them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.evaluation.neighbors import nearest
from distmetric.reports.confusion import SHOWN, ConfusedPair, confused_pairs, confusion_section
from html_page import Page


def by_loops(labels: list[int], neighbors: list[int], distances: list[float]) -> list[ConfusedPair]:
    found = defaultdict(list)
    for row, (neighbor, distance) in enumerate(zip(neighbors, distances, strict=True)):
        if labels[row] != labels[neighbor]:
            found[labels[row], labels[neighbor]].append((distance, row))
    pairs = [
        ConfusedPair(
            *(label, other, len(each), labels.count(label)),
            float(np.mean([distance for distance, _ in each])),
            *(min(each)[1], neighbors[min(each)[1]]),
        )
        for (label, other), each in found.items()
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, pair.distance, pair.label, pair.other))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 5))
def test_pairs_are_those_of_plain_loops(seed: int, count: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count) * 7 - 3
    neighbors = (np.arange(count) + random.integers(1, count, count)) % count
    distances = random.integers(1, 4, count) / 4
    found = confused_pairs(labels, neighbors, distances)
    assert found == by_loops(labels.tolist(), neighbors.tolist(), distances.tolist())


def test_it_counts_what_the_nearest_neighbors_say() -> None:
    """On a line, class 1 sits between the two rows of class 0; class 2 is far away."""
    rows, labels = np.array([[0.0], [3.0], [1.0], [1.5], [50.0], [51.0]]), np.array([0, 0, 1, 1, 2, 2])
    neighbors = nearest(rows, np.arange(6), 1)[:, 0].numpy()
    distances = np.abs(rows[:, 0] - rows[neighbors, 0])
    assert confused_pairs(labels, neighbors, distances) == [ConfusedPair(0, 1, 2, 2, 1.25, 0, 2)]


def test_the_table_names_both_classes_and_shows_an_example() -> None:
    images = np.zeros((4, 1, 8, 8), np.uint8)
    labels, neighbors = np.array([0, 0, 1, 1]), np.array([2, 3, 3, 2])
    names = ["<one>", "<one>", "two", "two"]
    section = confusion_section(labels, neighbors, np.array([0.5, 0.25, 0.1, 0.1]), names, images)
    page = Page(section.html())
    assert "another class: 2 of 4. Pairs of classes among them: 1, each" in section.lead
    assert page.texts("th")[-1] == "<one>"
    assert "→ two" in page.texts("small")
    assert page.texts("td") == ["2", "0.375"]
    assert [image["alt"] for image in page.all("img")] == [
        "an image of <one>",
        "its nearest neighbor, of two",
    ]
    without = Page(confusion_section(labels, neighbors, np.ones(4), names, None).html())
    assert not without.all("img")


def test_only_the_most_frequent_pairs_are_listed() -> None:
    labels = np.arange(30)
    section = confusion_section(
        labels, (labels + 1) % 30, np.ones(30), [f"c{label}" for label in labels], None
    )
    assert f"of which the {SHOWN} most frequent are shown" in section.lead
    assert Page(section.html()).html.count("<tr>") == SHOWN + 1


def test_nothing_confused_is_nothing_shown() -> None:
    assert not confusion_section(np.zeros(3, int), np.array([1, 2, 0]), np.ones(3), ["a"] * 3, None).parts
