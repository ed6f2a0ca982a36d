"""Serialization: a volume becomes an ordered list of slices, and boxes know the way there and back.

The values are windowed to [0, 1] first, then resampled to the asked size by linear interpolation along each
axis, with the half-pixel convention of ``torch.nn.functional.interpolate(mode="trilinear",
align_corners=False)``: the *edges* of both grids coincide. That convention makes boxes exact: an edge maps to
an edge by one factor an axis, without any shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError, explain
from unireason_lib.imaging.volume import Volume
from unireason_lib.imaging.window import Window, window_range

PAPER_SIZE = (32, 256, 256)
"""Slices, rows and columns of the paper."""

MAX_SIZE = 4096
"""Larger sides are refused: a typo must not ask for terabytes."""


@dataclass(frozen=True, eq=False)
class SliceStack:
    """A serialized volume.

    Args:
        values: ``(Z, Y, X)`` float32 in [0, 1].
        range: Scan values that became 0 and 1.
        volume_shape: ``(Z, Y, X)`` of the volume it was made from.
        affine: That volume's affine.
        has_affine: Whether the affine is real (see :class:`Volume`).
        source: Name for messages.
    """

    values: np.ndarray
    range: tuple[float, float]
    volume_shape: tuple[int, int, int]
    affine: np.ndarray
    has_affine: bool = True
    source: str = "volume"

    @cached_property
    def pixels(self) -> np.ndarray:
        """``(Z, Y, X)`` uint8, the values rounded to grey levels."""
        return np.rint(self.values * 255).astype(np.uint8)

    def images(self) -> list[Image.Image]:
        """The slices as RGB pictures, from foot to head."""
        return [Image.fromarray(plane).convert("RGB") for plane in self.pixels]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring serialized pixels in mm, in the order of the values' axes: (z, y, x)."""
        steps = (mm / factor for mm, factor in zip(self._volume().spacing, self.factors[::-1], strict=True))
        return tuple(steps)

    @property
    def factors(self) -> tuple[float, float, float]:
        """Serialized pixels a voxel along (x, y, z)."""
        return tuple(
            new / old for new, old in zip(self.values.shape[::-1], self.volume_shape[::-1], strict=True)
        )

    def from_voxel(self, box: Box3D) -> Box3D:
        """A box on voxels, in serialized pixels and slices (not rounded)."""
        return box.scale(*self.factors)

    def to_voxel(self, box: Box3D) -> Box3D:
        """A box in serialized pixels and slices, on voxels (not rounded)."""
        return box.scale(*(1 / factor for factor in self.factors))

    def to_mm(self, box: Box3D) -> np.ndarray:
        """A box in serialized pixels as two opposite corners in world mm, ``(2, 3)``; see :meth:`Volume.to_mm`."""
        return self._volume().to_mm(self.to_voxel(box))

    def from_mm(self, corners: Sequence[Sequence[float]] | np.ndarray) -> Box3D:
        """Two opposite corners in world mm as a box in serialized pixels (not rounded)."""
        return self.from_voxel(self._volume().from_mm(corners))

    def _volume(self) -> Volume:
        return Volume(
            np.broadcast_to(np.uint8(0), self.volume_shape), self.affine, self.source, self.has_affine
        )


def serialize(
    volume: Volume,
    size: tuple[int, int, int] = PAPER_SIZE,
    window: Window = "percentile",
    fill_nonfinite: float | None = None,
) -> SliceStack:
    """Window and resample a volume.

    Args:
        volume: What to serialize.
        size: Slices, rows and columns.
        window: See :func:`unireason_lib.imaging.window.window_range`.
        fill_nonfinite: Scan value to put in place of NaN and infinities; None refuses a volume that has them.

    Returns:
        The slices with their geometry.

    Raises:
        ScanError: Impossible size, unknown window, values that are not finite, or no contrast.
    """
    size = check_size(size)
    array = _finite(volume, fill_nonfinite)
    low, high = window_range(array, window, volume.source)
    values = _resample(array, size, low, high)
    return SliceStack(values, (low, high), volume.shape, volume.affine, volume.has_affine, volume.source)


def serialize_labels(labels: Volume, size: tuple[int, int, int] = PAPER_SIZE) -> np.ndarray:
    """A label map on the serialized grid, ``(Z, Y, X)``: the label at the centre of each serialized pixel."""
    array = labels.array
    for axis, new in enumerate(check_size(size)):
        centres = (np.arange(new) + 0.5) * array.shape[axis] / new
        array = array.take(np.minimum(centres.astype(int), array.shape[axis] - 1), axis=axis)
    return np.ascontiguousarray(array)


def check_size(size: Sequence[int]) -> tuple[int, int, int]:
    """``size`` as three whole numbers.

    Raises:
        ScanError: Not three, or not between 1 and :data:`MAX_SIZE`.
    """
    size = tuple(size)
    whole = len(size) == 3 and all(
        isinstance(side, int | np.integer) and 1 <= side <= MAX_SIZE for side in size
    )
    if not whole:
        raise ScanError(
            explain(
                "size",
                expected=f"slices, rows, columns from 1 to {MAX_SIZE}",
                found=str(size),
                do="correct it",
            )
        )
    return tuple(int(side) for side in size)


def _finite(volume: Volume, fill: float | None) -> np.ndarray:
    array = volume.array
    if array.dtype.kind != "f":
        return array
    bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in array)
    if not bad:
        return array
    if fill is None:
        raise ScanError(
            explain(
                volume.source,
                expected="finite values",
                found=f"{bad} of {array.size} voxels NaN or infinite",
                do="pass fill_nonfinite=<scan value of the background>, or repair the file",
            )
        )
    if not np.isfinite(fill):
        raise ScanError(
            explain("fill_nonfinite", expected="a finite scan value", found=f"{fill}", do="choose a number")
        )
    return np.where(np.isfinite(array), array, np.asarray(fill, array.dtype))


def _resample(array: np.ndarray, size: tuple[int, int, int], low: float, high: float) -> np.ndarray:
    """Windowed values on the new grid. Slices come first, so that only those which are needed are read and scaled."""
    depth, rows, columns = (_taps(old, new) for old, new in zip(array.shape, size, strict=True))
    out = np.empty(size, np.float32)
    scale = 1 / (high - low)
    kept: dict[int, np.ndarray] = {}
    for z in range(size[0]):
        first, second, share = int(depth[0][z]), int(depth[1][z]), depth[2][z]
        kept = {index: kept[index] for index in (first, second) if index in kept}
        for index in (first, second):
            if index not in kept:
                kept[index] = _plane(array[index], low, scale, rows, columns)
        out[z] = kept[first] if share == 0 else kept[first] + share * (kept[second] - kept[first])
    return out


def _plane(plane: np.ndarray, low: float, scale: float, rows, columns) -> np.ndarray:
    """One slice, windowed and resampled in its plane."""
    exact = np.float32 if plane.dtype.itemsize <= 2 or plane.dtype == np.float32 else np.float64
    values = np.subtract(
        plane, exact(low), dtype=exact
    )  # 32-bit integers and float64 do not fit into float32
    values *= exact(scale)
    np.clip(values, 0, 1, out=values)
    values = values.astype(np.float32, copy=False)
    values = _lerp(values, rows, 0)
    return _lerp(values, columns, 1)


def _lerp(values: np.ndarray, taps, axis: int) -> np.ndarray:
    first, second, share = taps
    if len(first) == values.shape[axis] and not share.any():
        return values
    a, b = values.take(first, axis), values.take(second, axis)
    b -= a
    b *= share[:, None] if axis == 0 else share
    a += b
    return a


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new position its two old neighbours and the share of the second, half-pixel convention."""
    centre = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    first = np.minimum(centre.astype(int), old - 1)
    second = np.minimum(first + 1, old - 1)
    return first, second, (centre - first).astype(np.float32)
