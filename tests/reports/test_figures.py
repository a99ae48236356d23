"""What the figures show, whatever the history lacks."""

import io
from functools import partial

import matplotlib.colors as colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from distmetric.errors import InputError
from distmetric.reports import learning_curves, retrieval_grid, time_split
from distmetric.reports.figures import panel_figure
from distmetric.reports.grid import RIGHT_MARK, WRONG_MARK
from distmetric.reports.panels import INDEX_PANELS, PANELS, Panel
from distmetric.reports.selection import select_queries
from distmetric.reports.step_times import PHASES, phase_seconds, time_over_steps
from distmetric.reports.theme import DARK, LIGHT
from drawings import reaches

STEPS = range(0, 500, 10)


def full_history() -> dict[str, list[tuple[int, float]]]:
    metrics = [
        name for panel in PANELS for line in panel.lines for name in (line.metric, line.low, line.high)
    ]
    history = {name: [(step, 1 / (1 + step)) for step in STEPS] for name in metrics if name}
    return history | {f"time/{phase}": [(step, 0.01) for step in STEPS] for phase in PHASES}


def drawn(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_full_history_fills_every_panel():
    figure = learning_curves(full_history())
    assert titles(figure) == [panel.title for panel in PANELS]
    assert all(axes.lines for axes in figure.axes)
    assert drawn(figure).std() > 5


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_panels_without_data_are_skipped(panel: Panel):
    metrics = {line.metric for line in panel.lines}
    history = {name: series for name, series in full_history().items() if name not in metrics}
    assert titles(learning_curves(history)) == [other.title for other in PANELS if other != panel]
    assert titles(learning_curves({panel.lines[0].metric: [(0, 0.5)]})) == [panel.title]


@pytest.mark.parametrize("draw", [learning_curves, time_split])
@pytest.mark.parametrize("history", [{}, {"train/loss": []}, {"train/loss": [(1, float("nan"))]}])
def test_nothing_logged_is_said_in_words(draw, history):
    figure = draw(history)
    assert not figure.axes
    assert "logged" in figure.texts[0].get_text()


def test_curves_are_in_step_order_without_values_that_are_not_finite():
    history = {"eval/recall_at_1": [(20, 0.5), (0, 0.25), (10, float("nan")), (30, float("inf"))]}
    line = learning_curves(history).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[0, 0.25], [20, 0.5]]


def test_long_noisy_curves_are_smoothed_over_their_raw_values():
    noisy = [(step, 1.0 + (-1) ** step) for step in range(400)]
    raw, smooth = learning_curves({"train/loss": noisy}).axes[0].lines
    assert raw.get_ydata().max() == 2.0
    assert np.abs(smooth.get_ydata() - 1.0).max() < 0.15
    assert raw.get_alpha() < 0.5


def test_distances_have_a_band_only_where_the_percentiles_are_known():
    history = full_history()
    del history["train/negative_distance_p90"]
    panel = next(panel for panel in PANELS if panel.title.startswith("Distances"))
    (axes,) = panel_figure(panel, history).axes
    assert [line.get_label() for line in axes.lines] == ["positive pairs", "negative pairs"]
    (band,) = axes.collections
    assert colors.same_color(band.get_facecolor()[0][:3], LIGHT.colors["third"])


def test_evaluations_have_the_band_of_their_intervals():
    history = {"eval/recall_at_1": [(10, 0.5), (20, 0.75)]}
    assert not panel_figure(PANELS[0], history).axes[0].collections
    history |= {
        "eval/recall_at_1_low": [(10, 0.4), (20, 0.7)],
        "eval/recall_at_1_high": [(10, 0.6), (20, 0.8)],
    }
    (band,) = panel_figure(PANELS[0], history).axes[0].collections
    corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices.tolist()}
    assert corners == {(10, 0.4), (10, 0.6), (20, 0.7), (20, 0.8)}


def test_what_holds_until_the_next_value_is_drawn_as_stairs():
    panel = next(panel for panel in INDEX_PANELS if panel.title == "Index version")
    (line,) = panel_figure(panel, {"index/version": [(0, 0.0), (50, 1.0), (120, 2.0)]}).axes[0].lines
    assert line.get_drawstyle() == "steps-post"


def test_the_index_is_quiet_as_long_as_nothing_went_wrong():
    (panel,) = (panel for panel in PANELS if panel.quiet)
    fine = {line.metric: [(0, 0.0), (50, 0.0)] for line in panel.lines}
    assert not panel.has_data(fine)
    assert panel.has_data(fine | {"index/restarts": [(0, 0.0), (50, 1.0)]})


@pytest.mark.parametrize("name", [panel.title for panel in PANELS])
def test_panels_have_all_their_letters_inside(name):
    panel = next(panel for panel in PANELS if panel.title == name)
    steps = [(step, 123456.0 * (-1) ** step) for step in range(0, 120_000, 10_000)]
    history = {line.metric: steps for line in panel.lines}
    assert reaches(panel_figure(panel, history)) <= 0


def test_time_figures_have_all_their_letters_inside():
    history = {f"time/{phase}": [(step, 12.3456) for step in range(50)] for phase in PHASES}
    assert reaches(time_split(history)) <= 0
    assert reaches(time_over_steps(history)) <= 0


def test_time_over_steps_stacks_the_means_of_stretches():
    """Forward takes 10 ms, backward 20 ms in the first and 40 ms in the second half of the run."""
    steps = range(1, 1001)
    history = {
        "time/forward": [(step, 0.01) for step in steps],
        "time/backward": [(step, 0.02 if step <= 500 else 0.04) for step in steps],
        "time/gather": [(step, 0.0) for step in steps],
    }
    (axes,) = time_over_steps(history).axes
    tops = [area.get_paths()[0].vertices[:, 1] for area in axes.collections]
    assert [area.get_label() for area in axes.collections] == ["forward", "backward"]
    assert tops[0].max() == pytest.approx(10)
    assert tops[1].max() == pytest.approx(50)
    assert 25 <= sorted(tops[1])[len(tops[1]) // 2] <= 50
    assert len(np.unique(axes.collections[0].get_paths()[0].vertices[:, 0])) == 60


def test_time_over_steps_of_few_steps_and_of_steps_that_lack_a_phase():
    history = {"time/forward": [(1, 0.01), (2, 0.03), (3, 0.01)], "time/plan": [(2, 0.02)]}
    (axes,) = time_over_steps(history).axes
    plan, forward = (area.get_paths()[0].vertices for area in axes.collections)
    assert set(map(tuple, plan.round(6).tolist())) >= {(1, 0), (2, 20), (3, 0)}
    assert set(map(tuple, forward.round(6).tolist())) >= {(1, 10), (2, 50), (3, 10)}


def test_time_split_shows_median_milliseconds_in_the_order_of_a_step():
    history = {"time/backward": [(0, 9.0), (1, 0.03), (2, 0.03)], "time/data": [(0, 0.01)]}
    assert phase_seconds(history) == {"data": 0.01, "backward": 0.03}
    (axes,) = time_split(history).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([10, 30])
    assert [text.get_text() for text in axes.texts] == ["10 ms · 25%", "30 ms · 75%"]
    assert axes.get_title(loc="left") == "Median step: 40 ms"


def test_a_dark_figure_has_a_dark_ground():
    for draw in (time_split, partial(panel_figure, PANELS[0])):
        assert drawn(draw(full_history(), theme=LIGHT)).mean() > 180
        assert drawn(draw(full_history(), theme=DARK)).mean() < 80


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_grid_marks_and_frames_tell_right_from_wrong(channels, theme):
    images = np.random.default_rng(0).integers(0, 256, (6, channels, 9, 9), dtype=np.uint8)
    correct = np.array([[True, False, True], [False, False, True]])
    neighbors = np.array([[1, 2, 3], [5, 0, 1]])
    figure = retrieval_grid(images, np.array([0, 4]), neighbors, correct, ["$a$_$b", "<b>"], theme=theme)
    rows = [figure.axes[:4], figure.axes[4:]]
    assert [row[0].get_title() for row in rows] == ["$a$_$b", "<b>"]
    for row, query, near, right in zip(rows, (0, 4), neighbors, correct, strict=True):
        shown = [axes.images[0].get_array() for axes in row]
        for pixels, index in zip(shown, [query, *near], strict=True):
            assert np.array_equal(np.atleast_3d(pixels), np.moveaxis(images[index], 0, -1))
        assert not row[0].texts
        for axes, is_right in zip(row[1:], right, strict=True):
            assert [text.get_text() for text in axes.texts] == [RIGHT_MARK if is_right else WRONG_MARK]
            hue = theme.colors["right" if is_right else "wrong"]
            assert all(colors.same_color(spine.get_edgecolor(), hue) for spine in axes.spines.values())
    assert drawn(figure).std() > 5


def test_grid_shortens_long_names():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    figure = retrieval_grid(images, np.array([0]), np.array([[1]]), np.array([[True]]), ["x" * 99])
    assert figure.axes[0].get_title() == "x" * 13 + "…"


@pytest.mark.parametrize(
    ("images", "neighbors", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), [[1]], "images must be uint8"),
        (np.zeros((2, 2, 4, 4), np.uint8), [[1]], "images must be uint8"),
        (np.zeros((2, 1, 4, 4), np.float32), [[1]], "got float32"),
        (np.zeros((2, 1, 4, 4), np.uint8), [[1], [0]], "must have shapes"),
    ],
)
def test_grid_refuses_what_it_cannot_draw(images, neighbors, message):
    with pytest.raises(InputError, match=message):
        retrieval_grid(images, np.array([0]), np.array(neighbors), np.ones_like(neighbors, dtype=bool))


def test_easy_and_hard_queries_are_told_apart():
    """On a line: class 0 is apart and tight, class 1 tight, class 2 torn in two by class 1, class 3 alone."""
    rows = np.array([[-90.0], [-89.9], [0.0], [1.0], [-3.0], [3.0], [50.0]])
    labels = np.array([0, 0, 1, 1, 2, 2, 3])
    chosen = select_queries(rows, labels, count=3, seed=0)
    assert set(chosen.best[:1]) <= {0, 1}
    assert labels[chosen.best].tolist() == [0, 1, 2]
    assert labels[chosen.worst].tolist() == [2, 1, 0]
    assert sorted(labels[chosen.random]) == [0, 1, 2]
    assert np.array_equal(chosen.random, select_queries(rows, labels, count=3, seed=0).random)
    assert len(select_queries(rows, labels, count=99, seed=0).worst) == 6
