"""Rationales: the reasoning between question and answer, with boxes where the eye goes.

A rationale is text with :class:`Point` s in it. A point names a structure; its coordinates come from the
:class:`~unireason_lib.dataset.view.View` and from nowhere else, whoever wrote the text. Two writers share one
interface:

- :class:`TemplateWriter`, here: composes an opening, pointings, what is found there, and a conclusion from
  many parts.
- :class:`~unireason_lib.dataset.llm.LLMWriter`: asks a language model.

What both must keep to is in :func:`verify`: every box is the true box of the structure named, all evidence is
pointed at, and the text comes to the right option, and to no letter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from unireason_lib.boxes import BOX_END, BOX_START, Box, format_box, read_box
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.view import View

MOST_POINTS = 10
"""Rounds of looking again in one reply (paper)."""


@dataclass(frozen=True)
class Point:
    """A place in the reasoning where a structure is pointed at.

    Attributes:
        structure: Its name.
        box: Its box as :meth:`View.box` gives it.
    """

    structure: str
    box: Box


@dataclass(frozen=True)
class Rationale:
    """Text and points in order."""

    parts: tuple[str | Point, ...]

    @property
    def text(self) -> str:
        """The text with its boxes written out."""
        return "".join(part if isinstance(part, str) else format_box(part.box) for part in self.parts)

    @property
    def words(self) -> str:
        """The text without its boxes."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def points(self) -> tuple[Point, ...]:
        """The points in order."""
        return tuple(part for part in self.parts if isinstance(part, Point))


class RationaleWriter(Protocol):
    """Writes the reasoning of a question.

    Attributes:
        name: Stored with every record.
    """

    name: str

    def write(self, question: Question, view: View) -> Rationale: ...


# --- checks -------------------------------------------------------------------------------------------------------

_LETTER_SAID = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)s?\b(?:\s+(?:is|are|would be|must be))?)\s*[:=]?\s*\(?\"?[A-D]\b(?!\w|'|-)"
    r"|(?<![\w(])\(?[A-D]\)"
)
_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?think>")


def verify(rationale: Rationale, question: Question, view: View) -> list[str]:
    """What is wrong with a rationale.

    Returns:
        Reasons, each beginning with a short name and a colon; none when the rationale is good.
    """
    problems = []
    if not rationale.words.strip():
        problems.append("empty: no text")
    for point in rationale.points:
        named = (s for s in view.study.structures if s.name == point.structure)
        if not any(view.box(structure) == point.box for structure in named):
            problems.append(f"box: {point.box.as_tuple()} is not where {point.structure!r} is")
    pointed = {point.structure for point in rationale.points}
    problems += [
        f"evidence: nothing points at {structure.name!r}"
        for structure in question.evidence
        if structure.name not in pointed
    ]
    if len(rationale.points) > MOST_POINTS:
        problems.append(f"points: {len(rationale.points)}, more than {MOST_POINTS}")
    if found := _CONTROL.search(rationale.words):
        problems.append(f"token: {found[0]} in the text")
    if found := _LETTER_SAID.search(rationale.words):
        problems.append(f"letter: the text says {found[0].strip()!r}")
    if (concluded := conclusion(rationale.words, question.options)) != question.answer:
        said = "no option" if concluded is None else repr(question.options[concluded])
        problems.append(f"conclusion: the text comes to {said}, not to {question.truth!r}")
    return problems


def conclusion(text: str, options: Mapping[str, str]) -> str | None:
    """To which option a text comes: the letter of the one whose words occur last, or None when none does.

    Of two that end at the same place the longer counts.
    """
    folded, best = text.casefold(), (-1, 0, "")
    for letter, option in options.items():
        words = re.escape(option.casefold().rstrip("."))
        ends = [match.end() for match in re.finditer(rf"(?<!\w){words}(?!\w)", folded)]
        if ends:
            best = max(best, (ends[-1], len(option), letter))
    return best[2] or None


@dataclass(frozen=True)
class Anchored:
    """A text from outside with its pointings made true.

    Attributes:
        parts: Text and points.
        repairs: What was put right.
        problems: What could not be, each beginning with a short name and a colon.
    """

    parts: tuple[str | Point, ...]
    repairs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_LIST = rf"{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}(?:(?:\s*,\s*{_NUMBER}){{2}})?"
_POINTING = re.compile(
    r"\[\[\s*(?P<tag>[^\[\]]{1,120}?)\s*\]\]"
    rf"|{re.escape(BOX_START)}(?P<box>.{{0,200}}?){re.escape(BOX_END)}"
    rf"|(?P<bare>[\[(]\s*{_LIST}\s*[\])])",
    re.DOTALL,
)


def anchor(text: str, boxes: Mapping[str, tuple[str, Box]], quotes: Collection[str] = ()) -> Anchored:
    """Put true coordinates where a text points.

    A text may point with a tag, ``[[left kidney]]``, which becomes a point. Where it wrote coordinates
    instead, between box tags or bare, the structure that was named last before them decides: they are
    replaced by its true box (a repair), or, when no name stands there and they are nobody's box, reported as
    a problem. No coordinates survive that are not true.

    Args:
        text: What a language model wrote.
        boxes: What a tag may say -> (name of the structure, its true box).
        quotes: Texts that may hold coordinates and stay as they are: the options of a question about boxes.
    """
    by_fold = {key.casefold(): value for key, value in boxes.items()}
    parts: list[str | Point] = []
    repairs, problems = [], []
    position = named_from = 0
    for match in _POINTING.finditer(text):
        if match["bare"] and match["bare"] in quotes:
            continue
        before = text[position : match.start()]
        parts.append(before)
        position = match.end()
        if match["tag"] is not None:
            found = by_fold.get(_without_article(match["tag"]).casefold())
            if found is None:
                problems.append(f"unknown: there is no {match['tag']!r} to point at")
        else:
            found = _meant(match["box"] or match["bare"], text[named_from : match.start()], by_fold)
            if found is None:
                problems.append(f"invented: {match[0]!r} is nobody's box")
            elif read_box(match["box"] or match["bare"]) != found[1]:
                repairs.append(f"{match[0]} -> {found[0]} at {list(found[1].as_tuple())}")
        if found is not None:
            parts.append(Point(*found))
        named_from = position
    parts.append(text[position:])
    rest = "".join(part for part in parts if isinstance(part, str))
    if BOX_START in rest or BOX_END in rest:
        problems.append("tags: a box is opened or closed and not both")
    return Anchored(tuple(part for part in parts if part), tuple(repairs), tuple(problems))


def _meant(coordinates: str, before: str, boxes: Mapping[str, tuple[str, Box]]) -> tuple[str, Box] | None:
    """Whose box is meant: of the structure named last before it, else whose box it exactly is."""
    folded, best = before.casefold(), (-1, 0, "")
    for key in boxes:
        ends = [match.end() for match in re.finditer(rf"(?<!\w){re.escape(key)}(?!\w)", folded)]
        if ends:
            best = max(best, (ends[-1], len(key), key))
    if best[2]:
        return boxes[best[2]]
    box = read_box(coordinates)
    return next((found for found in boxes.values() if found[1] == box), None)


def _without_article(words: str) -> str:
    return re.sub(r"^(?:the|a|an)\s+", "", words.strip(), flags=re.I)


# --- templates ----------------------------------------------------------------------------------------------------
#
# Braces: {a} {b} {c} names of the evidence in order, {A} ... with a capital; {0} {1} {2} the points; {truth}
# the right option; everything else is a fact of the question.

OPENINGS = {
    "short": ("", "", "", "Looking: ", "I look. ", "To begin: ", "Let me see. ", "First a look. "),
    "long": (
        "Let me look at the {it} first. ",
        "I go through the {it} step by step. ",
        "This is a {modality} {it}; I search it for what is asked. ",
        "I begin by finding what the question is about. ",
        "To answer this I have to look, not to guess. ",
        "First the {it} as a whole, then the details. ",
        "I start with what can be pointed at. ",
        "Before comparing the options I locate the evidence. ",
    ),
}
ENDINGS = (
    "So: {truth}.",
    "Therefore {truth}.",
    "This means {truth}.",
    "Hence {truth}.",
    "That makes it {truth}.",
    "It follows: {truth}.",
    "What fits is {truth}.",
    "I conclude: {truth}.",
    "Thus {truth}.",
    "The matching option: {truth}.",
)
CHECKS = (
    "The remaining options contradict what I see.",
    "I compared this with the other options.",
    "That rules out {wrong}.",
    "{Wrong} would not agree with this.",
    "I also considered {wrong}; it does not fit.",
    "Nothing here speaks for {wrong}.",
)
"""Only in long rationales; of numbers of things, only the first two can be said."""

POINTING = {
    1: (
        "{A} is at {0}.",
        "I find {a} at {0}.",
        "{A} can be seen at {0}.",
        "Here is {a}: {0}.",
        "{A} lies at {0}.",
        "{A} occupies {0}.",
        "Searching for {a}, I come to {0}.",
        "The region of {a} is {0}.",
    ),
    2: (
        "{A} is at {0}, {b} at {1}.",
        "I find {a} at {0} and {b} at {1}.",
        "{A} can be seen at {0}; {b} lies at {1}.",
        "Here is {a}: {0}. And {b}: {1}.",
        "{A} occupies {0}, and {1} is {b}.",
        "{A}: {0}. {B}: {1}.",
        "Looking at {0} for {a} and at {1} for {b}.",
    ),
    3: (
        "{A} is at {0}, {b} at {1}, {c} at {2}.",
        "I find {a} at {0}, {b} at {1} and {c} at {2}.",
        "{A} can be seen at {0}; {b} lies at {1}, {c} at {2}.",
        "Here is {a}: {0}. Then {b}: {1}. And {c}: {2}.",
        "{A}: {0}. {B}: {1}. {C}: {2}.",
        "There are {a} at {0}, {b} at {1} and {c} at {2}.",
    ),
}
"""Number of points -> sentences that make them."""

POINTING_UNNAMED = (
    "I look at {0}.",
    "The box is {0}.",
    "At {0} there is a structure.",
    "Here it is: {0}.",
    "The question points at {0}.",
    "Looking into {0}.",
)
"""Where the box is given and what is in it has yet to be found."""

NAMED = (
    "It is {a}.",
    "That is {a}.",
    "This must be {a}.",
    "What I see there is {a}.",
    "The place is that of {a}.",
    "I recognize {a} in it.",
)
"""What a thing turns out to be that was found before it had a name: a lesion stands out, and only its place tells
whose it is. To write a name first would be to guess it."""

COUNTED = {
    1: ("There is one at {0}.", "I see one at {0}.", "One is at {0}.", "I come to {0}."),
    2: (
        "There is one at {0}, another at {1}.",
        "I see one at {0} and one at {1}.",
        "One is at {0}. One more is at {1}.",
        "I come to {0}, then to {1}.",
    ),
    3: (
        "There is one at {0}, another at {1}, a third at {2}.",
        "I see one at {0}, one at {1} and one at {2}.",
        "One is at {0}. One more is at {1}, and one at {2}.",
        "I come to {0}, then to {1}, then to {2}.",
    ),
}
"""Number of points -> sentences about things of one kind."""

SEARCHED = {
    True: ("{A} is at {0}.", "{A} can be seen at {0}.", "{A} lies at {0}.", "{A} occupies {0}."),
    False: ("{A} is not there.", "{A} is missing.", "{A} can not be seen.", "{A} is nowhere."),
}
"""What comes of searching one structure, found or not: the name first, then what is seen there."""

CENTRES = (
    "{Along1} the centres are at {at11} and {at12} %, so {side1}; {along2} at {at21} and {at22} %, so {side2}.",
    "Centres {along1}: {at11} and {at12} %, so {side1}. Centres {along2}: {at21} and {at22} %, so {side2}.",
    "{Along1} it is {at11} against {at12} %, so {side1}; {along2} {at21} against {at22} %, so {side2}.",
    "{Along1} {at11} % and {at12} %, so {side1}; {along2} {at21} % and {at22} %, so {side2}: there are the centres.",
)
"""Two centres compared along two axes, one after the other."""

FINDINGS: dict[str, tuple[str, ...]] = {
    "box": (
        "Its edges coincide with {box}.",
        "The offered box {box} has these corners.",
        "Of the four, {box} matches this region.",
        "The other boxes lie elsewhere, {box} is exactly there.",
        "That is the same as {box}.",
    ),
    "name": (
        "Place and shape are those of {a}.",
        "What fills the box is {a}.",
        "The outline there belongs to {a}.",
        "I recognize {a} in it.",
        "The box {box} fits {a} closely.",
    ),
    "quadrant": (
        "{Along1} its centre is at {at11} %, so {side1}; {along2} at {at21} %, so {side2}.",
        "Its centre {along1} is at {at11} %, so {side1}; {along2}, at {at21} %, so {side2}.",
        "{Along1} {at11} %, so {side1}, {along2} {at21} %, so {side2}: there is its centre.",
        "{At11} % {along1}, so {side1}, and {at21} % {along2}, so {side2}.",
        "Its middle, seen from that of the {it}: {at11} % {along1}, so {side1}; {at21} % {along2}, so {side2}.",
    ),
    "cell": (
        "Its centre is {across} % across and {down} % down.",
        "The middle of the box is at {across} % of the width and {down} % of the height.",
        "With {n} cells each way, {across} % across and {down} % down is where its centre falls.",
        "Measured from the first row and column, the centre is {down} % down and {across} % across.",
        "Across {across} %, down {down} %: that is the centre.",
    ),
    "height": (
        "Its centre is {up} % of the way from the first to the last slice.",
        "Along the slices its middle is at {up} %.",
        "After {up} % of the slices one is at its centre.",
        "Counting from the first slice, the centre comes at {up} %.",
        "The middle of its slices is {up} % up the stack.",
    ),
    "count": (
        "I find no more than these.",
        "All other organs are free of lesions.",
        "Nothing else looks like a lesion.",
        "The rest of the {it} shows none of that kind.",
    ),
    "count none": (
        "Going through all organs, I find no lesion.",
        "Every organ is uniform inside; there is no lesion.",
        "I look for spots that differ from their surroundings and see nothing of that kind.",
        "The whole {it} is free of lesions.",
        "No organ has a spot in it.",
    ),
    "largest": (
        "They measure {size1} and {size2}; {other1} has {size3} and {other2} {size4}.",
        "That is {size1} against {size2}, with {size3} for {other1} and {size4} for {other2}.",
        "{A} has {size1}, more than the {size2} of {b}, {size3} of {other1} and {size4} of {other2}.",
        "Sizes: {size1}, then {size2}; {other1} {size3}, {other2} {size4}.",
    ),
    "smallest": (
        "They measure {size1} and {size2}; {other1} has {size3} and {other2} {size4}.",
        "That is {size1} against {size2}, with {size3} for {other1} and {size4} for {other2}.",
        "{A} has {size1}, less than the {size2} of {b}, {size3} of {other1} and {size4} of {other2}.",
        "Sizes: {size1}, then {size2}; {other1} {size3}, {other2} {size4}.",
    ),
    "ratio": (
        "Set against {b}, {a} has {weighed}: {size1} and {size2}.",
        "{A} has {weighed}, {size1} against {size2}.",
        "{A} shows {weighed}; they measure {size1} and {size2}.",
        "Next to {b}, {a} takes up {weighed}: {size1} to {size2}.",
        "I see that {a} has {weighed}. {Size1} against {size2}.",
    ),
    "extent": (
        "Its {side}, the longer side, is {percent} % of {width} mm.",
        "The longer side is its {side}: {percent} % of the full {width} mm, {mm} mm.",
        "It takes {percent} % of the {width} mm along its {side}.",
        "Along the {side} it measures {percent} % of {width} mm.",
        "{percent} % of {width} mm is what its {side} covers.",
    ),
    "relation": CENTRES,
    "clock": (
        "From {b} to {a} on the picture it is {shift}.",
        "The shift between the centres, on the picture, is {shift}.",
        "Starting at {b} one goes {shift} on the picture.",
        "Between the two centres on the picture lie {shift}.",
        "Seen from {b}, the other is {shift} on the picture.",
    ),
    "which side": (
        "{A} is {towards} {b}; {other1}, {other2} and {other3} are {away} it.",
        "While {other1}, {other2} and {other3} are {away} {b}, {a} is {towards} it.",
        "Comparing centres, {a} is {towards} {b}, the others are {away} it.",
        "{Other1}, {other2} and {other3} lie {away} {b}, but {a} lies {towards} it.",
    ),
    "texture": (
        "Up close, {texture look}.",
        "Enlarged, {texture look}.",
        "Inside, {texture look}.",
        "In the crop, {texture look}.",
        "Looking closer, {texture look}.",
    ),
    "host": (
        "It is surrounded by {b}.",
        "All around it is tissue of {b}.",
        "Its box lies within that of {b}.",
        "{B} encloses it.",
        "The outline of {b} goes around it.",
    ),
    "place": CENTRES,
    "lesion": (
        "It is {looks}.",
        "What I see there is {looks}.",
        "In the crop it is {looks}.",
        "Looking closer, it is {looks}.",
        "Against its surroundings it is {looks}.",
    ),
}
"""What is found at the points, by kind of question."""

LOOKS: dict[str, tuple[str, ...]] = {
    "vertically striped": (
        "bright and dark columns alternate",
        "stripes run from top to bottom",
        "I see upright stripes",
    ),
    "horizontally striped": ("bright and dark rows alternate", "stripes run across", "I see lying stripes"),
    "checkered": (
        "bright and dark squares alternate along rows and columns",
        "I see the pattern of a chessboard",
        "squares alternate both ways",
    ),
    "mottled": ("bright and dark spots are scattered", "I see irregular spots", "the spots follow no order"),
    "homogeneous": ("there is no pattern", "the grey is even throughout", "I see no change of grey"),
}
"""How each texture looks."""

WEIGHED = ("not even half as much", "less, but over half", "more, but not double", "more than double")
"""What is seen of two sizes side by side, by class of their ratio. It is said before the sizes: a small model sees how
much larger one is long before it can put sizes into figures."""

SEEMS: dict[str, tuple[str, ...]] = {
    **{name: (f"{name} inside", f"of {name} pattern", name) for name in LOOKS},
    "hypodense": (
        "darker than the tissue around it",
        "dark against its surroundings",
        "less dense than its host",
    ),
    "hyperdense": (
        "brighter than the tissue around it",
        "bright against its surroundings",
        "denser than its host",
    ),
    "isodense": (
        "as bright as the tissue around it",
        "of the grey of its surroundings",
        "as dense as its host",
    ),
    "small": ("small for a lesion", "of little extent", "small"),
    "medium": ("of middle size", "neither large nor small", "medium in size"),
    "large": ("of great extent", "large for a lesion", "large"),
}
"""How each property may be said before it is named."""


@dataclass(frozen=True)
class TemplateWriter:
    """Composes rationales from many small parts, chosen by the question's id.

    Absent structures are not pointed at: a question about what is missing points at what is there, or at
    nothing.

    Args:
        length: ``"short"``: about 20 to 60 tokens besides the boxes, for small models. ``"long"`` also opens
            with a sentence and weighs a wrong option.
        seed: Another seed chooses other parts.
    """

    length: Literal["short", "long"] = "short"
    seed: int = 0

    @property
    def name(self) -> str:
        """``"template-short"`` or ``"template-long"``."""
        return f"template-{self.length}"

    def write(self, question: Question, view: View) -> Rationale:
        """The rationale of a question of :func:`unireason_lib.dataset.questions.ask`."""
        rng = random.Random(f"{self.seed}/{question.id}")
        words = _words(question, view, rng)
        evidence, kind = question.evidence, question.facts["kind"]
        if kind in ("pair", "absent") or (kind == "present" and not _about_lesions(question, view)):
            sentences = _searches(question, rng)
        elif kind == "present":
            sentences = [rng.choice(POINTING_UNNAMED), rng.choice(NAMED)]
        else:
            sentences = []
            if kind == "name":
                sentences.append(rng.choice(POINTING_UNNAMED))
            elif evidence:
                sentences.append(rng.choice((COUNTED if kind == "count" else POINTING)[len(evidence)]))
            sentences.append(rng.choice(FINDINGS[_finding(question)]))
        if self.length == "long":
            sentences.append(rng.choice(CHECKS[:2] if kind in ("pair", "count") else CHECKS))
        sentences.append(rng.choice(ENDINGS))
        text = (rng.choice(OPENINGS[self.length]) + " ".join(sentences)).format(*_MARKS, **words)
        points = [Point(structure.name, view.box(structure)) for structure in evidence]
        parts = [points[int(piece)] if k % 2 else piece for k, piece in enumerate(_MARK.split(text))]
        return Rationale(tuple(part for part in parts if part))


_MARKS = ("\0000\0", "\0001\0", "\0002\0")
_MARK = re.compile("\0(.)\0")


def _about_lesions(question: Question, view: View) -> bool:
    return any(lesion in view.study.lesions for lesion in question.evidence)


def _asked(question: Question) -> list[str]:
    """The structures whose presence is asked about, in the order in which the question names them."""
    facts = question.facts
    if "asked" in facts:
        return facts["asked"]
    every = {name.removeprefix("the ").casefold(): name for name in (*facts["names"], *facts["absent"])}
    return [every[option.casefold()] for option in question.options.values()]


def _searches(question: Question, rng: random.Random) -> list[str]:
    """One structure after the other."""
    names, found = question.facts["names"], []
    for k, name in enumerate(_asked(question), 1):
        text = rng.choice(SEARCHED[name in names]).replace("{A}", f"{{Asked{k}}}")
        point = names.index(name) if name in names else 0
        found.append(text.replace("{0}", f"{{{point}}}"))
    return found


def _finding(question: Question) -> str:
    """Which findings fit a question."""
    kind = question.facts["kind"]
    if kind == "count" and not question.evidence:
        return "count none"
    return "lesion" if kind in ("density", "size class") else kind


def _words(question: Question, view: View, rng: random.Random) -> dict[str, str]:
    """What fills the braces."""
    facts = question.facts
    wrong = rng.choice([text for letter, text in question.options.items() if letter != question.answer])
    words = {key: str(value) for key, value in facts.items() if not isinstance(value, list)}
    words |= {
        "it": "picture" if question.dimension == "2d" else "volume",
        "modality": view.study.modality,
        "truth": _within(question.truth),
        "wrong": _within(wrong),
        "Wrong": wrong,
    }
    words |= dict(zip("abc", facts["names"], strict=False))
    words |= {f"size{k}": size for k, size in enumerate(facts.get("sizes", []), 1)}
    words |= {f"side{k}": side for k, side in enumerate(facts.get("sides", []), 1)}
    words |= {f"other{k}": other for k, other in enumerate(facts.get("others", []), 1)}
    if facts["kind"] in ("pair", "present", "absent"):
        words |= {f"asked{k}": name for k, name in enumerate(_asked(question), 1)}
    words |= {f"along{k}": along for k, along in enumerate(facts.get("along", []), 1)}
    for k, places in enumerate(facts.get("at", []), 1):
        words |= {f"at{k}{n}": str(place) for n, place in enumerate(places, 1)}
    if facts["kind"] == "ratio":
        words["weighed"] = WEIGHED[facts["class"]]
    if "texture" in facts:
        words["texture look"] = rng.choice(LOOKS[facts["texture"]])
    seen = [rng.choice(SEEMS[facts[key]]) for key in ("density", "size_class", "texture") if key in facts]
    words["looks"] = " and ".join(seen)
    words |= {
        key.capitalize(): value[:1].upper() + value[1:] for key, value in words.items() if key[:1].islower()
    }
    return words


def _within(option: str) -> str:
    """An option's text inside a sentence."""
    return option[:1].lower() + option[1:]
