"""What is streamed stays small: peak memory in a fresh process, one measure after the other."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, resource, torch
from distmetric.evaluation import cluster, evaluate_episodes, identify, survey_pairs, verify
torch.set_num_threads(1)
block = {"block_bytes": 2**22}
jobs = {
    "survey": lambda x, y: survey_pairs(x, y, **block),
    "identify": lambda x, y: identify(x[::2], y[::2], x[1::2], (y + (y % 2) * 10**6)[1::2], **block),
    "episodes": lambda x, y: evaluate_episodes(x, y, episodes=3000, **block),
    "cluster": lambda x, y: cluster(x, y, num_clusters=len(x) // 12, iterations=1, **block),
    "verify": lambda x, y: verify(x, y, **block),
}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for name, job in jobs.items():
    if not (child := os.fork()):  # each begins at the memory there is now, not at the peak of the others
        rows = torch.randn(10_000, 16, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(10_000) // 4
        if name != "verify":  # whose bins are as many for few rows
            job(rows[:400], labels[:400])
        before = peak()
        job(rows, labels)
        print(json.dumps({name: peak() - before}), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""

# All distances would take 400 MB to the pairs, 100 MB (5,000 x 5,000 of 8 bytes) to the search, 67 MB to the clusters
# and 77 MB to the episodes; the rows on their grid take 1.4 MB. Verification counts in 21 times 65,536 bins, twice.
LIMITS = {"survey": 25, "identify": 25, "episodes": 25, "cluster": 25, "verify": 150}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in KiB on Linux only")
def test_memory_stays_within_the_blocks():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    grown = {name: size for line in done.stdout.splitlines() for name, size in json.loads(line).items()}
    assert grown.keys() == LIMITS.keys()
    assert {name: size for name, size in grown.items() if size > LIMITS[name]} == {}
