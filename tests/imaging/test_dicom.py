"""DICOM series: sorted by position, in scan units, and refused when the volume would be wrong."""

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from unireason_lib.errors import ScanError
from unireason_lib.imaging import load_image, load_volume

SERIES = generate_uid()
AXIAL = (1, 0, 0, 0, 1, 0)


def write(
    path, pixels, position=(10, 20, 30), orientation=AXIAL, spacing=(2.0, 3.0), series=SERIES, **fields
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
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
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
