"""Images that may be labeled wrong, and images that are in the data set twice under different labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray

from distmetric.index.audit import LabelErrors, NearDuplicates
from distmetric.index.suspects import near_duplicates, suspected_label_errors
from distmetric.reports.history import Numbers
from distmetric.reports.page import Section
from distmetric.reports.thumbnails import Images, Pixels, pick, shot

SHOWN = 6
"""Findings of each kind that are shown."""
AGREEING = 3
"""Nearest images that have to agree on another label."""


@dataclass(frozen=True)
class Coincidence:
    """Two classes of the training set, or two images of different ones, that all but coincide in the embedding.

    Attributes:
        names: of the two classes, any texts.
        paths: where the two images came from, any texts.
        images: (2, C, H, W) uint8, the two images, or one of each class.
        distance: between the two.
        ratio: that distance as a multiple of how wide the classes are.
        of_classes: the two are classes, and the images examples of them.
    """

    names: tuple[str, str]
    paths: tuple[str, str]
    images: Pixels
    distance: float
    ratio: float
    of_classes: bool


@dataclass(frozen=True)
class Named:
    """What the images of a section are called: name of the class and path of every row, the latter as far as known."""

    classes: Sequence[str]
    paths: Sequence[str]

    def path(self, row: int) -> str:
        """Path of a row, or its number."""
        return self.paths[row] if self.paths else f"image {row}"


def suspects_sections(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.int64],
    neighbors: NDArray[np.int64],
    distances: Numbers,
    images: Images,
    named: Named,
) -> list[Section]:
    """The sections of suspected label errors and of near-duplicates among the evaluated images.

    Args:
        embeddings: (N, D) finite.
        labels: (N,) classes.
        neighbors: (N, k) nearest other rows of every row.
        distances: (N, k) their distances.
        images: (N, C, H, W) uint8.
        named: what the rows are called.

    Returns:
        Both sections; without parts where nothing is suspected.
    """
    rows, classes, near, apart = (
        torch.from_numpy(each) for each in (embeddings, labels, neighbors, distances)
    )
    m = AGREEING
    errors = suspected_label_errors(rows, classes, near[:, :m], apart[:, :m])
    return [
        _errors(errors, distances, images, named),
        _duplicates(near_duplicates(rows, classes, near, apart), images, named),
    ]


def coincidences_section(found: Sequence[Coincidence], total: int) -> Section:
    """The section of what the index saw in the training set.

    Args:
        found: pairs to show, closest first.
        total: how many pairs there are.

    Returns:
        The section; without parts where there are none.
    """
    lead = (
        "Pairs in the last snapshot of the index that are so close that they may be the same thing under two labels: "
        f"{total:,}.{_shown(len(found), total)}"
    )
    parts = []
    for each in found:
        what = "an example of" if each.of_classes else "an image of"
        shots = [
            shot(image, f"{what} {name}", name) for image, name in zip(each.images, each.names, strict=True)
        ]
        kind = "The centers of the two classes are" if each.of_classes else "The two images are"
        paths = "" if each.of_classes else _paths(each.paths)
        parts.append(
            _finding(shots[0], shots[1:], f"{kind} {each.distance:.3g} apart, {each.ratio:.2g} radii.{paths}")
        )
    return Section("Suspected duplicates in the training set", lead, parts)


def _errors(errors: LabelErrors, distances: Numbers, images: Images, named: Named) -> Section:
    total, m = len(errors.rows), AGREEING
    lead = (
        f"Evaluated images whose {m} nearest neighbors all agree on one other class: {total:,}. Some are mistakes of "
        f"the network, others of the labels.{_shown(min(total, SHOWN), total)}"
    )
    parts = []
    for row, neighbors, score in zip(
        errors.rows[:SHOWN].tolist(),
        errors.neighbors[:SHOWN].numpy(),
        errors.scores[:SHOWN].tolist(),
        strict=True,
    ):
        mine, said = named.classes[row], named.classes[int(neighbors[0])]
        pixels = pick(images, np.array([row, *neighbors]))
        shots = [
            shot(image, f"neighbor {number}, labeled {said}", f"{distance:.2f}")
            for number, (image, distance) in enumerate(zip(pixels[1:], distances[row, :m], strict=True), 1)
        ]
        text = (
            f"Labeled <strong>{escape(mine)}</strong>, neighbors say <strong>{escape(said)}</strong>"
            f"<small>Its own class is {_times(score)}.</small>{_paths([named.path(row)])}"
        )
        parts.append(_finding(shot(pixels[0], f"image labeled {mine}", mine), shots, text))
    return Section("Suspected label errors", lead, parts)


def _duplicates(pairs: NearDuplicates, images: Images, named: Named) -> Section:
    total = len(pairs.rows)
    lead = (
        "Pairs of evaluated images of different classes that are less than a tenth as far apart as the members of "
        f"either class: {total:,}.{_shown(min(total, SHOWN), total)}"
    )
    parts = []
    for row, other, distance in zip(
        *(each[:SHOWN].tolist() for each in (pairs.rows, pairs.others, pairs.distances)), strict=True
    ):
        names = [named.classes[row], named.classes[other]]
        pixels = pick(images, np.array([row, other]))
        shots = [
            shot(image, f"image labeled {name}", name) for image, name in zip(pixels, names, strict=True)
        ]
        how = "The embeddings are equal." if distance == 0 else f"{distance:.3g} apart."
        parts.append(_finding(shots[0], shots[1:], f"{how}{_paths([named.path(row), named.path(other)])}"))
    return Section("Near-duplicates across classes", lead, parts)


def _finding(first: str, others: Sequence[str], text: str) -> str:
    """An image beside others, with HTML below."""
    return f'<div class="finding">{first}<div class="found few">{"".join(others)}</div><p>{text}</p></div>'


def _paths(paths: Sequence[str]) -> str:
    return "".join(f"<small><code>{escape(path)}</code></small>" for path in paths)


def _times(score: float) -> str:
    if not np.isfinite(score):
        return "farther away; the neighbors are copies of it"
    return f"{score:.2f} times as far away"


def _shown(shown: int, total: int) -> str:
    return f" The {shown} most suspicious:" if shown < total else ""
