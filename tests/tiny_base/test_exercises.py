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


@pytest.fixture(scope="module")
def exercises():
    """Name -> exercises, from all stages."""
    found = defaultdict(list)
    for stage in STAGES:
        for k in range(500):
            one = exercise(stage, k)
            found[one.name].append(one)
    return found


def options_of(one):
    return dict(re.findall(r"^([A-D])\. (.+)$", one.question, re.MULTILINE))


def chosen_text(one):
    return options_of(one)[one.letter].lower()


def test_a_box_is_that_of_the_pixels():
    for seed in range(20):
        scene = draw(random.Random(seed), count=1, textured=0.0, plates=0.0)
        (shape,) = scene.shapes
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
        assert [message["role"] for message in one.messages()] == ["user", "assistant"]
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
    true = {
        "less": lambda a, b: a < b,
        "greater": lambda a, b: a > b,
        "to the left": lambda a, b: a < b,
        "to the right": lambda a, b: a > b,
        "above": lambda a, b: a < b,
        "below": lambda a, b: a > b,
        "difference": lambda a, b, n: n == abs(a - b),
        "middle": lambda a, b, n: n == (a + b) // 2,
    }
    checked = 0
    for one in exercises[name]:
        found = re.findall(rf"(\d+) and (\d+): ({'|'.join(true)})(?: (\d+))?", one.reply)
        for a, b, word, *numbers in found:
            assert true[word](int(a), int(b), *(int(n) for n in numbers if n)), one.reply
        if name == "numbers":
            found = re.findall(r"(\d+) and (\d+): (\d+)", one.reply)
            best = max if "greatest" in one.question else min
            assert all(best(int(a), int(b)) == int(n) for a, b, n in found)
        checked += bool(found)
    assert checked > len(exercises[name]) / 2 > 5


@pytest.mark.parametrize("name", ["relation", "relation of boxes"])
def test_relations_follow_from_the_boxes(name, exercises):
    """Both edges of an axis lie on the same side: two numbers are compared, none are added."""
    checked = 0
    for one in exercises[name]:
        boxes = named_boxes(one)
        question = re.search(r"Where is (.+), seen from (.+)\?", one.question)
        if len(boxes) == 2:
            a, b = (boxes[question[k].lower()] for k in (1, 2))
            right = f"{'above' if a.y1 < b.y1 else 'below'} and to the "
            right += "left" if a.x1 < b.x1 else "right"
            assert chosen_text(one) == right
            assert (a.x1 < b.x1) == (a.x2 < b.x2) and (a.y1 < b.y1) == (a.y2 < b.y2)
            checked += 1
    assert checked > 15


@pytest.mark.parametrize("name", ["lengths", "lengths of boxes"])
def test_the_longer_box_is_the_longer_box(name, exercises):
    checked = 0
    for one in exercises[name]:
        boxes = named_boxes(one)
        if len(boxes) == 2:
            names = re.search(r"taller, (.+) or (.+)\?", one.question).groups()
            a, b = (boxes[name.lower()] for name in names)
            wider = names[a.width < b.width].lower()
            taller = names[a.height < b.height].lower()
            same = "and taller" if wider == taller else f"and {taller} taller"
            assert chosen_text(one) == f"{wider} is wider {same}"
            checked += 1
    assert checked > 15


@pytest.mark.parametrize("name", ["length", "length of box", "place of box"])
def test_lengths_and_places_follow_from_the_box(name, exercises):
    checked = 0
    for one in exercises[name]:
        for box in list(named_boxes(one).values())[:1]:
            if "length" in name:
                true = box.width if "wide" in one.question else box.height
                assert chosen_text(one) == f"about {true:.0f} pixels"
            elif "rows" in one.question:
                n = int(re.search(r"Of (\d) rows", one.question)[1])
                width, height = map(
                    int, re.search(r"(\d+) pixels wide and (\d+)", one.question).groups()
                )
                row, column = box.center[1] / height * n, box.center[0] / width * n
                assert chosen_text(one) == f"row {int(row) + 1}, column {int(column) + 1}"
            checked += 1
    assert checked > 15


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
        texts = [re.sub(r"^only .*", "one", chosen_text(one)) for one in exercises[name]]
        if name == "lengths":  # one of both, or each a half
            texts = ["both" if text.endswith("and taller") else "each" for text in texts]
        assert max(Counter(texts).values()) / len(texts) < 0.67, (name, Counter(texts))
