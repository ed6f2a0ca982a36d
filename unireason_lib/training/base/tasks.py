"""What the tiny base is taught: generic exercises with letters, numbers and plain shapes.

Three kinds of skill, each a list of exercises below:

- **text**: give the letter of the option that was named, at any distance from the options; compare numbers; say what
  follows from boxes that are written down (place, relation, size);
- **one picture**: point at shapes, say what is in a box, choose among four answers about form, texture, place, size,
  relation, presence and number, with or without pointing first;
- **several pictures**: tell which of them shows something, point in it, recognise an enlarged part.

Nothing here is of the study: no organ, no scan, no patient, no cuboid, no crop put back into a reply, and other words
than those of the data set. Every exercise is a function of a random generator, so exercise number ``i`` is the same
in every run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from unireason_lib.boxes import Box2D, format_box
from unireason_lib.prompts import question_text
from unireason_lib.training.base.shapes import FORMS, NOUN, SHADES, TEXTURES, Picture, Shape, draw

LETTERS = "ABCD"


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: Which kind.
        messages: User's turn and reply in chat form, pictures as PIL images with their ``truth`` beside.
        letter: The right letter, where there is a choice.
        box: The box to be written first, where there is one.
        answer: What the reply must come to, where it is not a letter.
    """

    name: str
    messages: list[dict[str, Any]]
    letter: str = ""
    box: Box2D | None = None
    answer: str = ""


_Make = Callable[[random.Random], Exercise]


def exercise(stage: str, number: int, seed: int = 0) -> Exercise:
    """Exercise ``number`` of a stage.

    Args:
        stage: A key of :data:`STAGES`.
        number: Which one; the held-out tests use numbers from :data:`HELD_OUT` on.
        seed: Another seed gives other exercises.
    """
    rng = random.Random(f"{seed}/{stage}/{number}")
    makers, weights = zip(*STAGES[stage], strict=True)
    while True:
        try:
            return rng.choices(makers, weights)[0](rng)
        except _Again:
            continue


HELD_OUT = 10_000_000
"""Exercises from this number on are never trained on."""


class _Again(Exception):
    """This draw allows no such exercise."""


def _talk(pictures: Sequence[Picture], asked: str, reply: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [
        {"type": "image", "image": Image.fromarray(picture.pixels).convert("RGB"), "truth": picture}
        for picture in pictures
    ]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": [{"type": "text", "text": reply}]},
    ]


def _choose(
    rng: random.Random,
    name: str,
    pictures: Sequence[Picture],
    question: str,
    right: str,
    wrong: Sequence[str],
    thought: str = "",
    box: Box2D | None = None,
) -> Exercise:
    """A question with four options; asked either for the answer at once or, when there is a thought, with it."""
    if len({right, *wrong}) != len(wrong) + 1 or len(wrong) < 3:
        raise _Again
    options = [right, *rng.sample(list(wrong), 3)]
    rng.shuffle(options)
    letter = LETTERS[options.index(right)]
    lettered = {mark: capital(text) for mark, text in zip(LETTERS, options, strict=True)}
    answer = f"{letter}. {lettered[letter]}"
    if thought and rng.random() < 0.8:
        closing = rng.choice(
            ("So: {}.", "That is: {}.", "It is {}.", "The answer is {}.", "Therefore {}.")
        )
        reply = f"{thought} {closing.format(right)}\n{answer}"
        return Exercise(
            name, _talk(pictures, question_text(question, lettered), reply), letter, box
        )
    listed = "\n".join(f"{mark}. {text}" for mark, text in lettered.items())
    return Exercise(
        name, _talk(pictures, f"{question}\n{listed}\nAnswer with one option.", answer), letter
    )


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


# --- text -----------------------------------------------------------------------------------------------------------

_WORDS = (
    "left right upper lower middle first second third fourth fifth sixth seventh eighth ninth tenth last dark darker "
    "bright brighter small smaller large larger far red green blue grey narrow broad wide tall long longer little open "
    "front back top bottom inside above below both neither none only one two three four half quarter double equal "
    "different more less most full free whole striped checkered mottled plain dotted fine straight upright "
    "order area part point hour clock edge corner row column grid cell stack star square ring cross bar blob diamond "
    "crescent triangle circle ellipse spot box word words number pattern side picture question reason trace sign yes "
    "no enlarged divided scattered rings squares stripes corners best greater great".split()
)
_SAY = (
    "So: {}.",
    "That is: {}.",
    "It is {}.",
    "The answer is {}.",
    "Therefore {}.",
    "What fits is {}.",
)
_FILLER = (
    "the picture shows what is there and how it looks from here as one may see at first then again more closely with "
    "care since nothing else can be said about it so far but that it lies where others end or begin".split()
)


_COUNTED = ("about {} mm", "{} percent", "row {}, column 2", "picture {}", "{}")


def _phrase(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return "[" + ",".join(str(rng.randrange(64)) for _ in range(rng.choice((4, 4, 6)))) + "]"
    if kind < 0.4:
        return rng.choice(_COUNTED).format(rng.randrange(100))
    words = rng.sample(_WORDS, rng.choice((1, 1, 2, 2, 3)))
    return (" and " if rng.random() < 0.4 else " ").join(words)


def _filler(rng: random.Random, most: int) -> str:
    """Up to ``most`` words that mean nothing: none in half of the cases, a few in many, all in some."""
    words = [rng.choice(_FILLER) for _ in range(rng.randrange(rng.choice((1, 1, 1, 10, 20, most))))]
    for at in range(len(words)):
        if rng.random() < 0.12:
            words[at] = str(rng.randrange(100))
    return capital(" ".join(words)) + "." if words else ""


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{mark}. {text}" for mark, text in zip(LETTERS, options, strict=True))


def _four(rng: random.Random) -> list[str]:
    """Four options of a kind: words, pairs that share words, numbers, boxes, phrases that share some words."""
    kind = rng.choices(("words", "pairs", "numbers", "boxes", "phrases"), (5, 4, 2, 1, 3))[0]
    if kind == "words":
        return rng.sample(_WORDS, 4)
    if kind == "pairs":
        a, b, c, d = rng.sample(_WORDS, 4)
        between = rng.choice((" and ", " and ", " "))
        options = [one + between + other for one in (a, b) for other in (c, d)]
        return rng.sample(options, 4)
    if kind == "numbers":
        text = rng.choice(_COUNTED)
        return [text.format(n) for n in rng.sample(range(100), 4)]
    if kind == "boxes":
        length = rng.choice((4, 4, 6))
        return [
            "[" + ",".join(str(rng.randrange(64)) for _ in range(length)) + "]" for _ in range(4)
        ]
    options = [" ".join(rng.sample(_WORDS, rng.choice((2, 3))))]
    while len(options) < 4:
        words = rng.choice(options).split()
        words[rng.randrange(len(words))] = rng.choice(_WORDS)
        if (other := " ".join(words)) not in options:
            options.append(other)
    return rng.sample(options, 4)


def _lead(rng: random.Random) -> str:
    leads = (
        "Which option is right?",
        "Choose one.",
        "What fits?",
        _filler(rng, 20) or "Choose.",
        "",
        "",
    )
    return f"{lead}\n" if (lead := rng.choice(leads)) else ""


def letter_of(rng: random.Random, plain: bool = False) -> Exercise:
    """The letter of the option that was named, in the question or in the reply itself.

    Args:
        rng: Draws everything.
        plain: Single words as they are, named at once. Otherwise options may be longer and begin with a capital letter,
            and 0 to 90 words that mean nothing stand before the name.
    """
    options = rng.sample(_WORDS, 4) if plain else _four(rng)
    shown = [capital(text) for text in options] if not plain and rng.random() < 0.6 else options
    at = rng.randrange(4)
    said = f"{'' if plain else _filler(rng, 90)} {rng.choice(_SAY).format(options[at])}".strip()
    asked, reply = f"{_lead(rng)}{_listed(shown)}", f"{LETTERS[at]}. {shown[at]}"
    if rng.random() < 0.5:
        return Exercise("letter", _talk((), f"{asked}\n{said}", reply), LETTERS[at])
    # which one is said in the reply is for nobody to know, so this form is trained on and not tested
    return Exercise("letter said", _talk((), asked, f"{said}\n{reply}"))


def letters_of(rng: random.Random, plain: bool = False) -> Exercise:
    """Three times the letter of an option, the option named in the reply each time: three look-ups of one list."""
    options = rng.sample(_WORDS, 4) if plain else _four(rng)
    shown = [capital(text) for text in options] if not plain and rng.random() < 0.6 else options
    lines = []
    for at in (rng.randrange(4) for _ in range(3)):
        said = f"{'' if plain else _filler(rng, 10)} {rng.choice(_SAY).format(options[at])}".strip()
        lines += [said, f"{LETTERS[at]}. {shown[at]}"]
    return Exercise(
        "letters", _talk((), f"{_lead(rng)}{_listed(shown)}", "\n".join(lines)), LETTERS[at]
    )


def option_of(rng: random.Random) -> Exercise:
    """The way back: the text behind a letter."""
    options: list[str] = []
    while len(options) < 4:
        if (other := _phrase(rng)) not in options:
            options.append(other)
    listed = "\n".join(
        f"{mark}. {capital(text)}" for mark, text in zip(LETTERS, options, strict=True)
    )
    at = rng.randrange(4)
    asked = f"{listed}\n{_filler(rng, 60)} What does option {LETTERS[at]} say?"
    reply = f"{LETTERS[at]}. {capital(options[at])}"
    return Exercise("option", _talk((), asked, reply), answer=reply)


def numbers(rng: random.Random) -> Exercise:
    """Which is larger, and how many times: numbers as the text of a question."""
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    if a == b:
        raise _Again
    if rng.random() < 0.4:
        right = "the first" if a > b else "the second"
        wrong = ["the second" if a > b else "the first", "neither", "both"]
        return _choose(rng, "numbers", (), f"Which number is greater, {a} or {b}?", right, wrong)
    texts = [text for text, _ in _RATIOS]
    right = _ratio(a / b)
    wrong = [text for text in texts if text != right]
    percent = round(100 * a / b)
    return _choose(
        rng,
        "numbers",
        (),
        f"How does {a} compare with {b}?",
        right,
        wrong,
        f"{a} is {percent} percent of {b}.",
    )


_RATIOS = (
    ("less than half of it", 0.5),
    ("more than half of it, but less than all", 1.0),
    ("more than it, but less than double", 2.0),
    ("more than double", float("inf")),
)


def _ratio(value: float) -> str:
    if min(abs(value - edge) / edge for _, edge in _RATIOS[:-1]) < 0.08:
        raise _Again
    return next(text for text, edge in _RATIOS if value < edge)


# --- boxes as text --------------------------------------------------------------------------------------------------

_SIDE = 64


def _some_box(rng: random.Random) -> Box2D:
    """A box in a picture of 64 pixels."""
    w, h = rng.randint(4, 36), rng.randint(4, 36)
    x, y = rng.randrange(_SIDE - w), rng.randrange(_SIDE - h)
    return Box2D(x, y, x + w, y + h)


def _told(rng: random.Random, count: int) -> tuple[list[Box2D], list[str], str]:
    """Boxes, the names of their shapes, and the sentences that tell of them."""
    boxes = [_some_box(rng) for _ in range(count)]
    names = [f"the {form}" for form in rng.sample(tuple(FORMS), count)]
    if rng.random() < 0.3:
        names = [f"{NOUN} {k + 1}" for k in range(count)]
    told = (
        f"{capital(name)} is at {_corners(box)}." for name, box in zip(names, boxes, strict=True)
    )
    return boxes, names, " ".join(told)


def place_of_box(rng: random.Random) -> Exercise:
    """The cell of a grid that holds the middle of a box."""
    (box,), (name,), told = _told(rng, 1)
    question, right, wrong, share = _cells(rng, name, box, _SIDE, _SIDE)
    return _choose(rng, "place of box", (), f"{told} {question}", right, wrong, share)


def relation_of_boxes(rng: random.Random) -> Exercise:
    """Where one box is, seen from another."""
    (one, other), (name, other_name), told = _told(rng, 2)
    question, right, wrong = _seen_from(rng, one, other, name, other_name)
    return _choose(
        rng, "relation of boxes", (), f"{told} {question}", right, wrong, "Going by the middles."
    )


def ratio_of_boxes(rng: random.Random) -> Exercise:
    """How the areas of two boxes compare."""
    (one, other), (name, other_name), told = _told(rng, 2)
    right = _ratio(one.area / other.area)
    wrong = [text for text, _ in _RATIOS if text != right]
    thought = f"That is {round(100 * one.area / other.area)} percent."
    question = f"How large is {name}, compared with {other_name}?"
    return _choose(rng, "ratio of boxes", (), f"{told} {question}", right, wrong, thought)


def largest_box(rng: random.Random) -> Exercise:
    """The largest or smallest of four boxes by area."""
    boxes, names, told = _told(rng, 4)
    areas = sorted((box.area, name) for box, name in zip(boxes, names, strict=True))
    if rng.random() < 0.5:
        areas.reverse()
        word, clear = "largest", areas[0][0] > 1.25 * areas[1][0]
    else:
        word, clear = "smallest", areas[1][0] > 1.25 * areas[0][0]
    if not clear:
        raise _Again
    wrong = [name for _, name in areas[1:]]
    question = f"{told} Which is the {word}?"
    return _choose(rng, "largest box", (), question, areas[0][1], wrong, "Going by area.")


def nearest_box(rng: random.Random) -> Exercise:
    """The option that is nearly the box that was told."""
    (box,), (name,), _ = _told(rng, 1)
    options = [box]
    while len(options) < 4:
        other = _some_box(rng)
        if all(other.iou(known) < 0.25 for known in options):
            options.append(other)
    off = [int(n) + rng.choice((-2, -1, -1, 0, 0, 0, 1, 1, 2)) for n in box.as_tuple()]
    told = (
        f"{capital(name)} is at {_corners(Box2D(max(off[0], 0), max(off[1], 0), off[2], off[3]))}."
    )
    texts = [_corners(one) for one in options]
    return _choose(
        rng, "nearest box", (), f"{told} Which box holds it?", texts[0], texts[1:], "It fits best."
    )


# --- pictures without a question ------------------------------------------------------------------------------------


def look_on(rng: random.Random) -> Exercise:
    """A picture of shapes: nothing is asked, its truth is shown to the vision tower."""
    return Exercise("look on", _talk([_scene(rng, size=(64, 64))], "Look.", "Yes."))


def look_close(rng: random.Random) -> Exercise:
    """The same with one enlarged shape of fine texture."""
    picture = _scene(rng, 1, 3, fine=True, textured=1.0, size=(64, 64), radius=(0.1, 0.22))
    return Exercise(
        "look close", _talk([_enlarged(picture, rng.choice(picture.shapes), rng)], "Look.", "Yes.")
    )


UNASKED = ("look on", "look close")
"""Exercises that only show."""


# --- one picture ----------------------------------------------------------------------------------------------------

_SIZES = ((64, 64), (64, 64), (64, 64), (64, 64), (64, 64), (48, 64), (64, 48), (48, 48), (80, 80))


def _scene(rng: random.Random, low: int = 1, high: int = 4, **how: Any) -> Picture:
    size = how.pop("size", None) or rng.choice(_SIZES)
    most = high if min(size) >= 48 else min(high, 2)
    picture = draw(rng, size, rng.randint(min(low, most), most), **how)
    if len(picture.shapes) < low:
        raise _Again
    return picture


_NAMES = (
    ("form",),
    ("shade",),
    ("texture",),
    ("shade", "form"),
    ("texture", "form"),
    ("shade", "texture"),
)


def reference(rng: random.Random, shape: Shape, shapes: Sequence[Shape]) -> str:
    """A short name that means this shape only: one that needs a single word, if there is any.

    Raises:
        _Again: There is none.
    """
    fits = [
        parts
        for parts in (*_NAMES, ("shade", "texture", "form"))
        if sum(all(getattr(s, p) == getattr(shape, p) for p in parts) for s in shapes) == 1
        and not (parts == ("texture",) and shape.texture == "plain")
    ]
    if not fits:
        raise _Again
    parts = rng.choice([one for one in fits if len(one) == len(fits[0])])
    return (
        f"the {' '.join([getattr(shape, part) for part in parts] + [NOUN] * ('form' not in parts))}"
    )


def _pick(rng: random.Random, picture: Picture, count: int = 1) -> list[tuple[Shape, str]]:
    if len(picture.shapes) < count:
        raise _Again
    return [(s, reference(rng, s, picture.shapes)) for s in rng.sample(picture.shapes, count)]


def _corners(box: Box2D) -> str:
    """A box in a question: plain text, without the tokens that point."""
    return "[" + ",".join(str(int(n)) for n in box.as_tuple()) + "]"


def _seen(rng: random.Random, name: str, box: Box2D) -> str:
    at = format_box(box)
    return rng.choice(
        (f"{capital(name)} is at {at}.", f"I see {name} at {at}.", f"{capital(name)}: {at}.")
    )


def point(rng: random.Random) -> Exercise:
    """Write the box of a named shape."""
    picture = _scene(rng)
    ((shape, name),) = _pick(rng, picture)
    asked = rng.choice(
        (f"Point at {name}.", f"Where is {name}?", f"Draw a box around {name}.", f"Locate {name}.")
    )
    return Exercise("point", _talk([picture], asked, format_box(shape.box)), box=shape.box)


def point_at_all(rng: random.Random) -> Exercise:
    """Name and box of every shape, in reading order of their left edges."""
    picture = _scene(rng, 2, 5)
    listed = sorted(picture.shapes, key=lambda s: (s.box.x1, s.box.y1))
    words = [
        f"{capital(s.shade)} {s.texture + ' ' if s.texture != 'plain' else ''}{s.form} {format_box(s.box)}."
        for s in listed
    ]
    asked = rng.choice(
        ("Point at everything.", "List all shapes with their boxes.", "Describe the picture.")
    )
    return Exercise("point at all", _talk([picture], asked, " ".join(words)), box=listed[0].box)


def what_is_there(rng: random.Random) -> Exercise:
    """Say what is inside a box."""
    picture = _scene(rng)
    shape = rng.choice(picture.shapes)
    asked = rng.choice(("What is at {}?", "What does {} show?", "Describe what is in {}.")).format(
        format_box(shape.box)
    )
    reply = f"A {shape.shade} {shape.texture} {shape.form}."
    return Exercise("what is there", _talk([picture], asked, reply), answer=reply)


def _about(attribute: str, every: Sequence[str], question: str) -> _Make:
    def make(rng: random.Random) -> Exercise:
        picture = _scene(rng, 1, 4, textured=0.9 if attribute == "texture" else 0.4)
        shape = rng.choice(picture.shapes)
        alone = len(picture.shapes) == 1
        forms = [s.form for s in picture.shapes]
        if attribute == "form":
            name = "the shape" if alone else f"what is in {_corners(shape.box)}"
        elif alone or forms.count(shape.form) == 1:
            name = "the shape" if alone and rng.random() < 0.5 else f"the {shape.form}"
        else:
            raise _Again
        if attribute == "texture" and min(shape.box.width, shape.box.height) < 13:
            raise _Again
        right = getattr(shape, attribute)
        thought = _seen(rng, name if attribute != "form" else "it", shape.box)
        wrong = rng.sample([text for text in every if text != right], 3)
        return _choose(
            rng, attribute, [picture], question.format(name), right, wrong, thought, shape.box
        )

    return make


form = _about("form", tuple(FORMS), "What form has {}?")
texture = _about("texture", TEXTURES, "What texture has {}?")


def shade_and_texture(rng: random.Random) -> Exercise:
    """Two attributes at once."""
    picture = _scene(rng, 1, 3, textured=1.0)
    ((shape, name),) = _pick(rng, picture)
    if shape.texture == "plain" or shape.shade in name or "striped" in name:
        raise _Again
    other = rng.choice([t for t in TEXTURES if t != shape.texture])
    pairs = [f"{s}, {t}" for s in SHADES for t in (shape.texture, other)]
    right = f"{shape.shade}, {shape.texture}"
    thought = f"{_seen(rng, name, shape.box)} It is {shape.shade} and {shape.texture}."
    return _choose(
        rng,
        "shade and texture",
        [picture],
        f"How does {name} look?",
        right,
        [p for p in pairs if p != right],
        thought,
        shape.box,
    )


def which_box(rng: random.Random) -> Exercise:
    """Choose the box of a named shape; the others are elsewhere or of other shapes."""
    picture = _scene(rng)
    height, width = picture.pixels.shape
    ((shape, name),) = _pick(rng, picture)
    boxes = [shape.box]
    for _ in range(40):
        w, h = (
            max(4, round(side * rng.uniform(0.7, 1.4)))
            for side in (shape.box.width, shape.box.height)
        )
        x, y = rng.randrange(max(1, width - w)), rng.randrange(max(1, height - h))
        if all(Box2D(x, y, x + w, y + h).iou(other) < 0.25 for other in boxes):
            boxes.append(Box2D(x, y, x + w, y + h))
        if len(boxes) == 4:
            break
    texts = [_corners(box) for box in boxes]
    question = rng.choice((f"Which box is that of {name}?", f"Which box holds {name}?"))
    return _choose(
        rng,
        "which box",
        [picture],
        question,
        texts[0],
        texts[1:],
        _seen(rng, name, shape.box),
        shape.box,
    )


def place(rng: random.Random) -> Exercise:
    """The cell of a grid that holds the middle of a shape."""
    picture = _scene(rng)
    ((shape, name),) = _pick(rng, picture)
    question, right, wrong, share = _cells(rng, name, shape.box, *picture.pixels.shape)
    thought = f"{_seen(rng, name, shape.box)} {share}"
    return _choose(rng, "place", [picture], question, right, wrong, thought, shape.box)


def _cells(
    rng: random.Random, name: str, box: Box2D, height: int, width: int
) -> tuple[str, str, list[str], str]:
    """Question for the cell of a grid, right and wrong answers, and how far across and down the middle is."""
    n = rng.choice((2, 3, 4))
    x, y = box.center[0] / width * n, box.center[1] / height * n
    if min(x % 1, 1 - x % 1, y % 1, 1 - y % 1) < 0.08:
        raise _Again
    cells = [(r, c) for r in range(n) for c in range(n)]
    true = (int(y), int(x))
    if n == 2:
        texts = {(r, c): f"{('upper', 'lower')[r]} {('left', 'right')[c]}" for r, c in cells}
        question = f"In which part of the picture is {name}?"
    else:
        texts = {(r, c): f"row {r + 1}, column {c + 1}" for r, c in cells}
        question = f"Of {n} rows and {n} columns, which hold the middle of {name}?"
    wrong = [texts[cell] for cell in cells if cell != true]
    share = (
        f"Its middle is at {round(100 * x / n)} percent across, {round(100 * y / n)} percent down."
    )
    return question, texts[true], wrong, share


def relation(rng: random.Random) -> Exercise:
    """Where one shape is, seen from another."""
    picture = _scene(rng, 2)
    (one, name), (other, other_name) = _pick(rng, picture, 2)
    question, right, wrong = _seen_from(rng, one.box, other.box, name, other_name)
    thought = f"{_seen(rng, name, one.box)} {_seen(rng, other_name, other.box)}"
    return _choose(rng, "relation", [picture], question, right, wrong, thought, one.box)


def _seen_from(
    rng: random.Random, one: Box2D, other: Box2D, name: str, other_name: str
) -> tuple[str, str, list[str]]:
    """Question for the direction from the other to the one, right and wrong answers."""
    dx, dy = (a - b for a, b in zip(one.center, other.center, strict=True))
    if min(abs(dx), abs(dy)) < 4:
        raise _Again
    words = [f"{v} and to the {h}" for v in ("above", "below") for h in ("left", "right")]
    right = f"{'above' if dy < 0 else 'below'} and to the {'left' if dx < 0 else 'right'}"
    question = rng.choice(
        (f"Where is {name}, seen from {other_name}?", f"From {other_name}, where is {name}?")
    )
    return question, right, [word for word in words if word != right]


def compare(rng: random.Random) -> Exercise:
    """The size of one shape against that of another, by pixels."""
    picture = _scene(rng, 2, 4)
    (one, name), (other, other_name) = _pick(rng, picture, 2)
    right = _ratio(one.area / other.area)
    wrong = [text for text, _ in _RATIOS if text != right]
    percent = round(100 * one.area / other.area)
    seen = f"{_seen(rng, name, one.box)} {_seen(rng, other_name, other.box)}"
    thought = f"{seen} Their sizes are {one.area} and {other.area}, {percent} percent."
    question = f"How large is {name}, compared with {other_name}?"
    return _choose(rng, "compare", [picture], question, right, wrong, thought, one.box)


def extent(rng: random.Random) -> Exercise:
    """The longer side of a shape in percent of the picture."""
    picture = _scene(rng, size=rng.choice(((64, 64), (64, 64), (48, 48), (32, 32))))
    ((shape, name),) = _pick(rng, picture)
    side = picture.pixels.shape[0]
    true = round(100 * max(shape.box.width, shape.box.height) / side)
    wrong = {rng.randrange(8, 60) for _ in range(6)}
    wrong = [n for n in wrong if abs(n - true) > 0.22 * true]
    texts = [f"about {n} percent" for n in wrong]
    length = round(max(shape.box.width, shape.box.height))
    thought = f"{_seen(rng, name, shape.box)} Its longer side is {length} of {side} pixels."
    question = f"How long is the longer side of {name}, in percent of the picture?"
    return _choose(
        rng, "extent", [picture], question, f"about {true} percent", texts, thought, shape.box
    )


def presence(rng: random.Random) -> Exercise:
    """Two forms, each there or not."""
    picture = _scene(rng, 1, 5)
    there = {s.form for s in picture.shapes}
    once = [f for f in there if sum(s.form == f for s in picture.shapes) == 1]
    missing = [f for f in FORMS if f not in there]
    a, b = (rng.choice(once if once and rng.random() < 0.5 else missing) for _ in range(2))
    if a == b:
        raise _Again
    texts = {(1, 1): "both", (1, 0): f"only the {a}", (0, 1): f"only the {b}", (0, 0): "neither"}
    right = texts[a in there, b in there]
    shown = [
        (f"the {f}", next(s.box for s in picture.shapes if s.form == f))
        for f in (a, b)
        if f in there
    ]
    lost = [f for f in (a, b) if f not in there]
    thought = " ".join(
        [_seen(rng, name, box) for name, box in shown] + [f"There is no {f}." for f in lost]
    )
    question = rng.choice((f"Which are there, a {a} or a {b}?", f"Look for a {a} and a {b}."))
    box = shown[0][1] if shown else None
    return _choose(
        rng,
        "presence",
        [picture],
        question,
        right,
        [t for t in texts.values() if t != right],
        thought,
        box,
    )


def odd_one(rng: random.Random) -> Exercise:
    """The one form of four that is there, or that is not."""
    picture = _scene(rng, 1, 5)
    there = sorted({s.form for s in picture.shapes})
    missing = [f for f in FORMS if f not in there]
    seen = {f: next(s.box for s in picture.shapes if s.form == f) for f in there}
    if len(missing) < 3:
        raise _Again
    if rng.random() < 0.5 or len(there) < 3:
        right, wrong = rng.choice(there), rng.sample(missing, 3)
        thought, question = _seen(rng, f"the {right}", seen[right]), "Which of these is there?"
        box = seen[right]
    else:
        right, wrong = rng.choice(missing), rng.sample(there, 3)
        thought = " ".join(_seen(rng, f"the {f}", seen[f]) for f in wrong)
        question, box = "Which of these is not there?", None
    return _choose(rng, "odd one", [picture], question, right, wrong, thought, box)


_NUMBERS = ("none", "one", "two", "three", "four")


def count(rng: random.Random) -> Exercise:
    """How many shapes of a form or shade."""
    picture = _scene(rng, 1, 5)
    word, mine = rng.choice(
        [(f"{s} shapes", [x for x in picture.shapes if x.shade == s]) for s in SHADES]
        + [("shapes", list(picture.shapes))]
    )
    if len(mine) > 4:
        raise _Again
    thought = " ".join(format_box(s.box) for s in sorted(mine, key=lambda s: (s.box.x1, s.box.y1)))
    right = _NUMBERS[len(mine)]
    wrong = [n for n in _NUMBERS if n != right]
    return _choose(
        rng,
        "count",
        [picture],
        f"How many {word} are there?",
        right,
        wrong,
        thought and f"I see {thought}.",
    )


# --- several pictures -----------------------------------------------------------------------------------------------


def _row(rng: random.Random, low: int = 2, high: int = 8) -> tuple[list[Picture], str, int]:
    """Some small pictures, a form that only one of them shows, and the index of that one."""
    size = rng.choice(((64, 64), (64, 64), (32, 32)))
    n = rng.randint(low, high)
    wanted = rng.choice(tuple(FORMS))
    others = tuple(f for f in FORMS if f != wanted)
    at = rng.randrange(n)
    large = (0.15, 0.3)
    pictures = [
        draw(rng, size, rng.randint(1, 2), forms=(wanted,) if k == at else others, radius=large)
        for k in range(n)
    ]
    if any(not p.shapes for p in pictures) or len(pictures[at].shapes) != 1:
        raise _Again
    return pictures, wanted, at


def which_picture(rng: random.Random) -> Exercise:
    """The number of the picture that shows something."""
    pictures, wanted, at = _row(rng)
    asked = f"Which picture shows the {wanted}?"
    reply = f"Picture {at + 1}."
    if len(pictures) < 4 or rng.random() < 0.6:
        return Exercise("which picture", _talk(pictures, asked, reply), answer=reply)
    wrong = [f"picture {k + 1}" for k in range(len(pictures)) if k != at]
    thought = f"Picture {at + 1} shows it at {format_box(pictures[at].shapes[0].box)}."
    return _choose(rng, "which picture", pictures, asked, f"picture {at + 1}", wrong, thought)


def point_in_picture(rng: random.Random) -> Exercise:
    """Number of the picture, and box in it."""
    pictures, wanted, at = _row(rng)
    box = pictures[at].shapes[0].box
    asked = rng.choice(
        (f"Point at the {wanted}, and say in which picture.", f"Where is the {wanted}?")
    )
    reply = f"Picture {at + 1}, {format_box(box)}"
    return Exercise(
        "point in picture", _talk(pictures, asked, reply), box=box, answer=f"Picture {at + 1},"
    )


def what_in_picture(rng: random.Random) -> Exercise:
    """What the picture of a given number shows."""
    pictures, _, _ = _row(rng, 2, 6)
    at = rng.randrange(len(pictures))
    shapes = sorted(pictures[at].shapes, key=lambda s: s.box.x1)
    words = " and ".join(f"a {s.shade} {s.form}" for s in shapes)
    reply = capital(words) + "."
    return Exercise(
        "what in picture", _talk(pictures, f"What does picture {at + 1} show?", reply), answer=reply
    )


def close_up(rng: random.Random) -> Exercise:
    """The last picture is an enlarged part of the first, with a texture too fine to be seen there."""
    picture = _scene(rng, 1, 3, fine=True, textured=1.0, size=(64, 64), radius=(0.1, 0.22))
    shape = rng.choice(picture.shapes)
    if shape.texture == "plain":
        raise _Again
    part = _enlarged(picture, shape, rng)
    if rng.random() < 0.4:
        pictures = [part]
        question, thought = "This is an enlarged part. What texture does it show?", ""
    else:
        pictures = [picture, part]
        question = rng.choice(
            ("Picture 2 is an enlarged part of picture 1. What texture does it show?",)
        )
        thought = f"It is from {format_box(shape.box)}."
    wrong = [t for t in TEXTURES if t != shape.texture]
    return _choose(
        rng, "close-up", pictures, question, shape.texture, rng.sample(wrong, 3), thought
    )


def _enlarged(picture: Picture, shape: Shape, rng: random.Random) -> Picture:
    """A shape's part of a picture at two to four times its size."""
    part = Image.fromarray(picture.pixels).crop(tuple(int(n) for n in shape.box.as_tuple()))
    zoom = max(1.0, 32 / min(part.size)) * rng.uniform(1.0, 1.3)
    width, height = (max(16, round(side * zoom)) for side in part.size)
    pixels = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
    return Picture(pixels, (replace(shape, box=Box2D(0, 0, width, height), area=width * height),))


def where_from(rng: random.Random) -> Exercise:
    """Where in the first picture the second was cut."""
    picture = _scene(rng, 2, 4, size=(64, 64))
    shape = rng.choice(picture.shapes)
    part = _enlarged(picture, shape, rng)
    asked = "Picture 2 is an enlarged part of picture 1. Which?"
    return Exercise(
        "where from", _talk([picture, part], asked, format_box(shape.box)), box=shape.box
    )


# --- the plan -------------------------------------------------------------------------------------------------------

STAGES: dict[str, tuple[tuple[_Make, float], ...]] = {
    "shapes": ((look_on, 3), (look_close, 1)),
    "words": ((partial(letter_of, plain=True), 1), (partial(letters_of, plain=True), 1)),
    "letters": ((letter_of, 1), (letters_of, 1)),
    "text": (
        (letter_of, 5),
        (option_of, 1),
        (numbers, 0.6),
        (place_of_box, 1),
        (relation_of_boxes, 1.2),
        (ratio_of_boxes, 1.2),
        (largest_box, 0.7),
        (nearest_box, 0.8),
    ),
    "pointing": ((point, 4), (point_at_all, 2), (what_is_there, 2), (which_box, 1), (close_up, 1)),
    "one picture": (
        (point, 2.0),
        (point_at_all, 1.0),
        (what_is_there, 1.0),
        (form, 0.7),
        (texture, 1.0),
        (shade_and_texture, 1.0),
        (which_box, 1.0),
        (place, 1.2),
        (relation, 1.2),
        (compare, 1.5),
        (extent, 1.2),
        (presence, 1.5),
        (odd_one, 1.2),
        (count, 1.0),
        (close_up, 2.0),
        (where_from, 0.5),
    ),
    "several pictures": ((which_picture, 3), (point_in_picture, 3), (what_in_picture, 2)),
}
"""Stage -> exercises and their weights."""
