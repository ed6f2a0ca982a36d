"""Reading scans: NIfTI (mapped when it is not compressed), DICOM (a folder, ``.dcm`` or no suffix),
``.npy`` and ``.npz`` (``(Z, Y, X)``, or ``(1, D, H, W)`` as in M3D; no geometry) become one kind of
volume, 2D images RGB. Nothing is allocated on the word of a header alone: sizes are compared with
the file and with :data:`unireason_lib.imaging.MAX_VOXELS` first.
"""

import gzip
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageOps

from unireason_lib.errors import ScanError, ScanWarning, raising, why
from unireason_lib.imaging import dicom
from unireason_lib.imaging.volume import UNKNOWN_AFFINE, Volume, check_voxels, orient, rescale
from unireason_lib.imaging.window import Window, to_grey
from unireason_lib.io import open_image

_GZIP_AT_MOST = 1032  # bytes that DEFLATE makes of one at most (zlib's technical details)
_LARGEST_HEADER, _PIECE = 2**26, 2**22
_IN_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's codes of metre, millimetre and micron


def load_volume(path: str | Path, *, key: str | None = None, frame: int | None = None) -> Volume:
    """Read a volume in L-P-S arrangement and scan units, from a file or a DICOM folder.

    ``key`` chooses an array of an ``.npz`` with several, ``frame`` a volume of a 4D file.
    A :class:`ScanError` names what is missing, damaged, too large or no volume; a ``ScanWarning``
    directions that are missing or contradictory, and files of a folder that were left out.
    """
    path = Path(path)
    if path.is_dir():
        return dicom.load_dicom(path)
    head, name = _head(path), path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        if name.endswith(".gz") != head.startswith(b"\x1f\x8b"):
            expected = "gzip data in a .nii.gz, none in a .nii"
            raise ScanError(path, expected, f"{head[:8]!r} ...", "rename or convert the file")
        return _nifti(path, frame)
    if name.endswith((".npy", ".npz")):
        return _numpy(path, key, frame)
    if dicom.is_dicom(head) or name.endswith(dicom.SUFFIXES):
        return dicom.load_dicom(path)
    do = "convert it; an image is read by infer 2d, 2d-batch and load_image"
    raise ScanError(path, "a NIfTI, DICOM, .npy or .npz volume", f"{head[:8]!r} ...", do)


def load_image(
    source: str | Path | bytes, window: Window | None = None, name: object = None
) -> Image.Image:
    """Read a 2D image as 8-bit RGB, turned upright as its EXIF data say, transparency dropped: a
    path (of DICOM too: an X-ray), or the encoded bytes, called ``name`` in messages. ``window`` is
    for grey values of more than 8 bits; None takes that in a DICOM file, else its 1st to 99th
    percentile, and all values of other images."""
    if not isinstance(source, bytes):
        source = Path(source)
        if dicom.is_dicom(_head(source)):
            return dicom.load_dicom_image(source, window)
    name = name or (source if isinstance(source, Path) else "image")
    image = open_image(source, name)
    with raising(ScanError, name, "readable EXIF data", "save the image again without them"):
        ImageOps.exif_transpose(image, in_place=True)  # most images need no copy
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(to_grey(np.asarray(image), window or "minmax", name))
    return image.convert("RGB")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except (OSError, ValueError) as error:  # nothing, a folder, no permission, an impossible name
        found = "a folder" if path.is_dir() else why(error)
        raise ScanError(path, "a file that can be read", found, "check the path") from error
    if not head:
        raise ScanError(path, "a scan", "an empty file", "download or export it again")
    return head


def _frame_of(path: Path, shape: tuple[int, ...], count: int, frame: int | None) -> int:
    """The chosen volume of a file with ``count``, of which only a single one needs no choice."""
    if (frame is None and count > 1) or not 0 <= (frame or 0) < count:
        do = f"choose one with frame=0 ... {count - 1}" if count > 1 else "leave frame out"
        raise ScanError(path, "a 3D volume", f"shape {shape} and frame={frame}", do)
    return frame or 0


def nifti_grid(path: Path) -> Volume:
    """The grid of a NIfTI scan from its header alone, as a volume of zeros."""
    with _opened(path) as (header, _):
        affine, certain = _affine(path, header)
        zeros = np.broadcast_to(np.uint8(0), header.get_data_shape()[:3])
        return orient(zeros, affine, str(path), sides_certain=certain)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The header of a NIfTI file, and the stream after it."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    do = "download or export it again"
    with raising(ScanError, path, "a whole NIfTI file", do), opener(path, "rb") as stream:
        yield _header(path, stream.read(540)), stream  # the longer header is that of version 2


def _nifti(path: Path, frame: int | None) -> Volume:
    with _opened(path) as (header, stream):
        shape = header.get_data_shape()
        long = [side for side in shape[3:] if side != 1]
        if len(shape) < 3 or len(long) > 1:
            do = "save one 3D volume a file; use load_image for an image"
            raise ScanError(path, "a 3D or 4D volume", f"shape {shape}", do)
        chosen = _frame_of(path, shape, *(long or [1]), frame)
        rest = (0 if side == 1 else chosen for side in shape[3:])
        stored = _stored(path, header, stream)[(..., *rest)]
        affine, certain = _affine(path, header)
        slope, intercept = header.get_slope_inter()
    scaling = (1.0, 0.0) if slope is None else (slope, intercept)
    values = rescale(stored, *scaling)
    return orient(values, affine, str(path), sides_certain=certain, scaling=scaling)


def _header(path: Path, block: bytes) -> Any:
    """The header as the file has it: nibabel's own reader repairs zero and negative spacings."""
    import nibabel as nib

    if block[344:348] == b"n+1\0":
        header = nib.Nifti1Header(block[:348], check=False)
    elif block[4:8] == b"n+2\0":
        header = nib.Nifti2Header(block, check=False)
    else:
        raise ScanError(path, "a NIfTI file", f"{block[:8]!r} ...", "download it again")
    dtype, spacing = header.get_data_dtype(), header["pixdim"][1:4]
    if dtype.kind not in "iuf":
        do = "take the magnitude of complex numbers, or convert colours to grey values"
        raise ScanError(path, "one real number a voxel", f"type {dtype}", do)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ScanError(path, "positive spacing", spacing, "repair pixdim in the header")
    return header


def _stored(path: Path, header: Any, stream: Any) -> np.ndarray:
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    offset, compressed = header.get_data_offset(), isinstance(stream, gzip.GzipFile)
    check_voxels(shape, path)
    need, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    most = size * _GZIP_AT_MOST if compressed else size - offset
    if min(shape) < 1 or need > most or not 0 < offset <= _LARGEST_HEADER:
        found = f"{need} bytes of shape {shape} announced, at most {max(most, 0)} there"
        raise ScanError(path, "all its voxels", found, "download or export it again")
    if not compressed:
        return np.memmap(path, dtype, "c", offset, shape, order="F")
    data = np.empty(need, np.uint8)
    rest = memoryview(data)
    stream.seek(offset)
    while rest and (count := stream.readinto(rest[:_PIECE])):
        rest = rest[count:]
    if rest:
        raise EOFError(f"{need - len(rest)} of {need} bytes are there")
    stream.read(1)  # the checksum is compared where the data end
    return data.view(dtype).reshape(shape, order="F")


def _affine(path: Path, header: Any) -> tuple[np.ndarray, bool]:
    """The affine in mm, and whether the header is of one mind about directions: it can place the
    scan twice, by *qform* (from the scanner) and *sform*, which counts where there is one. Software
    that knows only one of them may exchange left and right in the other."""
    from nibabel.orientations import io_orientation

    unit = _IN_MM.get(int(header["xyzt_units"]) % 8, 1.0)
    in_mm = np.diag([unit, unit, unit, 1.0])
    affine = in_mm @ header.get_best_affine()
    placed = [int(header[code]) > 0 for code in ("sform_code", "qform_code")]
    if not any(placed):
        message = f"{path}: the header names no orientation, its axes are assumed"
        warnings.warn(message, ScanWarning, stacklevel=4)
    if not all(placed):
        return affine, any(placed)
    other = in_mm @ header.get_qform()
    corners = np.array(list(product(*((0, side) for side in header.get_data_shape()[:3]), (1,))))
    apart = np.linalg.norm(corners @ (affine - other).T, axis=1).max()
    certain = bool(np.array_equal(io_orientation(affine), io_orientation(other)))
    if not certain or apart > np.linalg.norm(affine[:3, :3], axis=0).min() / 2:
        message = f"{path}: qform and sform put corners up to {apart:.3g} mm apart"
        message += "" if certain else " and disagree about directions"
        warnings.warn(f"{message}; the sform counts", ScanWarning, stacklevel=4)
    return affine, certain


def _numpy(path: Path, key: str | None, frame: int | None) -> Volume:
    do = "save plain numbers with numpy.save; pickles are never loaded"
    with raising(ScanError, path, "a plain NumPy array", do):
        mapped = path.suffix.lower() == ".npy"
        array = np.load(path, "r", allow_pickle=False) if mapped else _member(path, key)
        check_voxels(array.shape, path)
    shape = array.shape
    while array.ndim > 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    chosen = _frame_of(path, shape, len(array) if array.ndim == 4 else 1, frame)
    array = array[chosen] if array.ndim == 4 else array
    array = array.view(np.uint8) if array.dtype.kind == "b" else array
    return Volume(array, UNKNOWN_AFFINE, str(path), has_affine=False)


def _member(path: Path, key: str | None) -> np.ndarray:
    shapes = {name: shape for name, (shape, _) in npz_headers(path).items()}
    key = key or (next(iter(shapes)) if len(shapes) == 1 else None)
    if key not in shapes:
        raise ScanError(path, "one array, or key=<name>", list(shapes), "name one of them")
    check_voxels(shapes[key], path)
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[key]


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of every array of an ``.npz``, by their headers: NumPy allocates that much,
    whatever follows, and reads no more."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len({name.removesuffix(".npy") for name in names}) < len(names):
            raise ValueError("two arrays have one name")  # NumPy may load the other one
        for name in names:
            with archive.open(name) as stream:
                first = npy.read_magic(stream) == (1, 0)
                read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
                shape, _, dtype = read(stream)
            headers[name.removesuffix(".npy")] = shape, dtype
    return headers
