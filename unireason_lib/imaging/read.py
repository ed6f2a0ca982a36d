"""Reading scans: every format comes out as one kind of volume, or as an error that says what to do.

===========================  ===================================================================================
``.nii``, ``.nii.gz``         NIfTI; memory-mapped when it is not compressed
folder, ``.dcm``, no suffix   DICOM series or file (see :mod:`unireason_lib.imaging.dicom`)
``.npy``, ``.npz``            arrays ``(Z, Y, X)``, or ``(1, D, H, W)`` as M3D has them; no pickles; no geometry
``.png``, ``.jpg``, ...       pictures, with :func:`load_image`
===========================  ===================================================================================

The content decides, not only the name: a file that is something else than its name says is reported as such. Nothing is
allocated on the word of a header alone: sizes are compared with the file first.
"""

from __future__ import annotations

import gzip
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from unireason_lib.errors import ScanError, explain
from unireason_lib.imaging.volume import UNKNOWN_AFFINE, Volume, orient
from unireason_lib.imaging.window import window_range

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_KINDS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\x03\x04", "a zip archive"),
    (b"BM", "a BMP picture"),
)
_GZIP_AT_MOST = 1032  # bytes that DEFLATE makes of one at most (zlib's technical details)
_PIECE = 2**22


def load_volume(path: str | Path, *, key: str | None = None, frame: int | None = None) -> Volume:
    """Read a volume.

    Args:
        path: A file or a DICOM folder.
        key: Which array of an ``.npz`` with several.
        frame: Which volume of a 4D file.

    Returns:
        The volume in the house arrangement, in scan units. Integers stay integers unless a slope or intercept makes
        them fractional.

    Raises:
        ScanError: Missing, empty, truncated or ill-formed file, no volume in it, or a choice (``key``,
            ``frame``) is missing.

    Warns:
        UserWarning: A NIfTI file names no orientation (both codes are 0): which side is left is then an assumption.
    """
    path = Path(path)
    if path.is_dir():
        from unireason_lib.imaging.dicom import load_series

        return load_series(path)
    head = _head(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path, head, frame)
    if name.endswith((".npy", ".npz")):
        return _numpy(path, head, key, frame)
    if _is_dicom(head):
        from unireason_lib.imaging.dicom import load_file

        return load_file(path)
    if name.endswith((".dcm", ".dicom", ".ima")):
        raise _wrong(path, "a DICOM image (DICM after 128 bytes)", head, "export or convert it again")
    raise _wrong(
        path, "a NIfTI, DICOM, .npy or .npz volume", head, "convert it, or use load_image for a picture"
    )


def load_image(path: str | Path, window: str | tuple[float, float] = "minmax") -> Image.Image:
    """Read a 2D image as an 8-bit RGB picture.

    Args:
        path: PNG, JPEG, BMP, TIFF or WebP, or a DICOM file with one frame (an X-ray).
        window: For grey pictures with more than 8 bits: which values become black and white. A picture of one value
            is black.

    Returns:
        The picture, turned upright as its EXIF data say, transparency dropped.

    Raises:
        ScanError: Missing, empty, truncated, no picture, several pages, or values that are not finite.
    """
    path = Path(path)
    head = _head(path)
    if _is_dicom(head):
        from unireason_lib.imaging.dicom import load_file

        volume = load_file(path)
        if volume.shape[0] != 1:
            raise _wrong(path, "one frame", head, "use load_volume", f"{volume.shape[0]} frames")
        return _grey(volume.array[0], window, path)
    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # decoders of damaged files raise many kinds
        raise _wrong(
            path, "a readable picture", head, "check the file", f"{_kind(head)} ({_short(error)})"
        ) from error
    if pages > 1:
        raise _wrong(path, "one picture", head, "save the page as a file of its own", f"{pages} pages")
    if picture.mode.startswith(("I", "F")):
        return _grey(np.asarray(picture), window, path)
    return picture.convert("RGB")


def _grey(array: np.ndarray, window: str | tuple[float, float], path: Path) -> Image.Image:
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ScanError(
            explain(
                path,
                expected="finite values",
                found=f"{bad} of {array.size} pixels NaN or infinite",
                do="fill them and save the picture again",
            )
        )
    adaptive = isinstance(window, str) and window in ("minmax", "percentile")
    constant = adaptive and array.min() == array.max()
    low, high = (float(array.min()), np.inf) if constant else window_range(array, window, str(path))
    grey = np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")


def _nifti(path: Path, head: bytes, frame: int | None) -> Volume:
    import nibabel as nib

    compressed = path.name.lower().endswith(".gz")
    if compressed != head.startswith(b"\x1f\x8b"):
        expected = "gzip data in a .nii.gz" if compressed else "an uncompressed .nii"
        raise _wrong(path, expected, head, "rename or convert the file")
    try:
        with (gzip.open if compressed else open)(path, "rb") as stream:
            start = stream.read(540)  # of a header of either NIfTI version
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nib.load(path)
        header, affine, proxy = image.header, image.affine, image.dataobj
        # as the file has it: nibabel silently repairs zero and negative values
        stored = type(header)(start[: header.sizeof_hdr], header.endianness, check=False)
        spacing = np.asarray(stored["pixdim"][1:4], float)
    except Exception as error:  # parsers of damaged files raise many kinds
        raise _wrong(path, "a NIfTI file", head, "convert or download it again", _short(error)) from error
    kind = header.get_data_dtype().kind
    if kind not in "iuf":
        do = "take the magnitude" if kind == "c" else "convert colours to grey values"
        raise _wrong(path, "one real number a voxel", head, do, f"type {header.get_data_dtype()}")
    keep = _pick_frame(path, image.shape, frame)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise _wrong(
            path, "positive spacing", head, "repair pixdim in the header", f"spacing {spacing.tolist()}"
        )
    try:
        raw = _raw(path, proxy, compressed)[keep]
    except Exception as error:
        raise _wrong(
            path,
            f"{image.shape} voxels of {header.get_data_dtype()}",
            head,
            "download or export it again",
            f"a truncated or damaged file ({_short(error)})",
        ) from error
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        warnings.warn(
            f"{path}: the header names no orientation; axes are taken as nibabel takes them (the first grows to the "
            "patient's left), so left and right are an assumption",
            stacklevel=3,
        )
    return orient(_scaled(raw, proxy.slope, proxy.inter), affine, str(path))


def _raw(path: Path, proxy: Any, compressed: bool) -> np.ndarray:
    """Stored numbers, unscaled: mapped from the file, or decompressed once."""
    need = math.prod(int(side) for side in proxy.shape) * proxy.dtype.itemsize
    size = path.stat().st_size
    most = size * _GZIP_AT_MOST if compressed else size - proxy.offset
    if need > most:
        raise EOFError(f"{need} bytes expected, at most {max(most, 0)} there")
    if not compressed:
        return proxy.get_unscaled()
    data = np.empty(need, np.uint8)
    rest = memoryview(data)
    with gzip.open(path, "rb") as stream:
        stream.read(proxy.offset)
        while rest:
            count = stream.readinto(rest[:_PIECE])
            if not count:
                raise EOFError(f"{need} bytes expected, {need - len(rest)} there")
            rest = rest[count:]
        stream.read(1)  # the checksum is compared when the end is reached
    return data.view(proxy.dtype).reshape(proxy.shape, order="F")


def _scaled(raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if slope == 1 and inter == 0:
        return raw
    if raw.dtype.kind in "iu" and float(slope).is_integer() and float(inter).is_integer():
        info = np.iinfo(raw.dtype)
        ends = [info.min * slope + inter, info.max * slope + inter]
        fit = np.result_type(np.min_scalar_type(int(min(ends))), np.min_scalar_type(int(max(ends))))
        return raw.astype(fit if fit.kind in "iu" else np.int64) * fit.type(slope) + fit.type(inter)
    return raw.astype(np.float32) * np.float32(slope) + np.float32(inter)


def _pick_frame(path: Path, shape: tuple[int, ...], frame: int | None) -> tuple[slice | int, ...]:
    """An index that leaves three axes: further axes of length 1 are dropped, of one longer axis ``frame`` is taken."""
    if len(shape) < 3:
        raise ScanError(
            explain(path, expected="a 3D volume", found=f"shape {shape}", do="use load_image for a picture")
        )
    long = [axis for axis in range(3, len(shape)) if shape[axis] != 1]
    if len(long) > 1:
        raise ScanError(
            explain(
                path, expected="a 3D or 4D volume", found=f"shape {shape}", do="save one 3D volume a file"
            )
        )
    count = shape[long[0]] if long else 1
    if (frame is None and long) or (frame is not None and not 0 <= frame < count):
        raise ScanError(_several(path, shape, count, frame))
    return tuple(slice(None) if axis < 3 else (frame if axis in long else 0) for axis in range(len(shape)))


def _several(path: Path, shape: tuple[int, ...], count: int, frame: int | None) -> str:
    found = f"shape {shape}" if frame is None else f"shape {shape} and frame={frame}"
    choice = f"choose one of the volumes with frame=0 ... {count - 1}" if count > 1 else "leave frame out"
    return explain(path, expected="a 3D volume", found=found, do=choice)


def _numpy(path: Path, head: bytes, key: str | None, frame: int | None) -> Volume:
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                names = list(loaded.files)
                if (key is None and len(names) != 1) or (key is not None and key not in names):
                    raise ScanError(
                        explain(
                            path,
                            expected="one array, or key=<name>",
                            found=f"arrays {names}",
                            do="name one of them",
                        )
                    )
                array = loaded[key or names[0]]
        else:
            array = loaded
    except ScanError:
        raise
    except Exception as error:  # zip archives and array headers that are damaged raise many kinds
        pickled = "pickle" in str(error).lower()
        do = "save plain numbers with numpy.save; pickles are never loaded" if pickled else "save it again"
        found = "pickled objects" if pickled else f"{_kind(head)} ({_short(error)})"
        raise _wrong(path, "a plain NumPy array", head, do, found) from error
    if array.dtype.kind not in "iufb":
        raise _wrong(path, "real numbers", head, "convert it", f"type {array.dtype}")
    shape = array.shape
    while array.ndim > 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim == 4 and frame is not None and 0 <= frame < len(array):
        array = array[frame]
    elif array.ndim == 4 or frame not in (None, 0):
        raise ScanError(_several(path, shape, len(array) if array.ndim == 4 else 1, frame))
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    return Volume(array, UNKNOWN_AFFINE, str(path), has_affine=False)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except FileNotFoundError:
        raise ScanError(
            explain(path, expected="a file", found="nothing of that name", do="check the path")
        ) from None
    except (OSError, ValueError) as error:  # a folder, no permission, an impossible name
        found = "a folder" if path.is_dir() else _short(error)
        raise ScanError(explain(path, expected="a readable file", found=found, do="give a file")) from error
    if not head:
        raise ScanError(
            explain(path, expected="a scan", found="an empty file", do="download or export it again")
        )
    return head


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _kind(head: bytes) -> str:
    if _is_dicom(head):
        return "a DICOM file"
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), f"bytes {head[:8].hex(' ')} ...")


def _wrong(path: Path, expected: str, head: bytes, do: str, found: str | None = None) -> ScanError:
    return ScanError(explain(path, expected=expected, found=found or _kind(head), do=do))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
