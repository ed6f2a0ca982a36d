"""A scan with its place in the patient.

Scans arrive with their axes in any order and direction. Everything here works in **one** arrangement, so that
"left" is a property of the array and not of the file: arrays are ``(z, y, x)`` with x growing to the
patient's left, y to the back and z to the head (L-P-S). A slice shown as it lies is then in radiological
view: the patient's right is on the left of the picture.

The affine keeps the exact geometry. It maps the centre index ``(x, y, z)`` of a voxel to millimetres in
NIfTI's world, whose axes grow to the right, the front and the head (R-A-S). Boxes are half open and live on
voxel *edges*: edge ``e`` lies at centre index ``e - 0.5``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError, explain

UNKNOWN_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The affine of an array without one: taken as L-P-S with voxels of 1 (not really mm)."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in the house arrangement.

    Args:
        array: ``(Z, Y, X)`` in scan units (Hounsfield units for CT), any real dtype, perhaps memory-mapped.
        affine: ``(4, 4)`` float64, centre index (x, y, z, 1) -> world mm (R-A-S).
        source: Where it came from, for messages.
        has_affine: False when the file had no geometry: directions are then an assumption and spacing is unknown.

    Raises:
        ScanError: The array is not 3D, empty or not of real numbers, the affine singular or not finite.
    """

    array: np.ndarray
    affine: np.ndarray
    source: str = "volume"
    has_affine: bool = True

    def __post_init__(self) -> None:
        if self.array.dtype.kind not in "iufb":
            raise ScanError(
                explain(
                    self.source,
                    expected="real numbers",
                    found=f"type {self.array.dtype}",
                    do="take the magnitude of complex data, or convert the array to numbers",
                )
            )
        if self.array.ndim != 3 or not self.array.size:
            raise ScanError(
                explain(
                    self.source,
                    expected="a 3D array",
                    found=f"shape {self.array.shape}",
                    do=_advice(self.array),
                )
            )
        check_affine(self.affine, self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)``."""
        return self.array.shape

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, in the order of the array's axes: (z, y, x).

        These are distances between neighbouring centres. Axes that are not at right angles (a CT with a tilted gantry)
        make a voxel smaller than their product; its volume is ``abs(det(affine[:3, :3]))``.
        """
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0)[::-1])

    def to_mm(self, box: Box3D) -> np.ndarray:
        """The two opposite corners of a voxel box in world mm.

        Returns:
            ``(2, 3)``: first and last corner. With an oblique affine they do not span an axis-aligned box in the world,
            but they determine the voxel box exactly (:meth:`from_mm`).
        """
        corners = np.array(box.as_tuple(), float).reshape(2, 3) - 0.5
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]

    def from_mm(self, corners: Sequence[Sequence[float]] | np.ndarray) -> Box3D:
        """The voxel box (not rounded) between two opposite corners in world mm."""
        shifted = np.asarray(corners, float) - self.affine[:3, 3]
        index = np.linalg.solve(self.affine[:3, :3], shifted.T).T + 0.5
        low, high = index.min(axis=0), index.max(axis=0)
        return Box3D(*low.tolist(), *high.tolist())


def check_affine(affine: np.ndarray, source: str) -> None:
    """Refuse an affine that maps no volume.

    Raises:
        ScanError: It is not 4x4, not finite, singular, or a spacing is zero.
    """
    affine = np.asarray(affine, float)
    usable = affine.shape == (4, 4) and np.isfinite(affine).all()
    lengths = np.linalg.norm(affine[:3, :3], axis=0) if usable else np.zeros(3)
    if not usable or lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise ScanError(
            explain(
                source,
                expected="an invertible 4x4 affine with positive spacing",
                found=f"spacing {np.round(lengths, 6).tolist()}"
                if usable
                else "an affine that is not 4x4 and finite",
                do="repair the header (the spacing or orientation fields), or export the scan again",
            )
        )


def orient(array: np.ndarray, affine: np.ndarray, source: str, has_affine: bool = True) -> Volume:
    """Bring an array ``(i, j, k)`` into the house arrangement by swapping and flipping axes; no value is interpolated.

    Args:
        array: ``(I, J, K)``, axes in the file's order.
        affine: Centre index (i, j, k, 1) -> world mm (R-A-S). When it is oblique, the nearest axes are taken
            and the exact angles stay in the affine.
        source: Name for messages.
        has_affine: Whether the file really had one.

    Returns:
        The volume; its array is a view of the given one.

    Raises:
        ScanError: See :class:`Volume`.
    """
    check_affine(affine, source)
    from nibabel.orientations import (
        apply_orientation,
        axcodes2ornt,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    moves = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))
    turned = np.asarray(affine, float) @ inv_ornt_aff(moves, array.shape)
    return Volume(apply_orientation(array, moves).transpose(2, 1, 0), turned, source, has_affine)


def memory_order(array: np.ndarray) -> tuple[int, ...]:
    """The axes from the slowest to the fastest in memory; going through an array in that order reads it straight on.

    Scans stored as sagittal or coronal slices stay as they are on disk, and only the view of them is turned.
    """
    return tuple(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))


def _advice(array: np.ndarray) -> str:
    if array.ndim == 2:
        return "use load_image for a single picture"
    if array.ndim == 4:
        return "choose one frame or channel"
    return "check the file"
