"""Label maps to boxes, grids that must agree, and slices out of order."""

import builtins

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.errors import LabelError
from unireason_lib.imaging import Volume, check_same_grid, label_boxes, slice_order_report
from unireason_lib.imaging.order import BREAK


def one_by_one(array):
    boxes = {}
    for label in np.unique(array[array != 0]):
        places = [np.where(array == label)[axis] for axis in range(array.ndim)][::-1]
        numbers = [int(p.min()) for p in places] + [int(p.max()) + 1 for p in places]
        boxes[int(label)] = (Box2D if array.ndim == 2 else Box3D)(*numbers)
    return boxes


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=7),
        elements=st.sampled_from([0, 0, 1, 2, 5, 100]),
    )
)
def test_boxes_are_those_of_a_loop_over_labels(array):
    assert label_boxes(array) == one_by_one(array)


def test_huge_and_negative_labels():
    array = np.zeros((4, 5, 6), np.int64)
    array[1, 2, 3], array[3, 4, 5], array[0, 0, 0] = 10**12, -4, 5000
    assert label_boxes(array) == one_by_one(array)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int8, (-128, -1, 127)),
        (np.int16, (-32768, 5, 32767)),
        (np.uint16, (1, 65535)),
        (np.int32, (1001, 12175)),
        (np.int64, (10**12, 10**12 + 9)),
        (np.uint64, (2**64 - 7, 2**64 - 1)),
    ],
)
@pytest.mark.parametrize("filled", [False, True])
def test_labels_at_the_ends_of_their_type(dtype, values, filled):
    array = np.full((4, 5, 6), values[0] if filled else 0, dtype)
    for index, value in enumerate(values):
        array[index + 1 :, index, index + 2] = value
    assert label_boxes(array) == one_by_one(array)


@pytest.mark.parametrize("second", [7, -7, 70000])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint16])
def test_turned_views_have_the_boxes_of_copies(dtype, second):
    """Small, shifted and renumbered labels, in memory that is not in the order of the axes."""
    if not np.iinfo(dtype).min <= second <= np.iinfo(dtype).max:
        second = 9
    array = np.zeros((5, 6, 7), dtype)
    array[1:3, 4:6, 2:5], array[4, 0, 1:3] = 3, second
    view = array[::-1, :, ::-1].transpose(1, 2, 0)
    assert label_boxes(view) == label_boxes(view.copy()) == one_by_one(view)
    assert label_boxes(view, components=True) == label_boxes(view.copy(), components=True)


def test_other_kinds_of_label_maps():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    assert label_boxes(mask) == {1: Box2D(2, 1, 4, 3)}
    assert label_boxes(mask.astype(np.float32) * 3) == {3: Box2D(2, 1, 4, 3)}
    flipped = np.zeros((4, 5, 6), np.uint8)[::-1].transpose(2, 1, 0)
    assert label_boxes(Volume(flipped, np.eye(4))) == {}


@pytest.mark.parametrize(
    "array",
    [np.full((2, 2), 0.5), np.full((2, 2), np.nan), np.zeros(4), np.zeros((1, 2, 2, 2)), np.array([["a"]])],
)
def test_what_is_no_label_map(array):
    with pytest.raises(LabelError, match="What to do"):
        label_boxes(array)


def test_components_largest_first():
    array = np.zeros((6, 8, 9), np.uint8)
    array[0, 0, 0] = 4
    array[2:5, 2:5, 2:5] = 4
    array[5, 7, 8] = 7
    assert label_boxes(array, components=True) == {
        4: [Box3D(2, 2, 2, 5, 5, 5), Box3D(0, 0, 0, 1, 1, 1)],
        7: [Box3D(8, 7, 5, 9, 8, 6)],
    }
    diagonal = np.eye(3, dtype=np.uint8)
    assert len(label_boxes(diagonal, components=True)[1]) == 1
    assert len(label_boxes(diagonal, components=True, connectivity=4)[1]) == 3
    with pytest.raises(LabelError, match="connectivity"):
        label_boxes(diagonal, components=True, connectivity=26)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components_with_and_without_cc3d(monkeypatch, connectivity):
    pytest.importorskip("cc3d")
    array = np.random.default_rng(0).choice([0, 0, 0, 1, 2], (12, 13, 14)).astype(np.uint8)
    fast = label_boxes(array, components=True, connectivity=connectivity)
    real_import = builtins.__import__

    def without_cc3d(name, *args, **kwargs):
        if name == "cc3d":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cc3d)
    assert label_boxes(array, components=True, connectivity=connectivity) == fast


def test_scan_and_labels_must_share_a_grid():
    scan = Volume(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]), "scan")
    check_same_grid(scan, Volume(np.zeros((4, 5, 6), np.uint8), scan.affine, "labels"))
    check_same_grid(scan, Volume(np.zeros((4, 5, 6), np.uint8), np.eye(4), "labels", has_affine=False))
    with pytest.raises(LabelError, match=r"labels.*\(4, 5, 6\).*\(4, 5, 7\)"):
        check_same_grid(scan, Volume(np.zeros((4, 5, 7), np.uint8), scan.affine, "labels"))
    moved = scan.affine.copy()
    moved[0, 3] = 3
    with pytest.raises(LabelError, match="3 mm apart"):
        check_same_grid(scan, Volume(np.zeros((4, 5, 6), np.uint8), moved, "labels"))


def test_a_turn_about_the_diagonal_is_noticed():
    """The first and the last corner stay where they are; the others move."""
    scan = Volume(np.zeros((6, 6, 6), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]), "scan")
    axis = np.array([-1.0, -1.0, 1.0]) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(4)
    turn[:3, :3] += np.sin(0.3) * cross + (1 - np.cos(0.3)) * cross @ cross
    turned = Volume(scan.array, turn @ scan.affine, "labels")
    assert np.allclose((turned.affine @ [6, 6, 6, 1]), scan.affine @ [6, 6, 6, 1])
    with pytest.raises(LabelError, match="apart"):
        check_same_grid(scan, turned)


def body(slices=24):
    """Slices that change smoothly, with noise."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    made = [
        np.exp(-((x - 0.8 * np.sin(z / 5)) ** 2 + (y + 0.6 * np.cos(z / 4)) ** 2) * 6) for z in range(slices)
    ]
    return np.stack(made) + draw.normal(0, 0.02, (slices, 48, 48))


def test_slices_in_order_raise_no_suspicion():
    assert not slice_order_report(body()).suspicious
    assert not slice_order_report(np.zeros((8, 9, 9))).suspicious
    assert not slice_order_report(body(3)).suspicious
    padded = np.concatenate([np.zeros((4, 48, 48)), body(), np.zeros((4, 48, 48))])
    assert not slice_order_report(padded).suspicious


def test_a_repeated_slice_is_named():
    array = body()
    array[11] = array[10]
    assert slice_order_report(array).duplicates == (11,)


def test_a_swapped_block_leaves_a_break():
    array = body()
    report = slice_order_report(np.concatenate([array[12:], array[:12]]))
    assert report.breaks == (11,) and not report.duplicates


def test_shuffled_slices_are_noticed():
    array = body()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(array))
        assert slice_order_report(array[order]).looks_shuffled


def test_missing_slices_leave_a_break_where_neighbours_are_alike():
    """Finely sliced: the jump still correlates well, but is many times as far apart as the pairs around it."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    fine = np.stack([np.exp(-((x - z / 60 + 0.8) ** 2 + y**2) * 6) for z in range(96)])
    assert not slice_order_report(fine).suspicious
    report = slice_order_report(np.concatenate([fine[:40], fine[52:]]))
    assert report.breaks == (39,)
    assert report.correlations[39] > report.correlations[38] - BREAK  # too little for the absolute rule


def test_a_volume_and_damaged_slices():
    array = body()
    array[7, 3, 3] = np.nan
    report = slice_order_report(Volume(array, np.eye(4)))
    assert not report.suspicious and np.isfinite(report.correlations).all()
