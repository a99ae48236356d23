"""Every method does all of its work, and says how right it is."""

from __future__ import annotations

import sys

import pytest
import torch

from distmetric.benchmarks.data import clusters
from distmetric.benchmarks.index.data import Rows
from distmetric.benchmarks.index.methods import METHODS, Settings, negatives_found, sample_of
from distmetric.benchmarks.index.raw_faiss import RawFlat
from distmetric.errors import ResourceError

SETTINGS = Settings(k=12, lists=None, probes=4, device="cpu", threads=1)
EXACT = ("faiss_l2", "faiss_ip", "torch", "flat")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(*clusters(700, 8, 5, 0.1, 0))


@pytest.fixture(autouse=True)
def _faiss(request: pytest.FixtureRequest) -> None:
    if "method" in request.fixturenames and request.getfixturevalue("method") in NEEDS_FAISS:
        pytest.importorskip("faiss")


NEEDS_FAISS = ("faiss_l2", "faiss_ip", "flat", "ivf", "flat_negative")


@pytest.mark.parametrize("method", EXACT)
def test_flat_searches_find_everything(method: str, rows: Rows) -> None:
    work = METHODS[method].make(rows, SETTINGS)
    work.run()
    assert work.recall() == {"recall_at_10": 1.0, "recall_at_12": 1.0}
    assert (work.k, work.scanned, work.fell_back) == (12, None, None)


@pytest.mark.parametrize("method", ["ivf"])
def test_lists_find_less_and_say_so(method: str, rows: Rows) -> None:
    few = METHODS[method].make(rows, Settings(12, 60, 1, "cpu", 1))
    few.run()
    assert 0 < few.recall()["recall_at_12"] < 0.95
    assert "ivf 60/1" in few.backend
    every = METHODS[method].make(rows, Settings(12, 6, 6, "cpu", 1))
    assert every.recall()["recall_at_12"] == 1.0


@pytest.mark.parametrize("method", ["flat_negative", "class_balls"])
def test_mining_finds_the_nearest_of_another_class(method: str, rows: Rows) -> None:
    work = METHODS[method].make(rows, SETTINGS)
    work.run()
    assert work.recall() == {"recall_at_1": 1.0}
    assert work.k == 1


def test_pruned_mining_says_how_much_it_scanned(rows: Rows) -> None:
    tight = METHODS["class_balls"].make(Rows(*clusters(700, 8, 5, 0.001, 0)), SETTINGS)
    tight.run()
    assert tight.scanned is not None
    assert 0 < tight.scanned < 0.1
    assert tight.fell_back is False
    loose = METHODS["class_balls"].make(Rows(*clusters(700, 64, 5, 0.5, 0)), SETTINGS)
    loose.run()
    assert loose.fell_back is True
    assert loose.scanned is not None
    assert loose.scanned > 0.5


@pytest.mark.parametrize("method", ["snapshot", "row_snapshot"])
def test_snapshots_are_built(method: str, rows: Rows) -> None:
    work = METHODS[method].make(rows, SETTINGS)
    work.run()
    assert "exact" in work.backend
    assert work.recall() == {}


def test_a_wrong_negative_counts_as_wrong() -> None:
    rows = Rows(torch.tensor([[0.0], [1.0], [3.0], [3.0]]), torch.tensor([0, 1, 0, 1]))
    right = torch.tensor([1, 0, 3, 2])
    assert negatives_found(rows, right) == 1.0
    for row, wrong in ((0, 3), (0, 2), (1, 2), (3, 0)):
        found = right.clone()
        found[row] = wrong
        assert negatives_found(rows, found) == 0.75
    tied = Rows(torch.tensor([[0.0], [1.0], [-1.0]]), torch.tensor([0, 1, 1]))
    assert negatives_found(tied, torch.tensor([2, 0, 0])) == 1.0


def test_recall_is_measured_on_the_same_rows_every_time() -> None:
    assert torch.equal(sample_of(5000), sample_of(5000))
    assert len(sample_of(5000).unique()) == 200
    assert sample_of(7).tolist() == list(range(7))


def test_without_faiss_there_is_one_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ResourceError, match="FAISS is not installed: pip install faiss-cpu"):
        RawFlat(torch.ones(2, 2), "l2", "cpu")


def test_a_faiss_without_gpus_says_so(monkeypatch) -> None:
    faiss = pytest.importorskip("faiss")
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(ResourceError, match="FAISS has no GPU here"):
        RawFlat(torch.ones(2, 2), "l2", "cuda")
