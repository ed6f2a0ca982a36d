import numpy as np
import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset import phantom
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.view import View
from unireason_lib.display import (
    show_box,
    show_images,
    show_masks,
    show_questions,
    show_replies,
    show_slices,
)
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame, Volume, serialize

CUBOID = Box3D(4, 6, 2, 20, 30, 5)


def rectangles(axes):
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches]


def test_a_half_open_box_lies_around_its_pixels_and_on_its_slices_only(slices, clean):
    figure = clean(show_slices(slices, {"liver": CUBOID, "cyst": Box2D(0, 0, 9, 9)}))
    drawn = {z: rectangles(axes) for z, axes in enumerate(figure.axes)}
    assert [z for z in drawn if (3.5, 5.5, 16, 24) in drawn[z]] == [2, 3, 4]
    assert [z for z in drawn if (-0.5, -0.5, 9, 9) in drawn[z]] == [0]
    assert "liver" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_directions_are_written_where_they_are_known(slices):
    def letters(figure):
        return {text.get_text() for text in figure.axes[0].texts} & set("RLAP")

    array, affine = np.arange(512.0).reshape(8, 8, 8), np.diag([-1.0, -1, 1, 1])
    known = serialize(Volume(array, affine), (4, 8, 8), "minmax")
    assert letters(show_slices(known, only=[2])) == set("RLAP")
    assert not letters(
        show_slices(serialize(Volume(array, affine, "", False), (4, 8, 8), "minmax"))
    )
    assert letters(show_box(slices[0], CUBOID, orientation=True)) == set("RLAP")


def test_numbers_of_boxes_on_one_place_stay_apart(slices, clean):
    boxes = [Box2D(5, 6, 25, 30), Box2D(5, 6, 25, 30), Box2D(5, 6, 26, 31)]
    clean(show_box(slices[0], boxes, ["a", "b", "c"]))
    figure = show_box(slices[0], [boxes[0], Box2D(90, 90, 99, 99)])
    assert "2" not in [text.get_text() for text in figure.axes[0].texts], "outside of the image"
    clean(show_images(slices[:5], [boxes] * 5, ["a long title " * 5] * 5, foot={0: "one"}))


def test_masks_cover_their_pixels_and_must_fit(slices, clean):
    labels = np.zeros((40, 48), int)
    labels[10:20, 5:15] = 7
    figure = clean(show_masks(slices[:2], [labels, labels * 0], {7: "liver", 9: "absent"}))
    overlay = figure.axes[0].images[1].get_array()
    assert np.array_equal(overlay[..., 3] > 0, labels == 7) and len(figure.axes[1].images) == 1
    with pytest.raises(RequestError, match="label map"):
        show_masks(slices[:1], [labels[1:]], {7: "liver"})


def test_what_cannot_be_drawn_is_refused(slices):
    for wrong in (
        lambda: show_slices([]),
        lambda: show_slices(np.zeros((2, 4, 4))),
        lambda: show_slices(slices, only=[8]),
        lambda: show_slices(slices, [CUBOID], ["a", "b"]),
        lambda: show_box(slices[0], ["[1,2,3,4]"]),
        lambda: show_questions([], []),
        lambda: show_replies([{"id": "a", "error": "x"}], [slices]),
    ):
        with pytest.raises(RequestError):
            wrong()


def test_questions_show_the_right_option_and_the_evidence(clean):
    frame = ProcessorFrame(8, 2, 32**2, 128**2)
    view = View(phantom(902), (4, 64, 64), frame=frame)
    question = next(q for q in ask(view, seed=1) if len(q.evidence) == 2)
    figure = clean(show_questions([question], [view]))
    title = figure.axes[0].get_title(loc="left")
    assert f"✓ {question.answer}. " in title and title.count("✓") == 1
    assert all(f"{i} {s.name}" in title for i, s in enumerate(question.evidence, 1))


def test_replies_show_true_and_written_boxes(slices, clean):
    line = {"question": "Where?", "options": {"A": "left", "B": "right"}, "family": "spatial"}
    line |= {"truth": "A", "prediction": "B", "boxes": [[0, 0, 2, 9, 9, 4]], "iou_best": 0.25}
    line |= {"truth_boxes": [["liver", [4, 6, 2, 20, 30, 5]]]}
    failed = line | {"prediction": None, "boxes": [], "iou_best": float("nan"), "truth_boxes": []}
    figure = clean(show_replies([line, failed], [slices, slices]))
    assert rectangles(figure.axes[0]) == [(3.5, 5.5, 16, 24), (-0.5, -0.5, 9, 9)]
    title = figure.axes[0].get_title(loc="left")
    assert "✓ A. left" in title and "B. right ← chosen" in title and "IoU 0.25" in title
    assert "nan" not in figure.axes[1].get_title(loc="left")
