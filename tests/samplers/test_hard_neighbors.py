"""Hard batches: composition, evenness, who meets whom, the rule written out, and interruptions."""

from __future__ import annotations

import io
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distmetric.config.compose import compose
from distmetric.config.decode import decode
from distmetric.errors import ConfigError
from distmetric.functional.dial import Dial, value_at
from distmetric.index.snapshot import NeighborSnapshot
from distmetric.samplers import HardNeighborSampler, HardNeighborSamplerConfig, PKSampler
from distmetric.samplers.reading_order import ClassRows
from snapshots import only_neighbors, snapshot_of_rows

CONFIG = HardNeighborSamplerConfig(
    classes_per_batch=8, samples_per_class=2, round_steps=4, warmup_steps=0, hard_fraction=1.0, guard=0.0
)


class Data(NamedTuple):
    rows: NDArray
    labels: NDArray  # of the catalog: any numbers
    classes: NDArray  # of training: 0..C-1

    def classes_of(self, batch: NDArray) -> list[int]:
        """Of a batch of catalog rows, in the order in which they come."""
        known = dict(zip(self.rows.tolist(), self.classes.tolist(), strict=True))
        return list(dict.fromkeys(known[row] for row in batch.tolist()))

    def sampler(self, config: HardNeighborSamplerConfig, seed: int = 0) -> HardNeighborSampler:
        return HardNeighborSampler(self.rows, self.labels, config, seed)


def data_of(counts: list[int]) -> Data:
    classes = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.random.default_rng(2).permutation(len(classes)) + 1000
    return Data(rows, classes * 10 + 3, classes)


def ring(count: int, width: int) -> NDArray:
    """Lists in which the neighbors of c are c + 1, c + 2, ..."""
    return (np.arange(count)[:, None] + 1 + np.arange(width)) % count


def planned(
    sampler: HardNeighborSampler, snapshot: NeighborSnapshot | None, rounds: int, hardness: float = 1.0
) -> list[NDArray]:
    batches = []
    for round_ in range(rounds):
        sampler.begin_round(round_, snapshot, hardness)
        steps = range(round_ * sampler.config.round_steps, (round_ + 1) * sampler.config.round_steps)
        batches += [sampler.batch(step) for step in steps]
    return batches


# Composition and evenness


COUNTS = st.lists(st.integers(1, 7), min_size=3, max_size=24)


@given(
    counts=COUNTS,
    p=st.integers(2, 8),
    k=st.integers(2, 4),
    mates=st.integers(1, 7),
    max_lead=st.integers(0, 3),
    fraction=st.sampled_from([0.0, 0.3, 1.0]),
    mode=st.sampled_from(["class", "sample"]),
    hubs=st.integers(0, 3),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=150, deadline=None)
def test_batches_are_whole_and_visits_even(counts, p, k, mates, max_lead, fraction, mode, hubs, seed) -> None:
    assume(p <= len(counts) and k <= max(counts) and sum(min(c, k) for c in counts) >= p * k and mates < p)
    data, rng = data_of(counts), np.random.default_rng(seed)
    centers = rng.normal(size=(len(counts), 3))
    centers[:hubs] *= 0.01  # in the middle of all others: neighbors of everyone
    snapshot = snapshot_of_rows(centers[data.classes], data.classes, k=5, positives=3)
    config = replace(
        CONFIG, classes_per_batch=p, samples_per_class=k, mates=mates, max_lead=max_lead, mode=mode
    )
    sampler = data.sampler(replace(config, hard_fraction=fraction), seed)
    label_of = dict(zip(data.rows.tolist(), data.classes.tolist(), strict=True))
    visits = np.zeros(len(counts), int)
    for batch in planned(sampler, snapshot, 8):
        assert len(set(batch.tolist())) == len(batch) == p * k == sampler.batch_size
        given_by = Counter(label_of[row] for row in batch.tolist())
        assert len(given_by) >= p
        cut = [label for label, count in given_by.items() if count != min(k, counts[label])]
        assert cut in ([], [data.classes_of(batch)[-1]])  # only the last may be cut short
        visits[list(given_by)] += 1
        assert visits.max() - visits.min() <= (max_lead + 1 if fraction else 1)
    assert sampler.round_metrics(7)["hard/visits_spread"] == visits.max() - visits.min()


def test_a_hub_in_every_list_is_met_hardly_more_often_than_others() -> None:
    lists = ring(50, 6)
    lists[:, 0] = np.where(np.arange(50) == 0, 1, 0)
    data = data_of([4] * 50)
    met = Counter()
    for batch in planned(data.sampler(replace(CONFIG, temperature=0.0)), only_neighbors(lists), 60):
        met.update(data.classes_of(batch))
    assert met.total() == 60 * 4 * 8
    assert met[0] == max(met.values())  # it does come as a mate as often as the others allow
    assert max(met.values()) - min(met.values()) <= CONFIG.max_lead + 1


def test_random_rounds_meet_every_class_once_in_a_pass() -> None:
    data = data_of([4] * 32)
    batches = planned(data.sampler(CONFIG), None, 3)
    for start in (0, 4, 8):
        met = Counter(label for batch in batches[start : start + 4] for label in data.classes_of(batch))
        assert set(met.values()) == {1}
        assert len(met) == 32
    assert data.classes_of(batches[0]) != data.classes_of(batches[4])


def test_rows_of_a_class_are_all_seen_before_any_is_seen_again() -> None:
    data = data_of([6] * 8)
    batches = planned(data.sampler(replace(CONFIG, round_steps=3)), only_neighbors(ring(8, 5)), 4)
    for start in range(0, 12, 3):
        seen = Counter(row for batch in batches[start : start + 3] for row in batch.tolist())
        assert set(seen.values()) == {1}
        assert len(seen) == 48


# Who meets whom


def clustered(data: Data, size: int, scale: float = 100.0) -> NDArray:
    """Embeddings of classes in clusters of `size`, rows of a class a little apart."""
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(int(data.classes.max()) // size + 1, 4)) * scale
    centers = clusters[np.arange(data.classes.max() + 1) // size] + rng.normal(
        size=(data.classes.max() + 1, 4)
    )
    return centers[data.classes] + 0.1 * rng.normal(size=(len(data.classes), 4))


@pytest.mark.parametrize(("mode", "width"), [("class", 3.0), ("sample", 18.0)])
def test_hard_batches_are_made_of_clusters_and_random_ones_are_not(mode, width) -> None:
    data = data_of([6] * 40)
    snapshot = snapshot_of_rows(clustered(data, 4), data.classes, k=18, positives=3)
    config = replace(CONFIG, mode=mode, width=width, max_lead=1000)
    for batch in planned(data.sampler(config), snapshot, 10):
        clusters = Counter(label // 4 for label in data.classes_of(batch))
        assert sorted(clusters.values()) == [4, 4]
    pk = PKSampler(data.rows, data.labels, 8, 2, 0)
    random = [Counter(label // 4 for label in data.classes_of(pk.batch(step))) for step in range(40)]
    assert np.mean([max(clusters.values()) for clusters in random]) < 3


@pytest.mark.parametrize(("skip", "width"), [(0, 1), (2, 1), (1, 3)])
def test_mates_come_from_the_window(skip, width) -> None:
    count = 997
    data = data_of([2] * count)
    config = replace(CONFIG, mates=1, skip=float(skip), width=float(width), max_lead=1000)
    apart = Counter()
    for batch in planned(data.sampler(config), only_neighbors(ring(count, 9)), 10):
        classes = data.classes_of(batch)
        apart.update((b - a) % count for a, b in zip(classes[::2], classes[1::2], strict=True))
    assert set(apart) == set(range(skip + 1, skip + width + 1))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0, math.inf])
def test_the_temperature_says_how_fast_probability_falls_with_rank(temperature) -> None:
    count = 9973
    data = data_of([2] * count)
    config = replace(CONFIG, mates=1, width=4.0, temperature=temperature, max_lead=1000, round_steps=50)
    apart = Counter()
    for batch in planned(data.sampler(config), only_neighbors(ring(count, 9)), 12):
        classes = data.classes_of(batch)
        apart.update((b - a) % count - 1 for a, b in zip(classes[::2], classes[1::2], strict=True))
    ranks = np.arange(4)
    weights = np.exp(-ranks / temperature) if temperature else (ranks == 0).astype(float)
    found = np.array([apart[rank] for rank in ranks])
    assert found.sum() == apart.total() == 2400
    expected = weights / weights.sum()
    # Few seeds meet a neighbor in their batch already; 4 standard deviations of a share, at most.
    np.testing.assert_allclose(found / found.sum(), expected, atol=0.0 if temperature == 0 else 0.04)


@pytest.mark.parametrize("mode", ["class", "sample"])
def test_duplicates_do_not_join_each_other(mode) -> None:
    data = data_of([6] * 24)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 4))[:, None] + 0.3 * rng.normal(size=(12, 6, 4))
    x = np.empty((len(data.rows), 4))
    x[np.argsort(data.classes)] = np.repeat(images, 2, axis=0).reshape(
        -1, 4
    )  # class 2c + 1 shows what 2c does
    snapshot = snapshot_of_rows(x, data.classes, k=23 if mode == "class" else 40, positives=2)
    config = replace(CONFIG, mode=mode, mates=1, width=1.0, max_lead=1000)

    def pairs(config: HardNeighborSamplerConfig) -> tuple[int, float]:
        sampler, twins, guarded = data.sampler(config), 0, 0.0
        for round_ in range(10):
            sampler.begin_round(round_, snapshot)
            guarded += sampler.round_metrics(round_)["hard/guarded"]
            for step in range(round_ * 4, round_ * 4 + 4):
                classes = data.classes_of(sampler.batch(step))
                twins += sum(a // 2 == b // 2 for a, b in zip(classes[::2], classes[1::2], strict=True))
        return twins, guarded

    twins, guarded = pairs(config)
    assert (twins, guarded) == (160, 0)  # without guard every pair is one of twins: 40 batches of four pairs
    twins, guarded = pairs(replace(config, guard=0.2))
    assert twins < 20  # they may still meet by chance
    assert guarded == 320  # every class is a seed, and its twin is dropped


def test_sample_mode_brings_the_near_rows_and_the_far_positives() -> None:
    data = data_of([9] * 12)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(data.rows), 2))
    snapshot = snapshot_of_rows(x, data.classes, k=30, positives=3)
    config = replace(
        CONFIG, mode="sample", classes_per_batch=4, samples_per_class=3, width=30.0, temperature=0.0
    )
    place_of = {row: place for place, row in enumerate(data.rows.tolist())}
    for batch in planned(data.sampler(replace(config, max_lead=1000)), snapshot, 6):
        places = np.array([place_of[row] for row in batch.tolist()])
        seed = places[0]
        own = data.classes[places] == data.classes[seed]
        assert places[own].tolist() == [seed, *snapshot.row_positives[seed][:2].tolist()]
        near = snapshot.row_negatives[seed]
        nearest_classes = list(dict.fromkeys(data.classes[near].tolist()))[:3]
        assert data.classes_of(batch)[1:] == nearest_classes
        for label in nearest_classes:
            rows = near[data.classes[near] == label][:3].tolist()
            assert places[data.classes[places] == label][: len(rows)].tolist() == rows


def test_the_share_of_hard_groups_is_what_was_asked_for() -> None:
    data = data_of([2] * 400)
    config = replace(CONFIG, classes_per_batch=40, mates=1, max_lead=1000, width=1.0)
    for fraction, hardness in ((0.0, 1.0), (0.25, 1.0), (0.5, 0.5), (0.8, 1.0), (1.0, 1.0), (1.0, 0.0)):
        sampler = data.sampler(replace(config, hard_fraction=fraction))
        for round_ in range(5):
            sampler.begin_round(round_, only_neighbors(ring(400, 3)), hardness)
            metrics = sampler.round_metrics(round_)
            assert metrics["hard/fraction"] == pytest.approx(fraction * hardness)
            # A seed whose neighbor is in the batch already makes a group of one, so there are some groups more.
            assert metrics["hard/mates_fraction"] == pytest.approx(fraction * hardness / 2, abs=0.04)


def test_warm_up_no_snapshot_and_unknown_classes_give_random_batches() -> None:
    data = data_of([4] * 20)
    snapshot = only_neighbors(ring(20, 5))
    random = planned(data.sampler(CONFIG), None, 3)
    for other in (
        planned(data.sampler(CONFIG), snapshot, 3, hardness=0.0),
        planned(data.sampler(replace(CONFIG, warmup_steps=12)), snapshot, 3),
        planned(data.sampler(replace(CONFIG, hard_fraction=0.0)), snapshot, 3),
        planned(data.sampler(CONFIG), only_neighbors(np.full((20, 5), -1)), 3),
    ):
        np.testing.assert_array_equal(np.array(other), np.array(random))
    warm = planned(data.sampler(replace(CONFIG, warmup_steps=6)), snapshot, 3)
    np.testing.assert_array_equal(np.array(warm[:6]), np.array(random[:6]))
    assert data.classes_of(warm[6]) != data.classes_of(random[6])


def test_dials_are_read_at_every_step() -> None:
    count = 997
    data = data_of([2] * count)
    skip = Dial(start=0.0, end=5.0, begin_step=3, end_step=8)
    config = replace(CONFIG, mates=1, skip=skip, width=1.0, max_lead=1000)
    for step, batch in enumerate(planned(data.sampler(config), only_neighbors(ring(count, 9)), 3)):
        classes = data.classes_of(batch)
        apart = {(b - a) % count for a, b in zip(classes[::2], classes[1::2], strict=True)}
        assert apart == {round(skip.at(step)) + 1}


# The rule, written out


class Batch(dict[int, list[int]]):
    """Class -> places of its rows, in the order in which they came."""

    def __init__(self, rows: ClassRows, size: int, turn: list[int], visits: list[int]) -> None:
        self.rows, self.size, self.turn, self.visits = rows, size, turn, visits

    def is_full(self) -> bool:
        return sum(map(len, self.values())) >= self.size

    def first_waiting(self) -> int:
        waiting = [label for label in self.turn if label not in self]
        return min(waiting, key=lambda label: (self.visits[label], self.turn.index(label)))

    def add(self, label: int, first: list[int]) -> None:
        reading = self.rows.places(label, self.visits[label]).tolist()
        self[label] = [*first, *(place for place in reading if place not in first)][: len(reading)]


def by_hand(data: Data, snapshot, config: HardNeighborSamplerConfig, seed, round_, visits, hardness):
    """The batches of a round as lists of catalog rows, and how many mates came; counts `visits` on."""
    rows = ClassRows(data.rows, data.labels, config.samples_per_class, seed)
    turn = rows.generator(round_).permutation(len(visits)).tolist()
    batches, all_mates = [], 0
    for step in range(round_ * config.round_steps, (round_ + 1) * config.round_steps):
        draws = rows.generator(step, 1)
        offset, most_visits, groups = draws.random(), min(visits) + config.max_lead, 0
        fraction = 0.0 if step < config.warmup_steps else hardness * value_at(config.hard_fraction, step)
        batch = Batch(rows, config.classes_per_batch * config.samples_per_class, turn, visits)
        while not batch.is_full():
            groups += 1
            seed_class = batch.first_waiting()
            if math.floor(offset + groups * fraction) > math.floor(offset + (groups - 1) * fraction):
                near, own = offered(data, snapshot, config, step, rows, seed_class, visits[seed_class])
                batch.add(seed_class, own)
                mates = 0
                for label in in_drawn_order(near, value_at(config.temperature, step), draws):
                    if mates == config.mates or batch.is_full():
                        break
                    if label not in batch and visits[label] <= most_visits:
                        batch.add(label, [place for _, other, place in near if other == label and place >= 0])
                        mates += 1
                all_mates += mates
            else:
                batch.add(seed_class, [])
                for _ in range(config.mates):
                    if not batch.is_full():
                        batch.add(batch.first_waiting(), [])
        batches.append([data.rows[place] for places in batch.values() for place in places][: batch.size])
        for label in batch:
            visits[label] += 1
    return batches, all_mates


def in_drawn_order(near, temperature: float, draws: np.random.Generator) -> list[int]:
    noise = draws.gumbel(size=len(near)).tolist()
    keys = [
        one if temperature == math.inf else temperature * one - rank
        for one, (rank, *_) in zip(noise, near, strict=True)
    ]
    return [label for _, (_, label, _) in sorted(zip(keys, near, strict=True), key=lambda each: -each[0])]


def offered(data: Data, snapshot, config, step, rows, label, visit):
    """(rank, class, row or -1) of the seed's window, and the rows that its own class has to give."""
    window = range(first := round(value_at(config.skip, step)), first + round(value_at(config.width, step)))
    rms = snapshot.radius_rms.astype(float)
    rms[snapshot.class_counts < 2] = np.median(rms[snapshot.class_counts > 1])
    if config.mode == "class":
        listed = list(enumerate(snapshot.class_neighbors[label].tolist()))
        centers = snapshot.centroids.astype(float)
        return [
            (rank, other, -1)
            for rank, other in listed
            if rank in window
            and other >= 0
            and np.linalg.norm(centers[label] - centers[other])
            >= config.guard * (rms[label] + rms[other]) / 2
        ], []
    row = int(rows.places(label, visit)[0])
    listed = [(rank, place) for rank, place in enumerate(snapshot.row_negatives[row].tolist()) if place >= 0]
    distances = snapshot.row_negative_distances[row]
    suspect = {data.classes[place] for rank, place in listed if distances[rank] < config.guard * rms[label]}
    positives = [place for place in snapshot.row_positives[row].tolist() if place >= 0]
    return [
        (rank, int(data.classes[place]), place)
        for rank, place in listed
        if rank in window and data.classes[place] not in suspect
    ], [row, *positives][: config.samples_per_class]


CONFIGS = st.builds(
    replace,
    st.just(CONFIG),
    mode=st.sampled_from(["class", "sample"]),
    classes_per_batch=st.integers(4, 6),
    samples_per_class=st.integers(2, 3),
    round_steps=st.integers(1, 4),
    hard_fraction=st.sampled_from([0.5, 1.0, Dial(start=0.0, end=1.0, end_step=6)]),
    mates=st.integers(1, 3),
    skip=st.sampled_from([0.0, 1.0]),
    width=st.sampled_from([2.0, 8.0, Dial(start=8.0, end=1.0, end_step=10, shape="cosine")]),
    temperature=st.sampled_from([0.0, 1.5, math.inf]),
    guard=st.sampled_from([0.0, 0.7]),
    warmup_steps=st.sampled_from([0, 3]),
    max_lead=st.integers(0, 2),
)


@given(
    config=CONFIGS,
    counts=st.lists(st.integers(1, 6), min_size=8, max_size=16),
    hardness=st.sampled_from([1.0, 0.6]),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=150, deadline=None)
def test_plans_are_those_of_the_rule_written_out(config, counts, hardness, seed) -> None:
    counts = [*counts, 3, 3]
    k = config.samples_per_class
    assume(sum(min(c, k) for c in counts) >= config.classes_per_batch * k)
    data, rng = data_of(counts), np.random.default_rng(seed)
    known = rng.random(len(data.rows)) < 0.9
    known[data.classes >= len(counts) - 2] = True
    x = rng.normal(size=(len(counts), 3))[data.classes] + 0.5 * rng.normal(size=(len(data.rows), 3))
    known_later = snapshot_of_rows(x, data.classes, k=8, positives=2, known=known)
    sampler, visits = data.sampler(config, seed), [0] * len(counts)
    for round_ in range(4):
        snapshot = known_later if round_ else None
        sampler.begin_round(round_, snapshot, hardness)
        level = 0.0 if snapshot is None else hardness
        expected, mates = by_hand(data, snapshot, config, seed, round_, visits, level)
        steps = range(round_ * config.round_steps, (round_ + 1) * config.round_steps)
        found = [sampler.batch(step) for step in steps]
        assert [batch.tolist() for batch in found] == expected
        classes = sum(len(data.classes_of(batch)) for batch in found)
        assert sampler.round_metrics(round_)["hard/mates_fraction"] == pytest.approx(mates / classes)


# Interruptions, rounds, threads


def snapshots_of(data: Data, count: int) -> dict[int, NeighborSnapshot | None]:
    """By version; 0 is none."""
    rng = np.random.default_rng(0)
    centers = [rng.normal(size=(int(data.classes.max()) + 1, 3)) for _ in range(count)]
    made = {
        version: snapshot_of_rows(
            each[data.classes] + 0.3 * rng.normal(size=(len(data.rows), 3)),
            data.classes,
            k=9,
            positives=2,
            version=version,
        )
        for version, each in enumerate(centers, 1)
    }
    return {0: None, **made}


DATA = data_of([1, 2, 5, 3, 6, 4, 2, 7, 3, 3, 5, 4, 1, 6, 3, 3, 4, 2])
SNAPSHOTS = snapshots_of(DATA, 3)
VERSIONS, HARDNESS = [0, 0, 1, 1, 2, 3, 3, 3], [1.0, 1.0, 1.0, 0.5, 0.25, 0.3, 1.0, 0.0]


def through_a_file(state: dict) -> dict:
    """As checkpoints are read: no pickled classes."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@given(
    step=st.integers(0, 28),
    mode=st.sampled_from(["class", "sample"]),
    round_steps=st.sampled_from([1, 2, 4]),
    seeds=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)),
)
@settings(max_examples=60, deadline=None)
def test_interrupted_at_any_step_equals_never_interrupted(step, mode, round_steps, seeds) -> None:
    width = Dial(start=9.0, end=2.0, end_step=20)
    config = replace(CONFIG, mode=mode, classes_per_batch=6, round_steps=round_steps, width=width)
    whole = [batch.tolist() for batch in planned_with_schedule(DATA.sampler(config, seeds[0]), range(8))]
    step = min(step, 7 * round_steps)
    before, after = DATA.sampler(config, seeds[0]), DATA.sampler(config, seeds[1])
    for round_ in range(
        step // round_steps + 2
    ):  # read one step ahead: the next round may have begun already
        if round_ < 8:
            before.begin_round(round_, SNAPSHOTS[VERSIONS[round_]], HARDNESS[round_])
    state = through_a_file(before.state_dict(step))
    assert state["round"] == step // round_steps
    after.load_state_dict(state)
    after.begin_round(state["round"], SNAPSHOTS[state["snapshot_version"]], state["hardness"])
    rest = [after.batch(at).tolist() for at in range(step, (state["round"] + 1) * round_steps)]
    rest += [batch.tolist() for batch in planned_with_schedule(after, range(state["round"] + 1, 8))]
    assert rest == whole[step:]


def planned_with_schedule(sampler: HardNeighborSampler, rounds: range) -> list[NDArray]:
    batches = []
    for round_ in rounds:
        sampler.begin_round(round_, SNAPSHOTS[VERSIONS[round_]], HARDNESS[round_])
        steps = range(round_ * sampler.config.round_steps, (round_ + 1) * sampler.config.round_steps)
        batches += [sampler.batch(step) for step in steps]
    return batches


def test_a_state_between_rounds_leaves_the_next_snapshot_open() -> None:
    sampler = DATA.sampler(CONFIG)
    first = sampler.state_dict(0)
    assert (first["round"], first["snapshot_version"], first["hardness"]) == (0, None, None)
    planned(sampler, SNAPSHOTS[1], 2)
    state = through_a_file(sampler.state_dict(8))
    assert (state["round"], state["snapshot_version"], state["hardness"]) == (2, None, None)
    other = DATA.sampler(CONFIG, seed=5)
    other.load_state_dict(state)
    for each in (sampler, other):
        each.begin_round(2, SNAPSHOTS[2])
    np.testing.assert_array_equal(sampler.batch(9), other.batch(9))


def test_what_is_handed_out_cannot_change_the_plan() -> None:
    sampler = DATA.sampler(CONFIG)
    whole = [batch.tolist() for batch in planned(DATA.sampler(CONFIG), SNAPSHOTS[1], 3)]
    for round_ in range(2):
        sampler.begin_round(round_, SNAPSHOTS[1])
    sampler.batch(5)[:] = 0
    sampler.round_metrics(1).clear()
    for step in (5, 8):  # visits before a planned round, and before the next one
        state = sampler.state_dict(step)
        other = DATA.sampler(CONFIG)
        other.load_state_dict(state)
        kept = state["visits"].clone()
        state["visits"] += torch.arange(len(kept), dtype=torch.int32)
        assert torch.equal(sampler.state_dict(step)["visits"], kept)
        for round_ in range(state["round"], 3):
            other.begin_round(round_, SNAPSHOTS[1])
        assert other.batch(9).tolist() == whole[9]
    sampler.begin_round(2, SNAPSHOTS[1])
    assert [sampler.batch(step).tolist() for step in range(4, 12)] == whole[4:]
    assert sampler.round_metrics(1)


def test_the_plan_depends_on_seed_snapshot_and_hardness() -> None:
    base = np.array(planned(DATA.sampler(CONFIG), SNAPSHOTS[1], 2))
    np.testing.assert_array_equal(base, np.array(planned(DATA.sampler(CONFIG), SNAPSHOTS[1], 2)))
    for other in (
        planned(DATA.sampler(CONFIG, seed=1), SNAPSHOTS[1], 2),
        planned(DATA.sampler(CONFIG), SNAPSHOTS[2], 2),
        planned(DATA.sampler(CONFIG), SNAPSHOTS[1], 2, hardness=0.5),
    ):
        assert (base != np.array(other)).any()


def test_rounds_begin_in_order_and_the_last_two_are_kept() -> None:
    sampler = DATA.sampler(CONFIG)
    with pytest.raises(ValueError, match="round 0 is not planned: those that are: none"):
        sampler.batch(3)
    with pytest.raises(ValueError, match="round 1 cannot begin: it is the turn of round 0"):
        sampler.begin_round(1, None)
    planned(sampler, None, 3)
    assert sampler.round_of(7) == 1
    assert len(sampler.batch(7)) == len(sampler.batch(11)) == sampler.batch_size
    for ask in (lambda: sampler.batch(3), lambda: sampler.state_dict(3), lambda: sampler.round_metrics(0)):
        with pytest.raises(ValueError, match="round 0 is not planned: those that are: 1, 2"):
            ask()
    with pytest.raises(ValueError, match="round 4 is not planned"):
        sampler.state_dict(16)
    with pytest.raises(ValueError, match=r"hardness=1.5 is wrong"):
        sampler.begin_round(3, None, 1.5)


def test_batches_are_read_by_another_thread_while_the_next_round_is_planned() -> None:
    config = replace(CONFIG, mode="sample", classes_per_batch=6)
    expected = [batch.tolist() for batch in planned_with_schedule(DATA.sampler(config), range(8))]
    sampler = DATA.sampler(config)
    with ThreadPoolExecutor(1) as reader:
        sampler.begin_round(0, SNAPSHOTS[VERSIONS[0]], HARDNESS[0])
        for round_ in range(8):
            steps = [*range(round_ * 4, round_ * 4 + 4)] * 5
            reading = [reader.submit(sampler.batch, step) for step in steps]
            if round_ < 7:
                sampler.begin_round(round_ + 1, SNAPSHOTS[VERSIONS[round_ + 1]], HARDNESS[round_ + 1])
            for step, batch in zip(steps, reading, strict=True):
                assert batch.result().tolist() == expected[step]


# Metrics, settings, errors


def test_metrics_count_what_happened() -> None:
    count = 100
    lists = ring(count, 6)
    data = data_of([2] * count)
    sampler = data.sampler(replace(CONFIG, mates=2, skip=1.0, width=2.0, max_lead=1000))
    sampler.begin_round(0, only_neighbors(lists, version=7))
    metrics = sampler.round_metrics(0)
    assert metrics["hard/snapshot_version"] == 7
    assert metrics["hard/mean_neighbor_rank"] == pytest.approx(1.5, abs=0.1)
    # Three groups fill a batch of eight classes, the last one with a single mate.
    assert metrics["hard/mates_per_group"] == pytest.approx(5 / 3, abs=0.1)
    assert metrics["hard/mates_fraction"] == pytest.approx(5 / 8, abs=0.05)
    assert metrics["hard/guarded"] == metrics["hard/ineligible"] == 0
    assert all(type(value) is float for value in metrics.values())
    random = data.sampler(CONFIG)
    random.begin_round(0, None)
    quiet = random.round_metrics(0)
    assert {"hard/mean_neighbor_rank", "hard/mates_per_group"} & set(quiet) == set()
    assert quiet["hard/mates_fraction"] == quiet["hard/fraction"] == quiet["hard/snapshot_version"] == 0
    hub = data.sampler(replace(CONFIG, mates=1, width=1.0, max_lead=0))
    hub.begin_round(0, only_neighbors(np.where(np.arange(count)[:, None] == 0, 1, 0)))
    assert hub.round_metrics(0)["hard/ineligible"] > 0


def test_state_refuses_other_settings_and_other_data() -> None:
    sampler = DATA.sampler(CONFIG)
    state = through_a_file(sampler.state_dict(0))
    for key, value in (("mates", 2), ("mode", "sample"), ("width", Dial(start=9.0, end=2.0, end_step=5))):
        other = DATA.sampler(replace(CONFIG, **{key: value}))
        with pytest.raises(
            ConfigError, match=rf"^sampler\.{key}=.* differs from the checkpoint's .*: set sampler\.{key}="
        ):
            other.load_state_dict(state)
        assert through_a_file(other.state_dict(0))[key] == (
            asdict(value) if isinstance(value, Dial) else value
        )
    DATA.sampler(replace(CONFIG, margin=0.7)).load_state_dict(state)  # which no batch depends on
    more = data_of([3] * 30).sampler(CONFIG)
    with pytest.raises(
        ConfigError, match=r"has 30 classes but the checkpoint's had 18: set data\.train_split"
    ):
        more.load_state_dict(state)
    pk = PKSampler(DATA.rows, DATA.labels, 8, 2, 0)
    with pytest.raises(
        ConfigError, match=r"sampler=pk differs from the checkpoint's hard_neighbors: set sampler=hard"
    ):
        pk.load_state_dict(state)
    with pytest.raises(
        ConfigError, match=r"sampler=hard_neighbors differs from the checkpoint's pk: set sampler=pk"
    ):
        sampler.load_state_dict(pk.state_dict(0))
    for changed in (pk, sampler):
        old = {key: value for key, value in changed.state_dict(0).items() if key != "order"}
        with pytest.raises(
            ConfigError, match="another way than the version of distmetric that wrote the check"
        ):
            changed.load_state_dict(old)


def test_a_snapshot_of_other_data_is_refused() -> None:
    with pytest.raises(ValueError, match="the snapshot has 20 classes, the sampler 18"):
        DATA.sampler(CONFIG).begin_round(0, only_neighbors(ring(20, 3)))
    with pytest.raises(ValueError, match="lists neighbors of 0 rows, the sampler has 64"):
        DATA.sampler(replace(CONFIG, mode="sample")).begin_round(0, only_neighbors(ring(18, 3)))


def test_impossible_batches_name_the_setting_and_the_fix() -> None:
    with pytest.raises(
        ConfigError, match=r"classes_per_batch=8 .* has 5 classes: set sampler.classes_per_batch=5"
    ):
        data_of([3] * 5).sampler(CONFIG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("round_steps", 0),
            ("hard_fraction", 1.1),
            ("hard_fraction", Dial(start=0.0, end=2.0, end_step=3)),
        ),
        *(("mates", 0), ("mates", 8), ("skip", -1.0), ("width", 0.0), ("temperature", -0.1), ("guard", -1.0)),
        *(
            ("guard", math.nan),
            ("warmup_steps", -1),
            ("max_lead", -1),
            ("margin", math.inf),
            ("mode", "rows"),
        ),
    ],
)
def test_wrong_settings_are_named(key, value) -> None:
    with pytest.raises(ValueError, match=rf"^{key}="):
        replace(CONFIG, **{key: value})


def test_the_file_of_defaults_holds_those_of_the_dataclass() -> None:
    values = compose("config", ["sampler=hard_neighbors"])["sampler"]
    assert decode(HardNeighborSamplerConfig, values) == HardNeighborSamplerConfig()
    assert set(values) == set(asdict(HardNeighborSamplerConfig()))
