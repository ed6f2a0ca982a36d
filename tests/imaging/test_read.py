"""Every format and every orientation comes out as one kind of volume, or as a helpful error."""

import contextlib
import gzip
import itertools
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError
from unireason_lib.imaging import Volume, load_image, load_volume, serialize
from unireason_lib.imaging.volume import orient

ORIENTATIONS = [
    tuple(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("LR", "PA", "SI")
]


def save(path, array, affine=None, **header):
    image = nib.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def rewrite(path, **fields):
    """Change header fields in the file itself, past all checks."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as stream:
        raw = bytearray(stream.read())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    with opened(path, "wb") as stream:
        stream.write(bytes(raw))
    return path


def oriented_affine(codes, shape, spacing=(2.0, 3.0, 4.0), origin=(5.0, -7.0, 11.0)):
    """The affine of an array whose axes grow in the given directions."""
    ornt = axcodes2ornt(codes)
    base = np.diag([*spacing, 1.0])
    base[:3, 3] = origin
    sizes = [shape[list(ornt[:, 0]).index(axis)] for axis in range(3)]
    return base @ inv_ornt_aff(ornt_transform(axcodes2ornt(("R", "A", "S")), ornt), sizes)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS, ids="".join)
def test_any_orientation_comes_out_the_same(codes, tmp_path):
    shape = (4, 5, 6)
    array = np.arange(120, dtype=np.int16).reshape(shape)
    affine = oriented_affine(codes, shape)
    assert nib.aff2axcodes(affine) == codes
    volume = load_volume(save(tmp_path / "scan.nii", array, affine))
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    assert volume.array.dtype == np.int16
    for index in itertools.product((0, 3), (0, 4), (0, 5)):  # every value keeps its place in the world
        world = affine @ [*index, 1]
        x, y, z = np.rint(np.linalg.solve(volume.affine, world)[:3]).astype(int)
        assert volume.array[z, y, x] == array[index]
    expected = dict(zip("xyz", (2.0, 3.0, 4.0), strict=True))
    assert volume.spacing == pytest.approx((expected["z"], expected["y"], expected["x"]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.data())
def test_boxes_go_serialized_to_voxels_to_mm_and_back(codes, data):
    shape = (7, 9, 5)
    volume = orient(np.zeros(shape, np.int16), oriented_affine(codes, shape), "test")
    stack = serialize(volume, size=(8, 16, 12), window=(0, 1))
    low = [data.draw(st.integers(0, side - 1)) for side in (12, 16, 8)]
    high = [data.draw(st.integers(a + 1, side)) for a, side in zip(low, (12, 16, 8), strict=True)]
    box = Box3D(*low, *high)
    assert stack.from_voxel(stack.to_voxel(box)).as_tuple() == pytest.approx(box.as_tuple())
    assert stack.from_mm(stack.to_mm(box)).as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6)
    whole = stack.to_voxel(Box3D(0, 0, 0, 12, 16, 8))
    assert whole.as_tuple() == pytest.approx((0, 0, 0, *volume.shape[::-1]))


def test_a_box_in_mm_has_the_size_of_its_voxels(tmp_path):
    volume = load_volume(save(tmp_path / "scan.nii", np.zeros((10, 10, 10), np.int16)))
    corners = volume.to_mm(Box3D(1, 2, 3, 5, 4, 8))
    assert np.abs(corners[1] - corners[0]) == pytest.approx([4 * 2.0, 2 * 3.0, 5 * 4.0])


def test_an_oblique_scan_keeps_its_angles(tmp_path):
    turn = np.deg2rad(20)
    affine = np.array(
        [[np.cos(turn), -np.sin(turn), 0, 4], [np.sin(turn), np.cos(turn), 0, 5], [0, 0, 2, 6], [0, 0, 0, 1]]
    )
    volume = load_volume(save(tmp_path / "scan.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine))
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    assert np.allclose(np.sort(volume.spacing), [1, 1, 2])
    box = Box3D(0, 1, 2, 3, 4, 5)
    assert volume.from_mm(volume.to_mm(box)).as_tuple() == pytest.approx(box.as_tuple())
    assert not np.allclose(volume.affine[:3, :3], np.diag(np.diag(volume.affine[:3, :3])))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_values_are_kept(tmp_path, suffix, dtype):
    array = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(dtype)
    volume = load_volume(save(tmp_path / f"scan{suffix}", array))
    assert np.array_equal(np.sort(volume.array.ravel()), np.sort(array.ravel()))
    assert volume.array.dtype == dtype


@pytest.mark.parametrize(("slope", "inter", "kind"), [(1, -1024, "i"), (2, 0, "i"), (0.5, 10, "f")])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slope_and_intercept(tmp_path, slope, inter, kind, suffix):
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6) * 100
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / f"scan{suffix}"
    nib.save(image, path)
    expected = np.sort(nib.load(path).get_fdata().ravel())
    volume = load_volume(path)
    assert np.allclose(np.sort(volume.array.ravel()), expected, atol=1e-2)
    if suffix == ".nii":  # nibabel rescales on saving; read what is stored
        assert volume.array.dtype.kind in ("i", "f")


def test_uncompressed_files_are_mapped_not_read(tmp_path):
    volume = load_volume(save(tmp_path / "scan.nii", np.zeros((4, 5, 6), np.int16)))
    base = volume.array
    while base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_four_dimensions(tmp_path):
    array = np.stack([np.full((3, 4, 5), i, np.int16) for i in range(3)], axis=-1)
    path = save(tmp_path / "scan.nii.gz", array)
    with pytest.raises(ScanError, match="frame=0"):
        load_volume(path)
    assert load_volume(path, frame=2).array.max() == 2
    with pytest.raises(ScanError, match="frame=0"):
        load_volume(path, frame=3)
    one = save(tmp_path / "one.nii", array[..., :1])
    assert load_volume(one).shape == load_volume(one, frame=0).shape == (5, 4, 3)
    with pytest.raises(ScanError, match=r"frame=7.*leave frame out"):
        load_volume(one, frame=7)
    field = save(tmp_path / "field.nii", array[:, :, :, None])
    assert load_volume(field, frame=2).array.max() == 2
    with pytest.raises(ScanError, match=r"frame=0 \.\.\. 2"):
        load_volume(field)
    with pytest.raises(ScanError, match="one 3D volume a file"):
        load_volume(save(tmp_path / "six.nii", np.zeros((3, 4, 5, 2, 2), np.int16)), frame=0)


def test_channels_last_and_frames_of_arrays(tmp_path):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.save(tmp_path / "last.npy", array[0, ..., None])
    assert load_volume(tmp_path / "last.npy").shape == (3, 4, 5)
    np.save(tmp_path / "four.npy", array)
    assert np.array_equal(load_volume(tmp_path / "four.npy", frame=1).array, array[1])
    with pytest.raises(ScanError, match="frame=2"):
        load_volume(tmp_path / "four.npy", frame=2)
    with pytest.raises(ScanError, match="leave frame out"):
        load_volume(tmp_path / "last.npy", frame=1)


def test_a_header_without_orientation_is_said(tmp_path):
    path = save(tmp_path / "scan.nii", np.zeros((3, 4, 5), np.int16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_volume(path)
    with pytest.warns(UserWarning, match="names no orientation"):
        volume = load_volume(rewrite(path, sform_code=0, qform_code=0))
    assert volume.spacing == pytest.approx((4, 3, 2))


def test_an_empty_scan_compresses_well_and_is_read(tmp_path):
    plain = save(tmp_path / "scan.nii", np.zeros((128, 128, 64), np.int16)).read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(plain, 9))
    assert len(plain) / path.stat().st_size > 900  # no DEFLATE stream can reach 1033
    assert not load_volume(path).array.any()


def test_numpy_and_m3d_arrays(tmp_path):
    array = np.random.default_rng(0).random((1, 8, 6, 5)).astype(np.float32)
    np.save(tmp_path / "m3d.npy", array)
    volume = load_volume(tmp_path / "m3d.npy")
    assert volume.shape == (8, 6, 5) and not volume.has_affine
    assert np.array_equal(volume.array, array[0])
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    np.savez(tmp_path / "one.npz", image=array[0])
    assert load_volume(tmp_path / "one.npz").shape == (8, 6, 5)
    np.savez(tmp_path / "two.npz", image=array[0], other=array[0])
    with pytest.raises(ScanError, match="image"):
        load_volume(tmp_path / "two.npz")
    assert load_volume(tmp_path / "two.npz", key="other").shape == (8, 6, 5)
    with pytest.raises(ScanError, match="other"):
        load_volume(tmp_path / "two.npz", key="third")


def test_one_slice_is_a_volume(tmp_path):
    volume = load_volume(save(tmp_path / "scan.nii", np.arange(20, dtype=np.int16).reshape(4, 5, 1)))
    assert volume.shape == (1, 5, 4)
    assert serialize(volume, size=(4, 8, 8), window="minmax").pixels.shape == (4, 8, 8)


class TestBadFiles:
    def check(self, path, *words, read=load_volume):
        with pytest.raises(ScanError) as error:
            read(path)
        for word in (path.name, "What to do", *words):
            assert word in str(error.value)

    def test_missing_and_empty(self, tmp_path):
        self.check(tmp_path / "nothing.nii.gz", "nothing of that name")
        (tmp_path / "empty.nii").touch()
        self.check(tmp_path / "empty.nii", "empty file")
        self.check(tmp_path / "nothing.png", "nothing of that name", read=load_image)

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("share", [0.01, 0.5, 0.98])
    def test_truncated(self, tmp_path, suffix, share):
        noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
        path = save(tmp_path / f"scan{suffix}", noise)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        self.check(path)

    def test_wrong_names(self, tmp_path):
        Image.new("L", (8, 8)).save(tmp_path / "picture.png")
        shutil.copy(tmp_path / "picture.png", tmp_path / "a.nii.gz")
        self.check(tmp_path / "a.nii.gz", "PNG")
        shutil.copy(tmp_path / "picture.png", tmp_path / "b.nii")
        self.check(tmp_path / "b.nii")
        save(tmp_path / "plain.nii", np.zeros((3, 3, 3), np.int16))
        shutil.copy(tmp_path / "plain.nii", tmp_path / "c.nii.gz")
        self.check(tmp_path / "c.nii.gz", "gzip")
        (tmp_path / "d.nii").write_bytes(gzip.compress((tmp_path / "plain.nii").read_bytes()))
        self.check(tmp_path / "d.nii", "gzip")
        self.check(tmp_path / "picture.png", "load_image")
        shutil.copy(tmp_path / "plain.nii", tmp_path / "e.png")
        self.check(tmp_path / "e.png", "picture", read=load_image)

    def test_pickles_are_never_loaded(self, tmp_path):
        np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        self.check(tmp_path / "p.npy", "pickle")
        np.savez(tmp_path / "p.npz", a=np.array([{"a": 1}], dtype=object))
        self.check(tmp_path / "p.npz", "pickle")
        (tmp_path / "q.npy").write_bytes(b"\x80\x04}.")
        self.check(tmp_path / "q.npy")

    def test_shapes_that_are_no_volume(self, tmp_path):
        np.save(tmp_path / "flat.npy", np.zeros((4, 5)))
        self.check(tmp_path / "flat.npy", "load_image")
        np.save(tmp_path / "many.npy", np.zeros((2, 4, 5, 6)))
        self.check(tmp_path / "many.npy", "frame=0")
        np.save(tmp_path / "none.npy", np.zeros((0, 5, 6)))
        self.check(tmp_path / "none.npy")
        np.save(tmp_path / "text.npy", np.array([["a"]]))
        self.check(tmp_path / "text.npy", "real numbers")
        self.check(save(tmp_path / "flat.nii", np.zeros((4, 5), np.int16)), "load_image")

    def test_colour_volumes(self, tmp_path):
        colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        self.check(save(tmp_path / "rgb.nii", colour), "colour")

    def test_headers_that_map_nothing(self, tmp_path):
        singular = np.diag([1.0, 1.0, 0.0, 1.0])
        volume = np.zeros((3, 4, 5), np.int16)
        path = save(tmp_path / "singular.nii", volume)
        self.check(rewrite(path, srow_z=[0, 0, 0, 0], sform_code=1), "affine")
        with pytest.raises(ScanError, match="affine"):
            orient(volume, singular, "x")
        with pytest.raises(ScanError, match="affine"):
            orient(volume, np.full((4, 4), np.nan), "x")

    @pytest.mark.parametrize("spacing", [0.0, -2.0, np.nan])
    def test_impossible_spacing(self, tmp_path, spacing):
        path = save(tmp_path / "scan.nii", np.zeros((3, 4, 5), np.int16))
        self.check(rewrite(path, pixdim=[1, 2, spacing, 4, 1, 1, 1, 1]), "spacing")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_affines_that_are_not_finite(self, tmp_path, value):
        path = save(tmp_path / "scan.nii", np.zeros((3, 4, 5), np.int16))
        self.check(rewrite(path, sform_code=1, srow_x=[value] * 4), "affine")

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize(
        ("sides", "word"),
        [((32767, 32767, 32767), "at most"), ((500, 500, 500), "at most"), ((-3, 4, 5), ""), ((0, 4, 5), "")],
    )
    def test_sizes_that_the_file_cannot_hold(self, tmp_path, suffix, sides, word):
        """Found from the file's size, before anything is allocated."""
        path = save(tmp_path / f"scan{suffix}", np.zeros((3, 4, 5), np.int16))
        self.check(rewrite(path, dim=[3, *sides, 1, 1, 1, 1]), word)

    def test_a_wrong_checksum(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 1000, (9, 9, 9)).astype(np.int16)
        path = save(tmp_path / "scan.nii.gz", noise)
        data = bytearray(path.read_bytes())
        data[-6] ^= 0xFF
        path.write_bytes(bytes(data))
        self.check(path, "CRC")

    def test_complex_numbers(self, tmp_path):
        self.check(save(tmp_path / "scan.nii", np.zeros((3, 4, 5), np.complex64)), "complex64", "magnitude")

    @pytest.mark.parametrize("seed", range(4))
    def test_no_damaged_header_gets_through_as_another_error(self, tmp_path, seed):
        path = save(tmp_path / "scan.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5))
        whole, draw = path.read_bytes(), np.random.default_rng(seed)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in draw.integers(0, 352, draw.integers(1, 4)):
                damaged[place] = draw.integers(256)
            path.write_bytes(bytes(damaged))
            with warnings.catch_warnings(), contextlib.suppress(ScanError):
                warnings.simplefilter("ignore")
                assert load_volume(path).array.ndim == 3

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_a_truncated_archive(self, tmp_path, share):
        np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).random((5, 6, 7)))
        data = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(data[: int(len(data) * share)])
        self.check(tmp_path / "a.npz")

    def test_a_folder_is_no_picture(self, tmp_path):
        self.check(tmp_path, "a folder", read=load_image)


class TestPictures:
    def test_kinds_of_pictures(self, tmp_path):
        draw = np.random.default_rng(0)
        colour = draw.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(colour).save(tmp_path / "rgb.png")
        assert np.array_equal(np.asarray(load_image(tmp_path / "rgb.png")), colour)
        Image.fromarray(colour[..., 0]).save(tmp_path / "grey.png")
        assert load_image(tmp_path / "grey.png").mode == "RGB"
        Image.fromarray(np.dstack([colour, colour[..., :1]])).save(tmp_path / "rgba.png")
        assert np.array_equal(np.asarray(load_image(tmp_path / "rgba.png")), colour)

    def test_sixteen_bits_are_windowed_not_clipped(self, tmp_path):
        ramp = np.linspace(0, 40000, 256).astype(np.uint16).reshape(16, 16)
        Image.fromarray(ramp).save(tmp_path / "deep.png")
        grey = np.asarray(load_image(tmp_path / "deep.png"))[..., 0]
        assert grey.min() == 0 and grey.max() == 255 and len(np.unique(grey)) > 200
        narrow = np.asarray(load_image(tmp_path / "deep.png", window=(0, 20000)))[..., 0]
        assert (narrow == 255).sum() > 100

    def test_pictures_are_turned_upright(self, tmp_path):
        picture = Image.new("RGB", (20, 10))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(tmp_path / "turned.jpg", exif=exif)
        assert load_image(tmp_path / "turned.jpg").size == (10, 20)

    def test_one_value_is_black(self, tmp_path):
        Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "flat.png")
        assert load_image(tmp_path / "flat.png").getextrema()[0] == (0, 0)
        assert load_image(tmp_path / "flat.png", window=(0, 1800)).getextrema()[0] == (128, 128)

    def test_values_that_are_not_finite(self, tmp_path):
        Image.fromarray(np.array([[np.nan, 1], [2, 3]], np.float32)).save(tmp_path / "nan.tif")
        with pytest.raises(ScanError, match="1 of 4 pixels"):
            load_image(tmp_path / "nan.tif")

    def test_several_pages(self, tmp_path):
        page = Image.new("L", (5, 5))
        page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
        with pytest.raises(ScanError, match="3 pages"):
            load_image(tmp_path / "pages.tif")

    def test_truncated_pictures(self, tmp_path):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(
            tmp_path / "x.png"
        )
        data = (tmp_path / "x.png").read_bytes()
        (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
        with pytest.raises(ScanError, match="picture"):
            load_image(tmp_path / "x.png")


def test_a_volume_checks_itself():
    with pytest.raises(ScanError, match="3D"):
        Volume(np.zeros((2, 2)), np.eye(4))
    with pytest.raises(ScanError, match="3D"):
        Volume(np.zeros((0, 2, 2)), np.eye(4))
    for kind in (complex, object):
        with pytest.raises(ScanError, match="real numbers"):
            Volume(np.zeros((2, 2, 2), kind), np.eye(4))
