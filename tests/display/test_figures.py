"""Figures: boxes lie where they belong, numbers are those given, text is plain and readable."""

import numpy as np
import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset import phantom_slice
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.view import View
from unireason_lib.display import (
    pipeline_figure,
    plot_intervals,
    plot_lines,
    show_images,
    show_record,
    show_slices,
    show_trace,
)
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame, Volume, serialize

CUBOID = Box3D(4, 6, 2, 20, 30, 5)
LONG = "a condition whose name is so long that it does not fit on one line"
CHARTS = {
    "lines": lambda: plot_lines(
        {"one": [(1, 2.0), (2, 3.0)], "two": [(1, 1.0)]},
        "step",
        "loss",
        reference=("costs $5 and $6", 2.5),
    ),
    "intervals": lambda: plot_intervals(
        {"images": {LONG: (40, 30, 50), "b": (2, 1, 3)}, "blank": {"b": (25, 20, 30)}},
        "right, %",
        reference=("chance", 25),
        dots={"images": {"b": [1.5, 2.5]}},
    ),
    "pipeline": lambda: pipeline_figure("grounded interface"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_readable_described_and_the_same_each_time(name, clean):
    clean(CHARTS[name]())
    png, metadata = CHARTS[name]()._repr_png_()
    assert png.startswith(b"\x89PNG") and metadata["alt"]
    assert png == CHARTS[name]()._repr_png_()[0]


def test_what_is_drawn_is_what_was_given(clean):
    (axes,) = CHARTS["intervals"]().axes
    ends = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert {(30, 50), (1, 3), (20, 30)} <= set(ends)
    assert "40  (30 to 50)" in [text.get_text().strip() for text in axes.texts]
    figure = clean(plot_lines({"$x_1$": [(0, 1)], "b": [(1, 1)]}, "a $ b $", "y"))
    (label, _) = figure.legends[0].get_texts()
    assert label.get_text() == "$x_1$" and not label.get_parse_math()


def rectangles(axes):
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches]


def test_a_half_open_box_lies_around_its_pixels_and_on_its_slices_only(slices, clean):
    figure = clean(show_slices(slices, {"liver": CUBOID, "cyst": Box2D(0, 0, 9, 9)}))
    drawn = {z: rectangles(axes) for z, axes in enumerate(figure.axes)}
    assert [z for z in drawn if (3.5, 5.5, 16, 24) in drawn[z]] == [2, 3, 4]
    assert [z for z in drawn if (-0.5, -0.5, 9, 9) in drawn[z]] == [0]
    assert "1  liver" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_directions_are_written_on_every_slice_where_they_are_known():
    def letters(axes):
        return {text.get_text() for text in axes.texts} & set("RLAPSI")

    array, affine = np.arange(512.0).reshape(8, 8, 8), np.diag([-1.0, -2, 1, 1])
    figure = show_slices(serialize(Volume(array, affine), (4, 8, 16), "minmax"))
    assert [letters(axes) for axes in figure.axes] == [set("RLAP")] * 4
    assert {axes.get_aspect() for axes in figure.axes} == {4}, "2 mm high, half a mm wide"
    assert "RLAP" in figure.alt
    unknown = show_slices(serialize(Volume(array, affine, "", False), (4, 8, 8), "minmax"))
    assert not any(map(letters, unknown.axes))
    planes = np.zeros((2, 8, 8), np.uint8)
    figure = show_images(planes, letters=["RLAP", "APSI"], aspects=[1, 0.5])
    assert [letters(axes) for axes in figure.axes] == [set("RLAP"), set("APSI")]


def test_numbers_of_boxes_on_one_place_stay_apart(slices, clean):
    boxes = [Box2D(5, 6, 25, 30), Box2D(5, 6, 25, 30), Box2D(5, 6, 26, 31)]
    named = dict(zip("abc", boxes, strict=True))
    clean(show_images(slices[:5], [named] * 5, ["a long title " * 5] * 5))
    figure = show_images(slices[:1], [[boxes[0], Box2D(90, 90, 99, 99)]])
    assert "2" not in [text.get_text() for text in figure.axes[0].texts], "outside of the image"


def test_a_name_has_one_colour_in_all_images(slices):
    box = Box2D(5, 6, 25, 30)
    figure = show_images(slices[:2], [{"true": box, "model": box}, {"model": box}])
    (_, model), (alone,) = ([patch.get_edgecolor() for patch in a.patches] for a in figure.axes[:2])
    assert model == alone


def test_what_cannot_be_drawn_is_refused():
    for draw, *wrong in (
        (plot_lines, {}, "x", "y"),
        (plot_intervals, {"a": {}}, "x"),
        (pipeline_figure, "cooking"),
        (show_slices, []),
        (show_slices, np.zeros((2, 4, 4))),
        (show_images, np.zeros((1, 4, 4), np.uint8), [["[1,2,3,4]"]]),
    ):
        with pytest.raises(RequestError):
            draw(*wrong)


def test_a_figure_of_a_reply_shows_boxes_crops_and_text(volume_trace, image_trace, slices, clean):
    figure = clean(show_trace(volume_trace, slices))
    assert figure.alt.startswith("Where is it?") and "A. left" in figure.alt
    (text,) = [text.get_text() for text in figure.texts]
    assert "[box 1: [10,8,2,26,24,5] +3 crops]" in text and "outside]" in text
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles.count("box 3: crop") == 4 and "slice 4 of 8" in titles
    clean(show_trace(image_trace.to_dict() | {"truth": "B"}, slices[:1]))
    long = clean(show_trace({"text": "word " * 900}, slices))
    assert long.texts[0].get_text().count("\n") == 30


def test_a_record_is_shown_as_the_reply_to_learn(clean):
    edges = None
    for scale in (None, 1000):
        view = View(phantom_slice(3), frame=ProcessorFrame(8, 2, 32**2, 128**2, scale=scale))
        question = next(question for question in ask(view, seed=0) if question.evidence)
        rationale = TemplateWriter().write(question, view)
        figure = clean(show_record(Record.make(view, question, rationale), view.images()))
        assert question.text in figure.alt
        drawn = [p.get_bbox().bounds for axes in figure.axes for p in axes.patches]
        edges = edges or drawn
        assert drawn and np.allclose(drawn, edges, atol=1)  # boxes lie where they lay
