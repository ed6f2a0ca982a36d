"""Boxes that a model can write: a rectangle in an image, in a volume shown as slices a cuboid.

    <|box_start|>[x1,y1,x2,y2]<|box_end|>
    <|box_start|>[x1,y1,z1,x2,y2,z2]<|box_end|>

Coordinates are pixels, x to the right and y down; z is the slice index. Some models write
thousandths of width and height instead (:mod:`~unireason_lib.imaging.frame`). The second corner is
exclusive, as in a Python slice: ``[0,0,4,4]`` covers 16 pixels. What a model writes is untrusted:
:func:`scan_boxes` reads what is well formed, counts what is not and never raises.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from typing import ClassVar, Self

from unireason_lib.errors import BoxError

BOX_START = "<|box_start|>"
BOX_END = "<|box_end|>"


class _Box:
    """What rectangles and cuboids share: 2n numbers, the first corner before the second."""

    _axes: ClassVar[int]

    def __post_init__(self) -> None:
        values = self.as_tuple()
        if bool in map(type, values) or not all(map(math.isfinite, values)):
            found = f"{type(self).__name__}{values}"
            raise BoxError("box", "finite numbers", found, "check the coordinates")

    def as_tuple(self) -> tuple[float, ...]:
        """``(x1, y1, x2, y2)`` or ``(x1, y1, z1, x2, y2, z2)``, as the box is written."""
        return tuple(vars(self).values())

    def _each(self, change: Callable[[float, float], float], *values: float) -> Self:
        """The box with ``change(coordinate, value of its axis)`` in place of every coordinate."""
        return type(self)(*map(change, self.as_tuple(), values[: self._axes] * 2))

    def _corners(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.as_tuple()[: self._axes], self.as_tuple()[self._axes :]

    @property
    def width(self) -> float:
        """Extent along x in pixels, never negative."""
        return max(0, self.x2 - self.x1)

    @property
    def height(self) -> float:
        """Extent along y in pixels, never negative."""
        return max(0, self.y2 - self.y1)

    @property
    def _size(self) -> float:
        """Pixels or voxels covered."""
        return math.prod(max(0, b - a) for a, b in zip(*self._corners(), strict=True))

    @property
    def is_empty(self) -> bool:
        """True when the box covers nothing, as reversed boxes do."""
        return self._size == 0

    @property
    def center(self) -> tuple[float, ...]:
        """Centre ``(x, y)`` or ``(x, y, z)`` in edge coordinates."""
        return tuple((a + b) / 2 for a, b in zip(*self._corners(), strict=True))

    def intersection(self, other: Self) -> Self | None:
        """The common part, or None; raises :class:`BoxError` for a rectangle and a cuboid."""
        if type(self) is not type(other):
            found = f"{type(self).__name__} and {type(other).__name__}"
            raise BoxError("boxes", "two of one kind", found, "project the cuboid with `.xy`")
        firsts, seconds = zip(self._corners(), other._corners(), strict=True)
        box = type(self)(*map(max, *firsts), *map(min, *seconds))
        return None if box.is_empty else box

    def iou(self, other: Self) -> float:
        """Intersection over union, in [0, 1]; 0 when both are empty."""
        common = self.intersection(other)
        if common is None:
            return 0.0
        return common._size / (self._size + other._size - common._size)

    def clip(self, width: float, height: float, depth: float = math.inf) -> Self:
        """Every coordinate moved into the image or volume; the box may be empty then."""
        return self._each(lambda value, high: min(max(value, 0), high), width, height, depth)

    def scale(self, sx: float, sy: float, sz: float = 1) -> Self:
        """The box in a space with ``sx``, ``sy``, ``sz`` times as many columns, rows and slices."""
        return self._each(mul, sx, sy, sz)

    def round(self, outward: bool = False) -> Self:
        """Whole pixels: the nearest ones (halves go up), or the smallest whole box around it."""
        low, high = (math.floor, math.ceil) if outward else (_nearest, _nearest)
        first, second = self._corners()
        return type(self)(*map(low, first), *map(high, second))


@dataclass(frozen=True)
class Box2D(_Box):
    """A half-open rectangle ``[x1, x2) x [y1, y2)`` in pixels, x to the right and y down; empty and
    reversed ones can be built. A :class:`BoxError` for NaN, infinity or a boolean."""

    _axes = 2
    x1: float
    y1: float
    x2: float
    y2: float

    area = _Box._size

    @property
    def xy(self) -> Self:
        """Itself, as the rectangle of a cuboid is."""
        return self


@dataclass(frozen=True)
class Box3D(_Box):
    """A half-open cuboid: a rectangle (see :class:`Box2D`) on slices ``z1 .. z2 - 1``."""

    _axes = 3
    x1: float
    y1: float
    z1: float
    x2: float
    y2: float
    z2: float

    @property
    def xy(self) -> Box2D:
        """The cuboid seen along z: the rectangle that it fills on each of its slices."""
        return Box2D(self.x1, self.y1, self.x2, self.y2)

    volume = _Box._size

    @property
    def depth(self) -> float:
        """Number of slices, never negative."""
        return max(0, self.z2 - self.z1)


Box = Box2D | Box3D


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


@dataclass(frozen=True)
class BoxScan:
    """What :func:`scan_boxes` read in a text."""

    boxes: tuple[Box, ...]  # the well-formed ones, in order
    spans: tuple[tuple[int, int], ...]  # (start, end) of their characters, tags included
    malformed: int  # how many times a box was opened without a well-formed box following
    other_syntax: tuple[Box, ...] = ()  # stock Qwen's "bbox_2d": [...] in JSON; fetch nothing


# more than 7 digits cannot be pixels of any image
_NUMBER = r"[+-]?[0-9]{1,7}(?:\.[0-9]{1,8})?"
_NUMBERS = rf"\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{1,5}}\s*"
_LIST = rf"(?:\[{_NUMBERS}\]|\({_NUMBERS}\))"
_WRITTEN = re.compile(rf"\s*(?:{_LIST}(?:\s*,\s*{_LIST})?|\[\s*{_LIST}(?:\s*,\s*{_LIST})?\s*\])\s*")
_IN_WORDS = re.compile(r"[\[(]\s*\d+\s*(?:,\s*\d+\s*){3}(?:,\s*\d+\s*,\s*\d+\s*)?[\])]")
_JSON = re.compile(rf"""["']bbox_[23]d["']\s{{0,9}}:\s{{0,9}}\[?\s{{0,9}}(\[{_NUMBERS}\])""")


def read_box(text: str) -> Box | None:
    """Read the inside of a pair of box tags: 4 or 6 numbers in square or round brackets, or the two
    corners each in its own (``(101,201),(150,266)``, as Qwen2-VL writes), perhaps in one more pair.

    Rounded to whole pixels and not clipped; None for any other text: an empty or reversed box,
    exponents, too large numbers, or fractions of the image (decimals all at most 1)."""
    if len(text) > 256 or not _WRITTEN.fullmatch(text):
        return None
    corners = [re.findall(_NUMBER, part) for part in re.findall(_LIST, text)]
    written = [number for corner in corners for number in corner]
    fractions = "." in text and all(abs(float(number)) <= 1 for number in written)
    if fractions or len(written) not in (4, 6) or len(set(map(len, corners))) != 1:
        return None
    kind = Box2D if len(written) == 4 else Box3D
    box = kind(*(_nearest(float(number)) for number in written))
    return None if box.is_empty else box


def scan_boxes(text: str) -> BoxScan:
    """Read every box in a text, with its place; never raises, in time linear in the text.

    A box that is not closed before the next one opens, or before the text ends, is malformed.
    """
    boxes, spans = [], []
    before, *pieces = text.split(BOX_START)
    start = len(before)
    for piece in pieces:
        inside, closed, _ = piece.partition(BOX_END)
        if closed and (box := read_box(inside)) is not None:
            boxes.append(box)
            spans.append((start, start + len(BOX_START + inside + BOX_END)))
        start += len(BOX_START + piece)
    other = filter(None, (read_box(match[1]) for match in _JSON.finditer(text)))
    return BoxScan(tuple(boxes), tuple(spans), len(pieces) - len(boxes), tuple(other))


def parse_boxes(text: str) -> list[Box]:
    """The well-formed boxes of a text, in order (:func:`scan_boxes` counts the others)."""
    return list(scan_boxes(text).boxes)


def states_boxes(text: str) -> bool:
    """Whether a text has a box in its words, with or without tags."""
    return _IN_WORDS.search(text) is not None


def format_box(box: Box) -> str:
    """Write a box as the model writes it, each coordinate rounded to the nearest pixel; a
    :class:`BoxError` when it is empty or reversed, perhaps only then."""
    whole = box.round()
    if whole.is_empty:
        do = "round outward with `box.round(outward=True)` or leave the box out"
        raise BoxError("format_box", "a box that covers at least one pixel", box, do)
    return f"{BOX_START}[{','.join(str(int(value)) for value in whole.as_tuple())}]{BOX_END}"
