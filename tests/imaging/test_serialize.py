"""Windows are exact, resampling is PyTorch's trilinear, and bad volumes are refused."""

import warnings

import numpy as np
import pytest
import torch

from unireason_lib.errors import ScanError, ScanWarning
from unireason_lib.imaging import Serialization, Volume, serialize, serialize_labels
from unireason_lib.imaging.window import percentiles, to_grey, window_range

RNG = np.random.default_rng(0)
KINDS = [np.int16, np.uint16, np.int8, np.uint8, np.int32, np.float32, np.dtype(">i2")]


def volume(array):
    return Volume(np.asarray(array), np.diag([-1.0, -2.0, 3.0, 1.0]), "test volume")


def ct():
    """Air around tissue, in HU."""
    array = RNG.normal(40, 20, (16, 32, 32)).astype(np.int16)
    array[:, :8] = RNG.normal(-1000, 5, array[:, :8].shape)
    return array


@pytest.mark.parametrize("dtype", KINDS)
def test_percentiles_are_numpys(dtype):
    array, ranks = RNG.integers(0, 100, (3, 7, 5)).astype(dtype), (0, 1, 37.5, 99, 100)
    expected = np.percentile(array, ranks).tolist()
    assert percentiles(array, ranks) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("old", [(5, 7, 9), (1, 1, 1), (96, 33, 17)])
@pytest.mark.parametrize("size", [(8, 16, 12), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_resampling_is_torchs(old, size, dtype):
    array = RNG.normal(100, 300, old).astype(dtype)
    stack = serialize(volume(array), size=size, window=(-200, 400))
    windowed = torch.from_numpy(np.clip((array.astype(np.float64) + 200) / 600, 0, 1))[None, None]
    resize = torch.nn.functional.interpolate
    expected = resize(windowed, size, mode="trilinear", align_corners=False)[0, 0].numpy()
    assert stack.values.dtype == np.float32 and np.abs(stack.values - expected).max() < 1e-5
    assert np.abs(stack.pixels - expected * 255).max() <= 0.51
    labels = RNG.integers(0, 50, old).astype(np.uint8)
    nearest = resize(torch.from_numpy(labels)[None, None].float(), size, mode="nearest-exact")[0, 0]
    assert np.array_equal(serialize_labels(labels, size), nearest.numpy())


WRONG = ["lungs", "", "12", (0, 1e-40), (-1.7e308, 1.7e308), (1,), (1, 2, 3), (2, 1), (np.nan, 1)]


@pytest.mark.parametrize("window", [*WRONG, None, 5, ("a", "b")])
def test_unknown_windows_are_refused(window):
    with pytest.raises(ScanError, match="What to do"):
        serialize(volume(ct()), window=window)
    with pytest.raises(ScanError, match="What to do"):
        Serialization(window=window)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_not_finite_or_without_contrast(value):
    array = RNG.random((4, 5, 6)).astype(np.float32)
    array[1, 2, 3] = value
    for fill in (None, np.nan):
        with pytest.raises(ScanError, match=r"fill_nonfinite"):
            serialize(volume(array), (4, 5, 6), fill_nonfinite=fill)
    filled = serialize(volume(array), (4, 5, 6), window=(0, 1), fill_nonfinite=0)
    assert filled.values[1, 2, 3] == 0 and np.isfinite(filled.values).all()
    flat = volume(np.full((4, 5, 6), 7))
    for window in ("percentile", "minmax"):
        with pytest.raises(ScanError, match="7 everywhere"):
            serialize(flat, window=window)
    assert (serialize(flat, (2, 2, 2), (0, 14)).pixels == 128).all()


def test_a_named_window_needs_hounsfield_units_report_4():
    """Raw values + 8192 became 255 everywhere, without a word."""
    scan = ct()
    far, near = volume(scan + np.int16(8192)), volume(scan + np.int16(1024))
    padded = volume(far.array.copy())
    padded.array[:, :6] = -2000  # is no air
    for raw in (far, padded):
        with pytest.raises(ScanError, match="Hounsfield"):
            serialize(raw, window="lung")
        with pytest.raises(ScanError, match="Hounsfield"):
            to_grey(raw.array[0], "abdomen")
    with pytest.warns(ScanWarning, match="Hounsfield"):
        serialize(near, window="abdomen")
    with warnings.catch_warnings(action="error"):
        serialize(far, window="percentile")
        serialize(volume(scan), window="abdomen")


def test_a_range_of_ct_on_mri_is_a_warning():
    """Background and tissue were two greys, without a word."""
    mri = RNG.normal(900, 100, (16, 32, 32)).astype(np.int16)
    mri[:, :16] = 0
    for window in ((-150, 350), (1500, 2000)):
        with pytest.warns(ScanWarning, match="one side of the window"):
            serialize(volume(mri), window=window)
    with warnings.catch_warnings(action="error"):
        serialize(volume(mri), window=(0, 1200))
        serialize(volume(ct()), window=(-150, 350))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("padding", [-3024, -2000, -32768])
def test_padding_outside_the_field_of_view_is_left_out_report_5(padding, dtype):
    clean = ct().astype(dtype)
    padded = clean.copy()
    padded[:, -8:] = padding
    for window in ("percentile", "minmax"):
        with pytest.warns(ScanWarning, match="25% of it is padding"):
            bounds = window_range(padded, window)
        assert bounds == pytest.approx(window_range(clean[:, :-8], window))
    with warnings.catch_warnings(action="error"):
        phases = RNG.integers(-4096, 4096, (8, 9, 9))  # values below air that are no constant
        assert window_range(phases, "minmax") == (phases.min(), phases.max())


def test_serialization_travels_as_a_file(tmp_path):
    for made in (Serialization(), Serialization((8, 64, 64), (-150, 250), (224, 224))):
        made.save(tmp_path)
        assert {Serialization.load(tmp_path)} == {made}
    assert Serialization.load(tmp_path / "elsewhere") is None
    for content in ('{"size": [0, 1, 1]}', '{"depth": 4}', "no JSON"):
        (tmp_path / "serialization.json").write_text(content)
        with pytest.raises(ScanError, match="What to do"):
            Serialization.load(tmp_path)
