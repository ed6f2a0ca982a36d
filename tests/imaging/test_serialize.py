"""Windows are exact, resampling is PyTorch's trilinear, and bad volumes are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError
from unireason_lib.imaging import (
    CT_WINDOWS,
    Volume,
    label_boxes,
    percentiles,
    serialize,
    serialize_labels,
    window_range,
)


def volume(array):
    return Volume(np.asarray(array), np.diag([-1.0, -2.0, 3.0, 1.0]), "test volume")


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.int16, np.uint16, np.int8, np.uint8, np.int32, np.float32, np.dtype(">i2")]),
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": -100, "max_value": 100}
        | {"min_value": 0, "max_value": 100},
    )
)
def test_percentiles_are_numpys(array):
    shares = (0, 1, 37.5, 99, 100)
    assert percentiles(array, shares) == pytest.approx(np.percentile(array, shares).tolist(), abs=1e-4)


def test_percentiles_of_extreme_integers():
    array = np.array([[[-32768, 32767, 0]]], np.int16)
    assert percentiles(array, (0, 50, 100)) == (-32768, 0, 32767)
    flipped = np.arange(-600, 600, dtype=np.int16).reshape(10, 10, 12)[::-1, :, ::-1].transpose(2, 1, 0)
    assert percentiles(flipped, (1, 99)) == pytest.approx(np.percentile(flipped, (1, 99)).tolist())


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64, np.float16])
def test_percentiles_of_wide_types(dtype):
    array = (np.random.default_rng(0).integers(0, 5000, (7, 8, 9)) * 12).astype(dtype)
    expected = np.percentile(array.astype(np.float64), (1, 50, 99)).tolist()
    assert percentiles(array, (1, 50, 99)) == pytest.approx(expected)
    if dtype != np.float16:
        array[0, 0, 0] = 2**31 - 1 if dtype == np.int32 else 2**40  # too far apart to count
        expected = np.percentile(array.astype(np.float64), (1, 100)).tolist()
        assert percentiles(array, (1, 100)) == pytest.approx(expected)


def test_percentiles_far_from_zero():
    array = np.arange(60, dtype=np.uint64).reshape(3, 4, 5) + np.uint64(2**63)
    assert percentiles(array, (0, 100)) == (float(2**63), float(2**63 + 59))
    assert percentiles(np.array([[[-128, 127]]], np.int8), (0, 50, 100)) == (-128, -0.5, 127)


@pytest.mark.parametrize("offset", [0, 1e6, 2**31 - 100])
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_values_far_from_zero_keep_their_contrast(dtype, offset):
    """float32 has seven digits: scaled before it is narrowed, a small range far from zero survives."""
    array = (np.arange(60).reshape(3, 4, 5) + offset).astype(dtype)
    values = serialize(volume(array), size=(3, 4, 5), window="minmax").values
    assert np.abs(values - np.arange(60).reshape(3, 4, 5) / 59).max() < 1e-6


def test_a_mask_is_a_volume_too():
    mask = np.zeros((4, 4, 4), bool)
    mask[2:] = True
    assert serialize(volume(mask), size=(4, 4, 4)).pixels[:, 0, 0].tolist() == [0, 0, 255, 255]


def test_turned_views_are_serialized_like_copies():
    array = np.random.default_rng(0).integers(-900, 900, (12, 9, 10)).astype(np.int16)
    view = array[::-1, :, ::-1].transpose(1, 2, 0)
    for window in ("percentile", "minmax"):
        turned, copied = (serialize(volume(a), size=(5, 7, 6), window=window) for a in (view, view.copy()))
        assert np.array_equal(turned.values, copied.values) and turned.range == copied.range


@pytest.mark.parametrize("old", [(5, 7, 9), (32, 20, 24), (1, 1, 1), (96, 33, 17)])
@pytest.mark.parametrize("size", [(8, 16, 12), (5, 7, 9), (3, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_resampling_is_torchs_trilinear(old, size, dtype):
    array = np.random.default_rng(0).normal(100, 300, old).astype(dtype)
    stack = serialize(volume(array), size=size, window=(-200, 400))
    windowed = np.clip((array.astype(np.float64) + 200) / 600, 0, 1)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(windowed)[None, None], size, mode="trilinear", align_corners=False
    )[0, 0].numpy()
    assert stack.values.shape == size and stack.values.dtype == np.float32
    assert np.abs(stack.values - expected).max() < 1e-5
    assert np.abs(stack.pixels - expected * 255).max() <= 0.51


def test_the_papers_setting_against_the_plain_way():
    array = np.random.default_rng(0).integers(-1000, 2000, (20, 50, 40)).astype(np.int16)
    low, high = np.percentile(array.astype(float), (1, 99))
    stack = serialize(volume(array))
    assert stack.pixels.shape == (32, 256, 256) and stack.pixels.dtype == np.uint8
    assert stack.range == pytest.approx((low, high))


def test_slices_are_pictures_from_foot_to_head():
    array = np.arange(8, dtype=np.int16)[:, None, None] * np.ones((1, 6, 5), np.int16)
    images = serialize(volume(array), size=(8, 6, 5), window="minmax").images()
    assert [image.size for image in images] == [(5, 6)] * 8
    assert [image.getpixel((0, 0))[0] for image in images] == [round(255 * i / 7) for i in range(8)]
    assert images[0].mode == "RGB"


def test_windows():
    array = np.linspace(-1000, 1000, 1000, dtype=np.float32).reshape(10, 10, 10)
    assert window_range(array, "minmax") == pytest.approx((-1000, 1000))
    assert window_range(array, (5, 6)) == (5, 6)
    assert window_range(array, "lung") == CT_WINDOWS["lung"] == (-1350, 150)
    assert all(low < high for low, high in CT_WINDOWS.values())
    sparse = np.zeros((10, 10, 10), np.int16)
    sparse[0, 0, 0] = 7
    assert window_range(sparse, "percentile") == (0, 7)


@pytest.mark.parametrize(
    "window",
    [
        "lungs",
        "",
        "12",
        (0, 1e-40),
        (-1.7e308, 1.7e308),
        (1,),
        (1, 2, 3),
        (2, 1),
        (1, 1),
        (np.nan, 1),
        None,
        5,
        ("a", "b"),
    ],
)
def test_unknown_windows_are_refused(window):
    with pytest.raises(ScanError, match="What to do"):
        serialize(volume(np.arange(8).reshape(2, 2, 2)), size=(2, 2, 2), window=window)


def test_a_pair_may_be_an_array():
    assert window_range(np.zeros(2), np.array([1, 2])) == window_range(np.zeros(2), [1, 2]) == (1, 2)


@pytest.mark.parametrize("size", [(0, 2, 2), (2, 2), (2, 2, -1), (2, 2, 10**9), (2.5, 2, 2)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ScanError, match="slices, rows, columns"):
        serialize(volume(np.arange(8).reshape(2, 2, 2)), size=size)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    array = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    array[1, 2, 3] = value
    with pytest.raises(ScanError, match=r"1 of 120 voxels.*fill_nonfinite"):
        serialize(volume(array), size=(4, 5, 6))
    filled = serialize(volume(array), size=(4, 5, 6), window=(0, 1), fill_nonfinite=0)
    assert filled.values[1, 2, 3] == 0 and np.isfinite(filled.values).all()
    with pytest.raises(ScanError, match="fill_nonfinite"):
        serialize(volume(array), size=(4, 5, 6), fill_nonfinite=np.nan)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_constant_volumes(dtype):
    flat = volume(np.full((4, 5, 6), 7, dtype))
    for window in ("percentile", "minmax"):
        with pytest.raises(ScanError, match="7 everywhere"):
            serialize(flat, window=window)
    assert serialize(flat, size=(2, 2, 2), window=(0, 14)).pixels.tolist() == [[[128] * 2] * 2] * 2


def test_boxes_follow_the_structure():
    """A bright block's box, found before and after serialization, agrees through the scale."""
    array = np.zeros((20, 40, 60), np.int16)
    array[5:10, 8:24, 15:45] = 1
    stack = serialize(volume(array), size=(40, 80, 120), window="minmax")
    (box,) = label_boxes(array).values()
    assert stack.from_voxel(box) == Box3D(30, 16, 10, 90, 48, 20)
    (drawn,) = label_boxes((stack.values > 0.5).astype(np.uint8)).values()
    assert drawn == Box3D(30, 16, 10, 90, 48, 20)
    (labels,) = label_boxes(serialize_labels(volume(array), (40, 80, 120))).values()
    assert labels == drawn


def test_labels_are_resampled_without_new_values():
    array = np.random.default_rng(0).choice([0, 3, 7, 200], (9, 11, 13)).astype(np.uint8)
    small = serialize_labels(volume(array), (4, 5, 6))
    assert small.shape == (4, 5, 6) and set(np.unique(small)) <= {0, 3, 7, 200}
    assert np.array_equal(serialize_labels(volume(array), (9, 11, 13)), array)


@pytest.mark.parametrize("size", [(4, 5, 6), (9, 22, 40), (3, 11, 1)])
def test_labels_are_resampled_like_nearest_exact(size):
    array = np.random.default_rng(0).integers(0, 50, (9, 11, 13)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(array.astype(np.float32))[None, None], size, mode="nearest-exact"
    )[0, 0].numpy()
    assert np.array_equal(serialize_labels(volume(array), size), expected)


def test_spacing_is_that_of_the_serialized_pixels():
    stack = serialize(volume(np.zeros((8, 10, 12))), size=(4, 20, 12), window=(0, 1))
    assert stack.spacing == pytest.approx((3 * 2, 2 / 2, 1))
    corners = stack.to_mm(Box3D(0, 0, 0, 1, 1, 1))
    assert np.abs(corners[1] - corners[0])[::-1] == pytest.approx(stack.spacing)
