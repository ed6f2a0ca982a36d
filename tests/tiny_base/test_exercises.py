"""The exercises of the tiny base: true, unambiguous, balanced, and nothing of the study in them."""

import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box2D, Box3D, parse_boxes
from unireason_lib.dataset.sources.phantom import LABELS
from unireason_lib.tiny_base.exercises import MAKERS, STAGES, exercise
from unireason_lib.tiny_base.shapes import NAMES, TEXTURES, draw
from unireason_lib.tiny_base.skills import STAGES as MEASURED


@pytest.fixture(scope="module")
def exercises():
    """Name -> exercises, from all stages."""
    found = defaultdict(list)
    for stage in STAGES:
        for k in range(500 if stage in MEASURED else 100):
            one = exercise(stage, k)
            found[one.name].append(one)
    return found


def options_of(one):
    return dict(re.findall(r"^([A-D])\. (.+)$", one.question, re.MULTILINE))


def chosen_text(one):
    return options_of(one)[one.letter].lower()


def test_a_box_is_that_of_the_pixels():
    for seed in range(40):
        scene = draw(random.Random(seed), count=1, textured=0.0)
        (shape,) = scene.shapes
        if np.median(scene.pixels[::63, ::63]) < 60:
            continue  # on a plate before a dark ground
        x1, y1, x2, y2 = (int(n) for n in shape.box.as_tuple())
        outside = np.delete(scene.pixels, slice(max(0, y1 - 3), y2 + 3), axis=0).astype(float)
        inside = scene.pixels[y1:y2, x1:x2].astype(float) - np.median(outside)
        assert inside.max() > 9 if shape.shade == "bright" else inside.min() < -9
        edges = [inside[0], inside[-1], inside[:, 0], inside[:, -1]]
        assert all(abs(edge).max() > 4 for edge in edges)  # blurred, and bent at a corner


def test_the_same_number_gives_the_same_exercise():
    def content(one):
        return one.question, one.reply, [scene.pixels.tobytes() for scene in one.images]

    for stage in STAGES:
        one = content(exercise(stage, 5))
        assert one == content(exercise(stage, 5))
        assert one != content(exercise(stage, 6)) and one != content(exercise(stage, 5, seed=1))


def test_every_exercise_comes_up(exercises):
    assert {*exercises} == {*MAKERS} == {name for stage in STAGES.values() for name in stage}


def test_nothing_of_the_study_is_in_them(exercises):
    study = {word for name in LABELS.values() for word in name.split()} - {"left", "right", "body"}
    study |= {"lesion", "patient", "slice", "slices", "volume", "axial", "scan", "CT", "organ"}
    for one in (one for several in exercises.values() for one in several):
        text = f"{one.question} {one.reply}"
        assert not study & set(re.findall(r"[A-Za-z]+", text)), (one.name, text)
        assert "<think>" not in text and not any(isinstance(b, Box3D) for b in parse_boxes(text))
        assert all(part["type"] == "text" for part in one.messages()[1]["content"])  # no crops


def test_letters_are_uniform_whatever_the_order_and_name_the_conclusion(exercises):
    asked = [one for several in exercises.values() for one in several if one.letter]
    for letter, n in Counter(one.letter for one in asked).items():
        assert abs(n / len(asked) - 0.25) < 4 * (0.1875 / len(asked)) ** 0.5, letter
    for one in asked:
        *before, last = one.reply.splitlines()
        options = options_of(one)
        assert len(set(options.values())) == 4 and last in one.question.splitlines()
        assert extract_choice(last) == one.letter
        said = before[-1] if before else one.question.splitlines()[-1]
        if before or one.name in ("letter", "letter behind images", "plain letter"):
            assert said.lower().endswith(f"{options[one.letter].lower()}.")


def test_letters_are_asked_at_any_distance_and_behind_images(exercises):
    far = [len(one.question.split("D. ")[1].split()) for one in exercises["letter"]]
    assert min(far) < 10 and max(far) > 80
    assert {len(one.images) for one in exercises["letter behind images"]} >= {1, 2, 3, 4, 5, 6}
    assert all(len(one.reply.splitlines()) == 6 for one in exercises["letters"])


def named_boxes(one):
    """Name -> box, as the question or the reply says them, in that order."""
    text = (one.question if not one.images else one.reply).lower()
    found = re.findall(r"(?:i see )?(the [a-z ]+?)(?: is at |: | at )\S*?\[([\d,]+)\]", text)
    return {name: Box2D(*map(int, numbers.split(","))) for name, numbers in found}


@pytest.mark.parametrize(
    "name", ["pairs", "numbers", "relation of boxes", "lengths of boxes", "length of box"]
)
def test_numbers_are_worked_out_where_they_stand(name, exercises):
    """Each statement about a pair of numbers is true, and at least one is in most replies."""
    checked = 0
    for one in exercises[name]:
        found = re.findall(r"(\d+) and (\d+): ([a-z ]*)(\d*)", one.reply)
        for a, b, word, number in ((int(a), int(b), word.strip(), n) for a, b, word, n in found):
            if word in ("less", "to the left", "above"):
                assert a < b
            elif word in ("greater", "to the right", "below"):
                assert a > b
            else:
                best = max(a, b) if "greatest" in one.question else min(a, b)
                true = {"difference": abs(a - b), "middle": (a + b) // 2, "": best}
                assert word not in true or true[word] == int(number)
        checked += bool(found)
    assert checked > len(exercises[name]) / 2 > 5


def true_relation(question, boxes):
    """Both edges of an axis lie on the same side: two numbers are compared, none are added."""
    names = re.search(r"where is (.+), seen from (.+)\?", question).groups()
    a, b = (boxes[name] for name in names)
    assert (a.x1 < b.x1) == (a.x2 < b.x2) and (a.y1 < b.y1) == (a.y2 < b.y2)
    across = "left" if a.x1 < b.x1 else "right"
    return f"{'above' if a.y1 < b.y1 else 'below'} and to the {across}"


def true_lengths(question, boxes):
    names = re.search(r"taller, (.+) or (.+)\?", question).groups()
    a, b = (boxes[name] for name in names)
    wider, taller = names[a.width < b.width], names[a.height < b.height]
    return f"{wider} is wider and {'taller' if wider == taller else f'{taller} taller'}"


def true_length(question, boxes):
    (box,) = boxes.values()
    return f"about {box.width if 'wide' in question else box.height:.0f} pixels"


def true_place(question, boxes):
    (x, y), n = next(iter(boxes.values())).center, re.search(r"of (\d) rows", question)
    width, height = map(int, re.search(r"(\d+) pixels wide and (\d+)", question).groups())
    if n is None:
        return f"{'upper' if y < height / 2 else 'lower'} {'left' if x < width / 2 else 'right'}"
    return f"row {int(y / height * int(n[1])) + 1}, column {int(x / width * int(n[1])) + 1}"


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("relation", true_relation),
        ("relation of boxes", true_relation),
        ("lengths", true_lengths),
        ("lengths of boxes", true_lengths),
        ("length", true_length),
        ("length of box", true_length),
        ("place of box", true_place),
    ],
)
def test_answers_follow_from_the_boxes(name, truth, exercises):
    boxed = [(one, boxes) for one in exercises[name] if (boxes := named_boxes(one))]
    assert len(boxed) > 15
    for one, boxes in boxed:
        assert chosen_text(one) == truth(one.question.lower(), boxes)


def test_answers_are_those_of_the_scene(exercises):
    """Names, textures, presence, number and boxes, looked up in the truth of the images."""
    for one in exercises["count"]:
        shade = re.search(r"How many (?:(dark|bright) )?shapes", one.question)[1]
        n = sum(shade in (None, shape.shade) for shape in one.images[0].shapes)
        assert chosen_text(one) == ["none", "one", "two", "three", "four", "five"][n]
        assert one.box is None or len(parse_boxes(one.reply)) == n
    for one in exercises["presence"]:
        a, b = re.search(r"an? (\w+) or an? (\w+)\?", one.question).groups()
        there = {shape.name for shape in one.images[0].shapes}
        texts = {(1, 1): "both", (1, 0): f"only the {a}", (0, 1): f"only the {b}"}
        assert chosen_text(one) == texts.get((a in there, b in there), "neither")
    for one in exercises["texture"] + exercises["close up"]:
        assert chosen_text(one) in {shape.texture for shape in one.images[-1].shapes}
    for name in ("point", "which box", "point at all", "relation", "place"):
        boxed = [one for one in exercises[name] if one.box]
        assert boxed and all(one.box in {s.box for s in one.images[0].shapes} for one in boxed)
    assert {text for one in exercises["texture"] for text in TEXTURES if text in one.reply.lower()}


def test_one_image_or_one_run_of_images_shows_what_is_asked_for(exercises):
    for one in exercises["which image"] + exercises["point in image"] + exercises["span of images"]:
        name = next(word for word in NAMES if word in one.question)
        shown = [
            k for k, s in enumerate(one.images, 1) if name in {shape.name for shape in s.shapes}
        ]
        assert shown == list(range(shown[0], shown[-1] + 1))
        numbers = f"Images {shown[0]} to {shown[-1]}," if one.name.startswith("span") else ""
        assert numbers or len(shown) == 1
        answer = one.answer or chosen_text(one).capitalize()
        assert answer.rstrip(".,") == (numbers or f"Image {shown[0]}").rstrip(",")
        if one.box:
            assert one.box in {s.box for s in one.images[shown[0] - 1].shapes}


def test_no_answer_is_the_usual_one(exercises):
    """Whoever knows the question alone must not do much better than a guess among four."""
    for name in ("presence", "relation", "lengths", "relation of boxes", "count"):
        texts = [chosen_text(one) for one in exercises[name]]
        if name == "presence":  # the first or the second of the two that are asked about
            names = [re.findall("an? (\\w+)", one.question)[0] for one in exercises[name]]
            texts = [
                re.sub("only.*", "first" if first in text else "second", text)
                for text, first in zip(texts, names, strict=True)
            ]
        if name == "lengths":  # one of both, or each a half
            texts = ["both" if text.endswith("and taller") else "each" for text in texts]
        assert max(Counter(texts).values()) / len(texts) < 0.67, (name, Counter(texts))
