"""Caltech-UCSD Birds-200-2011 as CUB_200_2011.tgz has it: the first 100 species for training, the others for testing.

    CUB_200_2011/images.txt              image_id path        1 001.Black_footed_Albatross/x.jpg
    CUB_200_2011/image_class_labels.txt  image_id class_id    1 1
    CUB_200_2011/classes.txt             class_id name        1 001.Black_footed_Albatross
    CUB_200_2011/images/001.Black_footed_Albatross/x.jpg

The division by image in train_test_split.txt is that of classification, and is not read.
Source of the division by class: Song et al., CVPR 2016, arXiv 1511.06452.
"""

from __future__ import annotations

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import Annotation, LayoutFiles, add, listed_path, whole_number
from distmetric.data.splits import TEST, TRAIN
from distmetric.errors import InputError

CLASSES, TRAINING_CLASSES = 200, 100


def read(files: LayoutFiles) -> dict[str, Labels]:
    """What the lists say about each image, by its path within the source.

    Raises:
        InputError: A list is missing, or contradicts another one.
    """
    images = files.annotation("images.txt")
    names = _by_number(files.annotation("classes.txt"), "class_id")
    if sorted(names) != list(range(1, CLASSES + 1)):
        raise InputError(
            f"{files.shown}: classes.txt lists {len(names)} classes, not those from 1 to {CLASSES}; get the file again"
        )
    class_of = _by_number(files.annotation("image_class_labels.txt"), "image_id")
    found: dict[str, Labels] = {}
    for where, row in images.rows(("image_id", "path")):
        number = whole_number(row["image_id"], where, "image_id")
        if number not in class_of:
            raise InputError(f"{where}: image_class_labels.txt has no image {number}; get the archive again")
        class_id = whole_number(
            class_of[number], f"{files.shown}: image_class_labels.txt, image {number}", "class_id"
        )
        path = listed_path(row["path"], where)
        name = names.get(class_id)
        if name != path.partition("/")[0]:
            raise InputError(
                f"{where}: {path} is of class {class_id} ({name}) by image_class_labels.txt, but lies in another "
                "folder; get the archive again"
            )
        split = TRAIN if class_id <= TRAINING_CLASSES else TEST
        add(found, f"{images.folder}images/{path}", Labels(name, split=split), where)
    return found


def _by_number(annotation: Annotation, key: str) -> dict[int, str]:
    """The second field of each line by the first one."""
    found: dict[int, str] = {}
    for where, row in annotation.rows((key, "value")):
        number = whole_number(row[key], where, key)
        if number in found:
            raise InputError(f"{where}: {key} {number} is there twice; get the archive again")
        found[number] = row["value"]
    return found
