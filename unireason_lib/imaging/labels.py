"""Label maps: whole numbers on the scan's grid, and the boxes of all labels in one pass."""

import warnings
from itertools import product

import numpy as np
from scipy import ndimage

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.errors import LabelError, ScanWarning
from unireason_lib.imaging.volume import Volume

DENSE_LABELS = 65536  # below this they are searched with a table; others are renumbered first
WHOLE_TOLERANCE = 1e-3  # from a whole number; slopes such as 3/255 leave rounding errors


def whole_labels(labels: Volume | np.ndarray) -> np.ndarray:
    """A label map as whole numbers; the same array when it holds integers. Floats must be whole up
    to :data:`WHOLE_TOLERANCE`, and rounding them is a :class:`ScanWarning`; what is no label map of
    2 or 3 dimensions a :class:`LabelError`. Both name the slope in the file's header."""
    array, source, scaling = np.asarray(labels), "label map", (1.0, 0.0)
    if isinstance(labels, Volume):
        array, source, scaling = labels.array, labels.source, labels.scaling
    if array.ndim not in (2, 3):
        raise LabelError(source, "2D or 3D", f"shape {array.shape}", "choose one channel or frame")
    if array.dtype.kind in "iub":
        return array.view(np.uint8) if array.dtype.kind == "b" else array
    header = "slope {:.6g}, intercept {:.6g}".format(*scaling)
    finite = array.dtype.kind == "f" and np.isfinite(array).all()
    whole = np.rint(array) if finite else array
    if not finite or np.abs(array - whole).max(initial=0) > WHOLE_TOLERANCE:
        found = f"{array.dtype} with NaN or fractions ({header})"
        do = "resample label maps with nearest neighbours, and save them as integers without slope"
        raise LabelError(source, "whole numbers", found, do)
    if not np.array_equal(whole, array):
        text = f"{source}: labels were rounded to whole numbers ({header})"
        warnings.warn(text, ScanWarning, stacklevel=2)
    return whole.astype(np.int64)


def label_boxes(labels: Volume | np.ndarray) -> dict[int, Box]:
    """The smallest half-open box around every label of :func:`whole_labels`, 0 being background."""
    boxes, places = {}, label_places(whole_labels(labels))
    for label, place in places.items():
        starts, stops = [axis.start for axis in place], [axis.stop for axis in place]
        boxes[label] = (Box2D if len(place) == 2 else Box3D)(*starts[::-1], *stops[::-1])
    return boxes


def check_same_grid(scan: Volume, labels: Volume, tolerance: float = 0.25) -> None:
    """A :class:`LabelError` when shapes differ, or corners lie further apart than ``tolerance`` of
    the smallest spacing: an affine rounded to 4 decimals moves the far end of 512 voxels by 0.1."""
    if scan.shape != labels.shape:
        do = "resample the label map onto the scan's grid (nearest neighbour)"
        raise LabelError(labels.source, f"the scan's shape {scan.shape}", labels.shape, do)
    if scan.has_affine and labels.has_affine:
        corners = np.array(list(product(*((0, side) for side in scan.shape[::-1]), (1,))))
        apart = np.abs(corners @ (scan.affine - labels.affine).T).max()
        if apart > tolerance * min(scan.spacing):
            found = f"corners up to {apart:.3g} mm apart"
            do = "check that scan and labels belong together, and resample the labels"
            raise LabelError(labels.source, "the scan's place in space", found, do)


def label_places(array: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """The index of the smallest part of an integer array that holds each label, by SciPy's
    ``find_objects``; its table starts at 1, so negative or very large labels are numbered first."""
    if not array.size:
        return {}
    byte = array.dtype == np.uint8  # all that it can hold fits into the table
    low, high = (0, 255) if byte else (int(array.min()), int(array.max()))
    labels = range(1, high + 1)
    if low < 0 or high >= DENSE_LABELS:
        values = np.unique(array)
        labels, array = values.tolist(), np.searchsorted(values, array).astype(np.int32) + 1
    # searched fastest in the order of memory, from the slowest axis to the fastest
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    places = zip(labels, ndimage.find_objects(array.transpose(order), len(labels)), strict=True)
    back = np.argsort(order)
    return {k: tuple(place[axis] for axis in back) for k, place in places if place and k}
