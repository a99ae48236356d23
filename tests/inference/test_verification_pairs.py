"""Lists of pairs: every pair is found and measured, and whatever is wrong with a list is said in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distmetric.errors import InputError
from distmetric.inference.evaluation_sets import EvaluationSet
from distmetric.inference.verification_pairs import read_pairs

CPU = torch.device("cpu")


def images(paths: list[str] | None = None) -> EvaluationSet:
    embeddings = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    ids = np.array([3, 30, 300, 31, 32])
    labels = np.array([0, 0, 1, 1, 1])
    paths = paths or [f"{'ab'[label]}/{row}.png" for row, label in enumerate(labels)]
    return EvaluationSet("query=x", ids, paths, ["a", "b"], labels, embeddings)


def write(folder: Path, text: str) -> str:
    (folder / "pairs.csv").write_text(text)
    return str(folder / "pairs.csv")


@pytest.mark.parametrize(
    "text",
    [
        "path_1,path_2,same\na/0.png,b/4.png,0\na/1.png,a/0.png,1\n",
        "same, path_2 ,path_1,note\nFALSE, b/4.png,a/0.png,x\nTrue,a/0.png,a/1.png,\n",
        "\ufeffid_1,id_2,same\r\n3,32,0\r\n30,3,1\r\n",
    ],
    ids=["by path", "other columns and order", "by id"],
)
def test_pairs_are_those_of_the_file(text: str, tmp_path: Path) -> None:
    found = read_pairs(write(tmp_path, text))
    assert found.same.tolist() == [False, True]
    assert found.folds is None
    rows = images().embeddings.double().tolist()
    expected = [
        sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) ** 0.5 for i, j in ((0, 4), (1, 0))
    ]
    assert found.distances(images(), CPU).tolist() == pytest.approx(expected, rel=1e-12)


def test_folds_are_those_of_the_file(tmp_path: Path) -> None:
    found = read_pairs(write(tmp_path, "path_1,path_2,same,fold\na,b,1,7\nb,c,0,9\n"))
    assert found.folds is not None
    assert found.folds.tolist() == [7, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "lacks the column id_1: begin it with the line path_1,path_2,same or id_1,id_2,same; it has nothing",
        ),
        ("path_1,same\n", "lacks the column path_2: begin it with the line path_1,path_2,same or "),
        ("path_1,path_2,same\n", "has no pairs"),
        ("path_1,path_2,same\na,b,1\na,b\n", "line 3 has not 3 fields"),
        ("path_1,path_2,same\na,b,1,4\n", "line 2 has not 3 fields"),
        ("path_1,path_2,same\na,b,yes\n", "line 2: same=yes is wrong: write 1 or 0"),
        ("path_1,path_2,same,fold\na,b,1,one\n", "line 2: fold=one is wrong: write a whole number"),
        (
            "path_1,path_2,same,fold\na,b,1,1\na,c,1,1\n",
            "all pairs are of one fold: leave the column fold out",
        ),
        ('"path_1,path_2,same\n', "after line 0: unexpected end of data"),
        ('path_1,path_2,same\n"a,b,1\n', "after line 1: unexpected end of data"),
    ],
)
def test_a_wrong_list_is_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_pairs(file)
    told = str(caught.value)
    assert told.startswith(f"protocol.pairs={file}")
    assert message in told
    assert "\n" not in told


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^protocol\.pairs=.*nope\.csv cannot be read: "):
        read_pairs(str(tmp_path / "nope.csv"))
    (tmp_path / "pairs.csv").write_bytes("path_1,path_2,same\nü,b,1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"pairs\.csv is not UTF-8: convert it$"):
        read_pairs(str(tmp_path / "pairs.csv"))


def test_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, "path_1,path_2,same\na/0.png,a/1.png,1\na/0.png,a/9.png,0\n"))
    with pytest.raises(InputError) as caught:
        pairs.distances(images(), CPU)
    assert str(caught.value).endswith(
        "pairs.csv pair 2: path_2=a/9.png is none of the 5 images of query=x (the first of which is a/0.png)"
    )


def test_a_path_of_several_images_is_refused_where_it_is_meant(tmp_path: Path) -> None:
    twice = images(["a", "b", "c", "c", "d"])
    distances = read_pairs(write(tmp_path, "path_1,path_2,same\na,b,1\n")).distances(twice, CPU)
    assert len(distances) == 1
    with pytest.raises(InputError, match=r"c is the path of 2 images of query=x: name them by id_1,id_2$"):
        read_pairs(write(tmp_path, "path_1,path_2,same\na,c,1\n")).distances(twice, CPU)


FACES = [
    f"lfw.tgz/lfw/{name}/{name}_{n:04}.jpg"
    for name, n in (("Al", 1), ("Al", 2), ("Bo", 1), ("Bo", 2), ("Cy", 11))
]


def test_pairs_of_faces_are_found_by_folder_and_name(tmp_path: Path) -> None:
    file = write(tmp_path, "2\t1\nAl\t1\t2\nAl\t2\tBo\t1\nBo\t2\t1\nCy\t11\tAl\t1\n")
    found = read_pairs(file)
    assert found.same.tolist() == [True, False, True, False]
    assert found.folds is not None
    assert found.folds.tolist() == [0, 0, 1, 1]
    rows = images().embeddings.double()
    expected = (rows[[0, 1, 3, 4]] - rows[[1, 2, 2, 0]]).norm(dim=1).tolist()
    for paths in (FACES, [path.replace(".jpg", ".png").partition("lfw/")[2] for path in FACES]):
        assert found.distances(images(paths), CPU).tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match=r"pair 1: face_1=Al/Al_0001 is none of the 5 images .* is a/0\)"):
        found.distances(images(), CPU)


def test_a_list_of_one_fold_leaves_the_folds_to_the_protocol(tmp_path: Path) -> None:
    found = read_pairs(write(tmp_path, "2\nAl\t1\t2\nBo\t1\t2\nAl\t1\tBo\t1\nAl\t2\tBo\t2\n"))
    assert found.same.tolist() == [True, True, False, False]
    assert found.folds is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "10 300\nAl 1 2\n",
            "its first line announces 10 x 2 x 300 pairs and 1 lines follow; get the file again",
        ),
        ("0\n", "its first line announces 1 x 2 x 0 pairs and 0 lines follow"),
        ("1 1\nAl 1 2\nAl 1 2\n", "line 3: 'Al 1 2' is not NAME NUMBER NAME NUMBER"),
        ("1 1\nAl 1 Bo 2\nAl 1 Bo 2\n", "line 2: 'Al 1 Bo 2' is not NAME NUMBER NUMBER"),
        ("1 1\nAl 1 two\nAl 1 Bo 2\n", "line 2: 'Al 1 two' is not NAME NUMBER NUMBER"),
        ("1 1\n\nAl 1 Bo 2\n", "line 2: '' is not NAME NUMBER NUMBER"),
    ],
)
def test_a_wrong_list_of_faces_is_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(f"protocol.pairs={file}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
