"""PK batches: composition, evenness, purity, and what cannot be planned."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distmetric.errors import ConfigError
from distmetric.samplers import PKSampler, rank_slice, slice_sizes


def sampler_of(counts: list[int], p: int, k: int, seed: int = 0) -> tuple[PKSampler, dict[int, int]]:
    labels = np.repeat(np.arange(len(counts)) * 10, counts)
    rows = np.random.default_rng(1).permutation(len(labels)) + 1000
    return PKSampler(rows, labels, p, k, seed), dict(zip(rows.tolist(), labels.tolist(), strict=True))


def mixed(key: int, number: int) -> int:
    """SplitMix64's mixer, on numbers without a sign."""
    z = (key + number * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def reading(seed: int, label: int, cycle: int, count: int) -> list[int]:
    """Rows of a class by the upper half of their hashes, as numbers with a sign."""
    key = mixed(mixed(seed, label), cycle)
    hashes = [mixed(key, member + 1) >> 32 for member in range(count)]
    signed = [value - 2**32 if value >= 2**31 else value for value in hashes]
    return sorted(range(count), key=lambda member: (signed[member], member))


def written_out(rows, labels, p: int, k: int, seed: int, step: int) -> list[int]:
    """The plan of a step of order 2: what resumes a run with it must not change."""
    members = [sorted(rows[labels == label].tolist()) for label in sorted(set(labels.tolist()))]
    visit, position = divmod(step, len(members) // p)
    passes = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, visit]))
    order = passes.permutation(len(members)).tolist()
    batch: list[int] = []
    for label in order[position * p :] + order[: position * p]:
        cycle, slot = divmod(visit, max(1, len(members[label]) // k))
        read = reading(seed, label, cycle, len(members[label]))
        batch += [members[label][place] for place in read[slot * k : (slot + 1) * k]]
        if len(batch) >= p * k:
            break
    return batch[: p * k]


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=20),
    p=st.integers(2, 8),
    k=st.integers(2, 5),
    step=st.integers(0, 500),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=200, deadline=None)
def test_plans_stay_what_they_were(counts, p, k, step, seed) -> None:
    assume(p <= len(counts) and k <= max(counts) and sum(min(c, k) for c in counts) >= p * k)
    sampler, label_of = sampler_of(counts, p, k, seed)
    rows, labels = (np.array(values) for values in (list(label_of), list(label_of.values())))
    assert sampler.batch(step).tolist() == written_out(rows, labels, p, k, seed, step)


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=20),
    p=st.integers(2, 8),
    k=st.integers(2, 5),
    step=st.integers(0, 500),
    seed=st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_a_batch_has_p_k_distinct_rows_at_most_k_of_a_class(counts, p, k, step, seed) -> None:
    assume(p <= len(counts) and k <= max(counts) and sum(min(c, k) for c in counts) >= p * k)
    sampler, label_of = sampler_of(counts, p, k, seed)
    batch = sampler.batch(step).tolist()
    assert len(batch) == len(set(batch)) == p * k
    per_class = Counter(label_of[row] for row in batch)
    assert max(per_class.values()) <= k
    assert len(per_class) >= p
    small = [label for label, count in per_class.items() if count < min(k, counts[label // 10])]
    assert len(small) <= 1  # only the class that fills the batch up may be cut short


def test_classes_large_enough_make_exactly_p_classes_of_k() -> None:
    sampler, label_of = sampler_of([6] * 10, p=4, k=3)
    for step in range(20):
        assert sorted(Counter(label_of[row] for row in sampler.batch(step).tolist()).values()) == [3] * 4


def test_a_pass_meets_every_class_once() -> None:
    sampler, label_of = sampler_of([5] * 12, p=4, k=2)
    for start in (0, 3, 6):
        met = Counter(
            label_of[row] for step in range(start, start + 3) for row in sampler.batch(step).tolist()
        )
        assert set(met.values()) == {2}
        assert len(met) == 12


def test_rows_of_a_class_are_all_seen_before_any_is_seen_again() -> None:
    sampler, label_of = sampler_of([6] * 4, p=4, k=3)
    seen = Counter(row for step in range(2) for row in sampler.batch(step).tolist())
    assert set(seen.values()) == {1}
    assert len(seen) == 24
    assert len(label_of) == 24


def test_the_plan_is_a_pure_function_of_seed_and_step() -> None:
    one, _ = sampler_of([5] * 9, p=3, k=2)
    other, _ = sampler_of([5] * 9, p=3, k=2)
    backwards = {step: other.batch(step) for step in reversed(range(30))}
    for step in range(30):
        np.testing.assert_array_equal(one.batch(step), backwards[step])
    assert any(
        (one.batch(step) != sampler_of([5] * 9, 3, 2, seed=1)[0].batch(step)).any() for step in range(3)
    )


def test_the_order_of_the_catalog_rows_does_not_matter() -> None:
    rows, labels = np.arange(30), np.arange(30) % 6
    order = np.random.default_rng(0).permutation(30)
    one = PKSampler(rows, labels, 3, 4, 0)
    other = PKSampler(rows[order], labels[order], 3, 4, 0)
    np.testing.assert_array_equal(one.batch(5), other.batch(5))


@pytest.mark.parametrize(
    ("counts", "p", "k", "message"),
    [
        ([5, 5], 3, 2, r"classes_per_batch=3 .* has 2 classes: set sampler.classes_per_batch=2"),
        ([5, 4], 2, 6, r"samples_per_class=6 .* has 5 rows: set sampler.samples_per_class=5"),
        ([9, 1, 1], 3, 4, r"needs 12 rows but .* give 6: set sampler.classes_per_batch=1"),
        ([5, 5], 2, 1, r"leaves no positives"),
        ([5, 5], 1, 2, r"leaves no negatives"),
    ],
)
def test_impossible_plans_name_the_setting_and_the_fix(counts, p, k, message) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(counts, p, k)


def test_state_carries_the_plan_and_refuses_another_batch() -> None:
    one, _ = sampler_of([5] * 9, p=3, k=2, seed=7)
    other, _ = sampler_of([5] * 9, p=3, k=2, seed=8)
    other.batch(0)
    other.load_state_dict(one.state_dict(0))
    np.testing.assert_array_equal(other.batch(4), one.batch(4))
    wider, _ = sampler_of([5] * 9, p=4, k=2)
    with pytest.raises(ConfigError, match=r"sampler.classes_per_batch=4 differs from the checkpoint's 3"):
        wider.load_state_dict(one.state_dict(0))


@given(size=st.integers(0, 50), world_size=st.integers(1, 9))
def test_slices_in_rank_order_are_the_batch(size, world_size) -> None:
    rows = np.arange(size)
    parts = [rank_slice(rows, rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    assert [len(part) for part in parts] == slice_sizes(size, world_size)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
