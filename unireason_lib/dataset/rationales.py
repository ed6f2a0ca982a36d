"""Rationales: the reasoning between question and answer, with boxes where the evidence is.

A rationale is text with :class:`Point` s in it. A point names a structure; its coordinates come
from the :class:`~unireason_lib.dataset.view.View` and from nowhere else, whoever wrote the text.
Writers share one interface (``name``, ``write(question, view)``): :class:`TemplateWriter`, here,
composes short reports from the parts in ``rationales.yaml``; another asks a language model.

What a rationale must keep to is checked with its record: :mod:`unireason_lib.dataset.checks`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unireason_lib.boxes import BOX_END, BOX_START, Box, format_box, read_box
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.questions.kinds import capital
from unireason_lib.dataset.view import View

MAX_ROUNDS = 10
"""Boxes in one reply (rounds of region-token injection, released settings of UniReason-Med)."""


@dataclass(frozen=True)
class Point:
    """A place in the reasoning: a structure's name and its box as :meth:`View.box` gives it."""

    structure: str
    box: Box


@dataclass(frozen=True)
class Rationale:
    """Text and points in order."""

    parts: tuple[str | Point, ...]

    @property
    def text(self) -> str:
        """The text with its boxes written out."""
        return "".join(p if isinstance(p, str) else format_box(p.box) for p in self.parts)

    @property
    def points(self) -> tuple[Point, ...]:
        """The points in order."""
        return tuple(part for part in self.parts if isinstance(part, Point))


def conclusion(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option whose words occur last in a text, or None when none does."""
    return _last_named(text, {letter: option.rstrip(".") for letter, option in options.items()})


def _last_named(text: str, names: Mapping[str, str]) -> str | None:
    """The key of the name that occurs last, as whole words of any case; the longer of two there."""
    folded, best = text.casefold(), (-1, 0, None)
    for key, name in names.items():
        name = name.casefold()
        start = folded.rfind(name)
        while name and start >= 0:
            before, end = folded[:start][-1:], start + len(name)
            if not (_is_word(before) or _is_word(folded[end : end + 1])):
                best = max(best, (end, len(name), key), key=lambda place: place[:2])
                break
            start = folded.rfind(name, 0, end - 1)
    return best[2]


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_LIST = rf"{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}(?:(?:\s*,\s*{_NUMBER}){{2}})?"
_POINTING = re.compile(
    r"\[\[\s*(?P<tag>[^\[\]]{1,120}?)\s*\]\]"
    rf"|{re.escape(BOX_START)}(?P<box>.{{0,200}}?){re.escape(BOX_END)}"
    rf"|(?P<bare>[\[(]\s*{_LIST}\s*[\])])",
    re.DOTALL,
)


def anchor(
    text: str, boxes: Mapping[str, tuple[str, Box]], quotes: Collection[str] = ()
) -> tuple[Rationale, list[str], list[str]]:
    """Put true coordinates where a text points, so that none survive that are not true.

    A tag, ``[[left kidney]]``, becomes a point. Coordinates, between box tags or bare, are replaced
    by the true box of the structure named last before them (a repair); where none is named and they
    are nobody's box, they are a problem. ``boxes``: what a tag may say -> (name, true box);
    ``quotes``: texts that may hold coordinates and stay as they are, the options of the question.
    Returns the rationale, what was repaired, and problems, each with a short name before a colon.
    """
    by_name = {key.casefold(): value for key, value in boxes.items()}
    parts, repairs, problems, position = [], [], [], 0
    for match in _POINTING.finditer(text):
        if match["bare"] and match["bare"] in quotes:
            continue
        before, position = text[position : match.start()], match.end()
        parts.append(before)
        if match["tag"] is not None:
            tag = re.sub(r"^(?:the|a|an)\s+", "", match["tag"].strip(), flags=re.I)
            if (meant := by_name.get(tag.casefold())) is None:
                problems.append(f"unknown: there is no {match['tag']!r}")
        else:
            written = read_box(match["box"] or match["bare"])
            if (name := _last_named(before, {key: key for key in by_name})) is not None:
                meant = by_name[name]
            else:
                meant = next((value for value in by_name.values() if value[1] == written), None)
            if meant is None:
                problems.append(f"invented: {match[0]!r} is nobody's box")
            elif written != meant[1]:
                repairs.append(f"{match[0]} -> {meant[0]} at {list(meant[1].as_tuple())}")
        if meant is not None:
            parts.append(Point(*meant))
    parts.append(text[position:])
    rest = "".join(part for part in parts if isinstance(part, str))
    if BOX_START in rest or BOX_END in rest:
        problems.append("tags: a box is opened or closed and not both")
    return Rationale(tuple(filter(None, parts))), repairs, problems


TEMPLATES: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
"""The parts of the rationales."""


@dataclass(frozen=True)
class TemplateWriter:
    """Composes rationales from many small parts, chosen by the question's id."""

    seed: int = 0  # another one chooses other parts

    name = "template-short"  # stored with every record

    def write(self, question: Question, view: View) -> Rationale:
        """The rationale of a question of :func:`unireason_lib.dataset.questions.ask`."""
        rng, known = random.Random(f"{self.seed}/{question.id}"), TEMPLATES
        sentences = [rng.choice(known["openings"]), *_findings(question, rng)]
        conclusions = known["conclusions"]
        sentences.append(rng.choice(conclusions[question.kind] + conclusions["any"]))
        text = " ".join(filter(None, sentences)).format(*_MARKS, **_words(question, view, rng))
        points = [Point(structure.name, view.box(structure)) for structure in question.evidence]
        pieces = enumerate(_MARK.split(text))
        parts = (points[int(piece)] if k % 2 else piece for k, piece in pieces)
        return Rationale(tuple(part for part in parts if part))


_MARKS = tuple(f"\0{k}\0" for k in range(3))  # where the points of the evidence will stand
_MARK = re.compile("\0(.)\0")


def _findings(question: Question, rng: random.Random) -> list[str]:
    """The sentences that locate the evidence and state what is seen there."""
    known, kind, number = TEMPLATES, question.kind, len(question.evidence)
    if kind == "pair":  # each of the structures in the order of the question
        sentences = []
        for k, name in enumerate(question.facts["searched"], start=1):
            text = rng.choice(known["searched"]["found" if name in question.names else "absent"])
            if name in question.names:
                text = text.replace("{0}", f"{{{question.names.index(name)}}}")
            sentences.append(re.sub(r"\{([nN])ame\}", rf"{{\1ame{k}}}", text))
        return sentences
    located, findings = known["located"].get(number), known["findings"][kind]
    if kind == "structure":
        located = known["marked"]
    elif kind == "count":
        located, findings = known["counted"][number], findings[number > 0]
    return [rng.choice(located), rng.choice(findings)]


def _words(question: Question, view: View, rng: random.Random) -> dict[str, str]:
    """What fills the braces."""
    facts, known = question.facts, TEMPLATES
    words = {key: str(value) for key, value in facts.items() if not isinstance(value, list)}
    words |= {"truth": _within(question.truth), "modality": view.study.modality}
    words["it"] = "image" if question.dimension == "2d" else "volume"
    words |= dict(zip("abc", question.names, strict=False))
    words |= {f"name{k}": name for k, name in enumerate(facts.get("searched", ()), start=1)}
    for k, side in enumerate(facts.get("sides", ()), start=1):
        words |= {f"{key}{k}": texts[side] for key, texts in known["sides"].items()}
    if question.kind == "level":
        box = view.box(question.evidence[0])
        words |= {"first": str(int(box.z1) + 1), "last": str(int(box.z2)), "depth": str(view.depth)}
    for attribute in ("texture", "density"):
        if attribute in facts:
            words[f"{attribute}_seen"] = rng.choice(known["appearance"][facts[attribute]])
    return words | {key[:1].upper() + key[1:]: capital(value) for key, value in words.items()}


def _within(option: str) -> str:
    """An option's text inside a sentence."""
    return option[:1].lower() + option[1:]
