"""What there is to ask about in a study, and what can be measured on it.

A :class:`Scene` picks the structures of a study that a question may be about and finds words for them. The
functions below it
measure: on which side of the aorta the liver lies, at which hour, how much larger it is. Each gives None for
a near-tie, so that no question has an answer on which two people could differ. Every measurement also makes a
*claim*, a pair of strings by which a :class:`~unireason_lib.dataset.census.Census` counts it.

Axes are numbered 0, 1, 2 for x, y, z, as coordinates are.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from unireason_lib.boxes import Box
from unireason_lib.dataset.census import Census, Claim, measure_claim, presence_claim
from unireason_lib.dataset.study import DIRECTION_WORDS, Structure, Study, kind_of
from unireason_lib.dataset.view import View

Named = tuple[Structure, str]
"""A structure and what a sentence calls it."""

MIN_PIXELS: dict[str, int] = {"2d": 24, "3d": 32}
"""Smaller structures are neither asked for nor called absent: an annotation may show them where a picture
does not."""

APART = 0.3
"""Two centres count as apart along an axis when they differ by this share of the mean extent of the two
structures, and by :data:`MIN_SHIFT` of the picture."""

MIN_SHIFT = (0.03, 0.03, 0.04)
"""Smallest share of width, height and depth of the grid that tells two places apart."""

CLEARLY = 1.3
"""The largest of four must exceed the next by this factor; a ratio must be off the borders of its class by
nearly as much."""

RATIOS = (0.5, 1.0, 2.0)
"""Borders between the classes of a ratio of two sizes."""

GRIDS = (3, 4)
"""Rows and columns of the grids over a picture."""

TRIES = 12
"""Pairs and groups of structures that are tried for one question. There are far more, but if one tried until
one is kept, the lopsidedness that the census takes out of the facts would come back as a lopsided choice of
studies."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "texture": ("vertically striped", "horizontally striped", "checkered", "mottled", "homogeneous"),
    "density": ("hypodense", "hyperdense", "isodense"),
    "size_class": ("small", "medium", "large"),
}
"""Attributes of lesions that are asked about, and the values that a wrong option may name."""


class Scene:
    """The structures of one study that questions may be about.

    Left out are structures of a few pixels, those that share their name with another, and one that contains
    most of the others, as the body does.

    Args:
        study: What is asked about.
        view: How it will be shown, for boxes in questions.
        census: What can be known without looking.
        seed: Seed of everything that is drawn.
    """

    def __init__(
        self, study: Study, view: View | None = None, census: Census | None = None, seed: int = 0
    ) -> None:
        self.study, self.view, self.census, self.seed = study, view, census, seed
        self.rng = random.Random(0)
        self.d = study.dimension
        self.dims = 3 if self.d == "3d" else 2
        self.grid = tuple(study.shape[: self.dims][::-1])
        self.mm = study.spacing and tuple(study.spacing[::-1])
        self.directions = [DIRECTION_WORDS[letter] for letter in study.directions[: self.dims]]
        self._values = {s.label: frozenset(s.values or (s.label,)) for s in study.structures}
        names = Counter(s.name for s in study.structures)
        shown = [s for s in study.structures if s.voxels >= MIN_PIXELS[self.d] and not self._holds_most(s)]
        self.organs = [s for s in shown if s.kind == "organ" and names[s.name] == 1]
        self.lesions = [s for s in shown if s.kind == "lesion"]
        self.hosts = {s.label: self._host(s) for s in self.lesions}
        self.calls = {s.label: self._ways_to_call(s) for s in self.lesions}
        unique = [s for s in self.lesions if names[s.name] == 1]
        self.present: dict[str, list[Structure]] = {"organ": self.organs, "lesion": unique}
        self.absent: dict[str, list[str]] = {"organ": [], "lesion": []}
        for name in study.absent:
            self.absent[kind_of(name)].append(name)

    def _holds_most(self, structure: Structure) -> bool:
        if len(self._values[structure.label]) < 3:
            return False
        others = [s.label for s in self.study.structures if s is not structure and s.kind == "organ"]
        inside = sum(label in self._values[structure.label] for label in others)
        return inside >= 2 and 2 * inside > len(others)

    def _host(self, lesion: Structure) -> Structure | None:
        """The organ around a lesion: as the source says, else the smallest one that contains it."""
        said = lesion.attributes.get("host")
        around = [
            s for s in self.organs if s.name == said or (not said and lesion.label in self._values[s.label])
        ]
        return min(around, key=lambda s: s.voxels, default=None)

    def _ways_to_call(self, lesion: Structure) -> dict[str, str]:
        """Phrases that mean this lesion and no other -> what each gives away."""
        others = [s for s in self.study.lesions if s is not lesion]
        host, density = lesion.attributes.get("host"), lesion.attributes.get("density")
        if not others:
            return {"the lesion": ""} if known_single(lesion) else {f"the {lesion.name}": "host"}
        ways = {}
        if all(lesion.voxels > 1.3 * s.voxels for s in others):
            ways["the largest lesion"] = "size_class"
        if all(1.3 * lesion.voxels < s.voxels for s in others):
            ways["the smallest lesion"] = "size_class"
        if density and all(s.attributes.get("density", density) != density for s in others):
            ways[f"the {density} lesion"] = "density"
        if host and all(s.attributes.get("host", host) != host for s in others):
            ways[f"the lesion in the {host}"] = "host"
        if not ways and all(s.name != lesion.name for s in others):
            ways[f"the {lesion.name}"] = "host"
        return ways

    def items(self, hide: str = "") -> list[Named]:
        """Every structure with every phrase for it, but those phrases that give ``hide`` away. Organs come first."""
        items = [(s, f"the {s.name}") for s in self.organs]
        for lesion in self.lesions:
            ways = self.calls[lesion.label].items()
            items += [(lesion, phrase) for phrase, reveals in ways if not hide or reveals != hide]
        return items

    # --- in random order ---

    def subjects(self, hide: str = "", lesions_only: bool = False) -> list[Named]:
        """Structures in random order, lesions mostly first."""
        items = [item for item in self.items(hide) if item[0].kind == "lesion" or not lesions_only]
        keys = [self.rng.random() * (0.3 if s.kind == "lesion" else 1) for s, _ in items]
        return [items[k] for k in sorted(range(len(items)), key=keys.__getitem__)]

    def pairs(
        self, what: str, cases: Sequence[Sequence[str]], hide: str = ""
    ) -> Iterator[tuple[Named, Named]]:
        """Pairs in random order; with a census only those about which one has to look.

        Args:
            what: Kind of the claim that will be made about them.
            cases: Its values, four for every possible set of options.
            hide: As for :meth:`items`.
        """
        items = self.items(hide)
        if self.census is not None:
            by_name = {name: (s, name) for s, name in items}
            known = self.census.open_pairs(f"{self.d} {what}", cases)
            pairs = [(by_name[a], by_name[b]) for a, b in known if a in by_name and b in by_name]
            self.rng.shuffle(pairs)
        elif len(items) < 2:
            return
        else:
            pairs = (self.rng.sample(items, 2) for _ in range(TRIES))
        for one, other in itertools.islice(pairs, TRIES):
            if one[0] is not other[0] and not self.overlap(one[0], other[0]):
                yield (one, other) if self.rng.random() < 0.5 else (other, one)

    def groups(self, count: int, hide: str = "") -> Iterator[list[Named]]:
        """Groups of structures that do not overlap, at random; a lesion is in about half of them, where there
        is one."""
        organs = [(s, f"the {s.name}") for s in self.organs]
        lesions = self.items(hide)[len(organs) :]
        for _ in range(TRIES):
            group = [self.rng.choice(lesions)] if lesions and self.rng.random() < 0.5 else []
            if len(organs) + len(group) < count:
                continue
            group += self.rng.sample(organs, count - len(group))
            self.rng.shuffle(group)
            if not any(self.overlap(a, b) for (a, _), (b, _) in itertools.combinations(group, 2)):
                yield group

    # --- measured ---

    def overlap(self, a: Structure, b: Structure) -> bool:
        """Whether two structures share voxels (a tumour and its liver)."""
        return not self._values[a.label].isdisjoint(self._values[b.label])

    def extent(self, structure: Structure, axis: int) -> float:
        """Extent of the box along an axis, in voxels."""
        corners = structure.box.as_tuple()
        return corners[axis + self.dims] - corners[axis]

    def share(self, structure: Structure, axis: int) -> float:
        """Position of the centre along an axis, from 0 to 1."""
        return structure.centroid[axis] / self.grid[axis]

    def at_border(self, structure: Structure) -> bool:
        """Whether the grid may cut the structure off, so that its true size is unknown."""
        corners = structure.box.as_tuple()
        edges = zip(corners, corners[self.dims :], self.grid, strict=False)
        return any(low <= 0 or high >= n for low, high, n in edges)

    def word(self, axis: int, sign: str) -> str:
        """The patient direction of a sign along an axis."""
        return self.directions[axis][sign == "-"]

    # --- decided by dice ---

    def throw(self, kind: str, *fact: str) -> int:
        """A number of 32 bit for a fact of this study: always the same for the same fact.

        So a fact gets one throw: one set of wrong options, one chance with the census. If it could be thrown
        again for every draft, everything would pass in the end, and the questions would be as lopsided as the
        facts are.
        """
        return zlib.crc32(f"{self.seed}/{self.study.id}/{kind}/{fact}".encode())

    def dice(self, kind: str, *fact: str) -> random.Random:
        """Random numbers that follow from that throw, for wrong options."""
        return random.Random(self.throw(kind, *fact))

    def keeps(self, thrown: int | random.Random, options: Sequence[Sequence[Claim]]) -> bool:
        """Whether the census lets a draft pass whose options make these claims, the true one first."""
        return self.census is None or _share(thrown) < self.census.keep(options)

    def keeps_presence(self, thrown: int | random.Random, options: Sequence[Mapping[str, bool]]) -> bool:
        """The same for options that say what is there."""
        return self.census is None or _share(thrown) < self.census.keep_presence(self.d, options)

    def is_open(self, key: str) -> bool:
        """Whether there is anything to look for: without a census there always is."""
        return self.census is None or self.census.is_open(key)

    def can_differ(self, key: str, cases: Sequence[Sequence[str]]) -> bool:
        """The same, where the four options are the values of one of these sets."""
        return self.census is None or self.census.can_differ(key, cases)

    def scattered(self, key: str) -> bool:
        """The same, where the options are values drawn by :meth:`draw`."""
        return self.census is None or self.census.scattered(key)

    def draw(self, dice: random.Random, key: str, values: Sequence[str], count: int = 3) -> list[str]:
        """Values for wrong options, as likely as they are before looking. They may repeat themselves or be
        right; then drop the draft, because drawing on would favour facts that are common."""
        weights = self.census.weights(key, values) if self.census is not None else None
        return dice.choices(values, weights, k=count)

    def occurring(self, key: str, values: Iterable[str]) -> list[str]:
        """Those of the values that ever occur: one that never does gives itself away."""
        values = list(values)
        weights = self.census.weights(key, values) if self.census is not None else None
        return values if weights is None else [v for v, weight in zip(values, weights, strict=True) if weight]

    def elsewhere(
        self, kind: str, key: str, name: str, apart: Callable[[Sequence[tuple[float, ...]]], bool]
    ) -> tuple[random.Random, list[tuple[float, ...]]] | None:
        """What was measured in three other patients, for wrong options, with the dice that chose them; None
        where patients are too much alike, or too few are known.

        Args:
            kind: Of question.
            key: As for :meth:`Census.samples`, without dimension and name.
            name: What the structure is called.
            apart: As for :meth:`Census.varied`.
        """
        key = f"{self.d} {key}|{name}"
        if not self.census.varied(key, apart):
            return None
        dice = self.dice(kind, name)
        return dice, dice.sample(self.census.samples(key), 3)

    def region(self, box: Box) -> str:
        """A box in the words of a question: pixels of the frame with a view, else percent."""
        if self.view is not None:
            numbers = self.view.box(box).as_tuple()
        else:
            numbers = (100 * edge / n for edge, n in zip(box.as_tuple(), self.grid * 2, strict=True))
        return f"[{','.join(str(math.floor(number + 0.5)) for number in numbers)}]"


def _share(thrown: int | random.Random) -> float:
    """A number from 0 to 1."""
    return thrown / 2**32 if isinstance(thrown, int) else thrown.random()


def known_single(lesion: Structure) -> bool:
    """Whether the source outlines lesions one by one, so that this structure is *a* lesion and not all of
    them."""
    return lesion.attributes.get("components", 1 if lesion.attributes.get("host") else None) == 1


# --- measurements and their claims --------------------------------------------------------------------------------


_SWAP = str.maketrans("+-", "-+")

TWO_SIGNS = (("++", "+-", "-+", "--"),)
RATIO_CLASSES = (("0", "1", "2", "3"),)
ONE_OF_TWO = (("yn", "ny"),)
HOURS = tuple(tuple(str(hour + 3 * k) for k in range(4)) for hour in range(3))
QUARTERS = RATIO_CLASSES
TWO_PRESENT = (("yy", "yn", "ny", "nn"),)
"""Values that are the options of one question, for :meth:`Scene.pairs`."""


def opposite(signs: str) -> str:
    """``"+-"`` for ``"-+"``."""
    return signs.translate(_SWAP)


def _clear_sign(gap: float, least: float) -> str | None:
    return None if abs(gap) < least else "+" if gap > 0 else "-"


def _pair_key(what: str, a: str, b: str) -> tuple[str, bool]:
    """One key for (a, b) and (b, a), and whether they were swapped for it."""
    return (f"{what}|{a}|{b}", False) if a <= b else (f"{what}|{b}|{a}", True)


def side_sign(scene: Scene, a: Structure, b: Structure, axis: int) -> str | None:
    """``"+"`` when the centre of a is further along an axis than that of b, ``"-"`` when less far."""
    mean = (scene.extent(a, axis) + scene.extent(b, axis)) / 2
    least = max(APART * mean, MIN_SHIFT[axis] * scene.grid[axis], 1)
    return _clear_sign(a.centroid[axis] - b.centroid[axis], least)


def side_claim(d: str, axes: Sequence[int], a: str, b: str, signs: str) -> Claim:
    """On which sides of b, one sign for every axis, a lies."""
    key, swapped = _pair_key(f"{d} side {axes}", a, b)
    return key, opposite(signs) if swapped else signs


def half_sign(scene: Scene, structure: Structure, axis: int) -> str | None:
    """The same seen from the middle of the grid."""
    least = max(APART / 2 * scene.extent(structure, axis), MIN_SHIFT[axis] * scene.grid[axis])
    return _clear_sign(structure.centroid[axis] - scene.grid[axis] / 2, least)


def half_claim(d: str, axes: Sequence[int], name: str, signs: str) -> Claim:
    return f"{d} half {axes}|{name}", signs


def place_sign(scene: Scene, lesion: Structure, host: Structure, axis: int) -> str | None:
    """The same for a lesion, seen from the centre of its organ."""
    least = max(0.12 * scene.extent(host, axis), MIN_SHIFT[axis] * scene.grid[axis], 1)
    return _clear_sign(lesion.centroid[axis] - host.centroid[axis], least)


def place_claim(d: str, axes: Sequence[int], name: str, host: str, signs: str) -> Claim:
    return f"{d} place {axes}|{name}|{host}", signs


def hour_of(scene: Scene, a: Structure, b: Structure) -> int | None:
    """The hour of a clock face around b, over the picture, at which a lies; 0 at the top."""
    right, down = (a.centroid[axis] - b.centroid[axis] for axis in (0, 1))
    extents = [scene.extent(s, axis) for s in (a, b) for axis in (0, 1)]
    if math.hypot(right, down) < max(0.1 * sum(extents), 0.06 * max(scene.grid[:2])):
        return None
    return round(6 * math.atan2(right, -down) / math.pi) % 12


def hour_claim(d: str, a: str, b: str, hour: int) -> Claim:
    key, swapped = _pair_key(f"{d} clock", a, b)
    return key, str((hour + 6) % 12 if swapped else hour)


def ratio_class(scene: Scene, a: Structure, b: Structure) -> int | None:
    """In which of four classes the ratio of two sizes is; what the border may cut off is not measured."""
    if scene.at_border(a) or scene.at_border(b):
        return None
    ratio = a.voxels / b.voxels
    if min(abs(math.log(ratio / border)) for border in RATIOS) < 0.8 * math.log(CLEARLY):
        return None
    return sum(ratio > border for border in RATIOS)


def ratio_claim(d: str, a: str, b: str, k: int) -> Claim:
    key, swapped = _pair_key(f"{d} ratio", a, b)
    return key, str(3 - k if swapped else k)


def cell_of(scene: Scene, structure: Structure, n: int) -> tuple[int, int] | None:
    """Row and column, from 1, of the cell of an n x n grid that holds the centre; None near to a line of the
    grid."""
    column, row = (scene.share(structure, axis) * n for axis in (0, 1))
    if min(column % 1, 1 - column % 1, row % 1, 1 - row % 1) < 0.1:
        return None
    return int(row) + 1, int(column) + 1


def quarter_of(scene: Scene, structure: Structure) -> int | None:
    """Which quarter of the slices, from 0, holds the centre; None for long structures and near to a border of
    two quarters."""
    if scene.d == "2d" or scene.grid[2] < 4 or scene.extent(structure, 2) > 0.6 * scene.grid[2]:
        return None
    place = 4 * scene.share(structure, 2)
    return None if min(place % 1, 1 - place % 1) < 0.15 else min(int(place), 3)


def quarter_claim(name: str, quarter: int) -> Claim:
    return f"3d height|{name}", str(quarter)


def longer_side(scene: Scene, structure: Structure) -> tuple[float, int] | None:
    """mm of the longer side of a box in its plane, and its axis; None where it is unknown."""
    if not scene.mm or scene.at_border(structure):
        return None
    return max((scene.extent(structure, axis) * scene.mm[axis], axis) for axis in (0, 1))


def middle_and_size(scene: Scene, structure: Structure) -> list[float]:
    """Middle and size of a box along all axes, in shares of the grid."""
    corners = structure.box.as_tuple()
    axes = list(zip(corners, corners[scene.dims :], scene.grid, strict=False))
    return [(low + high) / 2 / n for low, high, n in axes] + [(high - low) / n for low, high, n in axes]


def number_of_lesions(scene: Scene) -> int | None:
    """How many lesions there are, up to three; None where they may not be outlined one by one, or not all can
    be seen."""
    lesions = scene.study.lesions
    looked_for = lesions or scene.absent["lesion"]
    clear = len(lesions) <= 3 and len(lesions) == len(scene.lesions) and all(map(known_single, lesions))
    return len(lesions) if looked_for and clear else None


def count_claim(d: str, count: int) -> Claim:
    return f"{d} count", str(count)


def attribute_of(scene: Scene, lesion: Structure, attribute: str) -> str | None:
    """A lesion's attribute, when it is one of those that are asked about and can be seen."""
    if scene.d == "2d" and attribute == "size_class":
        return None  # a slice need not show the whole lesion
    value = lesion.attributes.get(attribute)
    return value if value in ATTRIBUTES[attribute] else None


def attribute_key(d: str, attribute: str, name: str) -> str:
    return f"{d} {attribute}|{name}"


def host_claim(d: str, name: str, organ: str, is_host: bool) -> Claim:
    """Whether an organ that is in the picture is the one with the lesion."""
    return f"{d} host|{name}|{organ}", "ny"[is_host]


# --- for the census -----------------------------------------------------------------------------------------------

_MOST_PAIRS = 2000  # of structures, and of names, that a census takes from one study


def known_facts(scene: Scene) -> list[Claim]:
    """All claims that are true in a study: what a census counts."""
    d, items, axes = scene.d, scene.items(), range(len(scene.directions))
    facts: list[Claim] = []
    for s, name in items:
        signs = [half_sign(scene, s, axis) for axis in axes]
        facts += (half_claim(d, two, name, both) for two, both in _signs_of_two(signs))
        cells = ((n, cell_of(scene, s, n)) for n in GRIDS)
        facts += ((f"{d} cell {n}|{name}", f"{cell[0]},{cell[1]}") for n, cell in cells if cell)
        if (quarter := quarter_of(scene, s)) is not None:
            facts.append(quarter_claim(name, quarter))
        facts.append(measure_claim(f"{d} box|{name}", middle_and_size(scene, s)))
        if side := longer_side(scene, s):
            facts.append(measure_claim(f"{d} mm|{name}", side[:1]))
    for (a, name_a), (b, name_b) in _some_pairs(items, scene):
        if a is b or scene.overlap(a, b):
            continue
        signs = [side_sign(scene, a, b, axis) for axis in axes]
        facts += (side_claim(d, two, name_a, name_b, both) for two, both in _signs_of_two(signs))
        if (hour := hour_of(scene, a, b)) is not None:
            facts.append(hour_claim(d, name_a, name_b, hour))
        if (k := ratio_class(scene, a, b)) is not None:
            facts.append(ratio_claim(d, name_a, name_b, k))
    for kind in ("organ", "lesion"):
        there = {s.name: True for s in scene.present[kind]} | dict.fromkeys(scene.absent[kind], False)
        facts += (presence_claim(d, there, name) for name in there)
        facts += (presence_claim(d, there, *pair) for pair in _some_pairs(sorted(there), scene))
    for lesion, name in items[len(scene.organs) :]:
        known = ((attribute, attribute_of(scene, lesion, attribute)) for attribute in ATTRIBUTES)
        facts += ((attribute_key(d, attribute, name), value) for attribute, value in known if value)
        if host := scene.hosts[lesion.label]:
            facts += (host_claim(d, name, organ.name, organ is host) for organ in scene.organs)
            signs = [place_sign(scene, lesion, host, axis) for axis in axes]
            facts += (place_claim(d, two, name, host.name, both) for two, both in _signs_of_two(signs))
    if (count := number_of_lesions(scene)) is not None:
        facts.append(count_claim(d, count))
    return facts


def _signs_of_two(signs: Sequence[str | None]) -> Iterator[tuple[tuple[int, int], str]]:
    """For any two axes along which both signs are clear: the axes and the signs."""
    for one, two in itertools.combinations(range(len(signs)), 2):
        if signs[one] and signs[two]:
            yield (one, two), signs[one] + signs[two]


def _some_pairs(things: Sequence[Any], scene: Scene) -> Iterable[tuple[Any, Any]]:
    """All pairs, or a random choice of them where there are very many."""
    n = len(things)
    if n * (n - 1) // 2 <= _MOST_PAIRS:
        return itertools.combinations(things, 2)
    rng = random.Random(f"{scene.seed}/pairs/{scene.study.id}")
    picks = (sorted(rng.sample(range(n), 2)) for _ in range(_MOST_PAIRS))
    return ((things[i], things[j]) for i, j in picks)
