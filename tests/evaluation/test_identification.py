"""`identify` against plain loops: ties, several rows of an identity, mean templates, blocks, mistakes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmetric.errors import InputError
from distmetric.evaluation import IdentificationMetrics, identify
from pair_oracle import coordinates, identification

FARS, RANKS = (0.5, 0.25, 0.1), (1, 2, 5)


def people(num: int, per_class: int, noise: float = 0.6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    centers = torch.randn(num, 7, generator=generator).repeat_interleave(per_class, dim=0)
    rows = centers + noise * torch.randn(len(centers), 7, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), torch.arange(num).repeat_interleave(per_class)


def two_sides(shots: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """30 of 50 people are enrolled."""
    rows, labels = people(50, 5)
    enrolled = (torch.arange(250) % 5 < shots) & (labels < 30)
    return rows[enrolled], labels[enrolled], rows[~enrolled], labels[~enrolled]


def assert_as_defined(found: IdentificationMetrics, expected: dict) -> None:
    assert found.dir_at_far == expected["dir"]
    assert found.thresholds == expected["thresholds"]
    assert found.identification_rate == expected["closed"]


@st.composite
def sides(draw):
    row = st.lists(coordinates, min_size=2, max_size=2)
    gallery = draw(st.lists(st.tuples(row, st.integers(0, 3)), min_size=1, max_size=12))
    probes = draw(st.lists(st.tuples(row, st.integers(0, 6)), min_size=1, max_size=12))
    probes += [(draw(row), gallery[0][1]), (draw(row), 9)]
    return *map(list, zip(*gallery, strict=True)), *map(list, zip(*probes, strict=True))


@settings(deadline=None, max_examples=60)
@given(data=sides(), block_bytes=st.sampled_from([1, 3000, 2**27]))
def test_equals_plain_loops_with_many_ties(data, block_bytes):
    arrays = [np.array(side) for side in data]
    found = identify(*arrays, fars=FARS, ranks=RANKS, block_bytes=block_bytes)
    assert_as_defined(found, identification(*data, FARS, RANKS))
    assert found.num_identities == len(set(data[1]))
    assert found.num_mated_probes + found.num_strangers == len(data[2])


def test_arbitrary_floats_equal_plain_loops():
    data = two_sides()
    found = identify(*data, fars=FARS, ranks=RANKS)
    expected = identification(*(side.tolist() for side in data), FARS, RANKS)
    assert 0.2 < expected["dir"][0.1, 1] < expected["dir"][0.5, 5] < 1
    assert found.dir_at_far == expected["dir"]
    assert found.identification_rate == expected["closed"]
    assert found.thresholds == {far: pytest.approx(t, rel=1e-6) for far, t in expected["thresholds"].items()}


def test_a_mean_is_the_template_of_an_identity():
    gallery, names, probes, labels = two_sides(shots=3)
    means = torch.stack([gallery[names == name].double().mean(dim=0) for name in range(30)])
    templates = torch.nn.functional.normalize(means, dim=1)
    expected = identify(templates, torch.arange(30), probes, labels)
    found = identify(gallery, names, probes, labels, templates="mean")
    assert found.dir_at_far == expected.dir_at_far
    assert found.dir_at_far != identify(gallery, names, probes, labels).dir_at_far
    # Rows that are not of length one have means that are not, either.
    expected = identify(2 * means, torch.arange(30), 2 * probes, labels)
    assert (
        identify(2 * gallery, names, 2 * probes, labels, templates="mean").dir_at_far == expected.dir_at_far
    )


def test_blocks_threads_and_order_of_rows_change_no_bit():
    gallery, names, probes, labels = two_sides()
    for templates in ("nearest", "mean"):
        whole = identify(gallery, names, probes, labels, templates=templates)
        for block_bytes in (1, 40_000):
            again = identify(gallery, names, probes, labels, templates=templates, block_bytes=block_bytes)
            assert again == whole
        torch.set_num_threads(2)
        a, b = torch.randperm(len(gallery)), torch.randperm(len(probes))
        mixed = (gallery[a], 7 - names[a], probes[b], 7 - labels[b])
        assert identify(*mixed, templates=templates) == whole


def test_values_of_a_known_search():
    """Identities at 0, 10 and 20; strangers at 4 and 13; the probe of identity 20 is nearer to identity 10."""
    gallery, names = np.array([[0.0], [10.0], [20.0]]), np.array([0, 1, 2])
    probes, labels = np.array([[1.0], [12.0], [14.0], [4.0], [13.0]]), np.array([0, 1, 2, 8, 9])
    found = identify(gallery, names, probes, labels, fars=[0.5, 0.2], ranks=[2, 1])
    # The nearer stranger is 3 away, the other 4: up to half of them means nearer than 4.
    assert found.thresholds == {0.5: 3.0}
    assert found.dir_at_far == {(0.5, 1): 2 / 3, (0.5, 2): 2 / 3}
    assert found.identification_rate == {1: 2 / 3, 2: 1.0}
    assert list(found.to_dict()) == [
        "dir_at_far_5e-1",
        "dir_at_far_5e-1_rank_2",
        "threshold_at_far_5e-1",
        "identification_rate_at_1",
        "identification_rate_at_2",
        "num_identities",
        "num_mated_probes",
        "num_strangers",
    ]


def test_a_collapsed_model_identifies_nobody():
    found = identify(np.ones((4, 2)), np.arange(4), np.ones((20, 2)), np.arange(20), ranks=[1, 4])
    assert set(found.dir_at_far.values()) == {0.0}
    assert found.identification_rate == {1: 0.0, 4: 1.0}
    assert found.thresholds[0.1] < 0


GOOD, NAMES = np.eye(3), np.arange(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probe_labels": NAMES}, "none of 3 probes is a stranger"),
        ({"probe_labels": NAMES + 10}, "none of 3 probes is of an enrolled identity"),
        ({"probe_embeddings": GOOD[:0], "probe_labels": NAMES[:0]}, "none of 0 probes is a stranger"),
        ({"gallery_embeddings": GOOD[:0], "gallery_labels": NAMES[:0]}, "the gallery has no rows"),
        ({"gallery_embeddings": GOOD[:, :2]}, "probes have 3 dimensions but the gallery has 2"),
        ({"gallery_embeddings": GOOD * np.nan}, "gallery embeddings row 0 is not finite"),
        ({"probe_labels": NAMES[:2]}, "probe labels must have shape"),
        ({"fars": [2.0]}, "each of fars must be"),
        ({"ranks": []}, "ranks must be one or more"),
        ({"ranks": [1, 0]}, "each at least 1"),
        ({"templates": "median"}, "templates must be one of nearest, mean, got median"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message):
    sides = {
        "gallery_embeddings": GOOD,
        "gallery_labels": NAMES,
        "probe_embeddings": GOOD,
        "probe_labels": NAMES + 1,
    }
    with pytest.raises(InputError, match=message) as caught:
        identify(**{**sides, **arguments})
    assert "\n" not in str(caught.value)
