"""Files: written whole, read without trust.

Everything that this package writes goes through :func:`whole_file` (under a temporary name, then
renamed), every path that stands in a data file through :func:`safe_path`, every image through
:func:`open_image`, and every folder that two processes could write through :func:`locked`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from PIL import Image

from unireason_lib.errors import DatasetError, ScanError, UniReasonError

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
"""Formats that are decoded. Without a list, Pillow guesses among all that it knows, and some of
those start other programs (EPS runs Ghostscript)."""

MAX_IMAGE_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""


# --- writing ---------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file that is there completely or not at all; an old one stays until the new one is. A
    :class:`DatasetError` when the disk, or the user's quota of it, is full."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes | Iterable[str]) -> None:
    """Write text, bytes or a stream of text with :func:`whole_file`."""
    parts = [content] if isinstance(content, str | bytes) else content
    with whole_file(path) as file:
        for part in parts:
            # half a surrogate pair, as some models write, becomes its escape
            file.write(
                part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace")
            )


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole; the same value gives the same bytes."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def append_lines(path: str | Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add JSON lines to a file in one piece; a line that a kill tore off before is ended first.

    Raises:
        DatasetError: The disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(max(0, file.seek(0, 2) - 1))
            torn = file.read() not in (b"", b"\n")
            text = "".join(json.dumps(line) + "\n" for line in lines)
            file.write(b"\n" * torn + text.encode())
    except OSError as error:
        raise disk_error(path, error) from error


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; torn ones are passed over, no file has none."""
    lines = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else ():
        with contextlib.suppress(ValueError):  # torn by a kill
            lines.append(json.loads(line))
    return lines


def disk_error(path: str | Path, error: OSError) -> Exception:
    """A full disk in words that name the file; any other error of the system as it is."""
    if error.errno not in (ENOSPC, EDQUOT, EFBIG):
        return error
    return DatasetError(
        path,
        "space on the disk for this file",
        f"none ({error.strerror})",
        "free some space and run the same command again; what is finished is kept",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it with the process, however that ends. Another
    holder is waited for with ``wait``, else a :class:`DatasetError` about ``what`` is locked, as
    for a folder that cannot be written."""
    from filelock import FileLock, Timeout

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            do = "wait for it, or choose another output"
            if not wait:
                raise DatasetError(
                    what, "nobody else writing it", "a running process", do
                ) from None
            print(f"{what}: waiting for the process that writes it", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        do = "choose another output"
        raise DatasetError(path.parent, "a writable folder", error.strerror, do) from error
    with lock:
        lock.release()  # `with` counts one more
        yield


# --- reading ---------------------------------------------------------------------------------


def read_json(path: str | Path, error: type[UniReasonError] = DatasetError) -> dict[str, Any]:
    """A JSON object from a file; an ``error`` when it is missing or none."""
    path = Path(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise error(path, "a JSON file", "no such file", "check the path") from None
    except (OSError, ValueError, RecursionError) as reason:
        found = " ".join(str(reason).split())[:160]
        raise error(path, "a JSON object", found, "restore or download the file") from reason
    if not isinstance(value, dict):
        raise error(
            path, "a JSON object", f"a {type(value).__name__}", "check that it is the right file"
        )
    return value


def safe_path(
    root: str | Path,
    written: str,
    where: object = "path",
    error: type[UniReasonError] = DatasetError,
    absolute: bool = False,
) -> Path:
    """A path ``written`` in a data file (named ``where``), below the folder ``root`` that the user
    named. An ``error`` when it is empty, leads out by ``..`` or a link, or is absolute; with
    ``absolute``, that is accepted when it leads below ``root``."""
    root = Path(root).resolve()
    windows = PureWindowsPath(written)
    foreign = "\0" in written or "\\" in written or windows.drive
    inner = PurePosixPath(written)
    if not written.strip() or foreign or (inner.is_absolute() and not absolute):
        raise error(
            where, f"a path inside {root.name}/", repr(written), "correct or remove that entry"
        )
    path = (root / inner).resolve()
    if path == root or not path.is_relative_to(root):
        raise error(
            where, f"a path inside {root.name}/", repr(written), "correct or remove that entry"
        )
    return path


def open_image(source: str | Path | bytes, name: object = None) -> Image.Image:
    """Decode an image file, or the bytes of one, in its own mode. A :class:`ScanError` for what is
    missing, damaged, of another format than :data:`IMAGE_FORMATS`, of several pages, or larger than
    :data:`MAX_IMAGE_PIXELS`; ``name`` is what it is called there."""
    name = name or (source if not isinstance(source, bytes) else "image")
    expected = f"an image ({', '.join(IMAGE_FORMATS)})"
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                limit = f"at most {MAX_IMAGE_PIXELS:,} pixels"
                raise ScanError(name, limit, f"{width} x {height}", "crop or shrink the image")
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if pages > 1:
                do = "save the page as a file of its own"
                raise ScanError(name, "one image", f"{pages} pages", do)
            image.load()
            return image
    except ScanError:
        raise
    except FileNotFoundError:
        raise ScanError(name, expected, "no such file", "check the path") from None
    except Exception as error:  # decoders of damaged files raise many kinds
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ScanError(name, expected, found, "export or download the image again") from error


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
