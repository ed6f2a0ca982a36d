"""Rationales: the reasoning between question and answer, with boxes where the evidence is.

A rationale is text with :class:`Point` s in it. A point names a structure; its coordinates come
from the :class:`~unireason_lib.dataset.view.View` and from nowhere else, whoever wrote the text.
Writers share one interface (``name``, ``write(question, view)``): :class:`TemplateWriter`, here,
composes short reports from the parts in ``rationales.yaml``; another asks a language model.

What a rationale must keep to is checked with its record: :mod:`unireason_lib.dataset.checks`.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unireason_lib.boxes import Box, format_box
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.questions.kinds import capital
from unireason_lib.dataset.view import View

MAX_ROUNDS = 10
"""Boxes in one reply (rounds of region-token injection, released settings of UniReason-Med)."""


LISTED = 12
"""Structures at most in a list of what is visible."""


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
    """The letter of the option that occurs last in a text, as whole words of any case, the longer
    of two that end there; None when none does."""
    folded, places = text.casefold(), [(-1, 0, None)]
    for letter, option in options.items():
        option = option.rstrip(".").casefold()
        whole = rf"(?<!\w)(?={re.escape(option)}(?!\w))" if option else r"(?!)"
        starts = (match.start() for match in re.finditer(whole, folded))
        places += [(start + len(option), len(option), letter) for start in starts]
    return max(places, key=lambda place: place[:2])[2]


TEMPLATES: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())
"""The parts of the rationales."""


@dataclass(frozen=True)
class TemplateWriter:
    """Composes rationales from many small parts, chosen by the question's id."""

    seed: int = 0  # another one chooses other parts

    name = "template"  # stored with every record

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
    if kind == "pair":  # what is there, then each of the structures in the order of the question
        listed = 0 < len(question.facts["visible"]) <= LISTED
        sentences = [rng.choice(known["visible"])] if listed else []
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
        which = ["first", *["further"] * (number - 1)] if number else ["none"]
        sentences = [rng.choice(known["counted"][one]) for one in which]
        sentences = [text.replace("{0}", f"{{{k}}}") for k, text in enumerate(sentences)]
        return [*sentences, rng.choice(findings[number > 0])]
    return [rng.choice(located), rng.choice(findings)]


def _words(question: Question, view: View, rng: random.Random) -> dict[str, str]:
    """What fills the braces."""
    facts, known = question.facts, TEMPLATES
    text = {key: value if isinstance(value, list) else [value] for key, value in facts.items()}
    words = {key: " and ".join(map(str, values)) for key, values in text.items()}
    words["visible"] = ", ".join(facts.get("visible", ()))
    truth = question.truth[:1].lower() + question.truth[1:]  # inside a sentence
    words |= {"truth": truth, "modality": view.study.modality, "unit": view.frame.unit}
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
