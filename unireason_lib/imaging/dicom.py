"""DICOM: from single slices, each with its own position, to one volume.

A series is a folder of files in no order. Slices are sorted by where they lie along the normal of their plane, never by
file name or instance number. What would give a wrong volume (two series in one folder, a missing slice, slices without
a position) is refused: a volume with a hole looks fine and measures wrong.

Every frame of every file becomes one :class:`_Plane`; whether the planes come from many files or, in an *enhanced*
file, from the functional groups of one, the volume is put together in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unireason_lib.errors import ScanError, explain
from unireason_lib.imaging.volume import UNKNOWN_AFFINE, Volume, orient

GAP_TOLERANCE = 0.05
"""Share by which distances between slices may differ (positions are stored as rounded decimals)."""

SHIFT_TOLERANCE = 0.1
"""Share of a pixel by which a slice may lie beside the straight line through the others."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# where an enhanced file keeps what a single slice has at its top level (DICOM PS3.3, C.7.6.16.2)
_FUNCTIONAL_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)


@dataclass(frozen=True, eq=False)
class _Plane:
    """One frame: where it lies (mm, DICOM's L-P-S world) and how stored numbers become scan units."""

    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: np.ndarray | None
    thickness: float
    slope: float
    intercept: float


@dataclass(frozen=True)
class _File:
    """What a volume needs to know of one file, read without its pixels."""

    path: Path
    series: str
    shape: tuple[int, int]
    inverted: bool
    planes: tuple[_Plane, ...]


def load_series(folder: Path) -> Volume:
    """Read the one series in a folder (not in its subfolders); files that are no DICOM images are passed over.

    Raises:
        ScanError: No DICOM images, several series, differing shapes, orientations or spacings, missing or repeated
            positions, a gap, slices that are not stacked along a line, or a file that cannot be read.
    """
    files = [found for path in sorted(folder.iterdir()) if path.is_file() and (found := _file(path))]
    if not files:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ScanError(
            explain(folder, expected="DICOM images", found=names, do="give the folder that holds the slices")
        )
    return _assemble(folder, files)


def load_file(path: Path) -> Volume:
    """Read one file: a single slice, or an enhanced file with many frames.

    A single slice without a position (an X-ray) becomes a volume of one slice without geometry. A single slice with
    one is as thick as it says, or 1 mm when it does not say.

    Raises:
        ScanError: As :func:`load_series`.
    """
    found = _file(path)
    if found is None:
        raise ScanError(
            explain(path, expected="a DICOM image", found="a file without pixels", do="give an image file")
        )
    return _assemble(path, [found])


def _assemble(source: Path, files: Sequence[_File]) -> Volume:
    """Planes of all files -> one volume in the house arrangement."""
    _same(source, "series", {file.series for file in files}, "keep one series a folder")
    _same(source, "slice shape", {file.shape for file in files}, "remove localizers and reports")
    _same(source, "photometric interpretation", {file.inverted for file in files}, "separate the images")
    owners = [file for file in files for _ in file.planes]
    planes = [plane for file in files for plane in file.planes]
    if len(planes) == 1 and (planes[0].position is None or planes[0].orientation is None):
        return Volume(_stack(files, np.array([0])), UNKNOWN_AFFINE, str(source), has_affine=False)
    order, affine = _geometry(source, owners, planes)
    slices = _stack(files, np.argsort(order))
    return orient(slices.transpose(2, 1, 0), _LPS_TO_RAS @ affine, str(source))


def _geometry(
    source: Path, owners: Sequence[_File], planes: Sequence[_Plane]
) -> tuple[np.ndarray, np.ndarray]:
    """The order of the planes from low to high along their normal, and (column, row, slice) -> mm in L-P-S."""
    lacking = [
        file
        for file, plane in zip(owners, planes, strict=True)
        if plane.position is None or plane.orientation is None
    ]
    if lacking:
        raise ScanError(
            explain(
                source,
                expected="ImagePositionPatient and ImageOrientationPatient in every slice",
                found=f"none in {len(lacking)} of {len(planes)} (first: {lacking[0].path.name})",
                do="export the series with its geometry; file names and instance numbers are no safe order",
            )
        )
    row, column = _directions(source, planes)
    spacing = _spacing(source, owners, planes)
    normal = np.cross(row, column)
    positions = np.array([plane.position for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    if len(planes) == 1:
        step = normal * planes[0].thickness
    else:
        step = _step(source, positions[order], normal, float(spacing.min()))
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]  # PixelSpacing is (between rows, between columns)
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return order, affine


def _directions(source: Path, planes: Sequence[_Plane]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and down a column, the same in all planes."""
    all_of_them = np.array([plane.orientation for plane in planes])
    first = all_of_them[0]
    row, column = first[:3], first[3:]
    lengths = np.linalg.norm(first.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(row @ column) > 1e-2:
        raise ScanError(
            explain(
                source,
                expected="ImageOrientationPatient of two unit vectors at right angles",
                found=str(np.round(first, 4).tolist()),
                do="export the series again",
            )
        )
    others = int((np.abs(all_of_them - first).max(axis=1) > 1e-3).sum())
    if others:
        raise ScanError(
            explain(
                source,
                expected="one orientation",
                found=f"{others} of {len(planes)} slices in another",
                do="keep one orientation a folder (scouts and reformats apart)",
            )
        )
    return row / lengths[0], column / lengths[1]


def _spacing(source: Path, owners: Sequence[_File], planes: Sequence[_Plane]) -> np.ndarray:
    """(between rows, between columns) in mm, the same in all planes."""
    for file, plane in zip(owners, planes, strict=True):
        if plane.spacing is None or plane.spacing.min() <= 0:
            found = "none" if plane.spacing is None else f"a spacing of {plane.spacing.tolist()}"
            raise ScanError(
                explain(
                    file.path,
                    expected="a positive PixelSpacing",
                    found=found,
                    do="export the file with its geometry",
                )
            )
    first = planes[0].spacing
    others = [plane for plane in planes if np.abs(plane.spacing - first).max() > 1e-3 * first.min()]
    if others:
        raise ScanError(
            explain(
                source,
                expected=f"one pixel spacing, {first.tolist()} mm",
                found=f"{others[0].spacing.tolist()} mm in {len(others)} of {len(planes)} slices",
                do="resample or separate the slices",
            )
        )
    return first


def _step(source: Path, positions: np.ndarray, normal: np.ndarray, pixel: float) -> np.ndarray:
    """The way from each slice to the next in mm, along the line on which they lie.

    With a tilted gantry that line is not the normal of the slices: the patient is pushed along the table while the
    planes lean. The affine keeps the slant, so millimetres stay right.
    """
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    if steps.min() <= 1e-3:
        raise ScanError(
            explain(
                source,
                expected="one slice a position",
                found=f"{int((steps <= 1e-3).sum())} repeated positions",
                do="keep one time point or reconstruction a folder",
            )
        )
    if np.abs(steps - usual).max() > GAP_TOLERANCE * usual:
        worst = int(np.abs(steps - usual).argmax())
        raise ScanError(
            explain(
                source,
                expected=f"even steps of {usual:.3g} mm",
                found=f"a step of {steps[worst]:.3g} mm after slice {worst}",
                do="find the missing slices, or resample the series to even steps first",
            )
        )
    step = (positions[-1] - positions[0]) / len(steps)
    along = ((positions - positions[0]) @ normal) / (step @ normal)
    aside = np.linalg.norm(positions - positions[0] - along[:, None] * step, axis=1)
    if aside.max() > SHIFT_TOLERANCE * pixel:
        raise ScanError(
            explain(
                source,
                expected="slices stacked along a straight line",
                found=f"slice {int(aside.argmax())} lies {aside.max():.3g} mm beside it",
                do="keep one acquisition a folder, or resample the series first",
            )
        )
    return step


def _stack(files: Sequence[_File], places: np.ndarray) -> np.ndarray:
    """Pixels of all planes in scan units, plane ``i`` at ``places[i]``; one file is held at a time.

    ``MONOCHROME1`` (low is white) is turned round within the range of the whole volume, so that high is bright
    everywhere.
    """
    slices: np.ndarray | None = None
    place = iter(places.tolist())
    for file in files:
        for frame, plane in zip(_frames(file), file.planes, strict=True):
            values = _in_scan_units(frame, plane)
            if slices is None:
                slices = np.empty((len(places), *file.shape), values.dtype)
            elif not np.can_cast(values.dtype, slices.dtype):
                slices = slices.astype(np.result_type(slices, values))
            slices[next(place)] = values
    if files[0].inverted:
        ends = slices.max().item() + slices.min().item()
        for values in slices:
            values[...] = ends - values.astype(np.int64 if values.dtype.kind == "i" else values.dtype)
    return slices


def _in_scan_units(frame: np.ndarray, plane: _Plane) -> np.ndarray:
    """Stored numbers times slope plus intercept: the smallest of int16, int32, int64 that holds them, or float32."""
    if not (plane.slope.is_integer() and plane.intercept.is_integer()):
        return frame.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
    slope, intercept = int(plane.slope), int(plane.intercept)
    ends = [int(end) * slope + intercept for end in (frame.min(), frame.max())]
    holding = (kind for kind in (np.int16, np.int32, np.int64) if _holds(kind, ends))
    return (frame.astype(np.int64) * slope + intercept).astype(next(holding, np.int64))


def _holds(kind: type, ends: Sequence[int]) -> bool:
    return np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max


def _frames(file: _File) -> np.ndarray:
    """``(frames, rows, columns)`` as stored."""
    import pydicom

    with _readable(file.path):
        data = pydicom.dcmread(file.path)
        compressed = data.file_meta.TransferSyntaxUID.is_compressed
        try:
            pixels = data.pixel_array
        except Exception as error:  # decoders raise many kinds
            plugins = "install the decoders: pip install 'pylibjpeg[all]' (or python-gdcm)"
            raise ScanError(
                explain(
                    file.path,
                    expected="pixel data that can be decoded",
                    found=f"{data.file_meta.TransferSyntaxUID.name}, {_short(error)}",
                    do=plugins if compressed else "export the file again",
                )
            ) from error
        return pixels.reshape(len(file.planes), *file.shape)


def _file(path: Path) -> _File | None:
    """The header of a DICOM image; None for any other file, DICOM or not."""
    import pydicom

    with _readable(path):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            return None
        if "Rows" not in header or "Columns" not in header:
            _refuse_cut_off(path, header)
            return None
        if int(header.get("SamplesPerPixel") or 1) != 1:
            raise ScanError(
                explain(
                    path,
                    expected="grey values",
                    found="colours",
                    do="take the file out of the folder, or save it as PNG for load_image",
                )
            )
        return _File(
            path,
            str(header.get("SeriesInstanceUID", "")),
            (int(header.Rows), int(header.Columns)),
            header.get("PhotometricInterpretation") == "MONOCHROME1",
            _planes(path, header),
        )


def _refuse_cut_off(path: Path, header: Any) -> None:
    """A report or directory has no rows by nature; an image without them was cut off before them."""
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    if kind is None or "Image Storage" in kind.name:
        raise ScanError(
            explain(
                path,
                expected="a whole DICOM file",
                found="a header that ends before the image",
                do="export it again",
            )
        )


def _planes(path: Path, header: Any) -> tuple[_Plane, ...]:
    frames = int(header.get("NumberOfFrames") or 1)
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if not groups and frames == 1:
        return (_plane(path, [header]),)
    if len(groups) != frames:
        raise ScanError(
            explain(
                path,
                expected="a position for every frame",
                found=f"{frames} frames, {len(groups)} of them with one",
                do="convert the file to NIfTI or single-frame DICOM",
            )
        )
    shared = [item for part in header.get("SharedFunctionalGroupsSequence") or [] for item in _items(part)]
    return tuple(_plane(path, [*_items(group), *shared, header]) for group in groups)


def _items(group: Any) -> list[Any]:
    return [item for name in _FUNCTIONAL_GROUPS for item in group.get(name) or []]


def _plane(path: Path, places: Sequence[Any]) -> _Plane:
    """Read one plane; the first data set that has a field decides."""

    def numbers(name: str, count: int) -> np.ndarray | None:
        value = next((place.get(name) for place in places if place.get(name) not in (None, "")), None)
        if value is None:
            return None
        found = np.atleast_1d(np.array(value, float))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise ScanError(
                explain(
                    path, expected=f"{count} numbers in {name}", found=f"{value}", do="export the file again"
                )
            )
        return found

    def number(name: str, default: float) -> float:
        found = numbers(name, 1)
        return default if found is None else float(found[0])

    return _Plane(
        numbers("ImagePositionPatient", 3),
        numbers("ImageOrientationPatient", 6),
        numbers("PixelSpacing", 2),
        abs(number("SpacingBetweenSlices", 0.0) or number("SliceThickness", 0.0)) or 1.0,
        number("RescaleSlope", 1.0),
        number("RescaleIntercept", 0.0),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes pydicom raise (values are parsed when they are asked for) names the file."""
    try:
        yield
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(
            explain(path, expected="a readable DICOM file", found=_short(error), do="export it again")
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _same(source: Path, what: str, values: set, do: str) -> None:
    if len(values) > 1:
        raise ScanError(explain(source, expected=f"one {what}", found=f"{len(values)} different ones", do=do))
