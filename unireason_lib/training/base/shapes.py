"""Plain pictures: shapes with shades and textures on noisy ground, whose truth is known exactly.

This is what the tiny base is pre-trained on. Nothing in it comes from the study: no organ, no scan, no body, no
volume. A picture holds one to six shapes; each has a form, a shade against the ground, and perhaps a texture:

    ground (level, gradient, unnamed smudges) -> shapes, later ones on top -> blur -> noise

Sizes, contrasts, noise and textures vary widely, so that a vision tower that can tell them all apart has features
for other grey pictures too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from unireason_lib.boxes import Box2D

Mask = np.ndarray
_Form = Callable[[np.ndarray, np.ndarray, random.Random], Mask]


FORMS: dict[str, _Form] = {
    "circle": lambda x, y, rng: np.hypot(x, y) < 1,
    "square": lambda x, y, rng: np.maximum(abs(x), abs(y)) < 0.85,
    "bar": lambda x, y, rng: (abs(x) < 1) & (abs(y) < rng.uniform(0.2, 0.35)),
    "triangle": lambda x, y, rng: (y < 0.75) & (y > 2 * abs(x) - 0.95),
    "cross": lambda x, y, rng: (
        ((abs(x) < 0.33) | (abs(y) < 0.33)) & (np.maximum(abs(x), abs(y)) < 1)
    ),
    "ring": lambda x, y, rng: (np.hypot(x, y) < 1) & (np.hypot(x, y) > 0.55),
    "star": lambda x, y, rng: np.hypot(x, y) < 0.62 + 0.38 * np.cos(5 * np.arctan2(y, x)),
}
"""Form -> whether a point of the plane, in units of the shape's radius, belongs to it."""

NOUN = "shape"
"""Any form."""

TURNED = ("bar", "triangle", "star")
"""Forms that are shown in any direction; a turned square would be a diamond."""

TEXTURES = (
    "plain",
    "vertically striped",
    "horizontally striped",
    "checkered",
    "mottled",
    "diagonally striped",
)

SHADES = ("dark", "bright")
"""Against the ground."""


@dataclass(frozen=True)
class Shape:
    """One shape of a picture.

    Attributes:
        form: Of :data:`FORMS`.
        shade: Of :data:`SHADES`.
        texture: Of :data:`TEXTURES`.
        box: Smallest rectangle around what can be seen of it, whole pixels, half open.
        area: Pixels that can be seen of it.
    """

    form: str
    shade: str
    texture: str
    box: Box2D
    area: int


@dataclass(frozen=True)
class Picture:
    """A picture and its truth.

    Attributes:
        pixels: ``(height, width) uint8``.
        shapes: Its shapes, from the one drawn first to the one on top.
    """

    pixels: np.ndarray
    shapes: tuple[Shape, ...]


def draw(
    rng: random.Random,
    size: tuple[int, int] = (64, 64),
    count: int = 3,
    *,
    textured: float = 0.5,
    fine: bool = False,
    forms: Sequence[str] = tuple(FORMS),
    radius: tuple[float, float] = (0.1, 0.27),
) -> Picture:
    """Draw a picture; the same state of ``rng`` gives the same picture.

    Args:
        rng: Source of all choices.
        size: Height and width in pixels.
        count: Shapes to place; where no room is left, there are fewer.
        textured: Share of the shapes that have a texture and are large enough for it.
        fine: Whether textures are one pixel wide, so that they show only when enlarged.
        forms: Forms to choose from.
        radius: Smallest and largest radius, in shares of the shorter side.
    """
    height, width = size
    noise = np.random.default_rng(rng.getrandbits(63))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    ground = rng.uniform(70, 170)
    picture = (
        ground
        + rng.uniform(-25, 25) * (columns / width - 0.5)
        + rng.uniform(-25, 25) * (rows / height - 0.5)
    )
    for _ in range(rng.choice((0, 0, 1, 2, 3))):  # unnamed, faint and soft
        picture += _smudge(rows, columns, size, rng)
    owner = np.full(size, -1)
    made: list[tuple[str, str, str]] = []
    taken: list[Box2D] = []
    for _ in range(count):
        form, shade = rng.choice(forms), rng.choice(SHADES)
        found = _place(rows, columns, size, form, radius, taken, rng)
        if found is None:
            continue
        mask, box = found
        large = min(box.width, box.height) >= (8 if fine else 13)
        texture = rng.choice(TEXTURES[1:]) if large and rng.random() < textured else "plain"
        level = rng.uniform(30, 75) * (1 if shade == "bright" else -1)
        swing = rng.uniform(18, 40) if texture != "plain" else 0.0
        value = (
            ground
            + level
            + swing * _texture(rows, columns, texture, 1.0 if fine else rng.uniform(2, 3.6), rng)
        )
        picture = np.where(mask, value, picture)
        owner[mask] = len(made)
        made.append((form, shade, texture))
        taken.append(box)
    blur = 0.0 if fine else rng.choice((0.0, 0.0, 0.5, 0.8))
    picture = gaussian_filter(picture, blur) if blur else picture
    picture = picture + noise.normal(0, rng.uniform(0, 9), size)
    shapes = []
    for index, (form, shade, texture) in enumerate(made):
        ys, xs = np.nonzero(owner == index)
        if len(ys) < 9:  # hidden
            continue
        box = Box2D(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        shapes.append(Shape(form, shade, texture, box, len(ys)))
    return Picture(np.clip(picture, 0, 255).astype(np.uint8), tuple(shapes))


def _smudge(
    rows: np.ndarray, columns: np.ndarray, size: tuple[int, int], rng: random.Random
) -> np.ndarray:
    y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
    wide, high = rng.uniform(0.1, 0.5) * size[1], rng.uniform(0.1, 0.5) * size[0]
    distance = ((columns - x) / wide) ** 2 + ((rows - y) / high) ** 2
    return rng.uniform(-22, 22) / (1 + np.exp(np.minimum(8 * (distance - 1), 50)))


def _place(
    rows: np.ndarray,
    columns: np.ndarray,
    size: tuple[int, int],
    form: str,
    radius: tuple[float, float],
    taken: Sequence[Box2D],
    rng: random.Random,
) -> tuple[Mask, Box2D] | None:
    """A free place for a shape: its mask and box; it may touch others' boxes a little."""
    for _ in range(8):
        r = rng.uniform(*radius) * min(size)
        cy, cx = rng.uniform(r, size[0] - 1 - r), rng.uniform(r, size[1] - 1 - r)
        turn = rng.uniform(0, 6.283) if form in TURNED else 0.0
        box = Box2D(cx - r, cy - r, cx + r, cy + r)
        if any(_overlap(box, other) > 0.12 for other in taken):
            continue
        x, y = (columns - cx) / r, (rows - cy) / r
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        mask = FORMS[form](x, y, rng)
        if mask.sum() < 9:
            continue
        ys, xs = np.nonzero(mask)
        return mask, Box2D(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return None


def _overlap(one: Box2D, other: Box2D) -> float:
    common = one.intersection(other)
    return 0.0 if common is None else common.area / min(one.area, other.area)


def _texture(
    rows: np.ndarray, columns: np.ndarray, name: str, width: float, rng: random.Random
) -> np.ndarray:
    """The pattern in -1 and 1; ``width`` is that of one shade, in pixels."""
    if name == "plain":
        return np.zeros_like(rows)
    y = np.floor((rows + rng.randrange(16)) / width).astype(int)
    x = np.floor((columns + rng.randrange(16)) / width).astype(int)
    if name == "mottled":
        grain = np.random.default_rng(rng.getrandbits(63)).choice(
            (-1.0, 1.0), (y.max() + 1, x.max() + 1)
        )
        return grain[y, x]
    if name == "diagonally striped":
        lean = rng.choice((-1, 1))
        return 1.0 - 2.0 * (np.floor((rows + lean * columns + 64) / (1.4 * width)) % 2)
    parity = {"vertically striped": x, "horizontally striped": y, "checkered": x + y}[name]
    return 1.0 - 2.0 * (parity % 2)
