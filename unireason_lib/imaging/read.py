"""Reading scans: every format comes out as one kind of volume, or as an error that says what to do.

===========================  ===================================================================================
``.nii``, ``.nii.gz``         NIfTI; memory-mapped when it is not compressed
folder, ``.dcm``, no suffix   DICOM series or file (see :mod:`unireason_lib.imaging.dicom`)
``.npy``, ``.npz``            arrays ``(Z, Y, X)``, or ``(1, D, H, W)`` as M3D has them; no pickles; no geometry
``.png``, ``.jpg``, ...       pictures, with :func:`load_image`
===========================  ===================================================================================

The content decides, not only the name: a file that is something else than its name says is reported as such.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path

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


def load_volume(path: str | Path, *, key: str | None = None, frame: int | None = None) -> Volume:
    """Read a volume.

    Args:
        path: A file or a DICOM folder.
        key: Which array of an ``.npz`` with several.
        frame: Which volume of a 4D file.

    Returns:
        The volume in the house arrangement, in scan units. Integers keep their type unless a slope or
        intercept makes them fractional.

    Raises:
        ScanError: Missing, empty, truncated or ill-formed file, no volume in it, or a choice (``key``,
            ``frame``) is missing.
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
    if name.endswith((".dcm", ".dicom", ".ima")) or _is_dicom(path):
        from unireason_lib.imaging.dicom import load_file

        return load_file(path)
    raise _wrong(
        path, "a NIfTI, DICOM, .npy or .npz volume", head, "convert it, or use load_image for a picture"
    )


def load_image(path: str | Path, window: str | tuple[float, float] = "minmax") -> Image.Image:
    """Read a 2D image as an 8-bit RGB picture.

    Args:
        path: PNG, JPEG, BMP, TIFF or WebP, or a DICOM file with one frame (an X-ray).
        window: For pictures with more than 8 bits: which values become black and white.

    Returns:
        The picture, turned upright as its EXIF data say, transparency dropped.

    Raises:
        ScanError: Missing, empty, truncated, or no picture.
    """
    path = Path(path)
    head = _head(path)
    if path.suffix.lower() in (".dcm", ".dicom") or _is_dicom(path):
        from unireason_lib.imaging.dicom import load_file

        volume = load_file(path)
        if volume.shape[0] != 1:
            raise _wrong(path, "one frame", head, "use load_volume", f"{volume.shape[0]} frames")
        return _grey(volume.array[0], window, path)
    try:
        with Image.open(path) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _wrong(
            path, "a readable picture", head, "check the file", f"{_kind(head)} ({_short(error)})"
        ) from error
    if picture.mode.startswith(("I", "F")):
        return _grey(np.asarray(picture), window, path)
    return picture.convert("RGB")


def _grey(array: np.ndarray, window: str | tuple[float, float], path: Path) -> Image.Image:
    low, high = (
        window_range(array, window, str(path)) if array.min() < array.max() else (float(array.min()), np.inf)
    )
    grey = np.clip((array.astype(np.float32) - low) / (high - low), 0, 1)
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")


def _nifti(path: Path, head: bytes, frame: int | None) -> Volume:
    import nibabel as nib

    compressed = path.name.lower().endswith(".gz")
    if compressed != head.startswith(b"\x1f\x8b"):
        expected = "gzip data in a .nii.gz" if compressed else "an uncompressed .nii"
        raise _wrong(path, expected, head, "rename or convert the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nib.load(path)
            header, affine = image.header, image.affine
            shape = image.shape
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise _wrong(path, "a NIfTI file", head, "convert or download it again", _short(error)) from error
    if header.get_data_dtype().kind not in "iuf":
        raise _wrong(
            path,
            "one number a voxel",
            head,
            "convert colours to grey values",
            f"type {header.get_data_dtype()}",
        )
    spacing = _stored_spacing(path, compressed, header)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise _wrong(
            path, "positive spacing", head, "repair pixdim in the header", f"spacing {spacing.tolist()}"
        )
    keep = _pick_frame(path, shape, frame)
    try:
        raw = _raw(path, image, compressed)[keep]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _wrong(
            path,
            f"{shape} voxels",
            head,
            "download or export it again",
            f"a truncated file ({_short(error)})",
        ) from error
    return orient(_scaled(raw, image.dataobj.slope, image.dataobj.inter), affine, str(path))


def _stored_spacing(path: Path, compressed: bool, header) -> np.ndarray:
    """Spacing as the file has it; nibabel repairs zero and negative values silently."""
    with (gzip.open if compressed else open)(path, "rb") as stream:
        block = stream.read(header.sizeof_hdr)
    stored = type(header)(binaryblock=block, endianness=header.endianness, check=False)
    return np.asarray(stored["pixdim"][1:4], float)


def _raw(path: Path, image, compressed: bool) -> np.ndarray:
    """Stored numbers, unscaled: mapped from the file, or decompressed once."""
    proxy = image.dataobj
    if not compressed:
        return proxy.get_unscaled()
    count = int(np.prod(image.shape))
    with gzip.open(path, "rb") as stream:
        stream.read(proxy.offset)
        data = stream.read(count * proxy.dtype.itemsize)
    if len(data) < count * proxy.dtype.itemsize:
        raise EOFError(f"{len(data)} bytes of {count * proxy.dtype.itemsize}")
    return np.frombuffer(data, proxy.dtype).reshape(image.shape, order="F")


def _scaled(raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if slope == 1 and inter == 0:
        return raw
    if raw.dtype.kind in "iu" and float(slope).is_integer() and float(inter).is_integer():
        info = np.iinfo(raw.dtype)
        ends = [info.min * slope + inter, info.max * slope + inter]
        fit = np.result_type(np.min_scalar_type(int(min(ends))), np.min_scalar_type(int(max(ends))))
        return raw.astype(fit if fit.kind in "iu" else np.int64) * fit.type(slope) + fit.type(inter)
    return raw.astype(np.float32) * np.float32(slope) + np.float32(inter)


def _pick_frame(path: Path, shape: tuple[int, ...], frame: int | None):
    """An index that leaves three axes."""
    extra = shape[3:]
    if len(shape) == 2 or (len(shape) >= 3 and 0 in shape) or len(shape) < 2:
        raise ScanError(
            explain(path, expected="a 3D volume", found=f"shape {shape}", do="use load_image for a picture")
        )
    if all(side == 1 for side in extra):
        return (slice(None),) * 3 + (0,) * len(extra)
    if frame is None or len(extra) > 1 or not 0 <= frame < extra[0]:
        raise ScanError(
            explain(
                path,
                expected="a 3D volume",
                found=f"shape {shape}",
                do=f"choose one of the volumes with frame=0 ... {extra[0] - 1}",
            )
        )
    return (slice(None),) * 3 + (frame,)


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
    except (OSError, ValueError, EOFError, KeyError, zlib.error) as error:
        pickled = "pickle" in str(error).lower()
        do = "save plain numbers with numpy.save; pickles are never loaded" if pickled else "save it again"
        found = "pickled objects" if pickled else f"{_kind(head)} ({_short(error)})"
        raise _wrong(path, "a plain NumPy array", head, do, found) from error
    if array.dtype.kind not in "iufb":
        raise _wrong(path, "real numbers", head, "convert it", f"type {array.dtype}")
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 4 and frame is not None and 0 <= frame < array.shape[0]:
        array = array[frame]
    if array.ndim == 4:
        raise ScanError(
            explain(
                path,
                expected="(Z, Y, X) or (1, D, H, W)",
                found=f"shape {array.shape}",
                do=f"choose one with frame=0 ... {array.shape[0] - 1}",
            )
        )
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    return Volume(array, UNKNOWN_AFFINE, str(path), has_affine=False)


def _head(path: Path) -> bytes:
    if not path.exists():
        raise ScanError(explain(path, expected="a file", found="nothing of that name", do="check the path"))
    with path.open("rb") as stream:
        head = stream.read(132)
    if not head:
        raise ScanError(
            explain(path, expected="a scan", found="an empty file", do="download or export it again")
        )
    return head


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _kind(head: bytes) -> str:
    if head[128:132] == b"DICM":
        return "a DICOM file"
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), f"bytes {head[:8].hex(' ')} ...")


def _wrong(path: Path, expected: str, head: bytes, do: str, found: str | None = None) -> ScanError:
    return ScanError(explain(path, expected=expected, found=found or _kind(head), do=do))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
