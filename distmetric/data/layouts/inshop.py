"""In-shop Clothes Retrieval of DeepFashion as img.zip and list_eval_partition.txt have it.

    img/WOMEN/Denim/id_00000080/01_1_front.jpg
    Eval/list_eval_partition.txt   52712                                     (how many there are)
                                   image_name item_id evaluation_status
                                   img/WOMEN/Denim/id_00000080/01_1_front.jpg id_00000080 train | query | gallery

A class is an item, its group the kind of clothing (WOMEN/Denim).
Source: Liu et al., DeepFashion, CVPR 2016.
"""

from __future__ import annotations

import posixpath

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import Annotation, LayoutFiles, add, listed_path
from distmetric.data.splits import GALLERY, QUERY, TRAIN
from distmetric.errors import InputError

ANNOTATION = "list_eval_partition.txt"
_COLUMNS = ("image_name", "item_id", "evaluation_status")


def read(files: LayoutFiles) -> dict[str, Labels]:
    """What the list says about each image, by its path within the source.

    Raises:
        InputError: It is missing, is no such list, or lists none of the images.
    """
    annotation = files.annotation(ANNOTATION)
    if annotation.header(1) != list(_COLUMNS):
        raise InputError(f"{annotation.shown}: line 2 is not {' '.join(_COLUMNS)}; get the file again")
    listed: dict[str, Labels] = {}
    for where, row in annotation.rows(_COLUMNS, skip=2):
        split = row["evaluation_status"]
        if split not in (TRAIN, QUERY, GALLERY):
            raise InputError(
                f"{where}: evaluation_status {split!r} is none of train, query, gallery; get the file again"
            )
        path = listed_path(row["image_name"], where)
        kind = posixpath.dirname(posixpath.dirname(path)).removeprefix("img/")
        add(listed, path, Labels(row["item_id"], group=kind, split=split), where)
    _check_count(annotation, len(listed))
    folder = files.folder_of(listed, annotation)
    return {folder + path: labels for path, labels in listed.items()}


def _check_count(annotation: Annotation, found: int) -> None:
    """See that the list is whole: its first line says how long it is."""
    declared = annotation.header(0)
    if declared != [str(found)]:
        raise InputError(
            f"{annotation.shown}: says that it lists {' '.join(declared)} images and lists {found}; get the file again"
        )
