"""Serialization: a volume becomes an ordered list of slices, and boxes know the way there and back.

The values are windowed to [0, 1], then interpolated linearly with the half-pixel convention of
PyTorch's ``interpolate(mode="trilinear", align_corners=False)``: the *edges* of both grids
coincide. That makes boxes exact: an edge maps to an edge by one factor an axis, without any shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError, raising
from unireason_lib.imaging.volume import Volume, check_voxels
from unireason_lib.imaging.window import Window, check_window, window_range
from unireason_lib.io import read_json, write_json

PAPER_SIZE = (32, 256, 256)  # slices, rows and columns of the paper
MAX_SIZE = 4096  # of a side: a typo must not ask for terabytes


@dataclass(frozen=True)
class Serialization:
    """How scans become images; travels with data sets and checkpoints as ``serialization.json``."""

    size: tuple[int, int, int] = PAPER_SIZE  # slices, rows and columns of a volume
    window: Window = "percentile"  # a name, or (low, high) in scan values
    image_size: tuple[int, int] | None = None  # rows, columns to which an image is shrunk at most

    def __post_init__(self) -> None:
        pair = check_window(self.window)
        checked = {"size": check_size(self.size)}
        checked["window"] = self.window if isinstance(self.window, str) else pair
        checked["image_size"] = self.image_size and check_size((1, *self.image_size))[1:]
        vars(self).update(checked)  # lists, as JSON has them, are tuples now

    def save(self, folder: str | Path) -> None:
        """Write ``serialization.json`` into a folder."""
        write_json(Path(folder) / "serialization.json", asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> Serialization | None:
        """What :meth:`save` wrote into a folder; None where there is no such file."""
        path = Path(folder) / "serialization.json"
        if not path.is_file():
            return None
        with raising(ScanError, path, "size, window and image_size", "restore the file"):
            return cls(**read_json(path, ScanError))


@dataclass(frozen=True, eq=False)
class SliceStack:
    """A serialized volume. Boxes come and go in serialized pixels and slices, not rounded."""

    values: np.ndarray  # (Z, Y, X) float32 in [0, 1]
    range: tuple[float, float]  # scan values that became 0 and 1
    geometry: Volume  # the volume without its voxels: many stacks may wait at a time

    @property
    def has_affine(self) -> bool:
        """Whether directions of the patient are known."""
        return self.geometry.has_affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between neighbouring pixels in mm, (z, y, x): those of the voxels, times how
        many of these became one pixel. Pixels are seldom square in the patient."""
        voxels = np.divide(self.geometry.shape, self.values.shape)
        return tuple((voxels * self.geometry.spacing).tolist())

    @cached_property
    def pixels(self) -> np.ndarray:
        """``(Z, Y, X)`` uint8, the values rounded to grey levels."""
        return np.rint(self.values * 255).astype(np.uint8)

    def images(self) -> list[Image.Image]:
        """The slices as RGB images, from foot to head."""
        return [Image.fromarray(plane).convert("RGB") for plane in self.pixels]

    def from_voxel(self, box: Box3D) -> Box3D:
        """A box that was measured on voxels."""
        return box.scale(*np.divide(self.values.shape, self.geometry.shape)[::-1].tolist())

    def to_voxel(self, box: Box3D) -> Box3D:
        """A box on voxels."""
        return box.scale(*np.divide(self.geometry.shape, self.values.shape)[::-1].tolist())

    def to_mm(self, box: Box3D) -> np.ndarray:
        """Two opposite corners of a box in mm, ``(2, 3)``; see :meth:`Volume.to_mm`."""
        return self.geometry.to_mm(self.to_voxel(box))


def serialize(
    volume: Volume,
    size: tuple[int, int, int] = PAPER_SIZE,
    window: Window = "percentile",
    fill_nonfinite: float | None = None,
) -> SliceStack:
    """Window a volume (see :func:`unireason_lib.imaging.window_range`) and resample it to slices,
    rows and columns. ``fill_nonfinite`` stands in for NaN and infinities; None refuses them.

    As in the paper, a serialized slice is interpolated between the two scanned slices next to it,
    without anti-aliasing: of 300 slices shown as 32, most are in no image, and a lesion of five can
    lie between two. Data sets therefore ask only about what is on a shown slice."""
    array = _finite(volume, fill_nonfinite)
    bounds = window_range(array, window, volume.source)
    geometry = replace(volume, array=np.broadcast_to(np.uint8(0), volume.shape))
    return SliceStack(_resample(array, check_size(size), *bounds), bounds, geometry)


def serialize_labels(labels: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """A label map on the serialized grid, ``(Z, Y, X)``: the label at the centre of each pixel."""
    for axis, new in enumerate(check_size(size)):
        centres = (np.arange(new) + 0.5) * labels.shape[axis] / new
        labels = labels.take(np.minimum(centres.astype(int), labels.shape[axis] - 1), axis=axis)
    return np.ascontiguousarray(labels)


def check_size(size: Sequence[int]) -> tuple[int, int, int]:
    """``size`` as three whole numbers from 1 to :data:`MAX_SIZE`; else a :class:`ScanError`."""
    whole = all(isinstance(side, int | np.integer) and 1 <= side <= MAX_SIZE for side in size)
    if not whole or len(size) != 3:
        raise ScanError("size", f"slices, rows, columns from 1 to {MAX_SIZE}", size, "correct it")
    check_voxels(size := tuple(map(int, size)), "size")
    return size


def _finite(volume: Volume, fill: float | None) -> np.ndarray:
    array, floats = volume.array, volume.array.dtype.kind == "f"
    bad = sum(np.count_nonzero(~np.isfinite(plane)) for plane in array) if floats else 0
    if not bad:
        return array
    if fill is None or not np.isfinite(fill):
        do = "pass fill_nonfinite=<scan value of the background>, or repair the file"
        raise ScanError(volume.source, "finite values", f"{bad} voxels NaN or infinite", do)
    return np.where(np.isfinite(array), array, np.asarray(fill, array.dtype))


def _resample(array: np.ndarray, size: tuple[int, int, int], low: float, high: float) -> np.ndarray:
    """Windowed values on the new grid; slices come first, so that only needed ones are read."""
    depth, rows, columns = (_taps(old, new) for old, new in zip(array.shape, size, strict=True))
    out = np.empty(size, np.float32)
    kept: dict[int, np.ndarray] = {}
    for z in range(size[0]):
        first, second, weight = int(depth[0][z]), int(depth[1][z]), depth[2][z]
        kept = {index: kept[index] for index in (first, second) if index in kept}
        for index in (first, second):
            if index not in kept:
                kept[index] = _plane(array[index], low, 1 / (high - low), rows, columns)
        out[z] = kept[first]
        if weight:
            out[z] += weight * (kept[second] - kept[first])
    return out


def _plane(plane: np.ndarray, low: float, scale: float, rows, columns) -> np.ndarray:
    small = plane.dtype.itemsize <= 2 or plane.dtype == np.float32
    exact = np.float32 if small else np.float64  # float32 cannot hold wider integers
    values = np.subtract(plane, exact(low), dtype=exact)
    values *= exact(scale)
    np.clip(values, 0, 1, out=values)
    values = values.astype(np.float32, copy=False)
    return _lerp(_lerp(values, rows, 0), columns, 1)


def _lerp(values: np.ndarray, taps, axis: int) -> np.ndarray:
    first, second, weight = taps
    if len(first) == values.shape[axis] and not weight.any():
        return values
    a, b = values.take(first, axis), values.take(second, axis)
    b -= a
    b *= weight[:, None] if axis == 0 else weight
    a += b
    return a


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new position its two old neighbours and the weight of the second."""
    centre = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    first = np.minimum(centre.astype(int), old - 1)
    second = np.minimum(first + 1, old - 1)
    return first, second, (centre - first).astype(np.float32)
