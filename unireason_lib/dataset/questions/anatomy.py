"""What the images of a study show: structures, what they are called, and facts measured on them.

Everything is measured along single axes (0, 1, 2 for x, y, z) in fractions of the grid, so nothing
depends on the spacing of voxels or on the size of the images. Each measure gives None for a
near-tie: no question has an answer on which two readers could differ.
"""

import itertools
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from unireason_lib.dataset.questions.prior import FOUR_VALUES, AnswerPrior, Axes, Fact, Names, Value
from unireason_lib.dataset.study import DIRECTION_WORDS, Structure, kind_of
from unireason_lib.dataset.view import View

# What is clear: two centres are apart along an axis when they differ by APART of the structures'
# mean extent, a lesion is off the centre of its host by OFF_CENTRE of the host's extent; and each
# by MIN_SHIFT of width, height or depth of the grid.
APART, OFF_CENTRE, MIN_SHIFT = 0.3, 0.12, (0.03, 0.03, 0.04)

WORDS: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("phrasings.yaml").read_bytes())
"""All words of questions: families with phrasings, attributes, options, what fills the braces."""
MEASURED = (*FOUR_VALUES, *WORDS["attributes"], "box", "extent", "host", "span", "offset")
"""Kinds of facts that have a value; what a prior counts."""
TRIES = 12
"""Facts along the same axes that are tried for one question. If one tried until one is kept, what
the prior takes out of the facts would come back as a lopsided choice of studies."""


class Placed(NamedTuple):
    """A structure with its box, extent and centre in fractions of the grid along x, y (and z)."""

    structure: Structure
    values: frozenset[int]  # of the label map
    corners: Sequence[float]
    size: Sequence[float]
    centre: Sequence[float]
    cut_off: bool  # the border of the images may hide a part, so the true extent is unknown

    def overlaps(self, other: Self) -> bool:
        """Whether two structures have voxels in common (a tumour and its liver)."""
        return not self.values.isdisjoint(other.values)


class Anatomy:
    """The structures of one study that questions may be about. Left out are those that the images
    do not show, that share their name with another, or that contain most of the others, as the body
    does: they are neither called present nor absent. ``phrases``: what a sentence calls a structure
    -> the structure (a lesion may have several); ``hosts``: phrases of lesions -> the organ around;
    ``sorts``: of organs and of lesions, the names of those that are there, and absent names."""

    def __init__(self, view: View, prior: AnswerPrior | None = None, seed: int = 0) -> None:
        study = view.study
        self.view, self.study, self.seed = view, study, seed
        self.prior = prior or AnswerPrior({})
        self.dimension, self.dims, self.grid = study.dimension, len(study.shape), study.shape[::-1]
        self.directions = [DIRECTION_WORDS[letter] for letter in study.directions[: self.dims]]
        self._values = {s.label: frozenset(s.values or (s.label,)) for s in study.structures}
        self._least = [max(m, 1 / n) for m, n in zip(MIN_SHIFT, self.grid, strict=False)]
        self._signs: dict[tuple[str, Names], Sequence[str]] = {}
        organs = frozenset(s.label for s in study.structures if s.kind == "organ")
        most = max(2, len(organs) / 2)
        parts = [s for s in study.structures if len(self._values[s.label] & organs) <= most]
        named = Counter(s.name for s in study.structures)
        seen = [s for s in parts if s.label in view.visible_labels]
        unique = [s for s in seen if named[s.name] == 1]
        self.organs = [s for s in unique if s.kind == "organ"]
        self.lesions = [s for s in seen if s.kind == "lesion"]
        self.phrases = {f"the {s.name}": self._placed(s) for s in self.organs}
        self.hosts: dict[str, Structure | None] = {}
        for lesion in self.lesions:
            phrases = self._phrases_of(lesion)
            self.phrases |= dict.fromkeys(phrases, self._placed(lesion))
            self.hosts |= dict.fromkeys(phrases, self._host(lesion))
        absent, self.sorts = study.absent, []
        for kind in ("organ", "lesion"):
            here = [s.name for s in unique if s.kind == kind]
            self.sorts.append((here, [name for name in absent if kind_of(name) == kind]))
        self.there = frozenset(name for here, _ in self.sorts for name in here)

    def _placed(self, structure: Structure) -> Placed:
        n, grid = self.dims, self.grid
        corners = [c / m for c, m in zip(structure.box.as_tuple(), grid * 2, strict=True)]
        size = [corners[axis + n] - corners[axis] for axis in range(n)]
        centre = [c / m for c, m in zip(structure.centroid, grid, strict=True)]
        cut_off = min(corners[:2]) <= 0 or max(corners[n : n + 2]) >= 1
        return Placed(structure, self._values[structure.label], corners, size, centre, cut_off)

    def _host(self, lesion: Structure) -> Structure | None:
        """The organ around a lesion: as the source says, else the smallest that contains it."""
        if stated := lesion.attributes.get("host"):
            return next((s for s in self.organs if s.name == stated), None)
        around = (s for s in self.organs if lesion.label in self._values[s.label])
        return min(around, key=lambda s: s.voxels, default=None)

    def _phrases_of(self, lesion: Structure) -> list[str]:
        """What means this lesion and no other."""
        others = [s for s in self.study.lesions if s is not lesion]
        if not others:
            return ["the lesion" if is_single(lesion) else f"the {lesion.name}"]
        phrases, host = [], lesion.attributes.get("host")
        if all(lesion.voxels > 1.3 * s.voxels for s in others):
            phrases.append("the largest lesion")
        if all(1.3 * lesion.voxels < s.voxels for s in others):
            phrases.append("the smallest lesion")
        if host and all(s.attributes.get("host", host) != host for s in others):
            phrases.append(f"the lesion in the {host}")
        if not phrases and all(s.name != lesion.name for s in others):
            phrases.append(f"the {lesion.name}")
        return phrases

    def candidates(self, kind: str, rng: random.Random) -> Iterator[Fact]:
        """Some facts in random order, lesions mostly first; none that the prior nearly knows."""
        every, axes_of_kind = self.names[kind], self.axes(kind)
        if len(axes_of_kind) > 1:
            axes_of_kind = rng.sample(axes_of_kind, len(axes_of_kind))
        for axes in axes_of_kind:
            names = every
            if self.prior.studies:
                known = self.prior.open_names.get((kind, self.dimension, axes), ())
                names = [n for n in every if n in known]
            if names and len(names[0]) == 1:
                keys = [rng.random() * (0.3 if n[0] in self.hosts else 1) for n in names]
                names = [n for _, n in sorted(zip(keys, names, strict=True))[:TRIES]]
            else:
                names = rng.sample(names, min(TRIES, len(names)))
            for n in names:
                yield Fact(kind, self.dimension, axes, n)

    def axes(self, kind: str) -> list[Axes]:
        """The axes, or pairs of axes, along which facts of a kind are measured."""
        if kind in ("quadrant", "relation", "place"):
            return list(itertools.combinations(range(len(self.directions)), 2))
        return [()]

    @cached_property
    def names(self) -> dict[str, list[Names]]:
        """The names of all facts of each kind."""
        combinations, hosted = itertools.combinations, [(p, h) for p, h in self.hosts.items() if h]
        phrases, lesions = [(p,) for p in self.phrases], [(p,) for p in self.hosts]
        pairs = list(combinations(sorted(self.phrases), 2))
        # of lesions with anything, and of what there is on both sides: other distances hardly
        # differ between patients, and many structures have very many pairs
        compared = [p for p in pairs if not self.hosts.keys().isdisjoint(p) or _opposite(*p)]
        return {
            **dict.fromkeys(("box", "structure", "quadrant", "level", "extent", "span"), phrases),
            **dict.fromkeys(("texture", "density"), lesions),
            "offset": compared,
            "relation": pairs,
            "place": [(p, f"the {host.name}") for p, host in hosted],
            "host": [(p,) for p, _ in hosted],
            "count": [()],
            "pair": [n for h, g in self.sorts for n in combinations(sorted([*h, *g]), 2)],
        }

    def value(self, kind: str, axes: Axes, names: Names) -> Value | None:
        """What is true of a fact, None where the masks do not say."""
        if axes:  # on which side along each: "+-"
            if (signs := self._signs.get((kind, names))) is None:
                signs = self._signs[kind, names] = self._sides(kind, names)
            one, two = signs[axes[0]], signs[axes[1]]
            return one + two if one and two else None
        if kind == "pair":
            return "".join(["ny"[name in self.there] for name in names])
        if kind == "count":
            return self._count()
        if kind == "host":
            return self.hosts[names[0]].name
        s = self.phrases[names[0]]
        if kind == "offset":
            return self._offset(*map(self.phrases.get, names))
        if kind == "span":
            return None if s.cut_off else (round(100 * s.size[0], 2),)
        if kind == "box":
            return tuple([round(edge, 4) for edge in s.corners])
        if kind == "level":
            return self._level(s)
        if kind == "extent":
            height, width = self.view.frame.extent(*self.view.image_size)
            longer = max(s.size[0], s.size[1] * height / width)
            return None if s.cut_off else (round(100 * longer, 2),)
        value = s.structure.attributes.get(kind)
        return value if value in WORDS["attributes"][kind] else None

    def _sides(self, kind: str, names: Names) -> Sequence[str]:
        """On which side along every axis: ``"+"``, ``"-"``, or ``""`` if that is unclear."""
        a, b = self.phrases[names[0]], self.phrases[names[-1]]
        if kind == "relation" and a.overlaps(b):
            return [""] * self.dims
        rows = zip(a.centre, a.size, b.centre, b.size, self._least, strict=True)
        if kind == "quadrant":
            gaps = [(ca - 0.5, APART / 2 * sa, least) for ca, sa, _, _, least in rows]
        elif kind == "place":
            gaps = [(ca - cb, OFF_CENTRE * sb, least) for ca, _, cb, sb, least in rows]
        else:
            gaps = [(ca - cb, APART / 2 * (sa + sb), least) for ca, sa, cb, sb, least in rows]
        return ["" if abs(g) < max(c, least) else "+" if g > 0 else "-" for g, c, least in gaps]

    def _offset(self, a: Placed, b: Placed) -> Value | None:
        """How far two centres are apart from left to right, in percent of the width."""
        percent = 100 * abs(a.centre[0] - b.centre[0])
        clear = percent >= 100 * max(APART / 2 * (a.size[0] + b.size[0]), self._least[0])
        return (round(percent, 2),) if clear and not a.overlaps(b) else None

    def _level(self, s: Placed) -> str | None:
        """Which quarter of the slices, from 0, holds the centre; None for long structures."""
        if self.dims == 2 or min(self.grid[2], self.view.depth) < 4 or s.size[2] > 0.6:
            return None
        place = 4 * s.centre[2]
        return None if min(place % 1, 1 - place % 1) < 0.15 else str(min(int(place), 3))

    def _count(self) -> str | None:
        """How many lesions; None if not all are visible and outlined singly, or if none is outlined
        where only some kinds were looked for."""
        lesions = self.study.lesions
        clear = len(lesions) == len(self.lesions) <= 3 and all(map(is_single, lesions))
        return str(len(lesions)) if clear and (lesions or self.study.all_lesions) else None

    def structure(self, name: str) -> Structure:
        """The structure that a phrase means, or that has a name, with its article."""
        placed = self.phrases.get(name)
        return placed.structure if placed else self.study.find(name.removeprefix("the "))

    def chance(self, fact: Fact) -> float:
        """A number below 1 that follows from study and fact alone: one chance with the prior. If it
        could be drawn again for every question, everything would pass, as lopsided as it is."""
        text = f"{self.seed}/{self.study.id}/{fact.kind}{fact.axes}{fact.names}"
        return zlib.crc32(text.encode()) / 2**32

    def dice(self, fact: Fact) -> random.Random:
        """Random numbers that follow from :meth:`chance`: a fact has one set of wrong options."""
        return random.Random(int(self.chance(fact) * 2**32))


def _opposite(a: str, b: str) -> bool:
    """Whether two names differ in their side only."""
    return "left" in a and a.replace("left", "right") == b


def is_single(lesion: Structure) -> bool:
    """Whether lesions are outlined one by one, so that this is *a* lesion and not all of them."""
    return lesion.attributes.get("components", 1 if lesion.attributes.get("host") else None) == 1
