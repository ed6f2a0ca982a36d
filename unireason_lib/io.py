"""Files: written whole under a temporary name, then renamed (:func:`whole_file`,
:func:`whole_folder`); read without trust: :func:`safe_path` for every path in a data file,
:func:`open_image` for every image. A folder that two processes could write is :func:`locked`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from PIL import Image

from unireason_lib.errors import DatasetError, ScanError, UniReasonError, raising

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
"""Formats that are decoded. Without a list, Pillow guesses among all that it knows, and some of
those start other programs (EPS runs Ghostscript)."""

MAX_IMAGE_PIXELS = 100_000_000  # larger images are refused before they are decoded


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file that is there completely or not at all; an old one stays until the new one is. A
    :class:`DatasetError` when the disk, or the user's quota of it, is full, or something is there
    that is no file."""
    path = replaceable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder that is there completely or not at all: it is renamed at the end. Where
    another process was first, its folder stays. A :class:`DatasetError` when the disk is full."""
    folder = Path(folder)
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(6)}.partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not folder.is_dir():
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise disk_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replaceable(path: str | Path, error: type[UniReasonError] = DatasetError) -> Path:
    """A path to write to; an ``error`` when a folder, a device or a pipe is there: reading it would
    not end, and a new file would take its place."""
    if (path := Path(path)).exists() and not path.is_file():
        found, do = "a folder, a device or a pipe", "choose the name of a file: results.jsonl"
        raise error(path, "a file or nothing", found, do)
    return path


def write_whole(path: str | Path, content: str | bytes | Iterable[str]) -> None:
    """Write text, bytes or a stream of text with :func:`whole_file`."""
    parts = [content] if isinstance(content, str | bytes) else content
    with whole_file(path) as file:
        for part in parts:  # half a surrogate pair, as some models write, becomes its escape
            is_text = isinstance(part, str)
            file.write(part.encode("utf-8", "backslashreplace") if is_text else part)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole; the same value gives the same bytes."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def append_lines(path: str | Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add JSON lines to a file, on the disk all together or none; a line that a kill tore off
    before is ended first. A :class:`DatasetError` when the disk is full."""
    path, size = Path(path), Path(path).stat().st_size if Path(path).exists() else 0
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(max(0, size - 1))
            torn = file.read() not in (b"", b"\n")
            file.write(b"\n" * torn + text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise disk_error(path, error) from error


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; torn ones are passed over, no file has none."""
    lines = []
    for line in Path(path).read_bytes().split(b"\n") if Path(path).exists() else ():
        with contextlib.suppress(ValueError):  # torn by a kill
            lines.append(json.loads(line))
    return lines


def disk_error(path: str | Path, error: Exception) -> Exception:
    """A full disk in words that name the file, also where PyTorch, safetensors or Arrow say so in
    words of their own; any other error as it is."""
    wordings = r"os error (\d+)|No space left on device|file write failed|unexpected pos \d"
    said = re.search(wordings, str(error))
    number = int(said[1] or ENOSPC) if said else getattr(error, "errno", None)
    if number not in (ENOSPC, EDQUOT, EFBIG):
        return error
    do = "free some space and run the same command again; what is finished is kept"
    found = f"none ({os.strerror(number)})"
    return DatasetError(path, "space on the disk for this file", found, do)


@contextlib.contextmanager
def locked(path: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it with the process, however that ends. Another
    holder is waited for with ``wait``, else a :class:`DatasetError` about ``what`` is locked, as
    for a folder that cannot be written."""
    from filelock import FileLock, Timeout

    path, lock = Path(path), FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            do = "wait for it, or choose another output"
            raise DatasetError(what, "nobody else writing it", "a running process", do) from None
        print(f"{what}: waiting for the process that writes it", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        do = "choose another output"
        raise DatasetError(path.parent, "a writable folder", error.strerror, do) from error
    with lock:
        lock.release()  # `with` counts one more
        yield


def read_json(path: str | Path, error: type[UniReasonError] = DatasetError) -> dict[str, Any]:
    """A JSON object from a file; an ``error`` when it is missing or none."""
    with raising(error, path, "a JSON object", "check the path, or restore the file"):
        value = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise TypeError(f"a {type(value).__name__}")
        return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any], under: str = "") -> list[str]:
    """What two runs of JSON settings do not have in common, in words."""
    changes = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += differences(old, new, f"{under}{key}.")
        elif old != new:
            changes.append(f"{under}{key} was {json.dumps(old)} and is now {json.dumps(new)}")
    return changes


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
    foreign = "\0" in written or "\\" in written or PureWindowsPath(written).drive
    outside = foreign or not written.strip() or (not absolute and written.startswith("/"))
    path = root if outside else (root / written).resolve()
    if path == root or not path.is_relative_to(root):
        do = "correct or remove that entry"
        raise error(where, f"a path inside {root.name}/", repr(written), do)
    return path


def open_image(source: str | Path | bytes, name: object = None) -> Image.Image:
    """Decode an image file, or the bytes of one, in its own mode. A :class:`ScanError` for what is
    missing, damaged, of another format than :data:`IMAGE_FORMATS`, of several pages, or larger than
    :data:`MAX_IMAGE_PIXELS`; ``name`` is what it is called there."""
    name = name or (source if not isinstance(source, bytes) else "image")
    expected = f"an image ({', '.join(IMAGE_FORMATS)})"
    with raising(ScanError, name, expected, "check the path, or export the image again"):
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


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
