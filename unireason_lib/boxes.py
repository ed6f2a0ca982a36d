"""Boxes that a model can write: the shared syntax of 2D images and 3D volumes.

One interface serves both worlds. In a picture the model points with a rectangle, in a volume laid out as slices
with a cuboid whose third axis counts slices:

    <|box_start|>[x1,y1,x2,y2]<|box_end|>              a rectangle
    <|box_start|>[x1,y1,z1,x2,y2,z2]<|box_end|>        a cuboid

Coordinates are pixels with x to the right and y down; z is the slice index. The second corner is exclusive, as in a
Python slice, so ``[0,0,4,4]`` covers 16 pixels and two boxes that share an edge do not overlap. What a model writes
is untrusted text: :func:`scan_boxes` reads what is well formed, counts what is not and never raises.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

BOX_START = "<|box_start|>"
BOX_END = "<|box_end|>"

MAX_COORDINATE = 10_000_000
"""Larger magnitudes cannot be pixels of any picture and are read as malformed."""


class BoxError(ValueError):
    """A box was built from, or used with, something that is not a box."""


def _check_finite(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        if isinstance(value, bool) or not math.isfinite(value):
            raise BoxError(
                f"{name}: expected finite numbers, found {values}. What to do: check the coordinates."
            )


@dataclass(frozen=True)
class Box2D:
    """A half-open rectangle ``[x1, x2) x [y1, y2)``.

    Args:
        x1, y1: First corner, in pixels (x to the right, y down), included.
        x2, y2: Second corner, excluded.

    Raises:
        BoxError: A coordinate is NaN, infinite or a boolean. Empty and reversed boxes can be built (clipping makes
            them); see :attr:`is_empty`.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        _check_finite("Box2D", self.as_tuple())

    def as_tuple(self) -> tuple[float, float, float, float]:
        """``(x1, y1, x2, y2)``, the order in which the box is written."""
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def width(self) -> float:
        """Extent along x in pixels, never negative."""
        return max(0, self.x2 - self.x1)

    @property
    def height(self) -> float:
        """Extent along y in pixels, never negative."""
        return max(0, self.y2 - self.y1)

    @property
    def area(self) -> float:
        """Pixels covered."""
        return self.width * self.height

    @property
    def is_empty(self) -> bool:
        """True when the box covers nothing (reversed boxes cover nothing)."""
        return self.x2 <= self.x1 or self.y2 <= self.y1

    @property
    def center(self) -> tuple[float, float]:
        """Centre ``(x, y)`` in pixel-edge coordinates."""
        return ((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2)

    def intersection(self, other: Box2D) -> Box2D | None:
        """The common part of two rectangles, or None when they do not overlap."""
        _same_kind(self, other)
        box = Box2D(
            max(self.x1, other.x1), max(self.y1, other.y1), min(self.x2, other.x2), min(self.y2, other.y2)
        )
        return None if box.is_empty else box

    def iou(self, other: Box2D) -> float:
        """Intersection over union, in [0, 1]; 0 when both are empty.

        Raises:
            BoxError: ``other`` is a cuboid; compare ``cuboid.xy`` instead.
        """
        common = self.intersection(other)
        if common is None:
            return 0.0
        return common.area / (self.area + other.area - common.area)

    def clip(self, width: float, height: float) -> Box2D:
        """The box with every coordinate moved into ``[0, width] x [0, height]`` (possibly empty then)."""
        return Box2D(
            _clamp(self.x1, width), _clamp(self.y1, height), _clamp(self.x2, width), _clamp(self.y2, height)
        )

    def scale(self, sx: float, sy: float) -> Box2D:
        """The box in a space whose pixels are ``sx`` and ``sy`` times as many along x and y."""
        return Box2D(self.x1 * sx, self.y1 * sy, self.x2 * sx, self.y2 * sy)

    def round(self, outward: bool = False) -> Box2D:
        """Whole pixels: the nearest ones (halves go up), or with ``outward`` the smallest whole box around it."""
        low, high = _rounders(outward)
        return Box2D(low(self.x1), low(self.y1), high(self.x2), high(self.y2))


@dataclass(frozen=True)
class Box3D:
    """A half-open cuboid ``[x1, x2) x [y1, y2) x [z1, z2)``.

    Args:
        x1, y1, z1: First corner: pixels along x and y, slice index along z, included.
        x2, y2, z2: Second corner, excluded: the cuboid lives on slices ``z1 .. z2 - 1``.

    Raises:
        BoxError: A coordinate is NaN, infinite or a boolean.
    """

    x1: float
    y1: float
    z1: float
    x2: float
    y2: float
    z2: float

    def __post_init__(self) -> None:
        _check_finite("Box3D", self.as_tuple())

    @classmethod
    def from_xy(cls, rectangle: Box2D, z1: float, z2: float) -> Box3D:
        """The cuboid over ``rectangle`` on slices ``z1 .. z2 - 1``."""
        return cls(rectangle.x1, rectangle.y1, z1, rectangle.x2, rectangle.y2, z2)

    def as_tuple(self) -> tuple[float, float, float, float, float, float]:
        """``(x1, y1, z1, x2, y2, z2)``, the order in which the box is written."""
        return (self.x1, self.y1, self.z1, self.x2, self.y2, self.z2)

    @property
    def xy(self) -> Box2D:
        """The cuboid seen along z: the rectangle that it fills on each of its slices."""
        return Box2D(self.x1, self.y1, self.x2, self.y2)

    @property
    def width(self) -> float:
        """Extent along x in pixels, never negative."""
        return max(0, self.x2 - self.x1)

    @property
    def height(self) -> float:
        """Extent along y in pixels, never negative."""
        return max(0, self.y2 - self.y1)

    @property
    def depth(self) -> float:
        """Number of slices, never negative."""
        return max(0, self.z2 - self.z1)

    @property
    def volume(self) -> float:
        """Voxels covered."""
        return self.width * self.height * self.depth

    @property
    def is_empty(self) -> bool:
        """True when the box covers nothing (reversed boxes cover nothing)."""
        return self.x2 <= self.x1 or self.y2 <= self.y1 or self.z2 <= self.z1

    @property
    def center(self) -> tuple[float, float, float]:
        """Centre ``(x, y, z)`` in edge coordinates."""
        return ((self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2, (self.z1 + self.z2) / 2)

    def intersection(self, other: Box3D) -> Box3D | None:
        """The common part of two cuboids, or None when they do not overlap."""
        _same_kind(self, other)
        box = Box3D(
            *(max(a, b) for a, b in zip(self.as_tuple()[:3], other.as_tuple()[:3], strict=True)),
            *(min(a, b) for a, b in zip(self.as_tuple()[3:], other.as_tuple()[3:], strict=True)),
        )
        return None if box.is_empty else box

    def iou(self, other: Box3D) -> float:
        """Intersection over union of the volumes, in [0, 1]; 0 when both are empty.

        Raises:
            BoxError: ``other`` is a rectangle; compare ``self.xy`` with it instead.
        """
        common = self.intersection(other)
        if common is None:
            return 0.0
        return common.volume / (self.volume + other.volume - common.volume)

    def clip(self, width: float, height: float, depth: float) -> Box3D:
        """The box with every coordinate moved into ``[0, width] x [0, height] x [0, depth]`` (possibly empty then)."""
        return Box3D.from_xy(self.xy.clip(width, height), _clamp(self.z1, depth), _clamp(self.z2, depth))

    def scale(self, sx: float, sy: float, sz: float = 1) -> Box3D:
        """The box in a space with ``sx``, ``sy`` and ``sz`` times as many pixels, rows and slices."""
        return Box3D.from_xy(self.xy.scale(sx, sy), self.z1 * sz, self.z2 * sz)

    def round(self, outward: bool = False) -> Box3D:
        """Whole pixels and slices: the nearest ones (halves go up), or with ``outward`` the smallest whole
        box around it."""
        low, high = _rounders(outward)
        return Box3D.from_xy(self.xy.round(outward), low(self.z1), high(self.z2))


Box = Box2D | Box3D


def _same_kind(one: Box, other: Box) -> None:
    if type(one) is not type(other):
        raise BoxError(
            f"expected two boxes of one kind, found {type(one).__name__} and {type(other).__name__}. "
            "What to do: project a cuboid with `.xy`, or lift a rectangle with `Box3D.from_xy`."
        )


def _clamp(value: float, high: float) -> float:
    return min(max(value, 0), high)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _rounders(outward: bool):
    return (math.floor, math.ceil) if outward else (_nearest, _nearest)


@dataclass(frozen=True)
class BoxScan:
    """What :func:`scan_boxes` found in a text.

    Attributes:
        boxes: The well-formed boxes, in order.
        spans: For each of them the ``(start, end)`` of its characters, tags included.
        malformed: How many times a box was opened without a well-formed box following.
    """

    boxes: tuple[Box, ...]
    spans: tuple[tuple[int, int], ...]
    malformed: int


_NUMBER = r"[+-]?[0-9]{1,8}(?:\.[0-9]{1,8})?"
_LIST = re.compile(
    rf"\s*(?:\[\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*\]|\(\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*\))\s*"
)


def read_box(text: str) -> Box | None:
    """Read the inside of a pair of box tags.

    Args:
        text: What stands between the tags: 4 or 6 numbers in square or round brackets. Plain decimals are read and
            rounded to the nearest pixel.

    Returns:
        The box with whole coordinates, or None when the text is anything else: another count of numbers, an empty
        or reversed box, exponents, ``NaN``, magnitudes beyond :data:`MAX_COORDINATE`. Negative coordinates are read;
        who uses the box clips it to the picture.
    """
    match = _LIST.fullmatch(text) if len(text) <= 256 else None
    if match is None:
        return None
    numbers = [_nearest(float(number)) for number in (match[1] or match[2]).split(",")]
    if len(numbers) not in (4, 6) or any(abs(number) > MAX_COORDINATE for number in numbers):
        return None
    box = Box2D(*numbers) if len(numbers) == 4 else Box3D(*numbers)
    return None if box.is_empty else box


def scan_boxes(text: str) -> BoxScan:
    """Find every box in a text, with its place, and count the malformed ones.

    A box that is opened and not closed before the next one opens, or before the text ends, is malformed. The time
    grows linearly with the text, whatever the text is.

    Args:
        text: Anything a model wrote.

    Returns:
        A :class:`BoxScan`; never raises.
    """
    boxes: list[Box] = []
    spans: list[tuple[int, int]] = []
    malformed = 0
    start = text.find(BOX_START)
    while start >= 0:
        inside = start + len(BOX_START)
        following = text.find(BOX_START, inside)
        close = text.find(BOX_END, inside, following if following >= 0 else len(text))
        box = read_box(text[inside:close]) if close >= 0 else None
        if box is None:
            malformed += 1
        else:
            boxes.append(box)
            spans.append((start, close + len(BOX_END)))
        start = following
    return BoxScan(tuple(boxes), tuple(spans), malformed)


def parse_boxes(text: str) -> list[Box]:
    """The well-formed boxes of a text, in order; malformed ones are skipped (:func:`scan_boxes` counts them)."""
    return list(scan_boxes(text).boxes)


def format_box(box: Box) -> str:
    """Write a box as the model writes it; coordinates that are not whole are rounded to the nearest pixel.

    Raises:
        BoxError: ``box`` is empty, reversed (before or after rounding) or no box at all: such a text could not be
            read back.
    """
    if not isinstance(box, Box2D | Box3D):
        raise BoxError(
            f"expected a Box2D or Box3D, found {type(box).__name__}. What to do: build the box first."
        )
    whole = box.round()
    if whole.is_empty:
        raise BoxError(
            f"expected a box that covers at least one pixel, found {box}. "
            "What to do: round outward with `box.round(outward=True)` or leave the box out."
        )
    return f"{BOX_START}[{','.join(str(int(value)) for value in whole.as_tuple())}]{BOX_END}"
