"""The data set of the laptop experiment."""

from unireason_lib.dataset.parquet import read_records
from unireason_lib.dataset.phantom_set import FIRST_3D, phantom_set
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.profiles import load_profile


def test_it_is_built_once_and_nobody_is_both_a_slice_and_a_volume(tmp_path):
    frame = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)
    settings = load_profile("smoke").dataset
    first = phantom_set(tmp_path / "set", 6, 3, frame, settings)
    assert first.built == 9 and phantom_set(tmp_path / "set", 6, 3, frame, settings).built == 0
    records = read_records(tmp_path / "set", "train")
    patients = {d: {r.patient for r in records if r.dimension == d} for d in ("2d", "3d")}
    assert patients["2d"] and not patients["2d"] & patients["3d"]
    assert FIRST_3D > 6


def test_the_smallest_profile_holds_out_slices_and_volumes(tmp_path):
    profile = load_profile("smoke")
    frame = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)
    made = profile.sft.patients_2d, profile.sft.patients_3d
    phantom_set(tmp_path / "set", *made, frame, profile.dataset)
    assert {r.dimension for r in read_records(tmp_path / "set", "val")} == {"2d", "3d"}
