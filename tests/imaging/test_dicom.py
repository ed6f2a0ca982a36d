"""DICOM series: sorted by position, in scan units, and refused when the volume would be wrong."""

import contextlib
import warnings

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    generate_uid,
)

from unireason_lib.boxes import Box3D
from unireason_lib.errors import ScanError
from unireason_lib.imaging import load_image, load_volume

SERIES = generate_uid()
AXIAL = (1, 0, 0, 0, 1, 0)


def write(
    path,
    pixels,
    position=(10, 20, 30),
    orientation=AXIAL,
    spacing=(2.0, 3.0),
    series=SERIES,
    rescale=(1, -1024),
    **fields,
):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality = series, "CT"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    if position is not None:
        data.ImagePositionPatient = list(position)
    if orientation is not None:
        data.ImageOrientationPatient = list(orientation)
    if spacing is not None:
        data.PixelSpacing = list(spacing)
    if rescale is not None:
        data.RescaleSlope, data.RescaleIntercept = rescale
    for name, value in fields.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype(np.int16).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def series(folder, places=(0, 5, 10, 15), names=None, **fields):
    """A series of 4 x 6 slices; every slice holds its index."""
    folder.mkdir(exist_ok=True)
    for i, place in enumerate(places):
        pixels = np.full((4, 6), i + 1000, np.int16)
        pixels[0, 0] = 2000 + i
        write(folder / (names[i] if names else f"{i}.dcm"), pixels, position=(10, 20, place), **fields)
    return folder


def test_slices_are_sorted_by_position_not_by_name(tmp_path):
    names = ["z.dcm", "a.dcm", "m.dcm", "b.dcm"]
    folder = series(tmp_path / "s", names=names)
    (folder / "notes.txt").write_text("not DICOM")
    volume = load_volume(folder)
    assert volume.shape == (4, 4, 6) and volume.array.dtype == np.int16
    assert volume.array[:, 1, 1].tolist() == [-24, -23, -22, -21]  # 1000 - 1024 = -24
    assert volume.spacing == pytest.approx((5, 2, 3))
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")


def test_positions_are_right_in_the_world(tmp_path):
    """DICOM's world grows to the left and the back, NIfTI's to the right and the front."""
    volume = load_volume(series(tmp_path / "s"))
    assert volume.array[2, 0, 0] == 2002 - 1024
    world = volume.affine @ [0, 0, 2, 1]
    assert world[:3] == pytest.approx([-10, -20, 10])
    right = volume.affine @ [5, 3, 0, 1]
    assert right[:3] == pytest.approx([-(10 + 5 * 3), -(20 + 3 * 2), 0])


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0, 1, 0, 1, 0, 0)],
)
def test_any_plane_comes_out_the_same(tmp_path, orientation):
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    marks = {}
    for i in range(5):
        pixels = np.zeros((4, 6), np.int16)
        pixels[1, 2] = 100 + i
        origin = np.array([10, 20, 30]) + normal * 7 * i
        write(tmp_path / f"{(i * 3) % 5}.dcm", pixels, position=origin.tolist(), orientation=orientation)
        marks[100 + i - 1024] = origin + row * 3.0 * 2 + column * 2.0 * 1
    volume = load_volume(tmp_path)
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    for value, place in marks.items():
        z, y, x = (int(found[0]) for found in np.where(volume.array == value))
        world = (volume.affine @ [x, y, z, 1])[:3]
        assert world * [-1, -1, 1] == pytest.approx(place, abs=1e-3)


def test_rescale_and_inverted_grey(tmp_path):
    pixels = np.arange(24, dtype=np.int16).reshape(4, 6)
    plain = load_volume(write(tmp_path / "a.dcm", pixels, RescaleSlope=0.5, RescaleIntercept=1.25))
    assert plain.array.dtype == np.float32 and plain.array[0, 0, 5] == pytest.approx(5 * 0.5 + 1.25)
    inverted = load_volume(write(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1"))
    assert inverted.array[0, 0, 0] == 23 - 1024 and inverted.array[0, 3, 5] == -1024


def test_a_single_picture_without_position_is_an_image(tmp_path):
    path = write(
        tmp_path / "xray.dcm", np.arange(24, dtype=np.int16).reshape(4, 6), position=None, orientation=None
    )
    assert load_volume(path).shape == (1, 4, 6) and not load_volume(path).has_affine
    picture = load_image(path)
    assert picture.size == (6, 4) and picture.getextrema()[0] == (0, 255)


def test_a_file_without_suffix_is_recognised(tmp_path):
    assert load_volume(write(tmp_path / "IM000001", np.ones((4, 6), np.int16))).shape == (1, 4, 6)


def test_an_enhanced_file_with_many_frames(tmp_path):
    pixels = np.stack([np.full((4, 6), i, np.int16) for i in (2, 0, 1)])

    def group(z):
        frame, plane = Dataset(), Dataset()
        plane.ImagePositionPatient = [10, 20, z]
        frame.PlanePositionSequence = Sequence([plane])
        return frame

    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = list(AXIAL), [2.0, 3.0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = (
        Sequence([orientation]),
        Sequence([measures]),
    )
    path = write(
        tmp_path / "multi.dcm",
        pixels,
        position=None,
        orientation=None,
        spacing=None,
        NumberOfFrames=3,
        SOPClassUID=EnhancedCTImageStorage,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([group(20), group(0), group(10)]),
    )
    volume = load_volume(path)
    assert volume.array[:, 0, 0].tolist() == [-1024, -1023, -1022] and volume.spacing[0] == pytest.approx(10)
    bare = write(tmp_path / "bare.dcm", pixels, position=None, orientation=None, NumberOfFrames=3)
    with pytest.raises(ScanError, match="3 frames"):
        load_volume(bare)


def groups(**fields):
    """A functional group: ``PlanePositionSequence={"ImagePositionPatient": [...]}`` and so on."""
    group = Dataset()
    for name, content in fields.items():
        item = Dataset()
        for key, value in content.items():
            setattr(item, key, value)
        setattr(group, name, Sequence([item]))
    return group


def enhanced(path, frames, shared, **fields):
    """An enhanced file whose frame ``i`` holds the value ``i`` everywhere."""
    pixels = np.stack([np.full((4, 6), i, np.int16) for i in range(len(frames))])
    return write(
        path,
        pixels,
        position=None,
        orientation=None,
        spacing=None,
        rescale=None,
        NumberOfFrames=len(frames),
        SOPClassUID=EnhancedCTImageStorage,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
        **fields,
    )


MEASURES = {
    "PlaneOrientationSequence": {"ImageOrientationPatient": list(AXIAL)},
    "PixelMeasuresSequence": {"PixelSpacing": [2.0, 3.0], "SliceThickness": 7},
}


def at(z, **more):
    return groups(PlanePositionSequence={"ImagePositionPatient": [10, 20, z]}, **more)


def units(slope, intercept):
    return {"PixelValueTransformationSequence": {"RescaleSlope": slope, "RescaleIntercept": intercept}}


def test_hounsfield_units_of_enhanced_files(tmp_path):
    """They keep slope and intercept in the functional groups, for all frames or for each."""
    shared = groups(**MEASURES, **units(1, -1000))
    volume = load_volume(enhanced(tmp_path / "shared.dcm", [at(0), at(5), at(10)], shared))
    assert volume.array[:, 0, 0].tolist() == [-1000, -999, -998] and volume.array.dtype == np.int16
    frames = [at(5 * i, **units(i + 1, 100 * i)) for i in range(3)]
    volume = load_volume(enhanced(tmp_path / "frames.dcm", frames, groups(**MEASURES)))
    assert volume.array[:, 0, 0].tolist() == [0, 2 + 100, 6 + 200]


def test_an_enhanced_file_of_one_frame_keeps_its_place(tmp_path):
    volume = load_volume(enhanced(tmp_path / "one.dcm", [at(30)], groups(**MEASURES)))
    assert volume.has_affine and volume.spacing == pytest.approx((7, 2, 3))
    assert (volume.affine @ [0, 0, 0, 1])[:3] == pytest.approx([-10, -20, 30])


def test_enhanced_frames_must_fit_together(tmp_path):
    coronal = {"PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}
    axial = {"PlaneOrientationSequence": MEASURES["PlaneOrientationSequence"]}
    shared = groups(PixelMeasuresSequence=MEASURES["PixelMeasuresSequence"])
    mixed = [at(0, **axial), at(5, **axial), at(10, **coronal)]
    refuse(enhanced(tmp_path / "mixed.dcm", mixed, shared), "one orientation", "1 of 3")
    path = enhanced(tmp_path / "short.dcm", [at(0), at(5)], groups(**MEASURES))
    data = pydicom.dcmread(path)
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:1]
    data.save_as(path)
    refuse(path, "2 frames, 1 of them")


def test_a_tilted_gantry_keeps_its_slant(tmp_path):
    """The planes lean, the table moves straight on: every marked voxel is still where DICOM says."""
    lean = np.deg2rad(15)
    orientation = (1, 0, 0, 0, np.cos(lean), -np.sin(lean))
    marks = {}
    for i in range(5):
        pixels = np.zeros((4, 6), np.int16)
        pixels[1, 2] = 100 + i
        origin = np.array([10, 20, 30 + 5.0 * i])
        write(tmp_path / f"{i}.dcm", pixels, position=origin.tolist(), orientation=orientation)
        marks[100 + i - 1024] = origin + np.array(orientation[:3]) * 3.0 * 2 + np.array(orientation[3:]) * 2.0
    volume = load_volume(tmp_path)
    for value, place in marks.items():
        z, y, x = (int(found[0]) for found in np.where(volume.array == value))
        assert (volume.affine @ [x, y, z, 1])[:3] * [-1, -1, 1] == pytest.approx(place, abs=1e-3)
    assert volume.spacing[0] == pytest.approx(5)
    box = Box3D(1, 0, 2, 4, 3, 5)
    assert volume.from_mm(volume.to_mm(box)).as_tuple() == pytest.approx(box.as_tuple())


def test_slices_beside_the_line_are_refused(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.dcm", np.zeros((4, 6), np.int16), position=(10 + 4 * (i == 2), 20, 5 * i))
    refuse(tmp_path, "straight line", "slice 2", "4 mm")


def test_inverted_grey_is_turned_round_within_the_whole_series(tmp_path):
    ramp = np.arange(24, dtype=np.int16).reshape(4, 6)
    for i in range(3):
        write(
            tmp_path / f"{i}.dcm",
            ramp * (i + 1),
            position=(0, 0, 5 * i),
            PhotometricInterpretation="MONOCHROME1",
        )
    volume = load_volume(tmp_path).array + 1024
    assert volume[:, 0, 0].tolist() == [69, 69, 69]  # what was 0 in every slice is the same in every slice
    assert volume[:, 3, 5].tolist() == [46, 23, 0]


def test_slopes_of_their_own(tmp_path):
    """PET has another slope in every slice; units must agree, whatever the stored types."""
    for i, slope in enumerate((1, 2, 0.25)):
        write(
            tmp_path / f"{i}.dcm",
            np.full((4, 6), 20000, np.int16),
            position=(0, 0, 5 * i),
            rescale=(slope, 0),
        )
    assert load_volume(tmp_path).array[:, 0, 0].tolist() == [20000, 40000, 5000]


def test_stored_numbers_without_units(tmp_path):
    """MR has no rescale fields, and some files have them empty."""
    pixels = np.arange(24, dtype=np.int16).reshape(4, 6)
    for name, fields in (("mr", {}), ("empty", {"RescaleSlope": None, "RescaleIntercept": None})):
        volume = load_volume(write(tmp_path / f"{name}.dcm", pixels, rescale=None, **fields))
        assert np.array_equal(volume.array[0], pixels) and volume.array.dtype == np.int16


def test_thirty_two_bits(tmp_path):
    path = write(tmp_path / "wide.dcm", np.zeros((4, 6), np.int16), rescale=(1, 0))
    data = pydicom.dcmread(path)
    data.BitsAllocated = data.BitsStored = 32
    data.HighBit, data.PixelRepresentation = 31, 0
    data.PixelData = (np.arange(24, dtype=np.uint32) + 2**31).tobytes()
    data.save_as(path)
    assert load_volume(path).array.ravel().tolist() == list(range(2**31, 2**31 + 24))


def test_reports_beside_a_series_are_passed_over(tmp_path):
    folder = series(tmp_path / "s")
    report = write(folder / "report.dcm", np.zeros((4, 6), np.int16), series=generate_uid())
    data = pydicom.dcmread(report)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = BasicTextSRStorage
    for field in ("Rows", "Columns", "PixelData"):
        delattr(data, field)
    data.save_as(report)
    assert load_volume(folder).shape[0] == 4
    refuse(report, "without pixels")


def test_a_slice_that_was_cut_off_is_not_passed_over(tmp_path):
    """The outermost slice would leave no gap: the volume would only be shorter than the patient."""
    folder = series(tmp_path / "s")
    last = folder / "3.dcm"
    whole = last.read_bytes()
    for length in (400, len(whole) // 2, len(whole) - 20):
        last.write_bytes(whole[:length])
        refuse(folder, "3.dcm")


def refuse(path, *words):
    with pytest.raises(ScanError) as error:
        load_volume(path)
    for word in ("What to do", *words):
        assert word in str(error.value)


def test_gaps_and_repeats(tmp_path):
    refuse(series(tmp_path / "gap", places=(0, 5, 10, 20, 25)), "step of 10 mm", "after slice 2")
    refuse(series(tmp_path / "twice", places=(0, 5, 5, 10)), "repeated")
    assert load_volume(series(tmp_path / "rounded", places=(0, 5.01, 10, 15.02))).shape[0] == 4


def test_mixed_folders(tmp_path):
    folder = series(tmp_path / "series")
    write(folder / "other.dcm", np.zeros((4, 6), np.int16), position=(10, 20, 99), series=generate_uid())
    refuse(folder, "one series", "2 different")
    folder = series(tmp_path / "shapes")
    write(folder / "scout.dcm", np.zeros((9, 9), np.int16), position=(10, 20, 20))
    refuse(folder, "slice shape")
    folder = series(tmp_path / "planes")
    write(
        folder / "coronal.dcm",
        np.zeros((4, 6), np.int16),
        position=(0, 0, 20),
        orientation=(1, 0, 0, 0, 0, -1),
    )
    refuse(folder, "one orientation")
    folder = series(tmp_path / "spacing")
    write(folder / "zoomed.dcm", np.zeros((4, 6), np.int16), position=(10, 20, 20), spacing=(1.0, 1.0))
    refuse(folder, "pixel spacing")


def test_missing_geometry(tmp_path):
    refuse(series(tmp_path / "orientation", orientation=None), "ImagePositionPatient")
    folder = series(tmp_path / "one")
    write(folder / "9.dcm", np.zeros((4, 6), np.int16), position=None)
    refuse(folder, "none in 1 of 5", "9.dcm")
    refuse(series(tmp_path / "nospacing", spacing=None), "PixelSpacing")
    refuse(write(tmp_path / "zero.dcm", np.zeros((4, 6), np.int16), spacing=(0.0, 1.0)), "spacing")


def test_what_is_no_dicom(tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "nothing")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    refuse(tmp_path / "text", "a.txt")
    (tmp_path / "fake.dcm").write_bytes(b"not DICOM at all")
    refuse(tmp_path / "fake.dcm", "DICOM image")


def test_truncated_pixels(tmp_path):
    path = write(tmp_path / "cut.dcm", np.zeros((64, 64), np.int16))
    path.write_bytes(path.read_bytes()[:-4000])
    refuse(path, "cut.dcm")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ImagePositionPatient", [1, 2]),
        ("ImageOrientationPatient", [1, 0, 0]),
        ("ImageOrientationPatient", [0] * 6),
        ("ImageOrientationPatient", [1, 0, 0, 0.9, 0.1, 0]),
        ("PixelSpacing", [1]),
        ("PixelSpacing", [-1, -1]),
    ],
)
def test_ill_formed_geometry_is_refused(tmp_path, field, value):
    path = write(tmp_path / "a.dcm", np.zeros((4, 6), np.int16))
    data = pydicom.dcmread(path)
    setattr(data, field, value)
    data.save_as(path)
    refuse(path, field)


def test_a_compression_without_its_decoder_names_what_to_install(tmp_path):
    path = write(tmp_path / "a.dcm", np.zeros((4, 6), np.int16))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = encapsulate([b"\xff\xd8" + bytes(50)])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    refuse(path, "JPEG-LS", "pip install")


def test_colour_pictures_are_no_slices(tmp_path):
    path = write(tmp_path / "a.dcm", np.zeros((4, 6), np.int16))
    data = pydicom.dcmread(path)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.save_as(path)
    refuse(path, "colours")


def test_no_damaged_file_gets_through_as_another_error(tmp_path):
    whole = write(tmp_path / "a.dcm", np.zeros((4, 6), np.int16)).read_bytes()
    draw = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(1, len(whole), 17)]
    for _ in range(150):
        flipped = bytearray(whole)
        for place in draw.integers(132, len(whole) - 48, draw.integers(1, 4)):
            flipped[place] = draw.integers(256)
        damaged.append(bytes(flipped))
    for data in damaged:
        (tmp_path / "b.dcm").write_bytes(data)
        with warnings.catch_warnings(), contextlib.suppress(ScanError):
            warnings.simplefilter("ignore")
            assert load_volume(tmp_path / "b.dcm").array.ndim == 3
