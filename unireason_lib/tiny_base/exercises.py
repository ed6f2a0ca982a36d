"""What the tiny base is taught: exercises with letters, numbers and plain shapes.

- **text**: the letter of the option that the conclusion names, in whatever order the options stand
  and however far away; pairs of numbers compared, subtracted, averaged; what follows from boxes
  that are written down;
- **one image**: box a shape, name it, choose among four answers about it;
- **several images**: which of them shows something, and where in it.

All is settled by looking or by comparing numbers: products of coordinates (areas, ratios) were not
learnt in 4,200 steps and are not asked. Nothing is of the study: no organ, no patient, no cuboid,
no crop put back into a reply. Exercise number ``i`` is the same in every run.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from itertools import accumulate
from typing import Any

import numpy as np
import yaml

from unireason_lib.boxes import Box2D, format_box
from unireason_lib.prompts import question_text

from .shapes import NAMES, SHADES, TEXTURES, Scene, Shape, draw, enlarged

HELD_OUT = 1_000_000_000
"""Exercises from this number on are never trained on."""

_TEXTS = yaml.safe_load((files(__package__) / "exercises.yaml").read_text(encoding="utf-8"))
_WORDS, _FILLER = _TEXTS["options"].split(), _TEXTS["filler"].split()


@dataclass(frozen=True)
class Exercise:
    """Images, question and reply, and what a reply is judged by: the ``letter`` of the right
    option, the first ``box`` to be written, or the ``answer`` that it has to begin with (all empty
    where chance decides). ``name`` is a key of :data:`MAKERS`."""

    images: tuple[Scene, ...]
    question: str
    reply: str
    letter: str = ""
    box: Box2D | None = None
    answer: str = ""
    name: str = ""

    def messages(self) -> list[dict[str, Any]]:
        """Question and reply as a conversation for the processor's chat template."""
        images = [{"type": "image", "image": scene.image()} for scene in self.images]
        return [
            {"role": "user", "content": [*images, {"type": "text", "text": self.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": self.reply}]},
        ]


_Named = Sequence[tuple[str, Shape]]


class _Redraw(Exception):
    """What was drawn allows no such exercise."""


def exercise(stage: str, number: int, seed: int = 0) -> Exercise:
    """Exercise ``number`` of a stage (a key of :data:`STAGES`); held-out ones are numbered from
    :data:`HELD_OUT` on, another seed gives other exercises."""
    rng = random.Random(f"{seed}/{stage}/{number}")
    name = rng.choices(list(STAGES[stage]), list(STAGES[stage].values()))[0]
    while True:
        with suppress(_Redraw):
            return replace(MAKERS[name](rng), name=name)


# --- options and letters


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{mark}. {text}" for mark, text in zip("ABCD", options, strict=True))


def _filler(rng: random.Random, most: int) -> str:
    """Words that mean nothing: none in half of the cases, up to ``most`` in some."""
    words = [rng.choice(_FILLER) for _ in range(rng.randrange(rng.choice((1, 1, 1, 10, 20, most))))]
    words = [str(rng.randrange(100)) if rng.random() < 0.12 else word for word in words]
    return _capital(" ".join(words)) + ". " if words else ""


def _four(rng: random.Random) -> list[str]:
    """Four options of one kind: words, numbers, boxes, or phrases that share some words."""
    kind = rng.choices(("words", "numbers", "boxes", "phrases"), (5, 2, 1, 7))[0]
    if kind == "numbers":
        text = rng.choice(_TEXTS["counted"])
        return [text.format(n) for n in rng.sample(range(100), 4)]
    if kind == "boxes":
        return [_digits(_some_box(rng)) for _ in range(4)]
    options, between = [rng.sample(_WORDS, rng.choice((2, 2, 3)))], rng.choice((" and ", " "))
    while len(options) < 4:
        words = list(rng.choice(options))
        words[rng.randrange(len(words))] = rng.choice(_WORDS)
        options += [words] if words not in options else []
    phrases = [between.join(words) for words in rng.sample(options, 4)]
    return phrases if kind == "phrases" else rng.sample(_WORDS, 4)


def letter(rng: random.Random, plain: bool = False, images: int = 0, times: int = 1) -> Exercise:
    """The letter of the option that was named, in the question or, some ``times``, in the reply.
    ``plain`` options are single words, named at once; else they are longer, some with a capital
    letter, and up to 120 words without meaning stand before the name. At most so many ``images``
    stand before the question and say nothing about it."""
    options = rng.sample(_WORDS, 4) if plain else _four(rng)
    shown = [_capital(o) for o in options] if not plain and rng.random() < 0.6 else options
    scenes = tuple(draw(rng, (32, 32), 1) for _ in range(rng.randint(1, images) if images else 0))
    question, lines = rng.choice(_TEXTS["leads"]) + _listed(shown), []
    for at in rng.choices(range(4), k=times):
        conclusion = "" if plain else _filler(rng, 120 if times == 1 else 10)
        conclusion += rng.choice(_TEXTS["conclusions"]).format(options[at])
        lines += [conclusion, f"{'ABCD'[at]}. {shown[at]}"]
    if times == 1 and rng.random() < 0.5:
        return Exercise(scenes, f"{question}\n{conclusion}", lines[1], letter=lines[1][0])
    return Exercise(scenes, question, "\n".join(lines))  # any option may be named


def option(rng: random.Random) -> Exercise:
    """The way back: the text behind a letter."""
    shown, at = [_capital(text) for text in _four(rng)], rng.randrange(4)
    question = f"{_listed(shown)}\n{_filler(rng, 60)}What does option {'ABCD'[at]} say?"
    reply = f"{'ABCD'[at]}. {shown[at]}"
    return Exercise((), question, reply, answer=reply)


def _choose(
    rng: random.Random,
    images: Sequence[Scene],
    question: str,
    answers: Sequence[str],
    right: str,
    about: _Named = (),
    thought: str = "",
    written: bool = False,
) -> Exercise:
    """A question with four of the ``answers`` as options in random order, one of them ``right``. In
    four of five cases the reply says where it sees the shapes that it is ``about``, then the
    ``thought``, then the conclusion, else the answer alone. Or the question says where the shapes
    are (``written``) and there is no image."""
    if len({*answers}) < len(answers) or len(answers) < 4:
        raise _Redraw
    wrong = rng.sample([text for text in answers if text != right], 3)
    options = rng.sample([right, *wrong], 4)
    shown = dict(zip("ABCD", map(_capital, options), strict=True))
    mark = "ABCD"[options.index(right)]
    answer = f"{mark}. {shown[mark]}"
    if written:
        places = [f"{_capital(name)} is at {_digits(shape.box)}." for name, shape in about]
        images, question, about = (), " ".join([*places, question]), ()
    described = [(_capital(name), name, format_box(shape.box)) for name, shape in about]
    parts = [rng.choice(_TEXTS["seen"]).format(*words) for words in described]
    parts += [thought] if thought else []
    if not parts or rng.random() < 0.2:
        question = f"{question}\n{_listed(list(shown.values()))}\nAnswer with one option."
        return Exercise(tuple(images), question, answer, mark)
    parts.append(rng.choice(_TEXTS["conclusions"]).format(right))
    reply, box = f"{' '.join(parts)}\n{answer}", about[0][1].box if about else None
    return Exercise(tuple(images), question_text(question, shown), reply, mark, box)


def numbers(rng: random.Random) -> Exercise:
    """The greatest or smallest of four numbers."""
    word, best = rng.choice((("greatest", max), ("smallest", min)))
    drawn = rng.sample(range(100), 4)
    question = f"Which is the {word} of {', '.join(map(str, drawn))}?"
    steps = zip(accumulate(drawn, best), drawn[1:], strict=False)
    thought = " ".join(f"{one} and {other}: {best(one, other)}." for one, other in steps)
    return _choose(rng, (), question, [*map(str, drawn)], str(best(drawn)), thought=thought)


_PAIRS: dict[str, Callable[[int, int], str]] = {
    "less or greater": lambda a, b: "less" if a < b else "greater",
    "left or right": lambda a, b: "to the left" if a < b else "to the right",
    "above or below": lambda a, b: "above" if a < b else "below",
    "difference": lambda a, b: f"difference {abs(a - b)}",
    "middle": lambda a, b: f"middle {(a + b) // 2}",
}
"""What is asked of pairs of numbers, and the answer."""


def _worked(what: str, a: float, b: float) -> str:
    """The answer about two numbers, directly behind them: what is far apart is not learnt."""
    return f"{a:.0f} and {b:.0f}: {_PAIRS[what](int(a), int(b))}"


def pairs(rng: random.Random) -> Exercise:
    """Several pairs of numbers, compared, subtracted or averaged, one after the other."""
    what, several = rng.choice(list(_PAIRS)), []
    while len(several) < 6:
        a = rng.randrange(100)
        b = rng.choice((rng.randrange(100), a + rng.randint(-9, 9)))
        several += [(a, b)] if a != b and 0 <= b < 100 else []
    question = f"{_capital(what)}? {', '.join(f'{a} and {b}' for a, b in several)}"
    reply = " ".join(f"{_worked(what, a, b)}." for a, b in several)
    return Exercise((), question, reply, answer=reply)


# --- scenes, and the words for what is in them

_SIZES = (*[(64, 64)] * 5, (48, 64), (64, 48), (48, 48), (80, 80))
_REFERENCES = "name", "shade", "texture", "shade name", "texture name", "shade texture"
_FINE = {"size": (64, 64), "fine": True, "textured": 1.0, "radius": (0.1, 0.22)}


def _scene(rng: random.Random, low: int = 1, high: int = 4, **how: Any) -> Scene:
    """A scene with at least ``low`` shapes, and at most ``high`` or, in a small image, one more."""
    size = how.pop("size", None) or rng.choice(_SIZES)
    scene = draw(rng, size, rng.randint(low, high if min(size) >= 48 else low + 1), **how)
    if len(scene.shapes) < low:
        raise _Redraw
    return scene


def _reference(rng: random.Random, shape: Shape, shapes: Sequence[Shape]) -> str:
    """A name that means this shape only, of one word if there is such a word."""

    def words(s: Shape, parts: str) -> list[str]:
        return [getattr(s, part) for part in parts.split()]

    fits = [p for p in _REFERENCES if sum(words(s, p) == words(shape, p) for s in shapes) == 1]
    fits = [p for p in fits if p != "texture" or shape.texture != "plain"]
    if not fits:
        raise _Redraw
    parts = rng.choice([p for p in fits if " " not in p] or fits)
    return " ".join(["the", *words(shape, parts), *["shape"] * ("name" not in parts)])


def _subjects(rng: random.Random, count: int, **how: Any) -> tuple[Scene, _Named]:
    """A scene, and some of its shapes with the names that they are asked by."""
    scene = _scene(rng, count, **how)
    shapes = rng.sample(scene.shapes, count)
    return scene, [(_reference(rng, shape, scene.shapes), shape) for shape in shapes]


def _described(shape: Shape) -> str:
    texture = "" if shape.texture == "plain" else f"{shape.texture} "
    return f"{shape.shade} {texture}{shape.name}"


def _left_to_right(shapes: Sequence[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda shape: (shape.box.x1, shape.box.y1))


def _some_box(rng: random.Random) -> Box2D:
    w, h = rng.randint(4, 36), rng.randint(4, 36)
    x, y = rng.randrange(64 - w), rng.randrange(64 - h)
    return Box2D(x, y, x + w, y + h)


def _digits(box: Box2D) -> str:
    """A box as plain text, without the tokens that refer to a region."""
    return "[" + ",".join(str(int(n)) for n in box.as_tuple()) + "]"


# --- where and how long: of shapes that are seen, or of boxes that are written down


def place(rng: random.Random, written: bool = False) -> Exercise:
    """The cell of a grid that holds the middle of a box."""
    scene, about = _subjects(rng, 1)
    ((name, shape),), n, (height, width) = about, rng.choice((2, 3, 4)), scene.pixels.shape
    (x1, y1, x2, y2), (x, y) = shape.box.as_tuple(), shape.box.center
    row, column = y / height * n, x / width * n
    if min(row % 1, 1 - row % 1, column % 1, 1 - column % 1) < 0.08:
        raise _Redraw
    texts = [f"row {r + 1}, column {c + 1}" for r in range(n) for c in range(n)]
    question = f"Of {n} rows and {n} columns, which hold the middle of {name}?"
    if n == 2:
        question = f"In which part of the image is {name}?"
        texts = ["upper left", "upper right", "lower left", "lower right"]
    if written:
        question = f"The image is {width} pixels wide and {height} pixels tall. {question}"
    right = texts[int(row) * n + int(column)]
    thought = f"{_worked('middle', x1, x2)}, {_worked('middle', y1, y2)}."
    return _choose(rng, (scene,), question, texts, right, about, thought, written)


def relation(rng: random.Random, written: bool = False) -> Exercise:
    """Where one box is, seen from another; on each axis both of its edges lie on that side, so that
    comparing two numbers is enough."""
    scene, about = _subjects(rng, 2)
    (one, a), (other, b) = about
    steps = (a.box.x1 - b.box.x1, a.box.x2 - b.box.x2, a.box.y1 - b.box.y1, a.box.y2 - b.box.y2)
    if min(map(abs, steps)) < 3 or min(steps[0] * steps[1], steps[2] * steps[3]) < 0:
        raise _Redraw
    texts = [f"{v} and to the {h}" for v in ("above", "below") for h in ("left", "right")]
    right = texts[2 * (steps[2] > 0) + (steps[0] > 0)]
    question = f"Where is {one}, seen from {other}?"
    thought = f"Left edges at {_worked('left or right', a.box.x1, b.box.x1)}. "
    thought += f"Upper edges at {_worked('above or below', a.box.y1, b.box.y1)}."
    return _choose(rng, (scene,), question, texts, right, about, thought, written)


def lengths(rng: random.Random, written: bool = False) -> Exercise:
    """Which of two boxes is wider, and which is taller: two comparisons of lengths."""
    scene, about = _subjects(rng, 2, names=[*NAMES, *["bar"] * 4])
    (one, a), (other, b) = about
    wide, tall = a.box.width - b.box.width, a.box.height - b.box.height
    usual = wide * tall > 0 and rng.random() < 0.8  # else the wider is nearly always the taller
    if min(abs(wide), abs(tall)) < 4 or usual:
        raise _Redraw
    names = [(w, t) for w in (one, other) for t in (one, other)]
    texts = [f"{w} is wider " + ("and taller" if w == t else f"and {t} taller") for w, t in names]
    right, thought = texts[2 * (wide < 0) + (tall < 0)], ""
    for name, shape in about:
        x1, y1, x2, y2 = shape.box.as_tuple()
        thought += f"{_capital(name)}: {_worked('difference', x1, x2)}, "
        thought += f"{_worked('difference', y1, y2)}. "
    thought += f"{a.box.width:.0f} and {b.box.width:.0f}: {one if wide > 0 else other} is wider. "
    thought += f"{a.box.height:.0f} and {b.box.height:.0f}: {one if tall > 0 else other} is taller."
    question = f"Which is wider and which is taller, {one} or {other}?"
    return _choose(rng, (scene,), question, texts, right, about, thought, written)


def length(rng: random.Random, written: bool = False) -> Exercise:
    """Width or height of a box in pixels: the difference of two edges."""
    scene, about = _subjects(rng, 1)
    ((name, shape),), (word, at) = about, rng.choice((("wide", 0), ("tall", 1)))
    first, last = (int(shape.box.as_tuple()[k]) for k in (at, at + 2))
    true, others = last - first, rng.sample(range(4, 40), 12)
    numbers = (true, *(n for n in others if abs(n - true) > 0.22 * true))
    question, texts = f"How {word} is {name}?", [f"about {n} pixels" for n in numbers]
    thought = f"{_worked('difference', first, last)}."
    return _choose(rng, (scene,), question, texts, texts[0], about, thought, written)


# --- one image


def point(rng: random.Random) -> Exercise:
    """Write the box of a named shape."""
    scene, ((name, shape),) = _subjects(rng, 1)
    question, reply = rng.choice(_TEXTS["point"]).format(name), format_box(shape.box)
    return Exercise((scene,), question, reply, box=shape.box)


def describe(rng: random.Random, key: str) -> Exercise:
    """Name all shapes from left to right (key ``all``), those of an image among several
    (``image``), or what is in a box (``box``); or list them with their boxes (``boxes``)."""
    scenes, at = [_scene(rng, 1, 5)], 0
    if key == "all" and rng.random() < 0.25:  # a texture that is too fine for a whole image
        scene = _scene(rng, 1, 3, **_FINE)
        scenes = [enlarged(scene, rng.choice(scene.shapes), rng)]
    if key == "image":
        scenes = _row(rng)[0]
        at = rng.randrange(len(scenes))
    shapes = _left_to_right(scenes[at].shapes)
    question = f"What does {f'image {at + 1}' if key == 'image' else 'the image'} show?"
    if key == "boxes":
        reply = " ".join(f"{_capital(_described(s))} {format_box(s.box)}." for s in shapes)
        return Exercise((scenes[0],), "List all shapes with their boxes.", reply, box=shapes[0].box)
    if key == "box":
        shapes = [rng.choice(shapes)]
        question = f"What is at {format_box(shapes[0].box)}?"
    reply = " ".join(f"A {_described(shape)}." for shape in shapes)
    return Exercise(tuple(scenes), question, reply, answer=reply)


def attribute(rng: random.Random, key: str) -> Exercise:
    """Choose the name or the texture of a shape."""
    every, textured = (tuple(NAMES), 0.5) if key == "name" else (TEXTURES, 0.9)
    scene, about = _subjects(rng, 1, high=3, textured=textured)
    ((name, shape),) = about
    right, small = getattr(shape, key), min(shape.box.width, shape.box.height) < 13
    if set(right.split()) & set(name.split()) or (key == "texture" and small):
        raise _Redraw
    return _choose(rng, (scene,), f"What is the {key} of {name}?", every, right, about)


def which_box(rng: random.Random) -> Exercise:
    """Choose the box of a named shape; the others hardly overlap it."""
    scene, about = _subjects(rng, 1)
    ((name, shape),) = about
    wrong = [box for box in (_some_box(rng) for _ in range(9)) if box.iou(shape.box) < 0.25]
    texts = [_digits(box) for box in (shape.box, *wrong)]
    return _choose(rng, (scene,), f"Which box holds {name}?", texts, texts[0], about)


def presence(rng: random.Random) -> Exercise:
    """Two names: which of them are there?"""
    scene = _scene(rng, 1, 5, distinct=True)
    there = {shape.name: shape for shape in scene.shapes}
    missing = [name for name in NAMES if name not in there]
    a, b = (rng.choice(rng.choice((list(there), missing))) for _ in range(2))
    if a == b:
        raise _Redraw
    texts = {(1, 1): "both", (1, 0): f"only the {a}", (0, 1): f"only the {b}", (0, 0): "neither"}
    right, texts = texts[a in there, b in there], [*texts.values()]
    about = [(f"the {name}", there[name]) for name in (a, b) if name in there]
    thought = " ".join(f"There is no {name}." for name in (a, b) if name not in there)
    question = f"Which are there, a {a} or a {b}?"
    return _choose(rng, (scene,), question, texts, right, about, thought)


def count(rng: random.Random) -> Exercise:
    """How many shapes of a shade, or at all, counted by their boxes from left to right."""
    scene, word = _scene(rng, 1, 5), rng.choice(("shapes", *(f"{s} shapes" for s in SHADES)))
    counted = [s for s in _left_to_right(scene.shapes) if word in ("shapes", f"{s.shade} shapes")]
    texts = ["none", "one", "two", "three", "four", "five"]
    right, about = texts[len(counted)], [(f"the {s.name}", s) for s in counted]
    thought = "" if counted else f"There are no {word}."
    return _choose(rng, (scene,), f"How many {word} are there?", texts, right, about, thought)


def close_up(rng: random.Random) -> Exercise:
    """The last image is an enlarged part, perhaps of the first; its texture shows only there."""
    scene = _scene(rng, 1, 3, **_FINE)
    shape = rng.choice(scene.shapes)
    images, about = [scene, enlarged(scene, shape, rng)], [("the part", shape)]
    question = "Image 2 is an enlarged part of image 1. What texture does it show?"
    if rng.random() < 0.4:
        question, images, about = "This is enlarged. What texture does it show?", images[1:], ()
    return _choose(rng, images, question, TEXTURES, shape.texture, about)


# --- several images


def _row(rng: random.Random) -> tuple[list[Scene], str, int]:
    """Two to eight images, a name that only one of them shows, and the index of that one."""
    size, name = rng.choice(((64, 64), (64, 64), (32, 32))), rng.choice(list(NAMES))
    how = {"names": [other for other in NAMES if other != name], "radius": (0.15, 0.3)}
    scenes = [draw(rng, size, rng.randint(1, 2), **how) for _ in range(rng.randint(2, 8))]
    at = rng.randrange(len(scenes))
    scenes[at] = draw(rng, size, 1, **how | {"names": [name]})
    if not all(scene.shapes for scene in scenes):
        raise _Redraw
    return scenes, name, at


def find(rng: random.Random, key: str) -> Exercise:
    """Which image shows something (key ``image``), and where in it (``box``); or which run of
    images shows it at the same place (``span``)."""
    scenes, name, at = _row(rng)
    shape, number, question = scenes[at].shapes[0], f"Image {at + 1}", f"Where is the {name}?"
    if key == "image" and len(scenes) > 3 and rng.random() < 0.4:
        texts = [f"image {k + 1}" for k in range(len(scenes))]
        about = [(f"{texts[at]}, the {name}", shape)]
        return _choose(rng, scenes, f"Which image shows the {name}?", texts, texts[at], about)
    if key == "image":
        reply = f"{number}."
        return Exercise(tuple(scenes), f"Which image shows the {name}?", reply, answer=reply)
    if key == "span":
        last, pixels = rng.randrange(at, len(scenes)), scenes[at].pixels
        question = f"Which images show the {name}, and where?"
        number = f"Images {at + 1} to {last + 1}"
        noise = np.random.default_rng(rng.getrandbits(63))
        for k in range(at, last + 1):
            other = (pixels + noise.normal(rng.uniform(-10, 10), 4, pixels.shape)).clip(0, 255)
            scenes[k] = replace(scenes[at], pixels=other.astype(np.uint8))
    reply = f"{number}, {format_box(shape.box)}"
    return Exercise(tuple(scenes), question, reply, box=shape.box, answer=f"{number},")


_PLAIN = (letter, option, numbers, pairs, point, which_box, place, relation, lengths, length)
_PLAIN += (presence, count, close_up)
MAKERS: dict[str, Callable[[random.Random], Exercise]] = {
    **{make.__name__.replace("_", " "): make for make in _PLAIN},
    "plain letter": partial(letter, plain=True),
    "plain letters": partial(letter, plain=True, times=3),
    "letters": partial(letter, times=3),
    "letter behind images": partial(letter, images=6),
    "place of box": partial(place, written=True),
    "relation of boxes": partial(relation, written=True),
    "lengths of boxes": partial(lengths, written=True),
    "length of box": partial(length, written=True),
    "describe": partial(describe, key="all"),
    "point at all": partial(describe, key="boxes"),
    "what is there": partial(describe, key="box"),
    "what in image": partial(describe, key="image"),
    "name": partial(attribute, key="name"),
    "texture": partial(attribute, key="texture"),
    "which image": partial(find, key="image"),
    "point in image": partial(find, key="box"),
    "span of images": partial(find, key="span"),
}
"""Name of an exercise -> how one is made."""

STAGES: dict[str, dict[str, float]] = _TEXTS["stages"]
"""Stage -> names of its exercises and their weights (``exercises.yaml``)."""
