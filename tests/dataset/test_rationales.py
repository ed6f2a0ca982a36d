"""Rationales: true boxes, the right conclusion, no letter, many words but short; and what others
write is put right by name or refused."""

import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from unireason_lib.boxes import Box2D
from unireason_lib.dataset.questions import FAMILIES, ask
from unireason_lib.dataset.rationales import (
    MAX_ROUNDS,
    Point,
    Rationale,
    TemplateWriter,
    anchor,
    conclusion,
    verify,
)
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
KINDS = {kind for kinds in FAMILIES.values() for kind in kinds}


@pytest.fixture(scope="module")
def asked():
    """(question, view) of every kind, in 2D and 3D."""
    studies = (make(k) for k in range(120) for make in (phantom_slice, phantom))
    views = [View(study, (8, 64, 64), None, FRAME) for study in studies]
    return [(q, view) for view in views for q in ask(view)]


@pytest.mark.parametrize("length", ["short", "long"])
def test_templates_are_true_and_come_to_the_answer(asked, length):
    writer, kinds = TemplateWriter(length), defaultdict(set)
    for question, view in asked:
        rationale = writer.write(question, view)
        assert verify(rationale, question, view) == [], rationale.text
        pointed = sorted(p.structure for p in rationale.points)
        assert pointed == sorted(s.name for s in question.evidence)
        assert not re.search(r"[{}\0]|  | \.|\b[BCD]\b|[(]A[)]|\bA\.", rationale.text)
        assert not re.search(r"\b(I|picture|my|me|we)\b", rationale.words)
        assert re.fullmatch(r"[A-Z[<].*\.", rationale.text), rationale.text
        # a measure only where the question states the spacing
        assert "mm" in question.text or not re.search(r"\bmm\b", rationale.words)
        kinds[question.dimension].add(question.kind)
    assert kinds == {"2d": KINDS - {"level"}, "3d": KINDS}


def simple():
    """A question about two structures and its view."""
    labels = np.zeros((64, 96), np.uint8)
    labels[5:20, 5:25], labels[30:50, 60:80] = 1, 2
    about = {"id": "s", "patient": "p", "source": "made", "modality": "CT", "directions": "LP"}
    scan = np.random.default_rng(0).normal(0, 100, labels.shape)
    study = Study.from_labels(labels, {1: "liver", 2: "spleen"}, scan=scan, **about)
    view = View(study, frame=FRAME)
    return ask(view, families=["spatial relationship"])[0], view


def test_verify_names_every_flaw():
    question, view = simple()

    def flaws(*parts):
        return {reason.split(":")[0] for reason in verify(Rationale(parts), question, view)}

    points = [Point(s.name, view.box(s)) for s in question.evidence]
    end = f" Therefore {question.truth.lower()}."
    wrong = next(text for letter, text in question.options.items() if letter != question.answer)
    assert flaws(*points, end) == set()
    assert flaws() == {"empty", "evidence", "conclusion"}
    assert flaws(points[0], end) == {"evidence"}
    (one, box), (two, other) = ((p.structure, p.box) for p in points)
    assert flaws(points[0], Point(two, replace(other, x1=other.x1 + 1)), end) == {"box"}
    assert flaws(*points, Point("stomach", box), end) == {"box"}
    assert flaws(Point(one, other), Point(two, box), end) == {"box"}
    for text, expected in {
        f" Therefore {wrong}.": {"conclusion"},
        " Therefore something else.": {"conclusion"},
        f"{end} Or {wrong}?": {"conclusion"},
        f" It is not {wrong}.{end}": set(),
        f" So the answer is B,{end}": {"letter"},
        f" It is (C).{end}": {"letter"},
        f" D) fits.{end}": {"letter"},
        f" A dark area, vitamin D, vertebra C3 and grade B.{end}": set(),
        f" <|box_start|>[1,2,3,4]<|box_end|>{end}": {"token"},
        f"</think>{end}": {"token"},
    }.items():
        assert flaws(*points, text) == expected, text
    assert flaws(*points * (MAX_ROUNDS // 2 + 1), end) == {"points"}


def test_conclusion_is_the_option_named_last():
    options = {"A": "Left kidney", "B": "Kidney", "C": "None", "D": "About 62 mm"}
    for text, letter in {
        "None of it: the left kidney.": "A",
        "left kidney, or rather the kidney": "B",
        "So: ABOUT 62 MM!": "D",
        "nonetheless about 162 mm": None,
        "": None,
    }.items():
        assert conclusion(text, options) == letter


BOXES = {
    "liver": ("liver", Box2D(1, 2, 30, 40)),
    "left kidney": ("left kidney", Box2D(50, 20, 60, 35)),
    "kidney": ("kidney", Box2D(70, 20, 80, 35)),
    "nodule 2": ("nodule", Box2D(5, 5, 9, 9)),
}


def parts_of(text, **more):
    anchored = anchor(text, BOXES, **more)
    return anchored.parts, anchored.repairs, anchored.problems


WRITTEN = ["[9, 9, 12, 12]", "(9,9,12,12)", "[1.5,2,3.25,4]", "[1,2,3,4,5,6]"]
WRITTEN += [f"<|box_start|>{inside}<|box_end|>" for inside in ("[9,9,12,12]", "[9,9,12]", "here")]


@pytest.mark.parametrize("written", WRITTEN)
def test_altered_coordinates_are_repaired_by_the_name_before_them(written):
    parts, repairs, problems = parts_of(f"Liver and spine. The left kidney {written} is small.")
    assert Point("left kidney", Box2D(50, 20, 60, 35)) in parts and len(parts) == 3
    assert len(repairs) == 1 and "left kidney" in repairs[0] and problems == ()
    assert not re.search(r"\d", "".join(p for p in parts if isinstance(p, str)))


FLAWED = {
    "Something at [9,9,12,12].": "invented",
    "A mass <|box_start|>[9,9,12,12]<|box_end|>.": "invented",
    "The liver [[liver]] and then [9,9,12,12].": "invented",  # the name belongs to the tag before
    "The spleen [[spleen]].": "unknown",
    "The liver <|box_start|>[1,2,30,40] is large": "tags",
    "The liver is large <|box_end|>": "tags",
}


@pytest.mark.parametrize("text", FLAWED)
def test_what_cannot_be_repaired_is_a_problem(text):
    parts, _, problems = parts_of(text)
    assert FLAWED[text] in {p.split(":")[0] for p in problems}
    assert not any("[9,9" in p for p in parts if isinstance(p, str))
