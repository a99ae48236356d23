"""Re-identification against plain loops, scikit-learn and the loop of Market-1501's script."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from distmetric.errors import InputError
from distmetric.evaluation import ReidMetrics, evaluate_reid, nearest, reid_metrics_of_rankings
from ranking_oracle import clusters, reid

coordinates = st.integers(-2, 2).map(lambda value: value / 4)
Side = tuple[list[list[float]], list[int], list[int]]


@st.composite
def side(draw) -> Side:
    size = draw(st.integers(1, 24))
    numbers = [
        st.lists(st.integers(low, high), min_size=size, max_size=size) for low, high in ((-1, 3), (0, 2))
    ]
    rows = st.lists(st.lists(coordinates, min_size=2, max_size=2), min_size=size, max_size=size)
    return draw(rows), *map(draw, numbers)


def as_arrays(one: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, labels, cameras = map(np.array, one)
    return rows, labels, cameras


def whole_lists(queries: Side, gallery: Side) -> torch.Tensor:
    rows = torch.tensor(queries[0] + gallery[0])
    distances = (rows[: len(queries[0]), None] - rows[None, len(queries[0]) :]).double().square().sum(dim=2)
    return distances.argsort(dim=1, stable=True)


@settings(deadline=None, max_examples=100)
@given(
    queries=side(),
    gallery=side(),
    junk_label=st.sampled_from([None, -1]),
    average_precision=st.sampled_from(["step", "trapezoid"]),
    block_bytes=st.sampled_from([1, 2**24]),
)
def test_reid_equals_plain_loops_with_many_ties(queries, gallery, junk_label, average_precision, block_bytes):
    gallery[1][0], gallery[2][0] = queries[1][0], queries[2][0] + 1
    if queries[1][0] == junk_label:
        queries[1][0] = gallery[1][0] = 0
    options = {"ks": (1, 3, 50), "junk_label": junk_label, "average_precision": average_precision}
    expected = reid(*queries, *gallery, **options)
    found = evaluate_reid(*as_arrays(queries), *as_arrays(gallery), block_bytes=block_bytes, **options)
    assert found.to_dict() == pytest.approx(expected, rel=1e-12)
    lists = whole_lists(queries, gallery)
    listed = reid_metrics_of_rankings(lists, *as_arrays(queries)[1:], *as_arrays(gallery)[1:], **options)
    assert listed == found


def scene(seed: int = 0) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Queries and gallery of 20 persons seen by 3 cameras; 10 more, and junk, in the gallery only."""
    rows, labels = clusters(31, 12, 8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    cameras = torch.randint(3, (len(rows),), generator=generator)
    labels = torch.where(labels == 30, -1, labels)
    order = torch.randperm(len(rows), generator=generator)
    rows, labels, cameras = rows[order], labels[order], cameras[order]
    is_query = (labels < 20) & (labels >= 0) & (torch.rand(len(rows), generator=generator) < 0.2)
    return tuple((rows[some], labels[some], cameras[some]) for some in (is_query, ~is_query))  # type: ignore[return-value]


@pytest.mark.parametrize("average_precision", ["step", "trapezoid"])
def test_arbitrary_embeddings_with_distractors_and_junk_equal_plain_loops(average_precision):
    queries, gallery = scene()
    lists = [part.tolist() for part in (*queries, *gallery)]
    expected = reid(*lists, junk_label=-1, average_precision=average_precision)
    assert 0.1 < expected["mean_inverse_negative_penalty"] < expected["mean_average_precision"] < 0.8
    found = evaluate_reid(*queries, *gallery, junk_label=-1, average_precision=average_precision)
    assert found.to_dict() == pytest.approx(expected, rel=1e-12)
    assert list(found.to_dict()) == [
        *("cmc_at_1", "cmc_at_5", "cmc_at_10", "cmc_at_20"),
        *("mean_average_precision", "mean_inverse_negative_penalty"),
        *("num_queries", "num_unanswerable_queries"),
    ]


def test_step_average_precision_equals_scikit_learn():
    (rows, labels, cameras), (gallery, gallery_labels, gallery_cameras) = scene(1)
    values = []
    for query in range(len(rows)):
        same = gallery_labels == labels[query]
        kept = (gallery_labels != -1) & ~(same & (gallery_cameras == cameras[query]))
        distances = (gallery[kept].double() - rows[query].double()).norm(dim=1)
        values.append(average_precision_score(same[kept].numpy(), -distances.numpy()))
    found = evaluate_reid(rows, labels, cameras, gallery, gallery_labels, gallery_cameras, junk_label=-1)
    assert found.mean_average_precision == pytest.approx(np.mean(values), abs=1e-12)


def test_values_of_a_known_ranking():
    """What counts, nearest first: right, wrong, wrong, right; in front of each an item that does not count."""
    gallery = np.arange(8.0)[:, None]
    labels = np.array([7, 7, -1, 3, 7, 4, -1, 7])
    cameras = np.array([0, 1, 1, 0, 0, 1, 0, 2])
    query = np.array([[-1.0]]), np.array([7]), np.array([0])
    found = evaluate_reid(*query, gallery, labels, cameras, junk_label=-1, ks=(1, 2))
    assert found.mean_average_precision == (1 + 2 / 4) / 2
    assert found.mean_inverse_negative_penalty == 2 / 4
    assert found.cmc_at == {1: 1.0, 2: 1.0}
    found = evaluate_reid(
        *query, gallery, labels, cameras, junk_label=-1, ks=(1, 2), average_precision="trapezoid"
    )
    assert found.mean_average_precision == pytest.approx(((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2)


def test_queries_that_are_the_gallery_never_find_themselves():
    rows, labels = clusters(15, 6, 5)
    cameras = torch.arange(len(rows)) % 4
    everything = (rows, labels, cameras)
    found = evaluate_reid(*everything, *everything)
    assert found.to_dict() == pytest.approx(reid(*(part.tolist() for part in everything * 2)), rel=1e-12)
    assert found.cmc_at[1] < 1


def test_a_query_that_only_its_own_camera_saw_is_unanswerable():
    rows, labels, cameras = np.array([[0.0], [1.0], [2.0]]), np.array([0, 0, 0]), np.array([0, 0, 1])
    found = evaluate_reid(rows[:1], labels[:1], cameras[:1], rows, labels, cameras)
    assert (found.queries, found.unanswerable_queries) == (1, 0)
    found = evaluate_reid(rows, labels, cameras, rows[:2], labels[:2], cameras[:2])
    assert (found.queries, found.unanswerable_queries) == (1, 2)
    with pytest.raises(
        InputError, match="none of 2 queries has a gallery item of its class from another camera"
    ):
        evaluate_reid(rows[:2], labels[:2], cameras[:2], rows[:2], labels[:2], cameras[:2])


def test_junk_of_one_class_equals_a_gallery_without_it():
    queries, gallery = scene(2)
    kept = gallery[1] != -1
    expected = evaluate_reid(*queries, *(part[kept] for part in gallery))
    assert evaluate_reid(*queries, *gallery, junk_label=-1) == expected
    assert evaluate_reid(*queries, *gallery) != expected


def test_short_lists_find_no_more_than_whole_ones():
    queries, gallery = scene(3)
    rows = torch.cat([gallery[0], queries[0]])
    whole = nearest(rows, torch.arange(len(gallery[0]), len(rows)), len(rows) - 1)
    whole = torch.stack([ids[ids < len(gallery[0])] for ids in whole])
    sides = (*queries[1:], *gallery[1:])
    expected = evaluate_reid(*queries, *gallery, junk_label=-1)
    assert reid_metrics_of_rankings(whole, *sides, junk_label=-1) == expected
    short = reid_metrics_of_rankings(whole[:, :40], *sides, junk_label=-1)
    assert short.cmc_at == expected.cmc_at  # 20 items that count are among the first 40
    assert 0 < short.mean_average_precision < expected.mean_average_precision
    assert short.mean_inverse_negative_penalty < expected.mean_inverse_negative_penalty


def test_intervals_have_the_names_of_the_means_and_hold_them():
    queries, gallery = scene(4)
    found = evaluate_reid(*queries, *gallery, resamples=300, seed=1)
    assert list(found.intervals) == list(found.to_dict())[:-2]
    assert all(low <= found.to_dict()[name] <= high for name, (low, high) in found.intervals.items())
    low, high = found.intervals["mean_average_precision"]
    assert 0.01 < high - low < 0.3
    again = evaluate_reid(*queries, *gallery, resamples=300, seed=1)
    assert isinstance(again, ReidMetrics)
    assert again == found


ROWS, LABELS, CAMERAS = np.zeros((3, 2)), np.array([0, 0, 1]), np.array([0, 1, 0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: ROWS * np.nan}, "query embeddings row 0 is not finite"),
        ({2: CAMERAS[:2]}, r"query cameras must have shape \(3,\)"),
        ({5: CAMERAS[:2]}, r"gallery cameras must have shape \(3,\)"),
        ({5: CAMERAS + 0.5}, "gallery cameras must be integers"),
        ({4: LABELS[:2]}, r"gallery labels must have shape \(3,\)"),
        ({3: ROWS[:, :1]}, "2 dimensions but the gallery has 1"),
        ({"ks": (0,)}, r"each at least 1, got \[0\]"),
        ({"average_precision": "area"}, "must be step or trapezoid, got area"),
        ({4: LABELS * 0 + 5, "junk_label": 5}, "nothing to search"),
    ],
)
def test_mistakes_get_one_clear_line(changed, message):
    arguments = [ROWS, LABELS, CAMERAS, ROWS, LABELS, CAMERAS]
    for at in range(6):
        arguments[at] = changed.get(at, arguments[at])
    options = {name: value for name, value in changed.items() if isinstance(name, str)}
    with pytest.raises(InputError, match=message) as caught:
        evaluate_reid(*arguments, **options)
    assert "\n" not in str(caught.value)
