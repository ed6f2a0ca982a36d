"""Cards of questions and records, on a phantom whose boxes are known."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from unireason_lib.boxes import Box3D
from unireason_lib.dataset import phantom, phantom_slice
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.view import View
from unireason_lib.display import show_questions, show_record, show_replies
from unireason_lib.display.question_figures import _slices
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(8, 2, 96 * 96, 128 * 128)  # shows 64 x 64 pixels at 96 x 96


@pytest.fixture(scope="module", params=["2d", "3d"])
def asked(request):
    study = phantom_slice(3) if request.param == "2d" else phantom(3)
    view = View(study, (8, 64, 64), frame=FRAME)
    return ask(view, per_family=2), view


def drawn_boxes(axes):
    return [
        (patch.get_x() + 0.5, patch.get_y() + 0.5, patch.get_width(), patch.get_height())
        for patch in axes.patches
        if isinstance(patch, Rectangle) and not patch.get_fill()
    ]


def test_every_box_of_the_evidence_is_drawn_where_the_model_will_write_it(asked, clean_layout):
    questions, view = asked
    question = next(q for q in questions if len(q.evidence) == 2)
    figure = show_questions([question], [view], columns=1)
    pictures = [axes for axes in figure.axes if axes.images]
    assert pictures[0].images[0].get_size() == (96, 96)
    found = {box for axes in pictures for box in drawn_boxes(axes)}
    written = [view.box(structure) for structure in question.evidence]
    assert found == {(box.x1, box.y1, box.width, box.height) for box in written}
    clean_layout(figure)


def test_the_card_says_all_and_sets_the_right_option_in_bold(asked, clean_layout):
    questions, view = asked
    figure = show_questions(questions, [view] * len(questions))
    texts = [text for axes in figure.axes for text in axes.texts]
    words = " ".join(text.get_text() for text in texts)
    for question in questions:
        assert question.family in words and question.text.split()[-1] in words
    question = questions[0]
    figure = show_questions([question], [view])
    bold = [
        t.get_text() for axes in figure.axes for t in axes.texts if t.get_fontweight() == "bold"
    ]
    line = f"{question.answer}. {question.truth}"
    assert any(line.startswith(text) for text in bold)
    others = [f"{k}. {v}" for k, v in question.options.items() if k != question.answer]
    assert not any(other.startswith(text) for other in others for text in bold)
    clean_layout(figure)


def test_slices_are_those_where_the_evidence_lies():
    here, there = Box3D(0, 0, 1, 4, 4, 4), Box3D(0, 0, 2, 4, 4, 6)
    assert _slices([here, there], 8) == [3]
    apart = Box3D(0, 0, 6, 4, 4, 7)
    assert _slices([here, apart], 8) == [2, 6]
    assert _slices([], 8) == [4] and _slices([], 1) == [0]


def test_a_record_is_shown_with_the_crops_that_its_boxes_fetch(asked, clean_layout):
    questions, view = asked
    question = next(q for q in questions if len(q.evidence) == 1)
    writer = TemplateWriter()
    record = Record.make(view, question, writer.write(question, view), writer=writer.name)
    figure = show_record(record, view.images())
    box = record.boxes[0]
    shapes = [axes.images[0].get_size() for axes in figure.axes if axes.images]
    crop = (int(max(4, box.height)), int(max(4, box.width)))
    assert shapes.count(crop) == (box.depth if isinstance(box, Box3D) else 1)
    clean_layout(figure)


def test_questions_without_views_are_refused(asked):
    questions, view = asked
    with pytest.raises(RequestError):
        show_questions(questions, [view])
    with pytest.raises(RequestError):
        show_questions([], [])


def reply(**more):
    """A line of an evaluation about one picture of 64 x 64 pixels."""
    said = {
        "id": "q",
        "family": "lesion analysis",
        "question": "What is it?",
        "options": {"A": "liver", "B": "spleen"},
        "truth": "A",
        "prediction": "B",
        "boxes": [[4, 6, 20, 30]],
        "truth_boxes": [["lesion", [10, 6, 26, 30]]],
        "iou_best": 0.45,
    }
    return said | more


def test_a_card_of_a_reply_shows_both_boxes_the_right_option_and_the_chosen_one(clean_layout):
    picture = np.full((64, 64), 90, np.uint8)
    figure = show_replies(
        [reply(), reply(prediction=None, boxes=[], iou_best=None)], [[picture]] * 2
    )
    first, second = (axes for axes in figure.axes if axes.images)
    assert set(drawn_boxes(first)) == {(10, 6, 16, 24), (4, 6, 16, 24)}
    assert drawn_boxes(second) == [(10, 6, 16, 24)]
    words = [text for axes in figure.axes for text in axes.texts]
    bold = {text.get_text() for text in words if text.get_fontweight() == "bold"}
    assert "A. liver" in bold and "B. spleen" not in bold
    said = [text.get_text() for text in words]
    assert "written, IoU 0.45" in said and said.count("chosen") == 1
    assert (
        "no option chosen" in said and "no box written" in said and said.count("true: lesion") == 2
    )
    clean_layout(figure)


def test_a_reply_about_a_volume_is_shown_where_its_boxes_lie(clean_layout):
    line = reply(boxes=[[4, 6, 5, 20, 30, 7]], truth_boxes=[["lesion", [10, 6, 1, 26, 30, 3]]])
    figure = show_replies([line], [[np.full((64, 64), 20 * z, np.uint8) for z in range(8)]])
    pictures = [axes for axes in figure.axes if axes.images]
    assert [drawn_boxes(axes) for axes in pictures] == [[(10, 6, 16, 24)], [(4, 6, 16, 24)]]
    clean_layout(figure)


def test_lines_without_a_reply_or_pictures_are_refused():
    picture = [np.zeros((64, 64), np.uint8)]
    failed = {
        "id": "q",
        "question": "?",
        "options": {},
        "error": {"type": "ScanError", "message": "broken"},
    }
    for lines, pictures in (([], []), ([reply()], []), ([failed], [picture])):
        with pytest.raises(RequestError, match="show_replies"):
            show_replies(lines, pictures)
