"""pairs.txt of Labeled Faces in the Wild: who is on two images, fold by fold.

    10  300                                  folds, and pairs of either kind in each
    Abel_Pacheco  1  4                       300 lines: two images of one person
    Abdel_Madi_Shabneh  1  Dean_Barker  1    300 lines: images of two persons; and so on for each fold

Lists of one fold (pairsDevTrain.txt) have the number of pairs alone in their first line.
Source: Huang et al., Labeled Faces in the Wild, Technical Report 07-49, 2007.
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from distmetric.errors import InputError


class FacePairs(NamedTuple):
    """P pairs.

    Attributes:
        first: (P,) images as `face_name` has them.
        second: (P,) likewise.
        same: (P,) whether they are of one person.
        folds: (P,) numbers from 0 on.
    """

    first: list[str]
    second: list[str]
    same: list[bool]
    folds: list[int]


def face_name(path: str) -> str:
    """What a list calls an image: the folder that it is in and its name, without what tells its format."""
    folder, file = posixpath.split(path)
    return f"{posixpath.basename(folder)}/{posixpath.splitext(file)[0]}"


def is_face_list(text: str) -> bool:
    """Whether a text is such a list, by its first line."""
    fields = text.partition("\n")[0].split()
    return len(fields) in (1, 2) and all(_is_number(field) for field in fields)


def read_face_pairs(text: str, location: str) -> FacePairs:
    """Read a list.

    Args:
        text: For which `is_face_list` is true.
        location: How to name it to people.

    Raises:
        InputError: If a line is wrong, or there are other lines than the first one says.
    """
    header, *lines = [line.split() for line in text.splitlines()]
    folds, count = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) != 2 * folds * count or not lines:
        raise InputError(
            f"protocol.pairs={location}: its first line announces {folds} x 2 x {count} pairs and {len(lines)} lines "
            "follow; get the file again"
        )
    found = FacePairs([], [], [], [])
    for number, fields in enumerate(lines):
        same = number // count % 2 == 0
        if len(fields) != (3 if same else 4) or not all(_is_number(each) for each in (fields[1], fields[-1])):
            wanted = "NAME NUMBER NUMBER" if same else "NAME NUMBER NAME NUMBER"
            shown = " ".join(fields)
            raise InputError(
                f"protocol.pairs={location} line {number + 2}: {shown!r} is not {wanted}; get the file again"
            )
        if same:
            fields = [fields[0], fields[1], fields[0], fields[2]]
        found.first.append(_image(fields[0], fields[1]))
        found.second.append(_image(fields[2], fields[3]))
        found.same.append(same)
        found.folds.append(number // (2 * count))
    return found


def _image(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
