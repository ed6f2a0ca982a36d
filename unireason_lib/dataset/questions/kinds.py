"""The fourteen kinds of questions: each makes a :class:`Draft` of a fact and its value.

Options come with the true one first; of kinds whose options are not simply the four values of their
fact, with what each option claims, so that the answer prior can judge them.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.questions.anatomy import WORDS, Anatomy
from unireason_lib.dataset.questions.prior import Claim, Fact, Value
from unireason_lib.dataset.study import Structure


class Draft(NamedTuple):
    """A question before letters are given out."""

    options: Sequence[str]  # the true one first
    names: Sequence[str]  # what the structures to look at are called, in order
    facts: Mapping[str, Any]  # what the reasoning may state
    claims: Sequence[Sequence[Claim]] = ()  # of each option, where more than a value of the fact
    words: Mapping[str, Any] = {}  # what fills the braces of the phrasing, besides the names
    evidence: Sequence[Structure] = ()  # where the names do not say which they are


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _four(signs: str) -> list[str]:
    """Two signs and the three other combinations."""
    one, two = ("+-" if sign == "+" else "-+" for sign in signs)
    return [one[0] + two[0], one[1] + two[1], one[0] + two[1], one[1] + two[0]]


def box(anatomy: Anatomy, fact: Fact, value: Value, rng: random.Random) -> Draft | None:
    """The box of this patient and those of three others; without a prior, of other structures."""
    elsewhere = anatomy.prior.elsewhere(fact, _boxes_apart)
    if anatomy.prior.studies and elsewhere is None:
        return None
    dice, kept = anatomy.dice(fact), [anatomy.phrases[fact.names[0]].corners]
    rows = dice.sample([s.corners for s in anatomy.phrases.values()], len(anatomy.phrases))
    if elsewhere is not None:
        rows = _shaken(*elsewhere, dice)
    for row in rows:
        if len(kept) < 4 and all(_apart(row, other) for other in kept):
            kept.append(row)
    pixels, n = [], anatomy.dims
    for row in kept if len(kept) == 4 else ():
        pairs = zip(row, anatomy.grid * 2, strict=True)
        edges = [min(max(math.floor(e * m + 0.5), 0), m) for e, m in pairs]
        if all(low < high for low, high in zip(edges[:n], edges[n:], strict=True)):
            pixels.append(anatomy.view.box((Box2D if n == 2 else Box3D)(*edges)).as_tuple())
    # compared again in the pixels in which they are written, where small differences are gone
    if len(pixels) < 4 or not _boxes_apart(pixels):
        return None
    texts = list(map(_written, pixels))
    return Draft(texts, fact.names, {"box": texts[0]})


def _shaken(rows: Sequence, spread: Sequence[float], dice: random.Random) -> list[list[float]]:
    """What was measured in three other patients, not quite (a smoothed bootstrap): the same ones
    come up again and again, and their values would be known by heart."""
    pairs = (zip(row, spread, strict=True) for row in dice.sample(rows, 3))
    return [[value + dice.uniform(-0.2, 0.2) * s for value, s in row] for row in pairs]


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes, given by corners, overlap in at most a quarter of their union."""
    n, common, size_a, size_b = len(a) // 2, 1.0, 1.0, 1.0
    for k in range(n):
        common *= max(0.0, min(a[k + n], b[k + n]) - max(a[k], b[k]))
        size_a *= a[k + n] - a[k]
        size_b *= b[k + n] - b[k]
    return common <= 0.25 * (size_a + size_b - common)


def _boxes_apart(rows: Sequence[Sequence[float]]) -> bool:
    return all(itertools.starmap(_apart, itertools.combinations(rows, 2)))


def _written(pixels: Sequence[float]) -> str:
    return f"[{','.join(str(int(n)) for n in pixels)}]"


def structure(anatomy: Anatomy, fact: Fact, value: Value, rng: random.Random) -> Draft | None:
    """Which of four structures a box marks. Only without a prior: what four structures give away
    together is more than a prior over pairs can judge."""
    if anatomy.prior.studies:
        return None
    name, target = fact.names[0], anatomy.phrases[fact.names[0]]
    away = (p for p, s in anatomy.phrases.items() if _apart(s.corners, target.corners))
    others = [phrase for phrase in away if not anatomy.phrases[phrase].overlaps(target)]
    if len(others) < 3:
        return None
    region = _written(anatomy.view.box(target.structure).as_tuple())
    options = [capital(phrase) for phrase in (name, *rng.sample(others, 3))]
    return Draft(options, [name], {"box": region}, words={"region": region})


def directions(anatomy: Anatomy, fact: Fact, value: str, rng: random.Random) -> Draft | None:
    """Two patient directions: from the middle, from another structure, or within the host."""
    flip = fact.kind == "relation" and rng.random() < 0.5
    cases = [_four(signs)[flip] for signs in _four(value)]  # [1] is the other way round
    both = [anatomy.directions[axis] for axis in fact.axes]
    sides = [[pair[sign == "-"] for pair, sign in zip(both, c, strict=True)] for c in cases]
    repeats = fact.kind == "place" and fact.names[0] == f"the lesion in {fact.names[1]}"
    words = {"a": "the lesion"} if repeats else {}
    options, names = [capital(" and ".join(pair)) for pair in sides], fact.names[:: 1 - 2 * flip]
    facts: dict[str, Any] = {"sides": sides[0]}
    for k, axis in enumerate(fact.axes, start=1):
        edges, of = zip(*(_edges(anatomy, name, axis) for name in names), strict=True)
        one, *_, other = *map(_middle, edges), *([of[0] // 2] if fact.kind == "quadrant" else [])
        if one == other or (one > other) != (sides[0][k - 1] == both[k - 1][0]):
            return None  # the boxes do not say it
        unit = "slices" if axis == 2 else anatomy.view.frame.unit
        facts |= {f"edges_a{k}": edges[0], f"edges_b{k}": edges[-1], f"all{k}": f"{of[0]} {unit}"}
        facts |= {f"a{k}": one, f"b{k}": other}
    return Draft(options, names, facts, words=words)


def _edges(anatomy: Anatomy, name: str, axis: int) -> tuple[list[int], int]:
    """Where a box begins and ends along an axis, and the extent of the images, as written."""
    corners = anatomy.view.box(anatomy.structure(name)).as_tuple()
    height, width = anatomy.view.frame.extent(*anatomy.view.image_size)
    size = (width, height, anatomy.view.depth)[axis]
    return [int(corners[axis]), int(corners[axis + anatomy.dims])], size


def _middle(edges: Sequence[int]) -> int:
    return sum(edges) // 2


def numbered(anatomy: Anatomy, fact: Fact, value: str, rng: random.Random) -> Draft | None:
    """The quarter of the slices that holds the centre, or the number of lesions."""
    options = [WORDS["options"][fact.kind][(int(value) + k) % 4] for k in range(4)]
    if fact.kind == "level":
        edges, depth = _edges(anatomy, fact.names[0], 2)
        if 2 * sum(edges) // depth != int(value):  # said by the box
            return None
        percent = 50 * sum(edges) // depth
        return Draft(options, fact.names, {"quarter": int(value) + 1, "percent": percent})
    names, lesions = [f"the {s.name}" for s in anatomy.study.lesions], anatomy.study.lesions
    return Draft(options, names, {"count": int(value)}, evidence=lesions)


def _kin(names: Sequence[str]) -> bool:
    """Whether a name contains another ("liver lesion", "liver"): then one settles the other."""
    return any(a in b or b in a for a, b in itertools.combinations(names, 2))


def pair(anatomy: Anatomy, fact: Fact, value: str, rng: random.Random) -> Draft | None:
    """Two names, each of them there or not."""
    if _kin(fact.names) or not any(gone for _, gone in anatomy.sorts):
        return None
    a, b = (f"the {name}" for name in fact.names)
    texts = {"yy": "Both", "yn": f"Only {a}", "ny": f"Only {b}", "nn": "Neither"}
    options, searched = [texts.pop(value), *texts.values()], rng.sample((a, b), 2)
    names = [name for name in searched if name[4:] in anatomy.there]
    facts = {"searched": searched, "absent": [name for name in searched if name not in names]}
    visible = next(here for here, gone in anatomy.sorts if fact.names[0] in (*here, *gone))
    facts["visible"] = [f"the {name}" for name in visible]
    return Draft(options, names, facts, words=dict(zip("ab", searched, strict=True)))


def span(anatomy: Anatomy, fact: Fact, value: Value, rng: random.Random) -> Draft | None:
    """The width of a structure."""
    edges, width = _edges(anatomy, fact.names[0], 0)
    facts = {"edges": edges, "pixels": edges[1] - edges[0]}
    return _measured(anatomy, fact, value, facts, width)


def offset(anatomy: Anatomy, fact: Fact, value: Value, rng: random.Random) -> Draft | None:
    """How far two centres are apart from left to right."""
    (one, width), (two, _) = (_edges(anatomy, name, 0) for name in fact.names)
    centres = sorted([_middle(one), _middle(two)])
    facts = {"edges_a": one, "edges_b": two, "x_a": _middle(one), "x_b": _middle(two)}
    facts |= {"centres": centres, "pixels": centres[1] - centres[0]}
    return _measured(anatomy, fact, value, facts, width)


def extent(anatomy: Anatomy, fact: Fact, value: Value, rng: random.Random) -> Draft | None:
    """The longer side of a box."""
    (wide, width), (high, _) = (_edges(anatomy, fact.names[0], k) for k in (0, 1))
    sides = {"width": wide[1] - wide[0], "height": high[1] - high[0]}
    side = max(sides, key=sides.get)
    facts = {"edges_width": wide, "edges_height": high, "side": side, "pixels": sides[side]}
    facts |= {f"{name}_pixels": length for name, length in sides.items()}
    return _measured(anatomy, fact, value, facts, width)


def _measured(
    anatomy: Anatomy, fact: Fact, value: Value, facts: Mapping[str, Any], width: int
) -> Draft | None:
    """The length that the boxes say, and those of three other patients, without a prior on a
    ladder; in the unit of written boxes, which divides the width of an image by ``width``."""
    elsewhere = anatomy.prior.elsewhere(fact, _lengths_apart)
    if anatomy.prior.studies and elsewhere is None:
        return None
    dice = anatomy.dice(fact)
    factor, rung = dice.uniform(1.25, 1.5), dice.randrange(4)
    others = [(value[0] * factor ** (k - rung),) for k in range(4) if k != rung]
    others = others if elsewhere is None else _shaken(*elsewhere, dice)
    lengths = [facts["pixels"], *(round(percent * width / 100) for (percent,) in others)]
    largest = max(anatomy.view.frame.extent(*anatomy.view.image_size))
    if not (0 < min(lengths) and max(lengths) <= largest and _lengths_apart(zip(lengths), 2)):
        return None
    unit = anatomy.view.frame.unit
    options = [f"About {length} {unit}" for length in lengths]
    return Draft(options, fact.names, facts, words={"unit": unit})


def _lengths_apart(rows: Iterable[Sequence[float]], least: float = 0) -> bool:
    """Whether no two lengths differ by less than 12 %, or by less than ``least``."""
    lengths = sorted(row[0] for row in rows)
    return all(b - a >= max(0.12 * a, least) for a, b in itertools.pairwise(lengths))


def _wrong(anatomy: Anatomy, fact: Fact, value: Value | None) -> list[str]:
    """Other values of an attribute that a wrong option may name."""
    known = anatomy.prior.occurring(fact, WORDS["attributes"][fact.kind])
    return [other for other in known if other != value]


def texture(anatomy: Anatomy, fact: Fact, value: str, rng: random.Random) -> Draft | None:
    """One of four textures: the fine detail for which one has to look closer."""
    if len(wrong := _wrong(anatomy, fact, value)) < 3:
        return None
    values = [value, *anatomy.dice(fact).sample(wrong, 3)]
    claims = [[(fact, v)] for v in values]
    return Draft([capital(v) for v in values], fact.names, {"texture": value}, claims)


def density(anatomy: Anatomy, fact: Fact, value: str, rng: random.Random) -> Draft | None:
    """Density against the host: two values, which make four options with two textures."""
    second, texture = fact._replace(kind="texture"), anatomy.value("texture", (), fact.names)
    wrong = _wrong(anatomy, fact, value), _wrong(anatomy, second, texture)
    if texture is None or not all(wrong):
        return None
    true, others = (value, texture), map(anatomy.dice(fact).choice, wrong)
    cases = list(itertools.product(*zip(true, others, strict=True)))
    claims = [[(fact, one), (second, two)] for one, two in cases]
    facts = dict(zip(("density", "texture"), true, strict=True))
    return Draft([capital(" and ".join(c)) for c in cases], fact.names, facts, claims)


def host(anatomy: Anatomy, fact: Fact, value: str, rng: random.Random) -> Draft | None:
    """The organ around a lesion, among those that can have one (without a prior: are seen)."""
    lesion = anatomy.phrases[fact.names[0]]
    seen = {s.name: anatomy.phrases[f"the {s.name}"].overlaps(lesion) for s in anatomy.organs}
    known = anatomy.prior.occurring(fact, seen)
    others = [name for name in known if name != value and not seen.get(name)]
    if len(others) < 3 or value in fact.names[0]:  # its phrase would say it
        return None
    if _kin(organs := [value, *anatomy.dice(fact).sample(others, 3)]):
        return None
    claims, names = [[(fact, organ)] for organ in organs], [*fact.names, f"the {value}"]
    return Draft([f"The {organ}" for organ in organs], names, {"host": value}, claims)


_MAKERS = (box, structure, pair, span, extent, offset, texture, density, host)
KINDS: Mapping[str, Callable[[Anatomy, Fact, Any, random.Random], Draft | None]] = {
    **dict.fromkeys(("quadrant", "relation", "place"), directions),
    **dict.fromkeys(("level", "count"), numbered),
    **{make.__name__: make for make in _MAKERS},
}
"""Name of a kind -> what makes its drafts."""
