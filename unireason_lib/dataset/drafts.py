"""Drafts: the kinds of questions, family by family.

A kind is a generator. It goes through the facts of a scene in random order and yields a draft for each one
that is clear, has three wrong options, and is kept by the census. The first draft that is wanted is taken, so
nothing is made in vain.

Kinds that put four structures side by side (``name``, ``largest``, ``smallest``, ``which side``) are for
sources without a census: what four structures give away together is more than a census of pairs can judge.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.dataset.census import Claim
from unireason_lib.dataset.phrasings import BOX_FORM, CELL_FORM
from unireason_lib.dataset.scene import (
    ATTRIBUTES,
    CLEARLY,
    GRIDS,
    HOURS,
    ONE_OF_TWO,
    QUARTERS,
    RATIO_CLASSES,
    TRIES,
    TWO_PRESENT,
    TWO_SIGNS,
    Named,
    Scene,
    attribute_key,
    attribute_of,
    cell_of,
    count_claim,
    half_claim,
    half_sign,
    host_claim,
    hour_claim,
    hour_of,
    longer_side,
    number_of_lesions,
    opposite,
    place_claim,
    place_sign,
    quarter_claim,
    quarter_of,
    ratio_claim,
    ratio_class,
    side_claim,
    side_sign,
)
from unireason_lib.dataset.study import Structure, readable_name

TOWARDS = {
    "left": "to the left of",
    "right": "to the right of",
    "anterior": "in front of",
    "posterior": "behind",
    "superior": "nearer to the head than",
    "inferior": "nearer to the feet than",
}


@dataclass(frozen=True)
class Draft:
    """A question before letters are given out.

    Attributes:
        kind: Which phrasings fit.
        options: Texts, the true one first.
        evidence: What to point at, in order.
        words: What fills the braces of the phrasing.
        facts: What the reasoning may state.
    """

    kind: str
    options: Sequence[str]
    evidence: tuple[Structure, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


Kind = Callable[[Scene], Iterator[Draft]]


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def amount(voxels: int, mm: float | None, dimension: str) -> str:
    """A volume or area in words: ``"310 cm3"``, or in voxels when the spacing is unknown."""
    if mm is None:
        return f"{rounded(voxels)} {'pixels' if dimension == '2d' else 'voxels'}"
    power, unit = (100, "cm2") if dimension == "2d" else (1000, "cm3")
    return f"{rounded(mm / power)} {unit}"


def rounded(value: float) -> str:
    """Two significant digits, as one would say them."""
    if value >= 10:
        digits = len(str(int(value))) - 2
        return str(round(value / 10**digits) * 10**digits)
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


ALONG = ("across", "down", "along the slices")
"""The axes in words, as a picture lies before the reader."""


def _centres(scene: Scene, axes: Sequence[int], *structures: Structure) -> dict[str, Any]:
    """Where centres are along some axes: ``along``, the axes in words, and ``at``, for each of them the percent of
    every structure."""
    at = [[round(100 * scene.share(structure, axis)) for structure in structures] for axis in axes]
    return {"along": [ALONG[axis] for axis in axes], "at": at}


def _true_first(true: int, count: int) -> list[int]:
    return [(true + k) % count for k in range(count)]


# --- structure localization ---------------------------------------------------------------------------------------


def box(scene: Scene) -> Iterator[Draft]:
    """Four boxes, of this patient and of three others; without a census, the true box and three beside it."""
    form = scene.rng.choice(BOX_FORM[scene.d, scene.view is not None])
    for structure, name in scene.subjects():
        if scene.census is None:
            others = _boxes_beside(scene, structure.box, scene.dice("box", name)) or ()
        elif found := scene.elsewhere("box", "box", name, _shares_apart):
            dice, measures = found
            spread = scene.census.spread(f"{scene.d} box|{name}")
            others = [_shaken(scene, measure, spread, dice) for measure in measures]
        else:
            continue
        boxes = [structure.box, *others]
        if len(boxes) < 4 or not _apart([option.as_tuple() for option in boxes]):
            continue
        texts = [scene.region(option) for option in boxes]
        facts = {"names": [name], "box": texts[0]}
        yield Draft("box", texts, (structure,), {"a": name, "form": form}, facts)


def _apart(boxes: Sequence[Sequence[float]]) -> bool:
    """Whether no two boxes overlap in more than a quarter of their union."""
    return not any(_iou(one, other) > 0.25 for one, other in itertools.combinations(boxes, 2))


def _shares_apart(measures: Sequence[tuple[float, ...]]) -> bool:
    """The same for boxes given by middle and size."""
    boxes = []
    for measure in measures:
        n = len(measure) // 2
        sides = list(zip(measure[:n], measure[n:], strict=True))
        boxes.append([m - size / 2 for m, size in sides] + [m + size / 2 for m, size in sides])
    return _apart(boxes)


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes as plain numbers: :meth:`Box2D.iou` without making boxes."""
    n = len(one) // 2
    common = size = other_size = 1.0
    for k in range(n):
        common *= max(0.0, min(one[k + n], other[k + n]) - max(one[k], other[k]))
        size *= one[k + n] - one[k]
        other_size *= other[k + n] - other[k]
    return common / (size + other_size - common)


def _shaken(scene: Scene, measure: Sequence[float], spread: Sequence[float], dice: random.Random) -> Box:
    """The box of another patient, not quite: the same patients come up again and again, and their boxes would be
    known by heart. So middle and size are shaken by a part of what patients differ (a smoothed bootstrap)."""
    low, high = [], []
    for axis, n in enumerate(scene.grid):
        size = measure[axis + scene.dims] + dice.uniform(-0.1, 0.1) * spread[axis + scene.dims]
        size = min(n, max(1, math.floor(size * n + 0.5)))
        middle = (measure[axis] + dice.uniform(-0.2, 0.2) * spread[axis]) * n
        low.append(min(max(0, math.floor(middle - size / 2 + 0.5)), n - size))
        high.append(low[-1] + size)
    return (Box2D if scene.dims == 2 else Box3D)(*low, *high)


def _boxes_beside(scene: Scene, true: Box, dice: random.Random) -> list[Box] | None:
    """Three boxes of the same size, with the true one at the corners of a rectangle, at any of the four."""
    axes = dice.sample(range(scene.dims), 2)
    corners, shifts = true.as_tuple(), [0.0] * scene.dims
    for axis in axes:
        low, high = corners[axis], corners[axis + scene.dims]
        least = max(0.65 * (high - low), 0.08 * scene.grid[axis], 1)
        shifts[axis] = dice.choice((-1, 1)) * math.ceil(least * dice.uniform(1, 1.4))
        # Not "choose another shift" when it leads out of the picture: that would tell the true box from the others.
        if low + shifts[axis] < 0 or high + shifts[axis] > scene.grid[axis]:
            return None
    moves = (
        [step * (axis in moved) for axis, step in enumerate(shifts)] for moved in (axes[:1], axes[1:], axes)
    )
    return [
        type(true)(*(edge + step for edge, step in zip(corners, (*move, *move), strict=True)))
        for move in moves
    ]


def name(scene: Scene) -> Iterator[Draft]:
    """Four structures, one of which fills the box."""
    if scene.census is not None:
        return
    form = scene.rng.choice(BOX_FORM[scene.d, scene.view is not None])
    for group in scene.groups(4):
        (target, phrase), *others = group
        if any(_covers(other, target) for other, _ in others):
            continue
        region = scene.region(target.box)
        texts = [capital(option) for _, option in group]
        facts = {"names": [phrase], "box": region}
        yield Draft("name", texts, (target,), {"region": region, "form": form}, facts)


def _covers(other: Structure, target: Structure) -> bool:
    """Whether two boxes overlap so much that either could be meant."""
    common = target.box.intersection(other.box)
    sizes = (_content(target.box), _content(other.box))
    return common is not None and _content(common) > 0.4 * min(sizes)


def _content(region: Box) -> float:
    return region.area if isinstance(region, Box2D) else region.volume


# --- spatial localization -----------------------------------------------------------------------------------------


def _axes(scene: Scene) -> list[tuple[int, int]]:
    """All pairs of axes whose patient directions are known, in random order."""
    every = list(itertools.combinations(range(len(scene.directions)), 2))
    scene.rng.shuffle(every)
    return every


def _two_directions(
    scene: Scene,
    thrown: int | random.Random,
    axes: tuple[int, int],
    signs: Sequence[str | None],
    claim: Callable[[str], Claim],
) -> tuple[list[str], list[str]] | None:
    """The true combination of two directions and the three others, as options; and the two true words."""
    if None in signs:
        return None
    true = "".join(signs)
    cases = [true, opposite(true), true[0] + opposite(true[1]), opposite(true[0]) + true[1]]
    if not scene.keeps(thrown, [[claim(case)] for case in cases]):
        return None
    words = [[scene.word(*pair) for pair in zip(axes, case, strict=True)] for case in cases]
    return [capital(" and ".join(pair)) for pair in words], words[0]


def quadrant(scene: Scene) -> Iterator[Draft]:
    """Two patient directions, seen from the middle of the picture or volume."""
    for structure, name in scene.subjects():
        for axes in _axes(scene):
            if not scene.can_differ(half_claim(scene.d, axes, name, "")[0], TWO_SIGNS):
                continue
            signs = [half_sign(scene, structure, axis) for axis in axes]
            thrown = scene.throw("quadrant", str(axes), name)
            found = _two_directions(
                scene, thrown, axes, signs, lambda case, of=(axes, name): half_claim(scene.d, *of, case)
            )
            if found is not None:
                facts = {"names": [name], "sides": found[1], **_centres(scene, axes, structure)}
                yield Draft("quadrant", found[0], (structure,), {"a": name}, facts)


def cell(scene: Scene) -> Iterator[Draft]:
    """A cell of a grid over the picture: it belongs to the picture, so no orientation is needed."""
    form = scene.rng.choice(CELL_FORM)
    for structure, name in scene.subjects():
        n = scene.rng.choice(GRIDS)
        key = f"{scene.d} cell {n}|{name}"
        if not scene.scattered(key) or (true := cell_of(scene, structure, n)) is None:
            continue
        dice = scene.dice("cell", name, str(n))
        every = [f"{r},{c}" for r in range(1, n + 1) for c in range(1, n + 1)]
        cells = ["{},{}".format(*true), *scene.draw(dice, key, every)]
        if len(set(cells)) < 4:
            continue
        facts = {"names": [name], "n": n, "row": true[0], "column": true[1]}
        facts |= {key: round(100 * scene.share(structure, k)) for k, key in enumerate(("across", "down"))}
        texts = ["Row {}, column {}".format(*option.split(",")) for option in cells]
        yield Draft("cell", texts, (structure,), {"a": name, "n": n, "form": form}, facts)


_QUARTERS = ("The first quarter", "The second quarter", "The third quarter", "The last quarter")


def height(scene: Scene) -> Iterator[Draft]:
    """A quarter of the slices, counted from the first."""
    for structure, name in scene.subjects() if scene.d == "3d" else ():
        if not scene.can_differ(quarter_claim(name, 0)[0], QUARTERS):
            continue
        if (true := quarter_of(scene, structure)) is None:
            continue
        order = _true_first(true, 4)
        if scene.keeps(scene.throw("height", name), [[quarter_claim(name, k)] for k in order]):
            facts = {"names": [name], "up": round(100 * scene.share(structure, 2)), "quarter": true + 1}
            yield Draft("height", [_QUARTERS[k] for k in order], (structure,), {"a": name}, facts)


# --- existence verification ---------------------------------------------------------------------------------------


def _names(scene: Scene, kind: str, present: bool) -> list[str]:
    """Names of present or absent structures of which the census does not say that they always, or never, are
    there."""
    names = [s.name for s in scene.present[kind]] if present else _plausible(scene.absent[kind], scene)
    return [name for name in names if scene.is_open(f"{scene.d} there|{name}")]


def _plausible(absent: list[str], scene: Scene) -> list[str]:
    """Half of the time, absent names that share a word with something that is there (the other kidney, the
    next vertebra)."""
    if scene.census is not None or scene.rng.random() < 0.5:
        return absent
    there = {word for s in scene.study.structures for word in _telling_words(s.name)}
    return [name for name in absent if not there.isdisjoint(_telling_words(name))] or absent


@lru_cache(maxsize=4096)
def _telling_words(name: str) -> frozenset[str]:
    return frozenset(readable_name(name).split()) - {"left", "right", "lesion"}


def _kin(one: str, other: str) -> bool:
    """Whether one name says the other ("liver lesion", "liver"), so that one being there settles the other."""
    return one in other or other in one


def pair(scene: Scene) -> Iterator[Draft]:
    """Two names, each of them there or not."""
    for (a, a_there), (b, b_there) in _pairs_of_names(scene):
        if _kin(a, b):
            continue
        texts = {(True, True): "Both", (True, False): f"Only the {a}", (False, True): f"Only the {b}"}
        texts[False, False] = "Neither"
        true = (a_there, b_there)
        cases = [true, *(case for case in texts if case != true)]
        options = [{a: case[0], b: case[1]} for case in cases]
        if not scene.keeps_presence(scene.throw("pair", *sorted((a, b))), options):
            continue
        seen = [name for name, there in options[0].items() if there]
        facts = {"names": [f"the {name}" for name in seen]}
        facts["absent"] = [f"the {name}" for name in (a, b) if name not in seen]
        facts["asked"] = [f"the {name}" for name in (a, b)]
        evidence = tuple(scene.study.find(name) for name in seen)
        yield Draft("pair", [texts[case] for case in cases], evidence, {"a": a, "b": b}, facts)


def _pairs_of_names(scene: Scene) -> Iterator[tuple[tuple[str, bool], tuple[str, bool]]]:
    """Two organs or two lesions, each with whether it is there, in random order."""
    rng = scene.rng
    for sort in rng.sample(("organ", "lesion"), 2):
        there = {name: is_there for is_there in (True, False) for name in _names(scene, sort, is_there)}
        if all(there.values()):
            continue  # nothing was looked for in vain
        if scene.census is not None:
            known = scene.census.open_pairs(f"{scene.d} there", TWO_PRESENT)
            pairs = [pair for pair in known if pair[0] in there and pair[1] in there]
            rng.shuffle(pairs)
        else:  # as often there as not
            halves = [[name for name in there if there[name] == is_there] for is_there in (True, False)]
            halves = [half for half in halves if half]
            pairs = [[rng.choice(rng.choice(halves)) for _ in range(2)] for _ in range(TRIES)]
        for one, other in pairs[: TRIES // 2]:
            pair = (one, there[one]), (other, there[other])
            yield pair if rng.random() < 0.5 else pair[::-1]


def _odd_one_out(scene: Scene, kind: str, odd_is_there: bool) -> Iterator[Draft]:
    partners = None if scene.census is None else scene.census.partners(f"{scene.d} there", ONE_OF_TWO)
    for sort in scene.rng.sample(("organ", "lesion"), 2):
        odd, rest = _names(scene, sort, odd_is_there), _names(scene, sort, not odd_is_there)
        if len(rest) < 3:
            continue
        for name in scene.rng.sample(odd, min(len(odd), TRIES // 3)):
            others = (
                rest if partners is None else [other for other in rest if other in partners.get(name, ())]
            )
            if len(others) < 3:
                continue
            dice = scene.dice(kind, name)
            names = [name, *dice.sample(others, 3)]
            if any(_kin(one, other) for one, other in itertools.combinations(names, 2)):
                continue
            options = [{n: (n == one) == odd_is_there for n in names} for one in names]
            if not scene.keeps_presence(dice, options):
                continue
            there, missing = (names[:1], names[1:]) if odd_is_there else (names[1:], names[:1])
            facts = {"names": [f"the {n}" for n in there], "absent": [f"the {n}" for n in missing]}
            evidence = tuple(scene.study.find(n) for n in there)
            yield Draft(kind, [capital(n) for n in names], evidence, {}, facts)


def present(scene: Scene) -> Iterator[Draft]:
    """One of four is there."""
    return _odd_one_out(scene, "present", True)


def absent(scene: Scene) -> Iterator[Draft]:
    """One of four is not there."""
    return _odd_one_out(scene, "absent", False)


_COUNTS = ("None", "One", "Two", "Three")


def count(scene: Scene) -> Iterator[Draft]:
    """The number of lesions."""
    if (true := number_of_lesions(scene)) is None:
        return
    order = _true_first(true, 4)
    if scene.keeps(scene.throw("count"), [[count_claim(scene.d, k)] for k in order]):
        lesions = scene.study.lesions
        facts = {"names": [f"the {lesion.name}" for lesion in lesions], "count": true}
        yield Draft("count", [_COUNTS[k] for k in order], lesions, {}, facts)


# --- size comparison ----------------------------------------------------------------------------------------------


def _measure_word(scene: Scene) -> str:
    return "area" if scene.d == "2d" else "volume"


def _extreme(scene: Scene, kind: str, largest: bool) -> Iterator[Draft]:
    if scene.census is not None:
        return
    for group in scene.groups(4, hide="size_class"):
        if any(scene.at_border(s) for s, _ in group):
            continue
        group.sort(key=lambda item: item[0].voxels, reverse=largest)
        first, second = group[0][0], group[1][0]
        if max(first.voxels, second.voxels) < CLEARLY * min(first.voxels, second.voxels):
            continue
        phrases = [phrase for _, phrase in group]
        sizes = [amount(s.voxels, s.size, scene.d) for s, _ in group]
        facts = {"names": phrases[:2], "sizes": sizes, "others": phrases[2:]}
        texts = [capital(phrase) for phrase in phrases]
        yield Draft(kind, texts, (first, second), {"measure": _measure_word(scene)}, facts)


def largest(scene: Scene) -> Iterator[Draft]:
    """The largest of four."""
    return _extreme(scene, "largest", True)


def smallest(scene: Scene) -> Iterator[Draft]:
    """The smallest of four."""
    return _extreme(scene, "smallest", False)


def ratio(scene: Scene) -> Iterator[Draft]:
    """Two structures in four classes of their ratio."""
    for (a, name_a), (b, name_b) in scene.pairs("ratio", RATIO_CLASSES, hide="size_class"):
        if (true := ratio_class(scene, a, b)) is None:
            continue
        order = _true_first(true, 4)
        thrown = scene.throw("ratio", *sorted((name_a, name_b)))
        if not scene.keeps(thrown, [[ratio_claim(scene.d, name_a, name_b, k)] for k in order]):
            continue
        texts = (
            f"Less than half of {name_b}",
            f"Smaller than {name_b}, but more than half",
            f"Larger than {name_b}, but less than double",
            f"More than double of {name_b}",
        )
        sizes = [amount(s.voxels, s.size, scene.d) for s in (a, b)]
        facts = {"names": [name_a, name_b], "sizes": sizes, "class": true}
        words = {"a": name_a, "b": name_b, "measure": _measure_word(scene)}
        yield Draft("ratio", [texts[k] for k in order], (a, b), words, facts)


def _extent(scene: Scene, kind: str, lesions_only: bool) -> Iterator[Draft]:
    for structure, name in scene.subjects("size_class", lesions_only) if scene.mm else ():
        if (side := longer_side(scene, structure)) is None:
            continue
        length, axis = side
        if scene.census is None:
            others = _other_rungs(scene.extent(structure, axis), scene.dice(kind, name))
            lengths = [length, *(voxels * scene.mm[axis] for voxels in others)]
        elif found := scene.elsewhere(kind, "mm", name, _measures_apart):
            lengths = [length, *(other for (other,) in found[1])]
        else:
            continue
        if not _lengths_apart(lengths, scene.mm[axis]):
            continue
        width = round(scene.grid[0] * scene.mm[0])
        facts = {"names": [name], "mm": rounded(length), "width": width}
        facts |= {"percent": round(100 * length / width), "side": ("width", "height")[axis]}
        texts = [f"About {rounded(length)} mm" for length in lengths]
        yield Draft("extent", texts, (structure,), {"a": name, "width": width}, facts)


def _lengths_apart(lengths: Sequence[float], least: float = 0.0) -> bool:
    """Whether no two lengths differ by less than 12 %, or by less than some mm."""
    return all(b >= max(1.12 * a, a + least) for a, b in itertools.pairwise(sorted(lengths)))


def _measures_apart(measures: Sequence[tuple[float, ...]]) -> bool:
    return _lengths_apart([length for (length,) in measures])


def _other_rungs(voxels: float, dice: random.Random) -> list[int]:
    """Three other lengths on a ladder of four, the true one on any rung, in whole voxels as the true one is:
    else it would stand out by its digits."""
    step, rung = dice.uniform(1.25, 1.5), dice.randrange(4)
    return [round(voxels * step ** (k - rung)) for k in range(4) if k != rung]


def extent(scene: Scene) -> Iterator[Draft]:
    """The longer side of a box in its plane, in mm: of this patient and of three others; without a census, on
    a ladder."""
    return _extent(scene, "extent", lesions_only=False)


# --- spatial relationship -----------------------------------------------------------------------------------------


def relation(scene: Scene) -> Iterator[Draft]:
    """Two patient directions from one structure to another."""
    pairs = ((axes, *pair) for axes in _axes(scene) for pair in scene.pairs(f"side {axes}", TWO_SIGNS))
    for axes, (a, name_a), (b, name_b) in pairs:
        thrown = scene.throw("relation", str(axes), *sorted((name_a, name_b)))
        signs = [side_sign(scene, a, b, axis) for axis in axes]
        found = _two_directions(
            scene,
            thrown,
            axes,
            signs,
            lambda case, of=(axes, name_a, name_b): side_claim(scene.d, *of, case),
        )
        if found is None:
            continue
        facts = {"names": [name_a, name_b], "sides": found[1], **_centres(scene, axes, a, b)}
        yield Draft("relation", found[0], (a, b), {"a": name_a, "b": name_b}, facts)


def clock(scene: Scene) -> Iterator[Draft]:
    """The direction from one structure to another in the plane of the picture, as an hour."""
    for (a, name_a), (b, name_b) in scene.pairs("clock", HOURS):
        if (true := hour_of(scene, a, b)) is None:
            continue
        if not scene.can_differ(hour_claim(scene.d, name_a, name_b, 0)[0], HOURS[true % 3 : true % 3 + 1]):
            continue
        hours = [(true + 3 * k) % 12 for k in range(4)]
        thrown = scene.throw("clock", *sorted((name_a, name_b)))
        if not scene.keeps(thrown, [[hour_claim(scene.d, name_a, name_b, hour)] for hour in hours]):
            continue
        across, down = (round(100 * (scene.share(a, axis) - scene.share(b, axis))) for axis in (0, 1))
        facts = {"names": [name_a, name_b], "hour": true or 12}
        facts["shift"] = (
            f"{abs(across)} % {'right' if across >= 0 else 'left'} and {abs(down)} % {'down' if down > 0 else 'up'}"
        )
        texts = [f"{hour or 12} o'clock" for hour in hours]
        yield Draft("clock", texts, (a, b), {"a": name_a, "b": name_b}, facts)


def which_side(scene: Scene) -> Iterator[Draft]:
    """Four structures, one of which lies on the given side of another."""
    if scene.census is not None or not scene.directions:
        return
    for (reference, name), *others in scene.groups(5):
        axis = scene.rng.randrange(len(scene.directions))
        signs = [side_sign(scene, s, reference, axis) for s, _ in others]
        if None in signs or signs.count("+") not in (1, 3):
            continue
        sign = "+" if signs.count("+") == 1 else "-"
        others.insert(0, others.pop(signs.index(sign)))
        phrases = [phrase for _, phrase in others]
        towards, away = TOWARDS[scene.word(axis, sign)], TOWARDS[scene.word(axis, opposite(sign))]
        facts = {"names": [phrases[0], name], "towards": towards, "away": away, "others": phrases[1:]}
        texts = [capital(phrase) for phrase in phrases]
        words = {"b": name, "direction": towards}
        yield Draft("which side", texts, (others[0][0], reference), words, facts)


# --- lesion analysis ----------------------------------------------------------------------------------------------


def _lesions(scene: Scene, hide: str = "") -> list[Named]:
    return scene.subjects(hide, lesions_only=True)


def texture(scene: Scene) -> Iterator[Draft]:
    """One of four textures: the fine detail for which one has to look closer."""
    for lesion, name in _lesions(scene):
        if (true := attribute_of(scene, lesion, "texture")) is None:
            continue
        key = attribute_key(scene.d, "texture", name)
        others = scene.occurring(key, (value for value in ATTRIBUTES["texture"] if value != true))
        if len(others) < 3:
            continue
        dice = scene.dice("texture", name)
        textures = [true, *dice.sample(others, 3)]
        if scene.keeps(dice, [[(key, value)] for value in textures]):
            facts = {"names": [name], "texture": true}
            yield Draft("texture", [capital(value) for value in textures], (lesion,), {"a": name}, facts)


def _two_attributes(scene: Scene, kind: str, main: str) -> Iterator[Draft]:
    """One attribute with a second: two values of each make four options."""
    for lesion, name in _lesions(scene, hide=main):
        known = {attribute: attribute_of(scene, lesion, attribute) for attribute in ATTRIBUTES}
        told = scene.calls[lesion.label][name]
        seconds = [
            attribute for attribute in ATTRIBUTES if known[attribute] and attribute not in (main, told)
        ]
        if known[main] is None or not seconds:
            continue
        dice = scene.dice(kind, name)
        attributes = (main, dice.choice(seconds))
        keys = [attribute_key(scene.d, attribute, name) for attribute in attributes]
        others = [
            scene.occurring(key, (value for value in ATTRIBUTES[attribute] if value != known[attribute]))
            for attribute, key in zip(attributes, keys, strict=True)
        ]
        if not all(others):
            continue
        values = [(known[attribute], dice.choice(o)) for attribute, o in zip(attributes, others, strict=True)]
        cases = list(itertools.product(*values))
        if scene.keeps(dice, [list(zip(keys, case, strict=True)) for case in cases]):
            facts = {"names": [name], **dict(zip(attributes, cases[0], strict=True))}
            words = {"a": name, "other": {"size_class": "size"}.get(attributes[1], attributes[1])}
            yield Draft(kind, [capital(", ".join(case)) for case in cases], (lesion,), words, facts)


def density(scene: Scene) -> Iterator[Draft]:
    """Density against the surroundings, with texture or size."""
    return _two_attributes(scene, "density", "density")


def size_class(scene: Scene) -> Iterator[Draft]:
    """Small, medium or large, with texture or density."""
    return _two_attributes(scene, "size class", "size_class")


def in_organ(scene: Scene) -> Iterator[Draft]:
    """The organ around a lesion, among other organs of the picture."""
    for lesion, name in _lesions(scene, hide="host"):
        if (host := scene.hosts[lesion.label]) is None:
            continue
        others = [
            s.name for s in scene.organs if not scene.overlap(s, lesion) and not _kin(s.name, host.name)
        ]
        others = [organ for organ in others if scene.is_open(host_claim(scene.d, name, organ, True)[0])]
        if len(others) < 3:
            continue
        dice = scene.dice("host", name)
        organs = [host.name, *dice.sample(others, 3)]
        claims = [[host_claim(scene.d, name, organ, organ == right) for organ in organs] for right in organs]
        if scene.keeps(dice, claims):
            facts = {"names": [name, f"the {host.name}"], "host": host.name}
            texts = [f"The {organ}" for organ in organs]
            yield Draft("host", texts, (lesion, host), {"a": name}, facts)


def place(scene: Scene) -> Iterator[Draft]:
    """Where in its organ a lesion lies."""
    for (lesion, name), axes in itertools.product(_lesions(scene), _axes(scene)):
        if (host := scene.hosts[lesion.label]) is None:
            continue
        signs = [place_sign(scene, lesion, host, axis) for axis in axes]
        found = _two_directions(
            scene,
            scene.throw("place", str(axes), name),
            axes,
            signs,
            lambda case, of=(axes, name, host.name): place_claim(scene.d, *of, case),
        )
        if found is not None:
            facts = {"names": [name, f"the {host.name}"], "sides": found[1]}
            facts |= _centres(scene, axes, lesion, host)
            words = {"a": name, "b": f"the {host.name}"}
            yield Draft("place", found[0], (lesion, host), words, facts)


def lesion_extent(scene: Scene) -> Iterator[Draft]:
    """The longer side of a lesion, as in :func:`extent`."""
    return _extent(scene, "lesion extent", lesions_only=True)


FAMILIES: dict[str, tuple[Kind, ...]] = {
    "structure localization": (box, name),
    "spatial localization": (quadrant, cell, height),
    "existence verification": (pair, present, absent, count),
    "size comparison": (largest, smallest, ratio, extent),
    "spatial relationship": (relation, clock, which_side),
    "lesion analysis": (texture, density, size_class, in_organ, place, lesion_extent),
}
"""The six families and their kinds of questions."""
