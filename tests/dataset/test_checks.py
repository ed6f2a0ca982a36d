"""Checks: each kind of bad record is refused for its own reason, and good ones pass."""

from dataclasses import replace

import pytest

from unireason_lib.dataset.build import BuildConfig, SourceSpec
from unireason_lib.dataset.checks import REASONS, check_record, check_truth
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.shards import draft_of, finish
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice

OPTIONS = {"A": "the spleen", "B": "the liver", "C": "the heart", "D": "the stomach"}


def box(*coordinates):
    return f"<|box_start|>[{','.join(map(str, coordinates))}]<|box_end|>"


FAR = box(4, 4, 40, 300)


def replied(thought, ending="B. the liver"):
    return f"<think>{thought}</think>{ending}"


GOOD = replied(f"Here {box(4, 4, 40, 30)} I see it, beside {box(30, 2, 48, 20)}.")
BAD = {
    "answer that is no option": ({"answer": "E"}, "options"),
    "one option": ({"options": {"B": "the liver"}}, "options"),
    "two options alike": ({"options": {**OPTIONS, "C": "The  Liver"}}, "options"),
    "letters with a gap": ({"options": {"A": "x", "B": "the liver", "D": "y"}}, "options"),
    "control token in the question": ({"question": "What <|image_pad|> is it?"}, "control token"),
    "placeholder in the question": ({"question": "What <image> is it?"}, "control token"),
    "answer in the question": ({"question": "Is it the liver?"}, "answer leak"),
    "no thought": ({"reply": "B. the liver"}, "format"),
    "empty thought": ({"reply": replied(" ")}, "format"),
    "two thoughts": ({"reply": "<think>a</think><think>b</think>B. the liver"}, "format"),
    "other letter at the end": ({"reply": GOOD.replace("B. the", "A. the")}, "format"),
    "other text at the end": ({"reply": GOOD + "!"}, "format"),
    "box not closed": ({"reply": replied("Here <|box_start|>[4,4,40,30] it is.")}, "tags"),
    "box not opened": ({"reply": replied("Here [4,4,40,30]<|box_end|> it is.")}, "tags"),
    "reversed box": ({"reply": replied(f"Here {box(40, 4, 4, 30)} it is.")}, "tags"),
    "vision token": (
        {"reply": replied("Here <|vision_start|> it is."), "evidence": ()},
        "control token",
    ),
    "one number altered": ({"reply": GOOD.replace("[4,4,", "[4,5,")}, "boxes"),
    "box invented": ({"reply": GOOD.replace("</think>", f" {box(1, 1, 9, 9)}</think>")}, "boxes"),
    "box left out": ({"reply": replied(f"Here {box(4, 4, 40, 30)}.")}, "boxes"),
    "cuboid on an image": (
        {"reply": replied(box(1, 1, 0, 9, 9, 1)), "evidence": (("liver", (1, 1, 0, 9, 9, 1)),)},
        "rounds",
    ),
    "too many boxes": (
        {"reply": replied(box(1, 1, 9, 9) * 11), "evidence": (("liver", (1, 1, 9, 9)),) * 11},
        "rounds",
    ),
    "box outside": ({"reply": replied(FAR), "evidence": (("liver", (4, 4, 40, 300)),)}, "crop"),
    "concludes otherwise": (
        {"reply": GOOD.replace("</think>", " The answer is C.</think>")},
        "contradiction",
    ),
}


@pytest.mark.parametrize("changes, reason", BAD.values(), ids=BAD)
def test_a_bad_record_is_refused_for_its_reason(changes, reason, image_record):
    assert image_record().reply == GOOD and check_record(image_record()) is None
    found = check_record(image_record(**changes))
    assert found is not None and found[0] == reason and reason in REASONS and found[1]


@pytest.mark.parametrize(
    "cuboid, reason",
    [((2, 8, 1, 30, 40, 7), "crop"), ((2, 8, 6, 30, 40, 7), "crop"), ((2, 8, 30, 40), "rounds")],
    ids=["one slice too deep", "beyond the slices", "rectangle"],
)
def test_boxes_of_a_volume_lie_on_its_slices(cuboid, reason, volume_record):
    assert check_record(volume_record()) is None
    bad = volume_record(
        reply=f"<think>There {box(*cuboid)}.</think>D. Right, back", evidence=(("liver", cuboid),)
    )
    assert check_record(bad)[0] == reason


@pytest.fixture(params=[phantom, phantom_slice], ids=["3d", "2d"])
def made(request, view_of, frame):
    """A study's view, its questions and their records."""
    study = request.param(3)
    config = BuildConfig((SourceSpec("phantom"),), size=(8, 64, 64), frame=frame)
    view = view_of(study)
    questions = {question.id: question for question in ask(view)}
    records, _ = finish(draft_of(config, study), TemplateWriter())
    assert len(records) >= 4
    return view, questions, records


def test_a_box_moved_by_one_pixel_or_given_to_another_structure_is_noticed(made):
    view, questions, records = made
    tried = 0
    for record in records:
        question = questions[record.id]
        for k, (name, coordinates) in enumerate(record.evidence):
            moved = (coordinates[0] + 1, *coordinates[1:])
            other = next(s.name for s in view.study.structures if s.name != name)
            for entry in ((name, moved), (other, coordinates)):
                evidence = (*record.evidence[:k], entry, *record.evidence[k + 1 :])
                problem = check_truth(replace(record, evidence=evidence), view, question)
                assert problem[0] == "untrue box"
                tried += 1
    assert tried >= 8


def test_evidence_without_a_box_is_noticed(made):
    view, questions, records = made
    pointing = [record for record in records if questions[record.id].evidence]
    assert pointing
    for record in pointing:
        problem = check_truth(replace(record, evidence=()), view, questions[record.id])
        assert problem[0] == "evidence"
