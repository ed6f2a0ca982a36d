"""A scan with its place in the patient.

Scans arrive with their axes in any order and direction. Here they all have **one** arrangement, so
that "left" is a property of the array: ``(z, y, x)`` with x growing to the patient's left, y to the
back and z to the head (L-P-S). A slice shown as it lies has the patient's right on the left.

The affine keeps the exact geometry: it maps the centre index ``(x, y, z)`` of a voxel to mm in
NIfTI's world, which grows to the right, the front and the head (R-A-S). Boxes are half open and
live on voxel *edges*: edge ``e`` lies at centre index ``e - 0.5``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError
from unireason_lib.imaging.summary import table_html, thumbnails

UNKNOWN_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # L-P-S, voxels of 1 (not really mm)
MAX_VOXELS = 2**29  # larger arrays, 4 GiB as float64, are refused before they are allocated


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in L-P-S arrangement; raises :class:`ScanError` for what cannot be one."""

    array: np.ndarray  # (Z, Y, X) in scan units (HU for CT), any real dtype, perhaps mapped
    affine: np.ndarray  # (4, 4), centre index (x, y, z, 1) -> world mm (R-A-S)
    source: str = "volume"  # where it came from, for messages
    has_affine: bool = True  # False: the file had no geometry, directions and spacing are assumed
    sides_certain: bool = True  # False: it contradicts itself about directions, or names none
    scaling: tuple[float, float] = (1.0, 0.0)  # slope and intercept applied to stored numbers

    def __post_init__(self) -> None:
        if self.array.dtype.kind not in "iufb":
            found = f"type {self.array.dtype}"
            raise ScanError(self.source, "real numbers", found, "convert it, or take magnitudes")
        if self.array.ndim != 3 or not self.array.size:
            do = "choose one frame or channel; use load_image for a single image"
            raise ScanError(self.source, "a 3D array", f"shape {self.array.shape}", do)
        _check_affine(self.affine, self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)``."""
        return self.array.shape

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between neighbouring voxel centres in mm, (z, y, x); axes may lean."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0)[::-1].tolist())

    def to_mm(self, box: Box3D) -> np.ndarray:
        """``(2, 3)``: two opposite corners of a voxel box in world mm."""
        corners = np.array(box.as_tuple(), float).reshape(2, 3) - 0.5
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]

    def from_mm(self, corners: Sequence[Sequence[float]] | np.ndarray) -> Box3D:
        """The voxel box (not rounded) between two opposite corners in world mm."""
        shifted = np.asarray(corners, float) - self.affine[:3, 3]
        index = np.linalg.solve(self.affine[:3, :3], shifted.T).T + 0.5
        return Box3D(*index.min(axis=0).tolist(), *index.max(axis=0).tolist())

    def _repr_html_(self) -> str:
        """A notebook shows geometry, values and the three middle planes."""
        spacing = " x ".join(f"{mm:.3g}" for mm in self.spacing)
        thin = self.array[:: max(1, len(self.array) // 16), ::4, ::4]
        rows = {
            "shape (z, y, x)": " x ".join(map(str, self.shape)),
            "spacing, mm": spacing if self.has_affine else "unknown: the file has no affine",
            "directions": "L-P-S" if self.sides_certain and self.has_affine else "assumed",
            "values, about": f"{np.nanmin(thin):g} to {np.nanmax(thin):g} ({self.array.dtype})",
            "middle planes": thumbnails(self.array, self.spacing),
        }
        return table_html(f"Volume {self.source}", rows)


def _check_affine(affine: np.ndarray, source: str) -> None:
    affine, lengths = np.asarray(affine, float), np.zeros(3)
    if affine.shape == (4, 4) and np.isfinite(affine).all():
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        found = f"spacing {np.round(lengths, 6).tolist()} (0 where it is not finite)"
        do = "repair the header (the spacing or orientation fields), or export the scan again"
        raise ScanError(source, "an invertible 4x4 affine with positive spacing", found, do)


def orient(array: np.ndarray, affine: np.ndarray, source: str, **fields: Any) -> Volume:
    """Bring an array ``(I, J, K)`` in the file's order into L-P-S by swapping and flipping axes,
    without interpolation; the volume holds a view of it. ``affine`` maps its centre index to world
    mm (R-A-S); for an oblique one the nearest axes are taken, and the exact angles stay in it."""
    from nibabel import orientations

    _check_affine(affine, source)
    lps = orientations.axcodes2ornt(("L", "P", "S"))
    moves = orientations.ornt_transform(orientations.io_orientation(affine), lps)
    turned = np.asarray(affine, float) @ orientations.inv_ornt_aff(moves, array.shape)
    array = orientations.apply_orientation(array, moves).transpose(2, 1, 0)
    return Volume(array, turned, source, **fields)


def check_voxels(shape: Sequence[int], source: object) -> None:
    """Refuse an array of more than :data:`MAX_VOXELS` voxels before it is read."""
    if math.prod(shape) > MAX_VOXELS:
        raise ScanError(source, f"at most {MAX_VOXELS:,} voxels", f"shape {shape}", "crop it")


def rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Scan units: stored numbers times slope plus intercept. Whole numbers stay whole, in the
    smallest of int16, int32 and int64 in which no step can wrap."""
    if (slope, intercept) == (1, 0):
        return stored
    kind = np.result_type(stored.dtype, np.float32)
    if stored.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(stored.min()), int(stored.max())]
        scaled = [end * int(slope) for end in ends]
        steps = [*ends, *scaled, *(end + int(intercept) for end in scaled), slope, intercept]
        for whole in (np.int64, np.int32, np.int16):
            if np.iinfo(whole).min <= min(steps) <= max(steps) <= np.iinfo(whole).max:
                kind = np.dtype(whole)
    values = stored.astype(kind)
    values *= kind.type(slope)
    values += kind.type(intercept)
    return values
