"""Every format and every orientation comes out as one kind of volume, or as a helpful error."""

import gzip
import io
import itertools
import warnings
import zipfile
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError, ScanWarning
from unireason_lib.imaging import MAX_VOXELS, Volume, load_image, load_volume, serialize
from unireason_lib.imaging.read import nifti_grid

ORIENTATIONS = [
    tuple(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("LR", "PA", "SI")
]
RAMP = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
SPACED = np.diag([2.0, 3.0, 4.0, 1.0])


def save(path, array, affine=None, scaling=None, **fields):
    """A NIfTI file, past all checks that nibabel has for the fields of its header."""
    header = nib.Nifti1Image(array, SPACED if affine is None else affine).header
    if scaling:
        fields["scl_slope"], fields["scl_inter"] = scaling
    for name, value in {"vox_offset": 352, **fields}.items():
        header[name] = value
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4) + array.tobytes(order="F"))
    return path


def refuse(path, *words, read=load_volume):
    with pytest.raises(ScanError) as error:
        read(path)
    for word in ("What to do", *words):
        assert word in str(error.value)


@pytest.mark.parametrize("codes", ORIENTATIONS[::5], ids="".join)
def test_any_orientation_comes_out_the_same(codes, tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    image = nib.Nifti1Image(array, SPACED).as_reoriented(turn)
    volume = load_volume(save(tmp_path / "scan.nii", np.asarray(image.dataobj), image.affine))
    assert np.array_equal(volume.array, array[::-1, ::-1].T) and volume.array.dtype == np.int16
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    assert volume.spacing == pytest.approx((4, 3, 2))
    assert volume.affine @ [3, 4, 0, 1] == pytest.approx([0, 0, 0, 1])  # of the first value


@given(st.data())
def test_boxes_go_serialized_to_voxels_to_mm_and_back(data):
    leaning = [[-2, 0.1, 0, 5], [0.1, -3, 0.2, -7], [0, 0.2, 4, 11], [0, 0, 0, 1]]
    volume = Volume(np.zeros((5, 9, 7), np.int16), np.array(leaning))
    stack = serialize(volume, size=(8, 16, 12), window=(0, 1))
    low = [data.draw(st.integers(0, side - 1)) for side in (12, 16, 8)]
    high = [data.draw(st.integers(a + 1, side)) for a, side in zip(low, (12, 16, 8), strict=True)]
    box = Box3D(*low, *high)
    assert stack.from_voxel(stack.to_voxel(box)).as_tuple() == pytest.approx(box.as_tuple())
    voxels = stack.geometry.from_mm(stack.to_mm(box))
    assert stack.from_voxel(voxels).as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6)
    whole = stack.to_voxel(Box3D(0, 0, 0, 12, 16, 8))
    assert whole.as_tuple() == pytest.approx((0, 0, 0, *volume.shape[::-1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32])
@pytest.mark.parametrize("scaling", [(-1, 0), (-1, 255), (1, -1024), (300, 7), (0.5, 10), (1e6, 0)])
def test_scaling_of_every_integer_type_B10(tmp_path, dtype, scaling):
    """uint8 with a slope of -1 raised OverflowError."""
    limits = np.iinfo(dtype)
    array = np.linspace(limits.min, limits.max, 60).astype(dtype).reshape(3, 4, 5)
    volume = load_volume(save(tmp_path / "scan.nii", array, np.diag([-1, -1, 1, 1]), scaling))
    expected = array.astype(float).T * scaling[0] + scaling[1]
    assert np.allclose(volume.array, expected, rtol=1e-6)
    assert volume.array.dtype.kind == ("f" if scaling[0] == 0.5 else "i")
    assert volume.scaling == scaling


def test_four_dimensions(tmp_path):
    array = np.stack([np.full((3, 4, 5), i, np.int16) for i in range(3)], axis=-1)
    path = save(tmp_path / "scan.nii.gz", array)
    assert load_volume(path, frame=2).array.max() == 2
    one = save(tmp_path / "one.nii", array[..., :1])
    assert load_volume(one).shape == load_volume(one, frame=0).shape == (5, 4, 3)
    for wrong, frame, do in ((path, None, "frame=0 ... 2"), (path, 3, "2"), (one, 7, "leave")):
        refuse(wrong, do, read=partial(load_volume, frame=frame))
    assert load_volume(save(tmp_path / "f.nii", array[:, :, :, None]), frame=2).array.max() == 2
    refuse(save(tmp_path / "six.nii", np.zeros((3, 4, 5, 2, 2), np.int16)), "one 3D volume a file")


def test_units_of_the_header_count_report_8(tmp_path):
    """xyzt_units of micron or metre were ignored."""
    for code, factor in ((0, 1), (1, 1000), (2, 1), (3, 1e-3), (2 + 8, 1)):
        path = save(tmp_path / "scan.nii", RAMP, xyzt_units=code)
        for volume in (load_volume(path), nifti_grid(path)):
            assert volume.spacing == pytest.approx((4 * factor, 3 * factor, 2 * factor))


def test_headers_that_contradict_themselves_about_directions_report_9(tmp_path):
    path = tmp_path / "scan.nii"
    with warnings.catch_warnings(action="error"):
        assert load_volume(save(path, RAMP, qform_code=1, qoffset_x=0.4)).sides_certain
    with pytest.warns(ScanWarning, match="5 mm apart"):
        assert load_volume(save(path, RAMP, qform_code=1, qoffset_x=5)).sides_certain
    with pytest.warns(ScanWarning, match="disagree about directions"):  # x and y turned round
        assert not load_volume(save(path, RAMP, qform_code=1, quatern_d=1)).sides_certain
    with pytest.warns(ScanWarning, match="names no orientation"):
        assert not nifti_grid(save(path, RAMP, sform_code=0)).sides_certain


def test_sizes_are_checked_before_anything_is_allocated_B9(tmp_path):
    """A small npz or gzip could ask for any amount of memory."""
    side = int(MAX_VOXELS ** (1 / 3)) + 2
    np.save(tmp_path / "small.npy", RAMP)
    stream = io.BytesIO()
    form = {"descr": "<f8", "fortran_order": False, "shape": (side, side, side)}
    np.lib.format.write_array_header_1_0(stream, form)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
        archive.writestr("small.npy", (tmp_path / "small.npy").read_bytes())
    refuse(tmp_path / "bomb.npz", "x", "small", "name one")
    with pytest.raises(ScanError, match="at most 536,870,912 voxels"):
        load_volume(tmp_path / "bomb.npz", key="x")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "a") as archive:  # NumPy opens the other x
        archive.writestr("small", stream.getvalue())
    refuse(tmp_path / "bomb.npz", "two arrays have one name")
    for suffix in (".nii", ".nii.gz"):
        for sides in ((32767,) * 3, (500,) * 3, (-3, 4, 5), (0, 4, 5)):
            refuse(save(tmp_path / f"scan{suffix}", RAMP, dim=[3, *sides, 1, 1, 1, 1]), "scan.nii")


def test_numpy_and_m3d_arrays(tmp_path):
    array = np.random.default_rng(0).random((2, 8, 6, 5)).astype(np.float32)
    for stored in (array[:1], array[0, ..., None]):  # M3D's channel, or one that comes last
        np.save(tmp_path / "one.npy", stored)
        volume = load_volume(tmp_path / "one.npy")
        assert np.array_equal(volume.array, array[0]) and not volume.has_affine
    np.save(tmp_path / "four.npy", array)
    assert np.array_equal(load_volume(tmp_path / "four.npy", frame=1).array, array[1])
    refuse(tmp_path / "four.npy", "frame=0 ... 1")
    np.savez(tmp_path / "two.npz", image=array[0], other=array[0] > 0.5)
    refuse(tmp_path / "two.npz", "image", "other")
    assert load_volume(tmp_path / "two.npz", key="other").array.dtype == np.uint8


def test_missing_empty_and_misnamed_files(tmp_path):
    refuse(tmp_path / "nothing.nii.gz", "No such file")
    refuse(tmp_path, "a folder", read=load_image)
    (tmp_path / "empty.nii").touch()
    refuse(tmp_path / "empty.nii", "empty file")
    Image.new("L", (8, 8)).save(tmp_path / "exif.png", exif=b"Exif\0\0garbage")
    refuse(tmp_path / "exif.png", "readable EXIF data", read=load_image)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    refuse(tmp_path / "image.png", "load_image", "PNG")
    plain, png = save(tmp_path / "p.nii", RAMP).read_bytes(), (tmp_path / "image.png").read_bytes()
    files = {"a.nii.gz": png, "b.nii": png, "c.nii.gz": plain, "d.nii": gzip.compress(plain)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        refuse(tmp_path / name, "NIfTI" if name == "b.nii" else "gzip")


@pytest.mark.parametrize("fraction", [0.01, 0.9])
def test_truncated_files_wrong_checksums_and_pickles(tmp_path, fraction):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    np.savez_compressed(tmp_path / "scan.npz", x=noise)
    Image.fromarray(noise[0].astype(np.uint8)).save(tmp_path / "image.png")
    save(tmp_path / "scan.nii", noise), save(tmp_path / "scan.nii.gz", noise)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])
        refuse(path, path.name, read=load_image if path.suffix == ".png" else load_volume)
    data = bytearray(save(tmp_path / "scan.nii.gz", noise).read_bytes())
    data[-6] ^= 0xFF
    (tmp_path / "scan.nii.gz").write_bytes(bytes(data))
    refuse(tmp_path / "scan.nii.gz", "CRC")
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "p.npz", a=np.array([{"a": 1}], dtype=object))
    for name in ("p.npy", "p.npz"):
        refuse(tmp_path / name, "pickles are never loaded")


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan])
def test_headers_that_map_nothing(tmp_path, value):
    spacing = [1, 2, value, 4, 1, 1, 1, 1]
    refuse(save(tmp_path / "scan.nii", RAMP, pixdim=spacing), "spacing")
    flat = [min(value, 0.0)] * 4
    refuse(save(tmp_path / "scan.nii", RAMP, sform_code=1, srow_x=flat, srow_z=flat), "affine")


def test_sixteen_bits_are_windowed_not_clipped_report_7(tmp_path):
    """From a path and from bytes, as benchmarks have them."""
    deep = np.linspace(0, 40000, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", (tmp_path / "deep.png").read_bytes()):
        grey = np.asarray(load_image(source))[..., 0]
        assert grey.min() == 0 and grey.max() == 255 and 120 < grey.mean() < 135
        assert (np.asarray(load_image(source, window=(0, 20000))) == 255).mean() > 0.4
    # EXIF data turn an image upright
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (10, 20)
