"""Checks: each kind of bad record is refused for its own reason, and good ones pass."""

from dataclasses import replace

import pytest

from unireason_lib.dataset.checks import problems_of
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice

from .conftest import box, image_record, volume_record

OPTIONS = {"A": "the spleen", "B": "the liver", "C": "the heart", "D": "the stomach"}


def replied(thought):
    return f"<think>{thought}: the liver.</think>B. the liver"


def at(*coordinates):
    return {"reply": replied(box(*coordinates)), "evidence": (("liver", coordinates),)}


GOOD = replied(f"Here {box(4, 4, 40, 30)}, beside {box(30, 2, 48, 20)}")
BAD = {
    "answer that is no option": ({"answer": "E"}, "options"),
    "two options alike": ({"options": {**OPTIONS, "C": "The  Liver"}}, "options"),
    "letters with a gap": ({"options": {"A": "x", "B": "the liver", "D": "y"}}, "options"),
    "control token in the question": ({"question": "What <|image_pad|> is it?"}, "control token"),
    "answer in the question": ({"question": "Is it the liver?"}, "answer leak"),
    "no thought": ({"reply": "B. the liver"}, "format"),
    "two thoughts": ({"reply": "<think>a</think><think>b</think>B. the liver"}, "format"),
    "other letter at the end": ({"reply": GOOD.replace(">B. the", ">A. the")}, "format"),
    "box not closed": ({"reply": replied("Here <|box_start|>[4,4,40,30] it is.")}, "tags"),
    "reversed box": ({"reply": replied(f"Here {box(40, 4, 4, 30)} it is.")}, "tags"),
    "vision token": ({"reply": replied("<|vision_start|>"), "evidence": ()}, "control token"),
    "one number altered": ({"reply": GOOD.replace("[4,4,", "[4,5,")}, "boxes"),
    "box invented": ({"reply": GOOD.replace("</think>", f" {box(1, 1, 9, 9)}</think>")}, "boxes"),
    "box left out": ({"reply": replied(f"Here {box(4, 4, 40, 30)}.")}, "boxes"),
    "cuboid on an image": (at(1, 1, 0, 9, 9, 1), "rounds"),
    "box outside": (at(4, 4, 40, 300), "crop"),
    "a letter": ({"reply": GOOD.replace("</think>", " The answer is C.</think>")}, "letter"),
    "concludes otherwise": ({"reply": GOOD.replace(".</", ", or the heart.</")}, "contradiction"),
    "no conclusion": ({"reply": GOOD.replace(": the liver", "")}, "contradiction"),
}


@pytest.mark.parametrize("changes, reason", BAD.values(), ids=BAD)
def test_a_bad_record_is_refused_for_its_reason(changes, reason):
    assert image_record().reply == GOOD and problems_of(image_record()) == []
    (found, detail), *_ = problems_of(image_record(**changes))
    assert found == reason and detail


@pytest.mark.parametrize(
    "cuboid, reason",
    [((2, 8, 1, 30, 40, 7), "crop"), ((2, 8, 6, 30, 40, 7), "crop"), ((2, 8, 30, 40), "rounds")],
    ids=["one slice too deep", "beyond the slices", "rectangle"],
)
def test_boxes_of_a_volume_lie_on_its_slices(cuboid, reason):
    assert problems_of(volume_record()) == []
    reply = f"<think>There {box(*cuboid)}: right, back.</think>D. Right, back"
    bad = volume_record(reply=reply, evidence=(("liver", cuboid),))
    assert problems_of(bad)[0][0] == reason


@pytest.fixture(params=[phantom, phantom_slice], ids=["3d", "2d"])
def made(request, view_of):
    """A study's view, its questions and their records."""
    view = view_of(request.param(3))
    pairs = [(q, Record.make(view, q, TemplateWriter().write(q, view))) for q in ask(view)]
    assert len(pairs) >= 4 and not any(problems_of(record, view, q) for q, record in pairs)
    return view, pairs


def test_untrue_boxes_and_evidence_without_a_box_are_noticed(made):
    view, pairs = made
    pairs = [(question, record) for question, record in pairs if record.evidence]
    assert len(pairs) >= 3
    for question, record in pairs:
        (name, (x, *rest)), *others = record.evidence
        other = next(s.name for s in view.study.structures if s.name != name)
        for entry in ((name, (x + 1, *rest)), (other, (x, *rest))):
            lied = replace(record, evidence=(entry, *others))
            assert "untrue box" in dict(problems_of(lied, view, question))
        silent = replace(record, evidence=())
        assert "evidence" in dict(problems_of(silent, view, question))
