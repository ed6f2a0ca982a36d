"""Label maps to boxes, all labels in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.errors import LabelError, explain
from unireason_lib.imaging.volume import Volume, memory_order

DENSE_LABELS = 65536
"""Labels that span fewer values than this are searched by a table of that length; sparser ones are renumbered first."""


def label_boxes(
    labels: Volume | np.ndarray, components: bool = False, connectivity: int | None = None
) -> dict[int, Box] | dict[int, list[Box]]:
    """The smallest half-open box around every label.

    Args:
        labels: ``(Z, Y, X)`` or ``(Y, X)`` label map: integers, booleans, or floats that are whole numbers. 0
            is background.
        components: Boxes of each connected component instead of each label. Uses ``connected-components-3d`` when it is
            installed and SciPy otherwise, with equal boxes.
        connectivity: Neighbours that connect: 6, 18, 26 in 3D (default 26), 4 or 8 in 2D (default 8).

    Returns:
        ``{label: box}`` in ascending order, or with ``components`` ``{label: [boxes, largest component first]}``.
        Empty for an empty map.

    Raises:
        LabelError: Neither 2D nor 3D, values that are not whole numbers, or an unknown connectivity.
    """
    array = _whole(labels.array if isinstance(labels, Volume) else np.asarray(labels))
    if components:
        return _component_boxes(array, connectivity)
    if not array.size:
        return {}
    if array.dtype in (np.uint8, np.uint16):  # all that they can hold fits into the table
        return _boxes(array, range(1, np.iinfo(array.dtype).max + 1))
    low, high = int(array.min()), int(array.max())
    if 0 <= low and high < DENSE_LABELS:
        return _boxes(array, range(1, high + 1))
    if (
        high - low < DENSE_LABELS
    ):  # negative or large, but close together: shifted so that the lowest becomes 1
        return _boxes(_from_one(array, low), range(low, high + 1))
    values = np.unique(array)
    return _boxes(np.searchsorted(values, array).astype(np.int32) + 1, values.tolist())


def _from_one(array: np.ndarray, low: int) -> np.ndarray:
    """``array - low + 1`` as int32, without a wide copy and without wrapping."""
    wide = np.uint64 if array.dtype == np.uint64 else np.int64
    numbered = np.empty_like(array, dtype=np.int32)
    np.subtract(array, wide(low), out=numbered, dtype=wide, casting="unsafe")
    numbered += 1
    return numbered


def _boxes(numbered: np.ndarray, labels: Sequence[int]) -> dict[int, Box]:
    """Boxes of a map that holds 1, 2, 3 ... for ``labels``, those that occur and are not 0.

    The map is searched in the order in which it lies in memory: a turned view of a file is not read across.
    """
    order = memory_order(numbered)
    found = ndimage.find_objects(numbered.transpose(order), len(labels))
    back = np.argsort(order)
    return {
        int(label): _box(tuple(slices[axis] for axis in back))
        for label, slices in zip(labels, found, strict=True)
        if slices and label != 0
    }


def check_same_grid(scan: Volume, labels: Volume, tolerance_mm: float = 1e-2) -> None:
    """Check that a label map lies on its scan's grid.

    Args:
        scan, labels: Both in the house arrangement.
        tolerance_mm: How far corners may lie apart (headers round).

    Raises:
        LabelError: Shapes differ, or both have an affine and the affines disagree.
    """
    if scan.shape != labels.shape:
        raise LabelError(
            explain(
                labels.source,
                expected=f"the scan's shape {scan.shape}",
                found=str(labels.shape),
                do="resample the label map onto the scan's grid (nearest neighbour)",
            )
        )
    if scan.has_affine and labels.has_affine:
        corners = np.array([[*corner, 1] for corner in product(*((0, side) for side in scan.shape[::-1]))])
        apart = np.abs(corners @ (scan.affine - labels.affine).T).max()
        if apart > tolerance_mm:
            raise LabelError(
                explain(
                    labels.source,
                    expected="the scan's place in space",
                    found=f"corners up to {apart:.3g} mm apart",
                    do="check that scan and labels belong together, and resample the labels",
                )
            )


def _whole(array: np.ndarray) -> np.ndarray:
    if array.ndim not in (2, 3):
        raise LabelError(
            explain(
                "label map",
                expected="2D or 3D",
                found=f"shape {array.shape}",
                do="choose one channel or frame",
            )
        )
    if array.dtype.kind == "f":
        whole = array.astype(np.int64, copy=False) if np.isfinite(array).all() else None
        if whole is None or not np.array_equal(whole, array):
            raise LabelError(
                explain(
                    "label map",
                    expected="whole numbers",
                    found="fractions or NaN",
                    do="use nearest-neighbour resampling",
                )
            )
        return whole
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise LabelError(explain("label map", expected="integers", found=str(array.dtype), do="convert it"))
    return array


def _box(found: tuple[slice, ...]) -> Box:
    starts, stops = [s.start for s in found[::-1]], [s.stop for s in found[::-1]]
    return (Box2D if len(found) == 2 else Box3D)(*starts, *stops)


def _component_boxes(array: np.ndarray, connectivity: int | None) -> dict[int, list[Box]]:
    known = {4: 1, 8: 2} if array.ndim == 2 else {6: 1, 18: 2, 26: 3}
    connectivity = connectivity or max(known)
    if connectivity not in known:
        raise LabelError(
            explain(
                "connectivity", expected=str(list(known)), found=str(connectivity), do="choose one of them"
            )
        )
    found: dict[int, list[tuple[int, Box]]] = {}
    for label, box in label_boxes(array).items():
        part = _cut(array, box) == label
        for size, inner in _components(part, connectivity, known[connectivity]):
            shifted = tuple(a + b for a, b in zip(inner.as_tuple(), _origin(box) * 2, strict=True))
            found.setdefault(label, []).append((size, type(box)(*shifted)))
    return {label: [box for _, box in sorted(boxes, key=_largest_first)] for label, boxes in found.items()}


def _largest_first(entry: tuple[int, Box]):
    return -entry[0], entry[1].as_tuple()


def _origin(box: Box) -> tuple[float, ...]:
    return box.as_tuple()[: len(box.as_tuple()) // 2]


def _cut(array: np.ndarray, box: Box) -> np.ndarray:
    numbers = box.as_tuple()
    half = len(numbers) // 2
    return array[
        tuple(slice(low, high) for low, high in zip(numbers[:half], numbers[half:], strict=True))[::-1]
    ]


def _components(part: np.ndarray, connectivity: int, order: int) -> list[tuple[int, Box]]:
    try:
        import cc3d

        numbered = np.asarray(
            cc3d.connected_components(np.ascontiguousarray(part), connectivity=connectivity)
        )
    except ImportError:
        numbered, _ = ndimage.label(part, ndimage.generate_binary_structure(part.ndim, order))
    sizes = np.bincount(numbered.ravel())[1:]
    return [(int(n), _box(found)) for n, found in zip(sizes, ndimage.find_objects(numbered), strict=True)]
