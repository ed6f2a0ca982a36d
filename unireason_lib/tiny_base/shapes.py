"""Scenes of plain shapes: grey images whose truth is known for every pixel.

    ground (level, gradient, faint smudges, perhaps a plate) -> shapes -> blur -> noise

A shape has a name (ring, bar, ...), a shade against the ground and perhaps a texture; shapes may
touch. Sizes, contrasts (faint ones, too), noise and textures vary widely, so that a vision tower
that tells them apart has features for other grey images too. Nothing here comes from the study: no
organ, no body, no scan.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from unireason_lib.boxes import Box2D
from unireason_lib.imaging import label_boxes

NAMES: dict[str, Callable[[np.ndarray, np.ndarray, random.Random], np.ndarray]] = {
    "circle": lambda x, y, rng: np.hypot(x, y) < 1,
    "square": lambda x, y, rng: np.maximum(abs(x), abs(y)) < 0.85,
    "bar": lambda x, y, rng: (abs(x) < 1) & (abs(y) < rng.uniform(0.2, 0.35)),
    "triangle": lambda x, y, rng: (y < 0.75) & (y > 2 * abs(x) - 0.95),
    "cross": lambda x, y, rng: (
        (np.minimum(abs(x), abs(y)) < 0.33) & (np.maximum(abs(x), abs(y)) < 1)
    ),
    "ring": lambda x, y, rng: abs(np.hypot(x, y) - 0.775) < 0.225,
    "star": lambda x, y, rng: np.hypot(x, y) < 0.62 + 0.38 * np.cos(5 * np.arctan2(y, x)),
    "ellipse": lambda x, y, rng: np.hypot(x, y / rng.uniform(0.45, 0.65)) < 1,
    "crescent": lambda x, y, rng: (np.hypot(x, y) < 1) & (np.hypot(x - 0.55, y) > 0.8),
}
"""Name of a shape -> which points (x, y), in units of its radius, belong to it."""

TURNED = ("bar", "triangle", "star", "ellipse", "crescent")  # a turned square would be a diamond
SHADES = ("dark", "bright")
_STRIPES = ("vertically striped", "horizontally striped", "diagonally striped")
TEXTURES = ("plain", *_STRIPES, "checkered", "mottled")


@dataclass(frozen=True)
class Shape:
    """One shape of a scene: its name, its shade against the ground, its texture, and the smallest
    box (pixels, half open) around it."""

    name: str
    shade: str
    texture: str
    box: Box2D


@dataclass(frozen=True)
class Scene:
    """An image, ``(height, width) uint8``, and its shapes."""

    pixels: np.ndarray
    shapes: tuple[Shape, ...]

    def image(self) -> Image.Image:
        """The image as the processor takes it."""
        return Image.fromarray(self.pixels).convert("RGB")


def draw(
    rng: random.Random,
    size: tuple[int, int] = (64, 64),
    count: int = 3,
    *,
    textured: float = 0.5,
    fine: bool = False,
    names: Sequence[str] = tuple(NAMES),
    distinct: bool = False,
    radius: tuple[float, float] = (0.09, 0.27),
) -> Scene:
    """Draw a scene; the same state of ``rng`` gives the same one.

    Args:
        rng, size: Source of all choices; height and width in pixels.
        count: Shapes to place; where no space is left there are fewer.
        textured: Proportion of shapes with a texture, of those that are large enough for one.
        fine: Whether textures are one pixel wide, so that they show only when enlarged.
        names: Names to choose from; ``distinct``: each at most once.
        radius: Smallest and largest radius, as proportions of the shorter side.
    """
    grid = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    (rows, columns), shapes = grid, []
    ground, noise = rng.uniform(70, 170), np.random.default_rng(rng.getrandbits(63))
    pixels = ground + rng.uniform(-25, 25) * (columns / size[1] - 0.5)
    pixels += rng.uniform(-25, 25) * (rows / size[0] - 0.5)
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        pixels += _smudge(grid, rng)
    plate = _plate(grid, rng) if rng.random() < 0.4 else np.ones(size, bool)
    pixels, free = np.where(plate, pixels, rng.uniform(0, 45)), plate
    for name in rng.sample(names, count) if distinct else rng.choices(names, k=count):
        shade = rng.choice(SHADES)
        mask = _place(grid, name, radius, free, rng)
        if mask is None:
            continue
        free = free & ~mask
        box = label_boxes(mask.astype(np.uint8))[1]
        large = min(box.width, box.height) >= (8 if fine else 13)
        texture = rng.choice(TEXTURES[1:]) if large and rng.random() < textured else "plain"
        contrast = rng.uniform(*rng.choice(((18, 35), (30, 75))))
        value = ground + contrast * (1 if shade == "bright" else -1)
        width, swing = 1.0 if fine else rng.uniform(2, 3.6), rng.uniform(18, 40)
        value = value + swing * _pattern(grid, texture, width, rng)
        pixels = np.where(mask, value, pixels)
        shapes.append(Shape(name, shade, texture, box))
    blur = 0.0 if fine else rng.choice((0.0, 0.0, 0.5, 0.8))
    pixels = gaussian_filter(pixels, blur) if blur else pixels
    pixels = pixels + noise.normal(0, rng.uniform(0, 10), size)
    return Scene(np.clip(pixels, 0, 255).astype(np.uint8), tuple(shapes))


def enlarged(scene: Scene, shape: Shape, rng: random.Random) -> Scene:
    """A shape's part of a scene, enlarged to 32 to 42 pixels on its shorter side."""
    part = Image.fromarray(scene.pixels).crop(tuple(int(n) for n in shape.box.as_tuple()))
    zoom = max(1.0, 32 / min(part.size)) * rng.uniform(1.0, 1.3)
    width, height = (max(16, round(side * zoom)) for side in part.size)
    pixels = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
    return Scene(pixels, (replace(shape, box=Box2D(0, 0, width, height)),))


def _smudge(grid: np.ndarray, rng: random.Random) -> np.ndarray:
    """A faint, soft ellipse of no name."""
    (rows, columns), (height, width) = grid, grid[0].shape
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    wide, high = rng.uniform(0.1, 0.5) * width, rng.uniform(0.1, 0.5) * height
    distance = ((columns - x) / wide) ** 2 + ((rows - y) / high) ** 2
    return rng.uniform(-22, 22) / (1 + np.exp(np.minimum(8 * (distance - 1), 50)))


def _place(
    grid: np.ndarray, name: str, radius: tuple[float, float], free: np.ndarray, rng: random.Random
) -> np.ndarray | None:
    """The mask of a shape where all pixels are free, if such a place is found."""
    (rows, columns), (height, width) = grid, grid[0].shape
    for _ in range(12):
        r = rng.uniform(*radius) * min(height, width)
        cy, cx = rng.uniform(r, height - 1 - r), rng.uniform(r, width - 1 - r)
        turn = rng.uniform(0, 6.283) if name in TURNED else 0.0
        x, y = (columns - cx) / r, (rows - cy) / r
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        mask = NAMES[name](x, y, rng)
        if mask.sum() >= 9 and free[mask].all():
            return mask
    return None


def _plate(grid: np.ndarray, rng: random.Random) -> np.ndarray:
    """A large rounded plate that carries the shapes."""
    (rows, columns), (height, width) = grid, grid[0].shape
    x = (columns / width - rng.uniform(0.45, 0.55)) / rng.uniform(0.36, 0.5)
    y = (rows / height - rng.uniform(0.45, 0.55)) / rng.uniform(0.3, 0.5)
    return abs(x) ** 2.5 + abs(y) ** 2.5 < 1


def _pattern(grid: np.ndarray, texture: str, width: float, rng: random.Random) -> np.ndarray:
    """A texture in -1 and 1; ``width`` is that of one stripe or field in pixels."""
    y, x = (np.floor((axis + rng.randrange(16)) / width).astype(int) for axis in grid)
    if texture == "plain":
        return np.zeros_like(grid[0])
    if texture == "mottled":
        grain = np.random.default_rng(rng.getrandbits(63))
        return grain.choice((-1.0, 1.0), (y.max() + 1, x.max() + 1))[y, x]
    if texture == "diagonally striped":
        lean = rng.choice((-1, 1))
        return 1.0 - 2.0 * (np.floor((grid[0] + lean * grid[1] + 64) / (1.4 * width)) % 2)
    fields = {"vertically striped": x, "horizontally striped": y, "checkered": x + y}[texture]
    return 1.0 - 2.0 * (fields % 2)
