"""Rationales: they point at true boxes, come to the answer, say no letter, are many and short; and what others write is
put right by name or refused."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.dataset.questions import FAMILIES, ask
from unireason_lib.dataset.rationales import (
    COUNTED,
    ENDINGS,
    FINDINGS,
    NAMED,
    OPENINGS,
    POINTING,
    SEARCHED,
    WEIGHED,
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


@pytest.fixture(scope="module")
def asked():
    """(question, view) of every kind, in 2D and 3D, with boxes in pixels and in percent."""
    items = []
    for k in range(90):
        for study in (phantom_slice(k), phantom(k)):
            view = View(study, (8, 64, 64), None, FRAME)
            items += [(q, view) for q in ask(study, view=view if k % 2 else None)]
    return items


@pytest.mark.parametrize("length", ["short", "long"])
def test_templates_are_true_and_come_to_the_answer(asked, length):
    writer = TemplateWriter(length)
    kinds = Counter()
    for question, view in asked:
        rationale = writer.write(question, view)
        assert verify(rationale, question, view) == [], rationale.text
        assert rationale.words.casefold().rstrip(".").endswith(question.truth.casefold())
        assert [p.structure for p in rationale.points] == [s.name for s in question.evidence] or sorted(
            p.structure for p in rationale.points
        ) == sorted(s.name for s in question.evidence)
        assert all(p.box == view.box(view.study.find(p.structure)) for p in rationale.points)
        assert len(rationale.points) <= 3 and "{" not in rationale.text and "\0" not in rationale.text
        assert not re.search(r"\b[BCD]\b|[(]A[)]|\bA\.", rationale.words)
        assert "  " not in rationale.text and " ." not in rationale.text
        kinds[question.facts["kind"]] += 1
    assert len(kinds) >= 19, kinds


TEXTURE_SHOWN = {
    "vertically striped": "columns|top to bottom|upright",
    "horizontally striped": "rows alternate|run across|lying",
    "checkered": "squares|chessboard",
    "mottled": "spots",
}


def compared(text: str) -> list[str]:
    """What the numbers of a text come to: the word behind every "so", if it follows from the numbers before it."""
    found = []
    for numbers, word in re.findall(r"((?:[^;:.,]|\.\d)*), so (\w+)", text):
        numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", re.sub("cm[23]", "", numbers))][-2:]
        one, other = numbers if len(numbers) == 2 else (*numbers, 50)
        assert (one > other) == (word in ("more", "left", "posterior", "superior")), text
        found.append(word)
    return found


def test_finding_says_what_was_measured_before_the_conclusion(asked):
    """The reasoning entails the answer: what decides it stands there before the option does."""
    writer = TemplateWriter()
    for question, view in asked:
        words = writer.write(question, view).words
        before = words[: words.casefold().rindex(question.truth.casefold())]
        facts, kind = question.facts, question.facts["kind"]
        if kind in ("relation", "quadrant", "place"):
            assert all(side in before for side in facts["sides"])
        if kind in ("relation", "quadrant", "place"):
            assert compared(before) == facts["sides"], before
        if kind in ("largest", "smallest"):
            assert all(size in before for size in facts["sizes"])
        if kind == "ratio":
            assert all(size in before for size in facts["sizes"]) and WEIGHED[facts["class"]] in before
            one, other = (float(size.split()[0]) for size in facts["sizes"])
            assert sum(one / other > border for border in (0.5, 1, 2)) == facts["class"]
        if kind == "extent":
            assert f"{facts['percent']} %" in before
        if kind == "cell":
            assert f"{facts['across']} %" in before and f"{facts['down']} %" in before
        if kind == "present" and question.evidence[0].kind == "lesion":
            text = writer.write(question, view).text  # where it is decides which it is
            assert text.index("<|box_end|>") < text.index(facts["names"][0])
        elif kind in ("present", "absent", "pair"):
            assert all(name in before.lower() for name in (*facts["names"], *facts["absent"]))
        if kind == "texture":
            assert re.search(TEXTURE_SHOWN[facts["texture"]], before)
        if kind == "density":
            shown = {"hypodense": "dark|less dense", "hyperdense": "bright|denser"}[facts["density"]]
            assert re.search(shown, before)


def test_templates_are_many(asked):
    for length in ("short", "long"):
        texts = [TemplateWriter(length).write(*item).words for item in asked]
        assert len(set(texts)) > 0.97 * len(texts)
        beginnings = Counter(text[:12] for text in texts)
        assert max(beginnings.values()) < 0.3 * len(texts)
    # for one and the same question, other seeds give hundreds of texts
    by_kind = {q.facts["kind"]: (q, v) for q, v in asked}
    for kind, (question, view) in by_kind.items():
        texts = {TemplateWriter("short", seed).write(question, view).text for seed in range(300)}
        possible = len(set(OPENINGS["short"])) * len(ENDINGS) * 4
        assert len(texts) > min(150, 0.3 * possible), (kind, len(texts))
    assert all(len(set(found)) >= 4 for found in FINDINGS.values())
    assert all(len(set(found)) >= 6 for found in POINTING.values()) and len(set(NAMED)) >= 6
    assert all(len(set(found)) >= 4 for table in (COUNTED, SEARCHED) for found in table.values())


def test_short_is_short_and_long_is_longer(asked):
    words = {
        d: [len(TemplateWriter(d).write(*item).words.split()) for item in asked] for d in ("short", "long")
    }
    assert np.mean(words["short"]) < 32 and max(words["short"]) <= 60
    assert 1.25 * np.mean(words["short"]) < np.mean(words["long"]) and max(words["long"]) <= 90


def test_a_template_follows_from_seed_and_question_only(asked):
    question, view = asked[5]
    assert TemplateWriter().write(question, view) == TemplateWriter().write(question, view)
    texts = {TemplateWriter(seed=s).write(question, view).text for s in range(20)}
    assert len(texts) > 10
    assert TemplateWriter().name == "template-short" and TemplateWriter("long").name == "template-long"


def test_every_family_is_written_on_both_lengths(asked):
    families = defaultdict(set)
    for question, view in asked:
        families[question.dimension].add(question.family)
        assert isinstance(TemplateWriter().write(question, view).parts, tuple)
    assert families == {"2d": set(FAMILIES), "3d": set(FAMILIES)}


def test_text_of_a_rationale():
    box = Box2D(1, 2, 30, 40)
    rationale = Rationale(("The liver ", Point("liver", box), " is large."))
    assert rationale.text == f"The liver {format_box(box)} is large."
    assert rationale.words == "The liver  is large." and rationale.points == (Point("liver", box),)


# --- checks -------------------------------------------------------------------------------------------------------


def simple():
    """A question about two structures and its rationale."""
    masks = []
    for k, (x1, y1, x2, y2) in enumerate(((5, 5, 25, 20), (60, 30, 80, 50))):
        mask = np.zeros((64, 96), bool)
        mask[y1:y2, x1:x2] = True
        masks.append((("liver", "spleen")[k], mask))
    study = Study.from_masks(
        masks,
        scan=np.zeros((64, 96)),
        id="s",
        patient="p",
        source="made",
        modality="CT",
        directions="LP",
        spacing=(1.0, 1.0),
    )
    view = View(study, frame=FRAME)
    asked = (ask(study, families=["spatial relationship"], seed=seed)[0] for seed in range(40))
    question = next(q for q in asked if q.facts["kind"] == "relation")
    return question, view


def test_verify_names_every_flaw():
    question, view = simple()
    good = TemplateWriter().write(question, view)
    assert verify(good, question, view) == []

    def flaws(*parts):
        return {reason.split(":")[0] for reason in verify(Rationale(parts), question, view)}

    points = [Point(s.name, view.box(s)) for s in question.evidence]
    end = f" Therefore {question.truth.lower()}."
    wrong = next(text for letter, text in question.options.items() if letter != question.answer)
    assert flaws(*points, end) == set()
    assert flaws() == {"empty", "evidence", "conclusion"}
    assert flaws(points[0], end) == {"evidence"}
    moved = replace(points[1].box, x1=points[1].box.x1 + 1)
    assert flaws(points[0], Point("liver", points[0].box), Point(points[1].structure, moved), end) >= {"box"}
    assert flaws(points[0], points[1], Point("stomach", points[0].box), end) == {"box"}
    swapped = [Point(points[0].structure, points[1].box), Point(points[1].structure, points[0].box)]
    assert flaws(*swapped, end) == {"box"}
    assert flaws(*points, f" Therefore {wrong}.") == {"conclusion"}
    assert flaws(*points, " Therefore something else.") == {"conclusion"}
    assert flaws(*points, f"{end} Or {wrong}?") == {"conclusion"}
    assert flaws(*points, f" It is not {wrong}.{end}") == set()
    assert flaws(*points, f" So the answer is B,{end}") == {"letter"}
    assert flaws(*points, f" It is (C).{end}") == {"letter"}
    assert flaws(*points, f" D) fits.{end}") == {"letter"}
    assert flaws(*points, f" A dark area, vitamin D, vertebra C3 and grade B.{end}") == set()
    assert flaws(*points, f" <|box_start|>[1,2,3,4]<|box_end|>{end}") == {"token"}
    assert flaws(*points, f"</think>{end}") == {"token"}
    assert flaws(*points * 6, end) == {"points"}


def test_conclusion_is_the_option_named_last():
    options = {"A": "Left kidney", "B": "Kidney", "C": "None", "D": "About 62 mm"}
    assert conclusion("None of it: the left kidney.", options) == "A"
    assert conclusion("left kidney, or rather the kidney", options) == "B"
    assert conclusion("nonetheless about 162 mm", options) is None
    assert conclusion("So: ABOUT 62 MM!", options) == "D"
    assert conclusion("", options) is None


BOXES = {
    "liver": ("liver", Box2D(1, 2, 30, 40)),
    "left kidney": ("left kidney", Box2D(50, 20, 60, 35)),
    "kidney": ("kidney", Box2D(70, 20, 80, 35)),
    "nodule 2": ("nodule", Box2D(5, 5, 9, 9)),
}


def parts_of(text, **more):
    found = anchor(text, BOXES, **more)
    return found.parts, found.repairs, found.problems


def test_tags_become_true_points():
    parts, repairs, problems = parts_of(
        "The liver [[liver]] lies above the [[ Left Kidney ]]; a spot [[the nodule 2]]."
    )
    assert parts == (
        "The liver ",
        Point("liver", Box2D(1, 2, 30, 40)),
        " lies above the ",
        Point("left kidney", Box2D(50, 20, 60, 35)),
        "; a spot ",
        Point("nodule", Box2D(5, 5, 9, 9)),
        ".",
    )
    assert repairs == problems == ()


@pytest.mark.parametrize(
    "written",
    [
        "<|box_start|>[9,9,12,12]<|box_end|>",
        "[9, 9, 12, 12]",
        "(9,9,12,12)",
        "<|box_start|>[9,9,12]<|box_end|>",
        "<|box_start|>here<|box_end|>",
        "[1.5,2,3.25,4]",
        "[1,2,3,4,5,6]",
    ],
)
def test_altered_coordinates_are_repaired_by_the_name_before_them(written):
    parts, repairs, problems = parts_of(f"Liver and spine. The left kidney {written} is small.")
    assert Point("left kidney", Box2D(50, 20, 60, 35)) in parts and len(parts) == 3
    assert len(repairs) == 1 and "left kidney" in repairs[0] and problems == ()
    assert not re.search(r"\d", "".join(p for p in parts if isinstance(p, str)))


def test_true_coordinates_need_no_repair():
    parts, repairs, problems = parts_of(f"The kidney {format_box(BOXES['kidney'][1])} and [1,2,30,40].")
    assert [p.structure for p in parts if isinstance(p, Point)] == ["kidney", "liver"]
    assert repairs == problems == ()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Something at [9,9,12,12].", "invented"),
        ("A mass <|box_start|>[9,9,12,12]<|box_end|>.", "invented"),
        ("The liver [[liver]] and then [9,9,12,12].", "invented"),  # the name belongs to the tag before
        ("The spleen [[spleen]].", "unknown"),
        ("The liver <|box_start|>[1,2,30,40] is large", "tags"),
        ("The liver is large <|box_end|>", "tags"),
    ],
)
def test_what_cannot_be_repaired_is_a_problem(text, reason):
    parts, _, problems = parts_of(text)
    assert problems and {p.split(":")[0] for p in problems} >= {reason}
    assert not any("[9,9" in p for p in parts if isinstance(p, str))


def test_options_may_be_quoted():
    parts, _, problems = parts_of("The liver [[liver]] fits [9,9,12,12].", quotes=["[9,9,12,12]"])
    assert problems == () and parts[-1] == " fits [9,9,12,12]."


def test_cuboids_and_hostile_texts():
    cuboid = Box3D(1, 2, 3, 4, 5, 6)
    found = anchor("Here [[liver]] and (1,2,3,4,5,6)", {"liver": ("liver", cuboid)})
    assert [p.box for p in found.parts if isinstance(p, Point)] == [cuboid, cuboid]
    for hostile in (
        "[" * 5000,
        "<|box_start|>" * 2000,
        "[[" + "a" * 5000,
        "(1," * 5000,
        "[[liver" * 900,
        "liver " * 5000 + "[1,2,3,4]",
    ):
        anchor(hostile, BOXES)
