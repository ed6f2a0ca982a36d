"""What lines of results are worth: pure functions from lines to numbers.

A line is a dictionary as :func:`unireason_lib.evaluation.run.line_of` makes it. Lines with ``error`` are failures of
the machinery, not replies: they are counted, and left out of every mean. A reply that chooses no option is an
abstention: it is wrong, and also counted as what it is.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.evaluation.statistics import Interval, bootstrap_mean
from unireason_lib.imaging.crops import slice_range

Line = Mapping[str, Any]

HIT = 0.5
"""Intersection over union from which a box counts as a hit."""

IOU_BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)


# -- one reply ------------------------------------------------------------------------------------------------------


def overlaps(written: Sequence[Box], truth: Sequence[Box]) -> dict[str, float | None]:
    """How well the boxes of a reply fit.

    Args:
        written: In the order of the reply.
        truth: Boxes of what the answer rests on, in the same pixels.

    Returns:
        Intersection over union, in 3D of volumes; a rectangle never overlaps a cuboid. ``iou_first``: of the first box
        with the true one that it fits best; ``iou_best``: of the best pair; ``iou_all``: mean over the true boxes of
        their best. 0 when nothing was written; None when there is no truth.
    """
    if not truth:
        return {"iou_first": None, "iou_best": None, "iou_all": None}
    table = [
        [one.iou(true) if type(one) is type(true) else 0.0 for true in truth] for one in written
    ]
    table = table or [[0.0] * len(truth)]
    found = {
        "iou_first": max(table[0]),
        "iou_best": max(map(max, table)),
        "iou_all": sum(max(column) for column in zip(*table, strict=True)) / len(truth),
    }
    return {name: round(value, 6) for name, value in found.items()}


def crop_share(
    crops: Sequence[tuple[int, int]], injections: int, frame: Sequence[int]
) -> float | None:
    """Mean share of the picture (of the volume: over all slices) that an injected box fetched.

    A model that always fetches everything looks at nothing in particular: its share is 1.

    Args:
        crops: (width, height) of all crops of a reply, in pixels of the frame.
        injections: Boxes that fetched them.
        frame: Height, width and number of the pictures.
    """
    if not injections:
        return None
    height, width, pictures = frame
    return round(sum(w * h for w, h in crops) / (height * width * pictures) / injections, 6)


def same_words(one: str, other: str) -> bool:
    """Whether two short answers agree: word for word, case, marks and articles aside."""
    return _words(one) == _words(other) != []


def word_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of the words of an open answer (as SQuAD scores them)."""
    said, true = Counter(_words(answer)), Counter(_words(truth))
    common = sum((said & true).values())
    return 2 * common / (sum(said.values()) + sum(true.values())) if common else 0.0


def _words(text: str) -> list[str]:
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return [word for word in words if word not in ("a", "an", "the")] or words


# -- tables of many -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One row of a table of results.

    Attributes:
        dimension, family: What it is about; ``"all"`` for sums.
        n: Replies.
        patients: Whose scans they are about.
        values: Name of the measure -> its mean with interval (None where nothing could be measured): ``accuracy``,
            ``guess`` (accuracy of the most likely option by training), ``majority`` (of always saying the letter
            that is right most often), ``blind``, ``abstained``, ``in_format``, ``iou_first``, ``iou_best``,
            ``iou_all``, ``hit``, ``crop_share``, ``own_tokens``, ``injected_tokens``, ``rounds``, ``seconds``,
            ``word_f1`` (open answers).
    """

    dimension: str
    family: str
    n: int
    patients: int
    values: Mapping[str, Interval | None]


def answered(lines: Iterable[Line]) -> list[Line]:
    """The lines with a reply."""
    return [line for line in lines if "error" not in line]


MEASURES: Mapping[str, Callable[[Line], float | None]] = {
    "accuracy": lambda line: None if line["correct"] is None else float(line["correct"]),
    "guess": lambda line: (
        None if line.get("guess") is None else float(line["guess"] == line["truth"])
    ),
    "abstained": lambda line: float(line["prediction"] is None) if line["options"] else None,
    "in_format": lambda line: float(line["in_format"]),
    "word_f1": lambda line: (
        None if line["options"] or line["truth"] is None else word_f1(line["answer"], line["truth"])
    ),
    "iou_first": lambda line: line["iou_first"],
    "iou_best": lambda line: line["iou_best"],
    "iou_all": lambda line: line["iou_all"],
    "hit": lambda line: None if line["iou_best"] is None else float(line["iou_best"] >= HIT),
    "crop_share": lambda line: line["crop_share"],
    "own_tokens": lambda line: float(line["own_tokens"]),
    "injected_tokens": lambda line: float(line["injected_tokens"]),
    "rounds": lambda line: float(line["rounds"]),
    "seconds": lambda line: line["seconds"],
}
"""Name -> its value for one line; None where it does not apply."""

UNBOUNDED = ("own_tokens", "injected_tokens", "rounds", "seconds")

SHARES = ("accuracy", "guess", "majority", "blind", "abstained", "in_format", "hit")


def measure(
    lines: Iterable[Line],
    value: str | Callable[[Line], float | None],
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Mean of one measure with its interval; patients are resampled.

    Args:
        lines: Of results.
        value: A key of :data:`MEASURES`, or a function of a line.
        samples, seed: Of the bootstrap.

    Returns:
        None when the measure applies to no line.
    """
    get = MEASURES[value] if isinstance(value, str) else value
    found = [
        (number, line["patient"]) for line in answered(lines) if (number := get(line)) is not None
    ]
    if not found:
        return None
    numbers, patients = zip(*found, strict=True)
    return bootstrap_mean(
        numbers, patients, samples=samples, seed=seed, bounded=value not in UNBOUNDED
    )


def cells(
    lines: Iterable[Line], blind: Iterable[Line] = (), *, samples: int = 2000, seed: int = 0
) -> list[Cell]:
    """All, by dimension, by family, and by both.

    Args:
        lines: Of a run.
        blind: Lines of the same questions with blanked pictures; of these only those that ``lines`` asks too count.
        samples, seed: Of the bootstrap.
    """
    lines = answered(lines)
    seen = {line["id"] for line in lines}
    blind = [line for line in answered(blind) if line["id"] in seen]
    dimensions = sorted({line["dimension"] for line in lines})
    families = list(dict.fromkeys(line["family"] for line in lines))
    groups = [("all", "all")]
    groups += [(d, "all") for d in dimensions] if len(dimensions) > 1 else []
    groups += [("all", f) for f in families] if len(families) > 1 and len(dimensions) > 1 else []
    groups += [(d, f) for d in dimensions for f in families] if len(families) > 1 else []
    return [
        cell
        for dimension, family in groups
        if (cell := _cell(dimension, family, lines, blind, samples, seed)) is not None
    ]


def _cell(
    dimension: str,
    family: str,
    lines: Sequence[Line],
    blind: Sequence[Line],
    samples: int,
    seed: int,
) -> Cell | None:
    def mine(line: Line) -> bool:
        return dimension in ("all", line["dimension"]) and family in ("all", line["family"])

    chosen = [line for line in lines if mine(line)]
    if not chosen:
        return None
    values = {name: measure(chosen, name, samples=samples, seed=seed) for name in MEASURES}
    majority = majority_letters(lines)
    values["majority"] = measure(
        chosen,
        lambda line: float(line["truth"] == majority[line["dimension"]]) if _scored(line) else None,
        samples=samples,
        seed=seed,
    )
    values["blind"] = measure(filter(mine, blind), "accuracy", samples=samples, seed=seed)
    patients = len({line["patient"] for line in chosen})
    return Cell(dimension, family, len(chosen), patients, values)


def majority_letters(lines: Iterable[Line]) -> dict[str, str]:
    """Dimension -> the letter that is right most often in these very questions: a bound for who always says the
    same."""
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        counter = counts.setdefault(line["dimension"], Counter())
        if _scored(line):
            counter[line["truth"]] += 1
    return {
        d: max(sorted(counter), key=counter.__getitem__) if counter else ""
        for d, counter in counts.items()
    }


def _scored(line: Line) -> bool:
    return bool(line["options"]) and line["truth"] is not None


def guess_accuracy(lines: Iterable[Line]) -> Interval | None:
    """Accuracy of the option that is most likely by the training questions, without looking."""
    return measure(lines, "guess")


def chance(lines: Iterable[Line]) -> float | None:
    """Accuracy of choosing an option by lot."""
    shares = [1 / len(line["options"]) for line in answered(lines) if _scored(line)]
    return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True)
class Bin:
    """Replies whose best box overlaps the truth by ``low`` up to ``high`` (the last bin includes its end)."""

    low: float
    high: float
    n: int
    accuracy: Interval | None


def reliability(
    lines: Iterable[Line],
    bins: Sequence[float] = IOU_BINS,
    *,
    value: str = "iou_best",
    seed: int = 0,
) -> list[Bin]:
    """Accuracy among replies whose boxes fit badly, better, well: does a good box mean a right answer?

    Args:
        lines: Of results.
        bins: Borders, ascending.
        value: Which overlap.
        seed: Of the bootstrap.
    """
    known = [
        line for line in answered(lines) if line[value] is not None and line["correct"] is not None
    ]
    found = []
    for low, high in itertools.pairwise(bins):
        last = high == bins[-1]
        mine = [
            line for line in known if low <= line[value] < high or (last and line[value] == high)
        ]
        found.append(Bin(low, high, len(mine), measure(mine, "accuracy", seed=seed)))
    return found


def volume_consistency(
    cuboid: Box3D, rectangles: Mapping[int, Box2D | None], depth: int | None = None
) -> float:
    """Does the same model point at the same place in a volume and in its slices?

    Args:
        cuboid: Box that was written for the volume.
        rectangles: Slice -> box that was written for the slice shown alone; None or missing when there was none.
        depth: Slices of the volume; slices of the cuboid beyond it do not count.

    Returns:
        Mean over the slices that the cuboid spans of the intersection over union of its rectangle with the slice's; a
        slice without a box counts 0.

    Raises:
        ValueError: The cuboid spans no slice.
    """
    spanned = spanned_slices(cuboid, depth)
    if not spanned:
        raise ValueError(
            f"{cuboid}: expected a cuboid that spans slices of the volume, found none."
        )
    pairs = [rectangles.get(z) for z in spanned]
    return sum(0.0 if pair is None else cuboid.xy.iou(pair) for pair in pairs) / len(spanned)


def spanned_slices(cuboid: Box3D, depth: int | None = None) -> range:
    """The slices on which a cuboid lives, inside a volume of ``depth`` slices."""
    return slice_range(cuboid, math.ceil(cuboid.z2) if depth is None else depth)
