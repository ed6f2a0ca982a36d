"""DICOM: from single slices, each with its own position, to one volume.

A series is a folder of files in no order. Slices are sorted by where they lie along the normal of their
plane, never by file name or instance number. What would give a wrong volume (two series in one folder, a
missing slice, slices without a position) is
refused: a volume with a hole looks fine and measures wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unireason_lib.errors import ScanError, explain
from unireason_lib.imaging.volume import UNKNOWN_AFFINE, Volume, orient

GAP_TOLERANCE = 0.05
"""Share by which distances between slices may differ (positions are stored as rounded decimals)."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def load_series(folder: Path) -> Volume:
    """Read the one series in a folder (not in its subfolders); files that are no DICOM are passed over.

    Raises:
        ScanError: No DICOM images, several series, differing shapes or orientations, missing or repeated
            positions, a gap, or pixel data that cannot be decoded.
    """
    headers = [
        header
        for file in sorted(folder.iterdir())
        if file.is_file() and (header := _header(file)) is not None
    ]
    if not headers:
        names = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise ScanError(
            explain(folder, expected="DICOM images", found=names, do="give the folder that holds the slices")
        )
    _same(
        folder,
        "series",
        {str(header.get("SeriesInstanceUID", "")) for header in headers},
        "keep one series a folder",
    )
    if len(headers) == 1:
        return load_file(Path(headers[0].filename))
    _same(
        folder,
        "slice shape",
        {(header.Rows, header.Columns) for header in headers},
        "remove localizers and reports",
    )
    orientation = _orientation(folder, headers)
    _same(
        folder,
        "pixel spacing",
        {tuple(np.round(_spacing(h), 4)) for h in headers},
        "resample or separate the slices",
    )
    normal = np.cross(orientation[:3], orientation[3:])
    placed = sorted(((_position(header) @ normal, header) for header in headers), key=lambda entry: entry[0])
    step = _even_step(folder, np.array([place for place, _ in placed]))
    slices = np.stack([_pixels(header) for _, header in placed])
    return _volume(
        folder, slices, orientation, _position(placed[0][1]), _spacing(placed[0][1]), normal * step
    )


def load_file(path: Path) -> Volume:
    """Read one file: a single slice, or an enhanced file with many frames.

    A single slice without a position (an X-ray) becomes a volume of one slice without geometry.

    Raises:
        ScanError: As :func:`load_series`.
    """
    header = _header(path)
    if header is None:
        raise ScanError(explain(path, expected="a DICOM image", found="something else", do="check the file"))
    pixels = _pixels(header)
    if pixels.ndim == 3:
        return _frames(path, header, pixels)
    if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
        return Volume(pixels[None], UNKNOWN_AFFINE, str(path), has_affine=False)
    orientation = _orientation(path, [header])
    normal = np.cross(orientation[:3], orientation[3:])
    thickness = float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)
    return _volume(
        path, pixels[None], orientation, _position(header), _spacing(header), normal * abs(thickness)
    )


def _frames(path: Path, header: Any, pixels: np.ndarray) -> Volume:
    """An enhanced multi-frame file: geometry from the functional groups of each frame."""
    try:
        shared = header.SharedFunctionalGroupsSequence[0]
        groups = list(header.PerFrameFunctionalGroupsSequence)
        positions = np.array([list(g.PlanePositionSequence[0].ImagePositionPatient) for g in groups], float)
        planes = getattr(shared, "PlaneOrientationSequence", None) or groups[0].PlaneOrientationSequence
        measures = getattr(shared, "PixelMeasuresSequence", None) or groups[0].PixelMeasuresSequence
        orientation = np.array(list(planes[0].ImageOrientationPatient), float)
        spacing = np.array(list(measures[0].PixelSpacing), float)
    except (AttributeError, IndexError) as error:
        raise ScanError(
            explain(
                path,
                expected="a position for every frame",
                found=f"{len(pixels)} frames without one",
                do="convert the file to NIfTI or single-frame DICOM",
            )
        ) from error
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.argsort(positions @ normal, kind="stable")
    step = _even_step(path, (positions @ normal)[order])
    return _volume(path, pixels[order], orientation, positions[order[0]], spacing, normal * step)


def _header(file: Path) -> Any | None:
    """A file's data set when it is a DICOM image, else None."""
    import pydicom

    try:
        header = pydicom.dcmread(file, force=False)
    except (pydicom.errors.InvalidDicomError, EOFError):
        return None
    except (OSError, ValueError, KeyError) as error:
        raise ScanError(
            explain(file, expected="a readable DICOM file", found=f"{error}", do="export it again")
        ) from error
    return header if "Rows" in header and "PixelData" in header else None


def _pixels(header: Any) -> np.ndarray:
    """Pixels in scan units; MONOCHROME1 (white is low) is turned round, so that high values are bright everywhere."""
    try:
        pixels = header.pixel_array
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise ScanError(
            explain(
                header.filename,
                expected="pixel data that can be decoded",
                found=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                do="for compressed files install pylibjpeg or python-gdcm, else export the file again",
            )
        ) from error
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ScanError(
            explain(header.filename, expected="grey values", found="colours", do="export the original images")
        )
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    if slope.is_integer() and intercept.is_integer():
        values = pixels.astype(np.int32) * int(slope) + int(intercept)
        fits = values.min() >= -32768 and values.max() <= 32767
        values = values.astype(np.int16) if fits else values
    else:
        values = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        values = (values.max() + values.min()) - values
    return values


def _volume(
    source: Path,
    slices: np.ndarray,
    orientation: np.ndarray,
    origin: np.ndarray,
    spacing: np.ndarray,
    step: np.ndarray,
) -> Volume:
    """``(slice, row, column)`` pixels with DICOM geometry -> house arrangement."""
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * spacing[1]  # a step along a row: the next column
    affine[:3, 1] = orientation[3:] * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    return orient(slices.transpose(2, 1, 0), _LPS_TO_RAS @ affine, str(source))


def _position(header: Any) -> np.ndarray:
    return np.array(list(header.ImagePositionPatient), float)


def _spacing(header: Any) -> np.ndarray:
    """(between rows, between columns) in mm."""
    if "PixelSpacing" not in header:
        raise ScanError(
            explain(
                header.filename, expected="PixelSpacing", found="none", do="export the file with its geometry"
            )
        )
    return np.array(list(header.PixelSpacing), float)


def _orientation(source: Path, headers: Sequence[Any]) -> np.ndarray:
    lacking = [h for h in headers if not (h.get("ImagePositionPatient") and h.get("ImageOrientationPatient"))]
    if lacking:
        raise ScanError(
            explain(
                source,
                expected="ImagePositionPatient and ImageOrientationPatient in every slice",
                found=f"none in {len(lacking)} of {len(headers)} (first: {Path(lacking[0].filename).name})",
                do="export the series with its geometry; file names and instance numbers are no safe order",
            )
        )
    first = np.array(list(headers[0].ImageOrientationPatient), float)
    tilted = [
        h for h in headers if np.abs(np.array(list(h.ImageOrientationPatient), float) - first).max() > 1e-3
    ]
    if tilted:
        raise ScanError(
            explain(
                source,
                expected="one orientation",
                found=f"{len(tilted)} of {len(headers)} slices in another",
                do="keep one orientation a folder (scouts and reformats apart)",
            )
        )
    return first


def _even_step(source: Path, places: np.ndarray) -> float:
    """Distance of neighbouring slices in mm."""
    if len(places) == 1:
        return 1.0
    steps = np.diff(places)
    usual = float(np.median(steps))
    if steps.min() <= 1e-3:
        repeated = int((steps <= 1e-3).sum())
        raise ScanError(
            explain(
                source,
                expected="one slice a position",
                found=f"{repeated} repeated positions",
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
    return usual


def _same(source: Path, what: str, values: set, do: str) -> None:
    if len(values) > 1:
        raise ScanError(explain(source, expected=f"one {what}", found=f"{len(values)} different ones", do=do))
