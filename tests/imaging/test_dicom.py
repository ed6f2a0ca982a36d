"""DICOM series: sorted by position, in scan units, and refused when the volume would be wrong."""

import warnings

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from unireason_lib.errors import ScanError, ScanWarning
from unireason_lib.imaging import dicom, load_image, load_volume
from unireason_lib.inference import Reading, read_scan

SERIES = uid.generate_uid()
AXIAL = (1, 0, 0, 0, 1, 0)
BITS = "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"
RAMP = np.arange(24, dtype=np.int16).reshape(4, 6)
NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
UNSCALED = {"RescaleSlope": None, "RescaleIntercept": None}
MONOCHROME1 = {"PhotometricInterpretation": "MONOCHROME1"}


def write(path, pixels=RAMP, kind=uid.CTImageStorage, **fields):
    """A file of (4, 6) pixels at 2 x 3 mm; fields given as None are left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    usual = {
        "SOPClassUID": kind,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        **dict(zip(BITS, (16, 16, 15, 1), strict=True)),
        "ImagePositionPatient": [10, 20, 30],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [2.0, 3.0],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": pixels.astype(np.int16).tobytes(),
    }
    for name, value in (usual | fields).items():
        if value is not None:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def series(folder, places=(0, 5, 10, 15), **fields):
    """Slices at places in mm; slice i holds 1000 + i."""
    folder.mkdir()
    for i, place in enumerate(places):
        at = {"ImagePositionPatient": [10, 20, place]} | fields
        write(folder / f"{i}.dcm", np.full((4, 6), 1000 + i), **at)
    return folder


def refuse(path, *words):
    with pytest.raises(ScanError) as error:
        load_volume(path)
    assert all(word in str(error.value) for word in ("What to do", *words)), str(error.value)


LEAN = np.deg2rad(15)
PLANES = [AXIAL, (-1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (0, 1, 0, 1, 0, 0)]


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("plane", [*PLANES, (1, 0, 0, 0, np.cos(LEAN), -np.sin(LEAN))])
def test_every_voxel_stays_where_dicom_says(tmp_path, plane, tilted):
    """Any plane, names in another order, and a tilted gantry: the planes lean, the table moves
    straight on. DICOM's world grows to the left and the back, NIfTI's to the right and the front."""
    row, column = np.array(plane[:3]), np.array(plane[3:])
    step = np.cross(row, column) * 7 + (row if tilted else 0)
    marks = {}
    for i in range(5):
        pixels, origin = np.zeros((4, 6), np.int16), np.array([10, 20, 30]) + step * i
        pixels[1, 2] = 100 + i
        at = {"ImagePositionPatient": origin.tolist(), "ImageOrientationPatient": list(plane)}
        write(tmp_path / f"{(i * 3) % 5}.dcm", pixels, **at)
        marks[100 + i - 1024] = origin + row * 3.0 * 2 + column * 2.0
    with warnings.catch_warnings(action="error"):
        volume = load_volume(tmp_path)
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S") and volume.array.dtype == np.int16
    assert sorted(volume.spacing)[:2] == pytest.approx([2, 3])
    assert load_volume(tmp_path / "0.dcm").array.size == 24
    for value, place in marks.items():
        z, y, x = (int(axis[0]) for axis in np.where(volume.array == value))
        assert (volume.affine @ [x, y, z, 1])[:3] * [-1, -1, 1] == pytest.approx(place, abs=1e-3)


def test_scan_units(tmp_path):
    plain = load_volume(write(tmp_path / "a.dcm", RescaleSlope=0.5, RescaleIntercept=1.25))
    assert plain.array.dtype == np.float32 and plain.array[0, 0, 5] == pytest.approx(3.75)
    for fields in (UNSCALED, {"RescaleSlope": "", "RescaleIntercept": ""}):  # MR; emptied fields
        assert np.array_equal(load_volume(write(tmp_path / "b.dcm", **fields)).array[0], RAMP)
    pet = series(tmp_path / "pet")  # has a slope of its own in every slice
    write(pet / "3.dcm", ImagePositionPatient=[10, 20, 15], RescaleSlope=2.5)
    assert load_volume(pet).array[:, 0, 5].tolist() == [-24, -23, -22, 12.5 - 1024]
    # report 16: missing in some slices, two scales in one volume were taken without a word
    write(pet / "2.dcm", ImagePositionPatient=[10, 20, 10], **UNSCALED)
    refuse(pet, "RescaleSlope", "1 of 4", "2.dcm")
    # inverted grey is turned round within the whole series
    array = load_volume(series(tmp_path / "inverted", **MONOCHROME1)).array
    assert array[:, 0, 0].tolist() == [-21, -22, -23, -24]


def test_files_that_lost_their_preamble_are_read_report_1(tmp_path):
    """Three of ten slices cut so were left out without a word; at the ends that leaves no gap."""
    folder = series(tmp_path / "s", range(0, 50, 5))
    for name in ("0.dcm", "8.dcm", "9.dcm"):
        (folder / name).write_bytes((folder / name).read_bytes()[132:])
    bare = pydicom.dcmread(folder / "5.dcm")
    bare.file_meta = FileMetaDataset()
    bare.save_as(folder / "5.dcm", implicit_vr=True, little_endian=True)  # no file meta either
    volume = load_volume(folder)
    assert volume.array[:, 0, 0].tolist() == list(range(-24, -14))


def test_nothing_in_a_folder_is_left_out_in_silence_report_1(tmp_path):
    folder = series(tmp_path / "s")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_text("no DICOM")
    no_image = {"Rows": None, "Columns": None, "PixelData": None}
    report = write(folder / "report.dcm", kind=uid.BasicTextSRStorage, **no_image)
    (folder / "empty").mkdir()
    with pytest.warns(ScanWarning, match="2 of 6 are left out: notes.txt, report.dcm"):
        assert load_volume(folder).shape[0] == 4
    (folder / "more" / "deep").mkdir(parents=True)
    (folder / "0.dcm").rename(folder / ".0.dcm")
    (folder / "3.dcm").rename(folder / "more" / "deep" / "3.dcm")
    with pytest.warns(ScanWarning, match=r"4 of 6 are left out: .*\.0\.dcm, more"):
        assert load_volume(folder).shape[0] == 2
    (folder / "more" / "deep" / "3.dcm").rename(folder / "3.dcm")
    refuse(report, "without pixels")
    whole = (folder / "3.dcm").read_bytes()
    for cut in (whole[:400], whole[: len(whole) // 2], whole[:-20], b"", b"\0" * 200 + whole):
        (folder / "3.dcm").write_bytes(cut)
        refuse(folder, "3.dcm")


def test_series_that_would_give_a_wrong_volume(tmp_path):
    refuse(series(tmp_path / "gap", (0, 5, 10, 20, 25)), "6.25 mm apart", "slice 2 of them 2.5 mm")
    refuse(series(tmp_path / "same", (5, 5)), "0 mm apart")
    assert load_volume(series(tmp_path / "rounded", (0, 5.01, 10, 15.02))).shape[0] == 4
    refuse(series(tmp_path / "all", PixelSpacing=None), "PixelSpacing", "none in 4 of 4")
    folder = series(tmp_path / "one")
    for word, fields in {
        "one series": {"SeriesInstanceUID": uid.generate_uid()},
        "one shape": {"pixels": np.zeros((9, 9), np.int16)},
        "one orientation": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        "pixel spacing": {"PixelSpacing": [1.0, 1.0]},
        "9.dcm": {"ImagePositionPatient": None},
        "photometric": MONOCHROME1,
        "straight line": {"ImagePositionPatient": [14, 20, 20]},
    }.items():
        write(folder / "9.dcm", **{"ImagePositionPatient": [10, 20, 20]} | fields)
        refuse(folder, word)
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "nothing")
    frames = write(tmp_path / "a.dcm", np.stack([RAMP] * 3), NumberOfFrames=3)
    refuse(frames, "3 frames", "dcm2niix")
    # a compression without its decoder
    data = pydicom.dcmread(write(tmp_path / "a.dcm"))
    data.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    data.PixelData = encapsulate([b"\xff\xd8" + bytes(50)])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm")
    refuse(tmp_path / "a.dcm", "JPEG-LS", "pip install")


def test_xrays_are_shown_in_their_own_window_report_15(tmp_path):
    """12 bits, MONOCHROME1: between markers and borders the lung had 14 of 256 greys."""
    lung = np.linspace(1900, 2100, 64 * 64).reshape(64, 64)
    lung[0, :3], lung[-1, -3:] = 0, 4095  # fewer than 1 % of the pixels
    xray = {**NOWHERE, **UNSCALED, **MONOCHROME1}
    own = write(tmp_path / "own.dcm", lung, WindowCenter=[2000, 50], WindowWidth=[300, 9], **xray)
    none = write(tmp_path / "none.dcm", lung, **xray)
    for path in (own, none):
        grey = np.asarray(load_image(path))[..., 0][1:-1]
        assert len(np.unique(grey)) > 150 and grey[0, 0] > grey[-1, -1]  # inverted
        # a question shows the same
        assert read_scan(path, "2d", Reading()).images[0].tobytes() == load_image(path).tobytes()
    assert load_volume(none).shape == (1, 64, 64) and not load_volume(none).has_affine


def test_colours_and_palettes_report_6(tmp_path):
    """A palette was shown as grey indices."""
    one_byte = dict(zip(BITS, (8, 8, 7, 0), strict=True))
    index = np.tile(np.array([0, 1, 2], np.uint8), (4, 2))
    palette = {"PhotometricInterpretation": "PALETTE COLOR", "PixelData": index.tobytes()}
    colours = {"Red": (0, 255, 9, 1), "Green": (0, 0, 8, 1), "Blue": (50, 0, 7, 1)}
    for channel, values in colours.items():
        palette[f"{channel}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        palette[f"{channel}PaletteColorLookupTableData"] = bytes(values)
    path = write(tmp_path / "p.dcm", **one_byte, **palette, **UNSCALED)
    assert np.asarray(load_image(path))[0, :3].tolist() == [[0, 0, 50], [255, 0, 0], [9, 8, 7]]
    refuse(path, "colours (PALETTE COLOR)")
    rgb = np.arange(72, dtype=np.uint8)
    colour = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    colour["PixelData"] = rgb.tobytes()
    path = write(tmp_path / "c.dcm", **one_byte, **colour, **UNSCALED)
    assert np.asarray(load_image(path)).ravel().tolist() == rgb.tolist()
    refuse(path, "colours (RGB)")


def test_a_deflated_file_is_not_inflated_without_end(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", np.zeros((400, 400), np.int16))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    assert path.stat().st_size < 5_000 and load_volume(path).shape == (1, 400, 400)
    data.file_meta.add_new(0x00020102, "OB", bytes(2000))  # before the transfer syntax or after
    data.file_meta.add_new(0x00020001, "OB", bytes(2000))
    data.save_as(tmp_path / "b.dcm", enforce_file_format=False)
    monkeypatch.setattr(dicom, "MAX_INFLATED", 100_000)
    for name in ("a.dcm", "b.dcm"):
        refuse(tmp_path / name, "at most 100000 bytes", "deflated to")
