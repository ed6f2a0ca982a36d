"""DICOM: from single slices, each with its own position, to one volume.

A series is a folder of files in no order. Slices are sorted by where they lie along the normal of
their plane, never by name or number. What would give a wrong volume (two series in one folder, a
missing slice, slices without a position, two scales of values) is refused: a volume with a hole
looks fine and measures wrong. So are *enhanced* files of many frames, which dcm2niix converts.
"""

import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unireason_lib.errors import ScanError, ScanWarning, raising
from unireason_lib.imaging.volume import UNKNOWN_AFFINE, Volume, check_voxels, orient, rescale
from unireason_lib.imaging.window import Window, to_grey

SUFFIXES = (".dcm", ".dicom", ".ima")
TOLERANCE = 0.1  # part of a step by which a slice may lie beside its place: positions are rounded
MAX_INFLATED = 2**28  # bytes that one deflated file may hold
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FIRST_TYPES = (b"UL", b"OB", b"CS", b"UI", b"DA", b"TM", b"SH", b"LO")
_readable = partial(raising, ScanError, expected="a readable DICOM file", do="export it again")


class _Plane:
    """One image: where it lies (mm, L-P-S world) and how stored numbers become scan units."""

    def __init__(self, path: Path, header: Any) -> None:
        self.path = path
        self.series = str(header.get("SeriesInstanceUID", ""))
        self.shape = int(header.Rows), int(header.Columns)
        self.photometric = str(header.get("PhotometricInterpretation") or "")
        self.position = _numbers(header, "ImagePositionPatient", 3)
        self.orientation = _numbers(header, "ImageOrientationPatient", 6)
        self.spacing = _numbers(header, "PixelSpacing", 2)
        thick = _numbers(header, "SpacingBetweenSlices") or _numbers(header, "SliceThickness")
        self.thickness = abs(thick or 1.0)
        slope, intercept = _numbers(header, "RescaleSlope"), _numbers(header, "RescaleIntercept")
        scaling = (1.0 if slope is None else slope, intercept or 0.0)
        self.scaling = None if slope is None and intercept is None else scaling


def is_dicom(head: bytes) -> bool:
    """Whether a file begins like DICOM: ``DICM`` after 128 bytes, or, where that preamble was lost,
    an element of group 2 or 8 with a known type or a short length."""
    if head[128:132] == b"DICM":
        return True
    group, length = int.from_bytes(head[:2], "little"), int.from_bytes(head[4:8], "little")
    return group in (2, 8) and (head[4:6] in _FIRST_TYPES or 0 < length <= 128)


def load_dicom(path: Path) -> Volume:
    """Read the one series in a folder (not in its subfolders), or one file.

    A single slice without a position (an X-ray) has no geometry. A :class:`ScanError` for an
    unreadable file and for slices that make no single volume; other files in the folder, and
    subfolders and hidden files with DICOM, are left out with a :class:`ScanWarning`."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    planes = {f: _plane(f) for f in files if f.is_file() and f.name[0] != "."}
    planes |= {f: None for f in files if f not in planes and _holds_dicom(f)}
    others = [file.name for file, plane in planes.items() if not plane and file.name != "DICOMDIR"]
    names = ", ".join(others[:5])
    if not any(planes.values()):
        do = "give an image, or the folder that holds the slices"
        raise ScanError(path, "DICOM images", f"{names or 'nothing'}, without pixels", do)
    if others:
        message = f"{path}: {len(others)} of {len(planes)} are left out"
        why = "no DICOM images, hidden, or folders of their own"
        warnings.warn(f"{message}: {names} ({why})", ScanWarning, stacklevel=3)
    return _assemble(path, [plane for plane in planes.values() if plane])


def _holds_dicom(path: Path) -> bool:
    """Whether a hidden file is DICOM, or any file in a subfolder."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(OSError), file.open("rb") as stream:
            if is_dicom(stream.read(132)):
                return True
    return False


def load_dicom_image(path: Path, window: Window | None) -> Image.Image:
    """Read one image as 8-bit RGB: grey values in ``window``; where that is None, in the file's own
    window, else bytes as they are and others in the 1st to 99th percentile."""
    from pydicom.pixels import apply_color_lut

    if (plane := _plane(path)) is None:
        raise ScanError(path, "an image", "none in the file", "give an image")
    check_voxels(plane.shape, path)
    with _readable(path):
        data, values = _values(plane)
        if plane.photometric == "PALETTE COLOR":
            values = apply_color_lut(values, data)
        if values.ndim == 3:  # 8 or 16 bits a colour
            return Image.fromarray((values >> 8 * (values.dtype.itemsize - 1)).astype(np.uint8))
        usual = (0, 255) if values.dtype == np.uint8 else "percentile"
        grey = to_grey(values, window or _own_window(data) or usual, path)
    grey = 255 - grey if plane.photometric == "MONOCHROME1" else grey
    return Image.fromarray(grey).convert("RGB")


def _own_window(data: Any) -> tuple[float, float] | None:
    """The first window of a file as (low, high), by the linear formula of PS3.3, C.11.2.1.2."""
    fields = (np.atleast_1d(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    centre, width = (float(field[0] or 0) if field.size else 0.0 for field in fields)
    return (centre - width / 2, centre + width / 2 - 1) if width > 1 else None


def _assemble(source: Path, planes: Sequence[_Plane]) -> Volume:
    do = "keep one series a folder, without localizers and reports"
    for name in ("series", "shape", "photometric"):
        _same(source, name, [getattr(plane, name) for plane in planes], do)
    kind = planes[0].photometric
    if kind not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise ScanError(source, "grey values", f"colours ({kind})", "read it with load_image")
    check_voxels((len(planes), *planes[0].shape), source)
    scalings = {p.scaling for p in planes} - {None, (1.0, 0.0)}
    if scalings:  # each slice may have its own (PET), but one without any is on another scale
        _present(source, planes, "RescaleSlope and RescaleIntercept", "scaling")
    if len(planes) == 1 and (planes[0].position is None or planes[0].orientation is None):
        return Volume(_stack(planes), UNKNOWN_AFFINE, str(source), has_affine=False)
    order, affine = _geometry(source, planes)
    slices = _stack([planes[index] for index in order])
    return orient(slices.transpose(2, 1, 0), _LPS_TO_RAS @ affine, str(source))


def _same(source: Path, what: str, values: Sequence[Any], do: str, tolerance: float = 0) -> None:
    first, near = values[0], isinstance(values[0], np.ndarray)
    others = [v for v in values if (np.abs(v - first).max() > tolerance if near else v != first)]
    if others:
        found = f"{others[0]} in {len(others)} of {len(values)} slices"
        raise ScanError(source, f"one {what}, {first}", found, do)


def _present(source: Path, planes: Sequence[_Plane], what: str, name: str) -> None:
    lacking = [plane.path.name for plane in planes if getattr(plane, name) is None]
    if lacking:
        found = f"none in {len(lacking)} of {len(planes)} (first: {lacking[0]})"
        do = "export the series again with all its fields; names and numbers are no safe order"
        raise ScanError(source, f"{what} in every slice", found, do)


def _geometry(source: Path, planes: Sequence[_Plane]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the planes along their normal, and (column, row, slice) -> mm in L-P-S. With a
    tilted gantry the step from slice to slice is not along the normal: the planes lean, the table
    moves straight on."""
    _present(source, planes, "ImagePositionPatient", "position")
    _present(source, planes, "ImageOrientationPatient", "orientation")
    _present(source, planes, "PixelSpacing", "spacing")
    axes, spacing = planes[0].orientation.reshape(2, 3), planes[0].spacing
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(axes[0] @ axes[1]) > 1e-2 or spacing.min() <= 0:
        expected = "a positive PixelSpacing, ImageOrientationPatient of perpendicular vectors of 1"
        raise ScanError(source, expected, [*spacing, *axes], "export the series again")
    do = "keep one orientation and spacing a folder (scouts and reformats apart)"
    _same(source, "orientation", [p.orientation for p in planes], do, 1e-3)
    _same(source, "pixel spacing", [p.spacing for p in planes], do, 1e-3 * spacing.min())
    row, column = axes / lengths[:, None]
    normal = np.cross(row, column)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    positions, step = positions[order], normal * planes[0].thickness
    if len(planes) > 1:
        step = (positions[-1] - positions[0]) / (len(planes) - 1)
        places = positions[0] + np.arange(len(planes))[:, None] * step
        aside = np.linalg.norm(positions - places, axis=1)
        if step @ normal < 1e-3 or aside.max() > TOLERANCE * np.linalg.norm(step):
            expected = f"slices along a straight line, {np.linalg.norm(step):.3g} mm apart"
            found = f"slice {int(aside.argmax())} of them {aside.max():.3g} mm from its place"
            do = "find missing slices, keep one time point or acquisition a folder, or resample"
            raise ScanError(source, expected, found, do)
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]  # PixelSpacing is (between rows, between columns)
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return order, affine


def _stack(planes: Sequence[_Plane]) -> np.ndarray:
    """Pixels of the planes in scan units; one file is held at a time. ``MONOCHROME1`` (low is
    white) is turned round within the range of the whole volume."""
    slices = np.empty((len(planes), *planes[0].shape), np.uint8)
    for place, plane in enumerate(planes):
        with _readable(plane.path):
            _, values = _values(plane)
        kind = np.result_type(slices, values) if place else values.dtype
        slices = slices.astype(kind, copy=False)
        slices[place] = values
    if planes[0].photometric == "MONOCHROME1":
        ends = slices.max().item() + slices.min().item()
        wide = np.int64 if slices.dtype.kind in "iu" else slices.dtype
        np.subtract(ends, slices, out=slices, dtype=wide, casting="unsafe")
    return slices


def _values(plane: _Plane) -> tuple[Any, np.ndarray]:
    """The whole file of a plane, and its pixels in scan units."""
    data = _read(plane.path)
    expected = f"pixel data in {data.file_meta.TransferSyntaxUID.name}"
    do = "pip install 'pylibjpeg[all]' (or python-gdcm) if it is compressed, or export it again"
    with raising(ScanError, data.filename, expected, do):
        return data, rescale(data.pixel_array, *(plane.scaling or (1, 0)))


def _read(path: Path, **options: Any) -> Any:
    """A DICOM file; one that lost its preamble, perhaps its file meta, is read all the same."""
    from pydicom import dcmread, uid

    _check_deflated(path)
    data = dcmread(path, force=True, **options)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit = data.original_encoding[0]
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = syntax
    return data


def _check_deflated(path: Path) -> None:
    """Inflate a file of the deflated transfer syntax up to a limit: pydicom knows none."""
    from pydicom import filereader, uid

    with path.open("rb") as stream:
        filereader.read_preamble(stream, force=True)
        meta = filereader._read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
            return
        filereader._read_command_set_elements(stream)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(stream.read(), MAX_INFLATED)
    if inflater.unconsumed_tail:
        found = f"more, deflated to {path.stat().st_size}"
        raise ScanError(path, f"at most {MAX_INFLATED} bytes", found, "export it uncompressed")


def _plane(path: Path) -> _Plane | None:
    """A DICOM image, read without its pixels; None for any other file."""
    with _readable(path):
        with path.open("rb") as stream:
            head = stream.read(132)
        if not is_dicom(head):
            if path.suffix.lower() in SUFFIXES:
                do = "export or convert it again"
                raise ScanError(path, "a DICOM image", f"{head[:8]!r} ...", do)
            return None
        header = _read(path, stop_before_pixels=True)
        if "Rows" not in header or "Columns" not in header:
            # a report or directory has none by nature; an image was cut off before them
            kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
            if kind is not None and "Image Storage" not in kind.name:
                return None
            found = "a header that ends before the image"
            raise ScanError(path, "a whole DICOM file", found, "export it again")
        if (frames := int(header.get("NumberOfFrames") or 1)) > 1:
            do = "convert it to NIfTI, for instance with dcm2niix"
            raise ScanError(path, "one image a file", f"{frames} frames", do)
        return _Plane(path, header)


def _numbers(header: Any, name: str, count: int = 1) -> Any:
    """The numbers of a field, a single one as a float; None when it is missing or empty."""
    value = header.get(name)
    if value is None or value == "":
        return None
    values = np.atleast_1d(np.array(value, float))
    if values.shape != (count,) or not np.isfinite(values).all():
        raise ScanError(header.filename, f"{count} numbers in {name}", value, "export it again")
    return values if count > 1 else values.item()
