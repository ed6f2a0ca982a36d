import pytest

from unireason_lib.display import (
    pipeline_figure,
    plot_bars,
    plot_counts,
    plot_intervals,
    plot_lines,
)
from unireason_lib.display.charts import STEPS
from unireason_lib.display.colors import ACTIVE, LINE_COLORS
from unireason_lib.errors import RequestError

CURVES = {
    "everything encoded again": [(1, 2.0), (2, 3.0), (4, 5.5), (8, 10.0)],
    "cache kept": [(1, 1.0), (2, 1.1), (4, 1.3), (8, 1.7)],
}


def test_curves_are_the_numbers_given(clean_layout):
    figure = plot_lines(
        CURVES,
        "boxes",
        "seconds",
        band={"cache kept": [(0.9, 1.1), (1, 1.2), (1.2, 1.4), (1.5, 1.9)]},
    )
    axes = next(axes for axes in figure.axes if axes.get_xlabel() == "boxes")
    drawn = {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}
    assert drawn == CURVES
    assert len(axes.collections) == 1 and axes.get_ylim()[0] == 0
    assert [text.get_text() for text in figure.texts] == list(CURVES)
    clean_layout(figure)


def test_one_curve_needs_no_legend_and_shows_its_target(clean_layout):
    figure = plot_lines(
        {"cost": CURVES["cache kept"]},
        "slices",
        "s",
        target=2.0,
        log=True,
        title="Cost of one more box",
    )
    assert [text.get_text() for text in figure.texts] == ["Cost of one more box"]
    assert "target 2" in [text.get_text() for text in figure.axes[0].texts]
    clean_layout(figure)


def test_a_line_to_compare_with_is_drawn_and_named(clean_layout):
    figure = plot_lines({"2D": [(0, 0.3), (1, 0.9)]}, "step", "right", reference=("chance", 0.25))
    assert "chance" in [text.get_text() for text in figure.axes[0].texts]
    assert 0.25 in [line.get_ydata()[0] for line in figure.axes[0].lines]
    clean_layout(figure)


def test_long_curves_do_not_drown_in_markers():
    figure = plot_lines({"a": [(i, i % 7) for i in range(400)]}, "slice", "correlation")
    (line,) = figure.axes[0].lines
    assert len(line.get_xdata()) == 400 and line.get_markevery() == 20


def test_ticks_never_run_into_each_other(clean_layout):
    clean_layout(plot_lines({"a": [(0, 1), (1, 2), (2, 3), (1000, 4)]}, "x", "y"))


@pytest.mark.parametrize(
    "series, band",
    [
        ({}, None),
        ({"a": []}, None),
        ({"a": [(0, 1)]}, {"b": [(0, 1)]}),
        ({"a": [(0, 1)]}, {"a": []}),
    ],
)
def test_curves_without_points_are_refused(series, band):
    with pytest.raises(RequestError):
        plot_lines(series, "x", "y", band)


def test_bars_say_whether_they_reach_their_target(clean_layout):
    from matplotlib.colors import to_hex

    figure = plot_bars(
        {"fast": 5.6, "slow": 2.4, "free": 1.0}, "ratio", targets={"fast": 5, "slow": 3}, unit="x"
    )
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert words == ["5.6x  (target 5x)", "2.4x  (below 3x)", "1x"]
    colors = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert colors[:2] == list(LINE_COLORS[:2]) and colors[2] not in colors[:2]
    clean_layout(figure)
    with pytest.raises(RequestError):
        plot_bars({}, "ratio")


def test_bars_with_intervals(clean_layout):
    figure = plot_bars(
        {"3D only": 0.41, "2D + 3D": 0.58}, "accuracy", intervals={"2D + 3D": (0.53, 0.63)}
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.41", "0.58  (0.53 to 0.63)"]
    clean_layout(figure)


@pytest.mark.parametrize(
    "step", [None, *(name for _, name, _ in STEPS), "03", "Grounded Interface"]
)
def test_the_map_fills_the_present_step(step, clean_layout):
    from matplotlib.colors import to_hex

    figure = pipeline_figure(step)
    boxes = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_boxstyle")]
    filled = [i for i, patch in enumerate(boxes) if to_hex(patch.get_facecolor()) == ACTIVE]
    named = [
        i
        for i, (number, name, _) in enumerate(STEPS)
        if step and step.lower() in (number, name.lower())
    ]
    assert len(boxes) == len(STEPS) and filled == named
    clean_layout(figure)


def test_the_map_knows_its_steps():
    with pytest.raises(RequestError, match="grounded interface"):
        pipeline_figure("cooking")


def test_intervals_stand_in_the_row_and_at_the_value_they_belong_to(clean_layout):
    series = {
        "as they come": {"all": (58, 55, 61), "size comparison": (70, 60, 80)},
        "with a prior": {"all": (26, 23, 29)},
    }
    figure = plot_intervals(series, "right, %", reference=("chance", 25))
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel()]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["all", "size comparison"]
    lines = [tuple(map(tuple, line.get_xydata())) for line in axes.lines]
    spans = {(line[0][0], line[1][0], round(line[0][1])) for line in lines if len(line) == 2}
    assert {(55, 61, 0), (60, 80, 1), (23, 29, 0), (25, 25, 0)} >= spans - {(25, 25, 1)}
    assert {(55, 61, 0), (60, 80, 1), (23, 29, 0)} <= spans
    heights = {line[0][0]: line[0][1] for line in lines if len(line) == 2}
    assert heights[60] == 1 and heights[55] < 0 < heights[23], "alone in the middle, two around it"
    words = [text.get_text() for text in axes.texts]
    assert "26  (23 to 29)" in words and "chance" in words
    assert [text.get_text() for text in figure.texts] == list(series)
    clean_layout(figure)
    (signed,) = [
        a
        for a in plot_intervals({"x": {"a": (2, -0.04, 4)}}, "points", form="+.1f").axes
        if a.texts
    ]
    assert signed.texts[0].get_text() == "+2.0  (-0.0 to +4.0)"
    dotted = plot_intervals({"x": {"a": (2, 0, 4)}}, "points", dots={"x": {"a": (1, 2.5, 3)}})
    drawn = [list(line.get_xdata()) for axes in dotted.axes for line in axes.lines]
    assert [1, 2.5, 3] in drawn
    with pytest.raises(RequestError):
        plot_intervals({"nothing": {}}, "x")


def test_counts_are_bars_in_the_order_given(clean_layout):
    figure = plot_counts(
        {"letter": {"A": 12, "B": 0}, "words": {"0 to 10": 3, "10 to 20": 1234}, "one": {"x": 1}}
    )
    letters, words, _ = figure.axes
    assert [bar.get_width() for bar in letters.patches] == [12, 0]
    assert [text.get_text() for text in words.texts] == ["3", "1,234"]
    assert [tick.get_text() for tick in words.get_yticklabels()] == ["0 to 10", "10 to 20"]
    clean_layout(figure)
    with pytest.raises(RequestError):
        plot_counts({"letter": {}})


def test_a_logarithmic_x_axis_has_a_tick_at_every_point():
    sheet = plot_lines({"a": [(40, 1.0), (150, 2.0), (600, 3.0)]}, "volumes", "right", log_x=True)
    (axes,) = [axes for axes in sheet.axes if axes.lines]
    assert axes.get_xscale() == "log" and axes.get_xticks().tolist() == [40, 150, 600]
    sheet.canvas.draw()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["40", "150", "600"]
    assert not axes.get_xticks(minor=True).size
