"""Label maps to boxes, grids that must agree, and slices out of order."""

import numpy as np
import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.errors import LabelError, ScanWarning
from unireason_lib.imaging import Volume, check_same_grid, label_boxes, whole_labels
from unireason_lib.imaging.order import slice_order_report

NUMBERED = [(np.uint8, 1), (np.float32, 7), (np.int32, 100_000), (np.int16, -3), (">i2", 1)]


@pytest.mark.parametrize("kind, low", NUMBERED)
def test_boxes_of_labels_of_any_number_and_order_in_memory(kind, low):
    array = np.zeros((4, 5, 6), kind)
    array[1:3, 2:4, :5], array[3, 0, 5] = low, low + 2
    boxes = {low: Box3D(0, 2, 1, 5, 4, 3), low + 2: Box3D(5, 0, 3, 6, 1, 4)}
    assert label_boxes(array) == label_boxes(np.asfortranarray(array)) == boxes
    assert label_boxes(array[2]) == {low: Box2D(0, 2, 5, 4)}
    assert label_boxes(array != 0) == {1: Box3D(0, 0, 1, 6, 4, 4)}
    assert label_boxes(array[:0]) == {}


@pytest.mark.parametrize("array", [[[0.5] * 2] * 2, [[np.nan] * 2] * 2, [0.0] * 4, [["a"]]])
def test_what_is_no_label_map(array):
    with pytest.raises(LabelError, match="What to do"):
        label_boxes(np.array(array))


def test_labels_with_a_slope_in_the_header_report_2():
    """Stored 0, 85, 170, 255 with slope 3/255."""
    stored = np.array([0, 85, 170, 255], np.float32).reshape(1, 2, 2)
    about = {"source": "seg.nii", "scaling": (3 / 255, 0.0)}
    scaled = Volume((stored * np.float32(3 / 255)).astype(np.float32), np.eye(4), **about)
    assert whole_labels(scaled).ravel().tolist() == [0, 1, 2, 3]
    noisy = Volume(scaled.array + np.float32(1e-4), np.eye(4), **about)
    with pytest.warns(ScanWarning, match=r"seg.nii.*slope 0.0117647"):
        assert label_boxes(noisy).keys() == {1, 2, 3}
    chances = Volume(np.arange(256).reshape(1, 16, 16) / 255, np.eye(4), scaling=(1 / 255, 0.0))
    with pytest.raises(LabelError, match=r"slope 0.00392157.*without slope"):
        whole_labels(chances)


@pytest.mark.parametrize("spacing", [0.001, 0.5, 5.0])
def test_scan_and_labels_must_share_a_grid_relative_to_the_voxel_B14(spacing):
    """An affine rounded to 4 decimals was refused."""
    affine = np.diag([-spacing, -spacing, spacing, 1.0]) + np.diag([1e-5, -1e-5, 1e-5, 0]) * spacing

    def grid(changed=affine, shape=(512, 4, 6), **about):
        return Volume(np.broadcast_to(np.uint8(0), shape), changed, "labels", **about)

    scan, rounded, moved, turned = grid(), affine.copy(), affine.copy(), affine.copy()
    rounded[:3, :3] += 4e-5 * spacing / 0.5
    moved[0, 3] = spacing / 2
    turned[:2] = turned[[1, 0]]  # the first and last corner could stay; others move
    check_same_grid(scan, grid(rounded))
    check_same_grid(scan, grid(np.eye(4), has_affine=False))
    for other in (grid(moved), grid(turned), grid(shape=(9, 9, 9))):
        with pytest.raises(LabelError, match=r"apart|9, 9"):
            check_same_grid(scan, other)


def body(slices=24):
    """Slices that change smoothly, with noise."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    z = np.arange(slices)[:, None, None]
    smooth = np.exp(-((x - 0.8 * np.sin(z / 5)) ** 2 + (y + 0.6 * np.cos(z / 4)) ** 2) * 6)
    return smooth + np.random.default_rng(0).normal(0, 0.02, smooth.shape)


def test_slices_in_order_raise_no_suspicion():
    damaged = body()
    damaged[7, 3, 3] = np.nan
    padded = np.pad(body(), ((4, 4), (0, 0), (0, 0)))
    for array in (body(), np.zeros((8, 9, 9)), body(3), padded, damaged):
        report = slice_order_report(Volume(array, np.eye(4)))
        assert not report.messages and np.isfinite(report.correlations).all()
    assert slice_order_report(np.random.default_rng(0).permutation(body())).looks_shuffled
    repeated = body()
    repeated[11] = repeated[10]
    assert slice_order_report(repeated).duplicates == (11,)
