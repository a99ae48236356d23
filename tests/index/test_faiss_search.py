"""FAISS behind the searcher: equal to torch where exact, measured where not, on the GPU where it fits."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.errors import ResourceError
from distmetric.index.config import SearchConfig
from distmetric.index.search import build_searcher, say_once
from distmetric.index.torch_search import TorchSearcher
from neighbor_oracle import grids, hard_to_tell, listed, nearest_by_loops

faiss = pytest.importorskip("faiss")

from distmetric.index import faiss_search  # noqa: E402

CPU = SearchConfig(backend="faiss", device="cpu")


@pytest.fixture
def said(caplog):
    """The lines logged in a test, as if nothing had been said before."""
    say_once.cache_clear()
    caplog.set_level(logging.INFO, "distmetric")
    yield lambda: [record.getMessage() for record in caplog.records]
    say_once.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """How many queries each call handed to the exact reference."""
    calls = []
    search = TorchSearcher.search

    def counted(self, queries, k):
        calls.append(len(queries))
        return search(self, queries, k)

    monkeypatch.setattr(TorchSearcher, "search", counted)
    return calls


def clustered(size, dim=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(max(1, size // 8), dim, generator=generator)
    rows = centers[torch.arange(size) % len(centers)] + 0.3 * torch.randn(size, dim, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


def assert_as_torch(searcher, rows, queries, k):
    found, expected = searcher.search(queries, k), TorchSearcher(rows).search(queries, k)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.squares, expected.squares)
    assert torch.equal(found.distances, expected.distances)


@settings(deadline=None, max_examples=150)
@given(rows=grids(most=120), queries=grids(12), k=st.integers(1, 40))
def test_flat_is_what_plain_loops_find_ties_by_row(rows, queries, k):
    found = build_searcher(rows, CPU).search(queries, k)
    assert listed(found.rows, found.squares) == nearest_by_loops(rows.tolist(), queries.tolist(), k)


@settings(deadline=None, max_examples=80)
@given(tables=hard_to_tell(), k=st.integers(1, 40))
def test_flat_equals_torch_where_single_precision_cannot_tell(tables, k):
    rows, queries = tables
    assert_as_torch(build_searcher(rows, CPU), rows, queries, k)


def test_flat_equals_torch_without_asking_it_on_ordinary_embeddings(asked):
    rows = clustered(6000)
    searcher = build_searcher(rows, CPU)
    assert (searcher.name, searcher.exact) == ("faiss flat on cpu, exact", True)
    found = searcher.search(rows, 20)
    assert sum(asked) <= len(rows) // 100
    assert torch.equal(found.rows, TorchSearcher(rows).search(rows, 20).rows)


def test_a_collapsed_model_is_searched_exactly():
    rows = clustered(10, dim=8).repeat(200, 1)
    assert_as_torch(build_searcher(rows, CPU), rows, rows[:50], 30)
    assert_as_torch(build_searcher(rows[:1].repeat(99, 1), CPU), rows[:1].repeat(99, 1), rows[:5], 30)


def test_queries_beyond_single_precision_are_searched_exactly(asked):
    rows = clustered(300).double() * 2.0**-140
    queries = torch.cat([rows[:3], clustered(3).double()])
    searcher = build_searcher(rows, CPU)
    assert_as_torch(searcher, rows, queries, 7)
    assert asked[0] == 3


class Coarse:
    """An index that multiplies numbers of few digits, as a GPU may be told to from outside."""

    def __init__(self, rows):
        self.rows = (rows * 4).round() / 4

    def search(self, queries, k):
        apart = torch.cdist((torch.from_numpy(queries) * 4).round() / 4, self.rows).square()
        nearest = apart.topk(k, largest=False)
        return nearest.values.numpy(), nearest.indices.numpy()


def test_an_index_of_lower_precision_than_it_says_is_not_believed():
    rows = torch.randn(3000, 16)
    searcher = build_searcher(rows, CPU)
    searcher._index = Coarse(searcher._frame.moved(rows))
    assert_as_torch(searcher, rows, rows[:200], 5)


def test_blocks_of_queries_and_threads_change_nothing_and_threads_are_put_back(monkeypatch):
    rows = torch.cat([clustered(2000), clustered(5).repeat(40, 1)])
    before = faiss.omp_get_max_threads()
    results = []
    for threads, block_bytes in ((1, 2**28), (2, 1), (None, 2**19)):
        monkeypatch.setattr(faiss_search, "BLOCK_BYTES", block_bytes)
        results.append(build_searcher(rows, CPU, threads=threads).search(rows[::9], 12))
        assert faiss.omp_get_max_threads() == before
    for other in results[1:]:
        assert torch.equal(results[0].rows, other.rows)
        assert torch.equal(results[0].squares, other.squares)


def test_faiss_uses_the_threads_it_was_given():
    seen = []
    searcher = build_searcher(clustered(50), CPU, threads=1)
    search = searcher._index.search
    searcher._index = SimpleNamespace(
        search=lambda *args: (seen.append(faiss.omp_get_max_threads()), search(*args))[1]
    )
    searcher.search(clustered(5), 3)
    assert seen == [1]


def test_more_rows_than_a_flat_search_pays_for_go_into_lists(monkeypatch):
    monkeypatch.setattr(faiss_search, "FLAT_ROWS", 1000)
    rows = clustered(1001)
    assert build_searcher(rows[:1000], CPU).name == "faiss flat on cpu, exact"
    assert build_searcher(rows, CPU).name.startswith("faiss ivf 25/25 on cpu, recall@10 ")
    assert build_searcher(rows, SearchConfig(kind="flat")).exact


def test_the_recall_in_the_name_of_lists_is_the_one_counted_by_hand():
    rows = torch.randn(3000, 16, generator=torch.Generator().manual_seed(1))
    searcher = build_searcher(rows, SearchConfig(kind="ivf", lists=60, probes=2))
    assert not searcher.exact
    sample = sorted(faiss_search.random.Random(faiss_search._SEED).sample(range(3000), 200))
    hits = 0
    found = searcher.search(rows[sample], 11).rows.tolist()
    for query, some in zip(sample, found, strict=True):
        apart = (rows - rows[query]).double().square().sum(dim=1)
        apart[query] = torch.inf
        truth = set(apart.argsort()[:10].tolist())
        hits += len(truth & set([row for row in some if row != query][:10]))
    assert 0.3 < hits / 2000 < 0.9
    assert searcher.name == f"faiss ivf 60/2 on cpu, recall@10 {hits / 2000:.2f}"


def test_lists_are_the_same_for_the_same_rows_and_found_rows_come_nearest_first():
    rows = clustered(4000)
    config = SearchConfig(kind="ivf", lists=30, probes=3)
    one, other = (build_searcher(rows, config).search(rows[:200], 15) for _ in range(2))
    assert torch.equal(one.rows, other.rows)
    assert bool((one.squares[:, 1:] >= one.squares[:, :-1]).all())
    assert one.rows[:, 0].tolist() == list(range(200))
    assert one.squares[:, 0].tolist() == [0.0] * 200


def test_lists_that_are_all_probed_find_everything():
    rows = clustered(1500)
    searcher = build_searcher(rows, SearchConfig(kind="ivf", lists=20, probes=500))
    assert searcher.name == "faiss ivf 20/20 on cpu, recall@10 1.00"
    assert torch.equal(searcher.search(rows[:99], 9).rows, TorchSearcher(rows).search(rows[:99], 9).rows)


def test_probed_lists_that_hold_too_few_rows_are_completed():
    rows = clustered(400)
    searcher = build_searcher(rows, SearchConfig(kind="ivf", lists=100, probes=1))
    found = searcher.search(rows[:20], 390)
    assert int((found.rows < 0).sum()) == 0
    assert torch.equal(found.rows, TorchSearcher(rows).search(rows[:20], 390).rows)


@pytest.mark.parametrize("size", [1, 2, 40])
def test_lists_of_few_rows_are_few(size):
    searcher = build_searcher(clustered(size), SearchConfig(kind="ivf"))
    assert searcher.name == "faiss ivf 1/1 on cpu, recall@10 1.00"
    assert searcher.search(clustered(size), 50).rows[:, 0].tolist() == list(range(size))


class Gpu:
    """FAISS as it is where it has GPUs, and what was asked of them."""

    def __init__(self, count=1, fails=False):
        self.count, self.fails, self.temporary, self.placed = count, fails, [], []
        self.StandardGpuResources = lambda: SimpleNamespace(setTempMemory=self.temporary.append)
        self.GpuClonerOptions = SimpleNamespace

    def __getattr__(self, name):
        return getattr(faiss, name)

    def get_num_gpus(self):
        return self.count

    def index_cpu_to_gpu(self, resources, device, index, options):
        if self.fails:
            raise RuntimeError("Error in virtual void* allocMemory:\n cudaMalloc error out of memory [2]")
        assert options.useFloat16 is False
        assert device == 0
        self.placed.append(index)
        return index


@pytest.fixture
def gpu(monkeypatch):
    def plug_in(**kwargs):
        monkeypatch.setattr(faiss_search, "faiss", Gpu(**kwargs))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        return faiss_search.faiss

    return plug_in


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_with_a_gpu_the_index_goes_there(gpu, said, device, kind):
    there = gpu()
    rows = clustered(800)
    searcher = build_searcher(rows, SearchConfig(device=device, kind=kind, lists=9, probes=9))
    assert searcher.name.startswith(f"faiss {'flat' if kind == 'flat' else 'ivf 9/9'} on cuda, ")
    assert len(there.placed) == 1
    assert there.placed[0].ntotal == 800
    assert there.temporary == [faiss_search._TEMPORARY_BYTES]
    assert said() == []
    assert torch.equal(searcher.search(rows[:50], 8).rows, TorchSearcher(rows).search(rows[:50], 8).rows)


def test_more_neighbors_than_a_gpu_can_select_are_found_by_torch(gpu, monkeypatch, asked):
    gpu()
    monkeypatch.setattr(faiss_search, "GPU_WIDTH", 12)
    rows = clustered(100)
    searcher = build_searcher(rows)
    widths = []
    search = searcher._index.search
    searcher._index = SimpleNamespace(search=lambda queries, k: (widths.append(k), search(queries, k))[1])
    assert_as_torch(searcher, rows, rows[:10], 12)
    assert widths == [12]
    asked.clear()
    assert_as_torch(searcher, rows, rows[:10], 13)
    assert widths == [12]
    assert asked == [10, 10]


@pytest.mark.parametrize(
    ("plugged", "line"),
    [
        ({"count": 0}, "no GPU for the index: FAISS searches on the CPU"),
        (
            {"fails": True},
            "FAISS could not put the index on the GPU (Error in virtual void* allocMemory: cudaMalloc error out "
            "of memory [2]): FAISS searches on the CPU",
        ),
    ],
)
def test_without_a_gpu_or_its_memory_the_cpu_searches_and_one_line_says_so(gpu, said, plugged, line):
    gpu(**plugged)
    for _ in range(2):
        assert build_searcher(clustered(50)).name == "faiss flat on cpu, exact"
    assert said() == [line]
    with pytest.raises(ResourceError, match=r"^index\.search\.device=cuda: .*set index\.search\.device=auto"):
        build_searcher(clustered(50), SearchConfig(device="cuda"))


def test_an_index_larger_than_the_free_memory_stays_on_the_cpu(gpu, said, monkeypatch):
    there = gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**29, 2**34))
    assert build_searcher(clustered(50)).name == "faiss flat on cpu, exact"
    assert there.placed == []
    assert said() == ["the index takes 0.5 GiB and the GPU has 0.5 free: FAISS searches on the CPU"]


def test_the_cpu_is_used_without_a_word_when_asked_for(gpu, said):
    there = gpu()
    assert build_searcher(clustered(50), CPU).name == "faiss flat on cpu, exact"
    assert there.placed == said() == []


def test_a_gpu_that_only_torch_can_use_is_used_where_it_was_asked_for(monkeypatch):
    class Stub(TorchSearcher):
        def __init__(self, rows, device):
            super().__init__(rows)
            self.name = f"torch flat on {device}, exact"

    monkeypatch.setattr(faiss_search, "faiss", Gpu(count=0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**34, 2**34))
    monkeypatch.setattr("distmetric.index.torch_search.TorchSearcher", Stub)
    assert build_searcher(clustered(50), SearchConfig(device="cuda")).name == "torch flat on cuda, exact"
    assert build_searcher(clustered(50)).name == "faiss flat on cpu, exact"
    with pytest.raises(ResourceError, match="no GPU for the index"):
        build_searcher(clustered(50), SearchConfig(device="cuda", backend="faiss"))


@pytest.mark.parametrize("first", ["torch", "faiss"])
def test_faiss_and_torch_share_a_process_with_threads(first):
    code = f"""
import {first}, faiss, torch, numpy as np
from distmetric.index.search import build_searcher
torch.set_num_threads(2)
rows = torch.randn(5000, 64)
for _ in range(3):
    product = rows @ rows.T
    found = build_searcher(rows, threads=2).search(rows[:300], 5)
    assert torch.equal(found.rows[:, 0], torch.arange(300)), found.rows
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.skipif(
    not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1, reason="needs a GPU"
)
@pytest.mark.parametrize("k", [1, 100, 2048, 3000])
def test_faiss_on_a_gpu_finds_what_torch_finds_on_the_cpu(k):
    rows = torch.cat([clustered(5000), clustered(3).repeat(50, 1)])
    searcher = build_searcher(rows, SearchConfig(backend="faiss", device="cuda"))
    assert searcher.name == "faiss flat on cuda, exact"
    assert_as_torch(searcher, rows, rows[:200], k)
    lists = build_searcher(
        rows, SearchConfig(backend="faiss", device="cuda", kind="ivf", lists=30, probes=30)
    )
    assert lists.name == "faiss ivf 30/30 on cuda, recall@10 1.00"
    assert np.isclose(
        lists.search(rows[:200], min(k, 100)).squares, searcher.search(rows[:200], min(k, 100)).squares
    ).all()
