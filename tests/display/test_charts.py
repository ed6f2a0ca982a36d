import pytest

from unireason_lib.display import (
    pipeline_figure,
    plot_bars,
    plot_counts,
    plot_intervals,
    plot_lines,
)
from unireason_lib.errors import RequestError

LONG = "a condition whose name is so long that it does not fit on one line"
CHARTS = {
    "lines": lambda: plot_lines(
        {"one": [(1, 2.0), (2, 3.0)], "two": [(1, 1.0)]},
        "step",
        "loss",
        {"one": [(1, 3), (2, 4)]},
        reference=("costs $5 and $6", 2.5),
        title="Loss",
    ),
    "log": lambda: plot_lines({"a": [(50, 1), (200, 2), (800, 4)]}, "volumes", "%", log_x=True),
    "intervals": lambda: plot_intervals(
        {"images": {LONG: (40, 30, 50), "b": (2, 1, 3)}, "blank": {"b": (25, 20, 30)}},
        "right, %",
        reference=("chance", 25),
        title="Accuracy",
        dots={"images": {"b": [1.5, 2.5]}},
    ),
    "bars": lambda: plot_bars(
        {"a": 12, "b": 90}, "%", targets={"a": 20}, intervals={"a": (10, 14)}, unit=" %"
    ),
    "counts": lambda: plot_counts({"letter": {"A": 3, LONG[:40]: 0}, "boxes": {0: 1}, "c": {1: 2}}),
    "pipeline": lambda: pipeline_figure("grounded interface"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_readable_described_and_the_same_each_time(name, clean):
    png, metadata = clean(CHARTS[name]())._repr_png_()
    assert png.startswith(b"\x89PNG") and metadata["alt"]
    assert png == CHARTS[name]()._repr_png_()[0]


def test_what_is_drawn_is_what_was_given():
    (axes,) = CHARTS["intervals"]().axes
    ends = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert {(30, 50), (1, 3), (20, 30), (1.5, 2.5)} <= set(ends)
    assert "40  (30 to 50)" in [text.get_text() for text in axes.texts]
    (axes,) = CHARTS["bars"]().axes
    assert [patch.get_width() for patch in axes.patches] == [12, 90]
    assert "12 %  (10 to 14)  (below 20 %)" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: plot_lines({}, "x", "y"),
        lambda: plot_lines({"a": [(0, 1)]}, "x", "y", {"a": []}),
        lambda: plot_intervals({"a": {}}, "x"),
        lambda: plot_bars({}, "x"),
        lambda: plot_counts({"a": {}}),
        lambda: pipeline_figure("cooking"),
    ],
)
def test_nothing_to_plot_is_refused(wrong):
    with pytest.raises(RequestError):
        wrong()


def test_dollar_signs_and_unknown_characters_are_plain_text(clean):
    figure = clean(plot_bars({"$x_1$ 漢\x1b": 1}, "a $ b $"))
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text() == "$x_1$ ▯▯" and not label.get_parse_math()
