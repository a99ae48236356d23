"""Stanford Cars as car_ims.tgz and cars_annos.mat have it: the first 98 models for training, the others for testing.

    car_ims/000001.jpg
    cars_annos.mat       annotations(i): relative_im_path "car_ims/000001.jpg", class 1..196, test 0 | 1, bbox_*
                         class_names: 196 names

The division by image in `test` is that of classification, and is not read.
Source of the division by class: Song et al., CVPR 2016, arXiv 1511.06452.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distmetric.data.items import Labels
from distmetric.data.layouts.annotations import LayoutFiles, add, listed_path
from distmetric.data.locations import readable
from distmetric.data.splits import TEST, TRAIN
from distmetric.errors import InputError

ANNOTATION = "cars_annos.mat"
CLASSES, TRAINING_CLASSES = 196, 98


def read(files: LayoutFiles) -> dict[str, Labels]:
    """What cars_annos.mat says about each image, by its path within the source.

    Raises:
        InputError: It is missing, is no such file, or lists none of the images.
    """
    annotation = files.annotation(ANNOTATION)
    names = [readable(str(name).strip()) for name in np.atleast_1d(annotation.matlab("class_names"))]
    if len(set(names)) != CLASSES or len(names) != CLASSES:
        raise InputError(
            f"{annotation.shown}: class_names has {len(set(names))} different names, not {CLASSES}; get the file again"
        )
    listed: dict[str, Labels] = {}
    for number, struct in enumerate(np.atleast_1d(annotation.matlab("annotations")), 1):
        where = f"{annotation.shown}: annotations({number})"
        path, class_id = _row(struct, where)
        name, split = names[class_id - 1], TRAIN if class_id <= TRAINING_CLASSES else TEST
        add(listed, path, Labels(name, group=name, split=split), where)
    folder = files.folder_of(listed, annotation)
    return {folder + path: labels for path, labels in listed.items()}


def _row(struct: Any, where: str) -> tuple[str, int]:
    path, class_id = getattr(struct, "relative_im_path", None), getattr(struct, "class", None)
    if not isinstance(path, str) or not isinstance(class_id, int | np.integer):
        raise InputError(
            f"{where}: has no relative_im_path and class; name {ANNOTATION}, not the files of the devkit"
        )
    if not 1 <= class_id <= CLASSES:
        raise InputError(f"{where}: class {class_id} is none from 1 to {CLASSES}; get the file again")
    return listed_path(path, where), int(class_id)
