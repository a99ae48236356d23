"""Lists that grow block by block."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from distmetric.functional.index_lists import collected


@given(lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_they_are_what_concatenation_gives(lengths) -> None:
    parts = [(torch.randint(0, 99, (a,)), torch.randint(0, 99, (b,))) for a, b in lengths]
    first, second = collected(iter(parts), 2, torch.zeros(1))
    assert first.tolist() == [x for part, _ in parts for x in part.tolist()]
    assert second.tolist() == [x for _, part in parts for x in part.tolist()]
    assert first.dtype == second.dtype == torch.int64
