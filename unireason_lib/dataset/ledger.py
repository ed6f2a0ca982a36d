"""May this build go on? What it is made from is written down when it begins and compared when it is taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unireason_lib import __version__
from unireason_lib.dataset.plan import BuildConfig, SourceSpec, fault


def source_state(spec: SourceSpec, source: Any) -> dict[str, Any]:
    """What a source consists of: the number of its studies, and hashes over its files.

    A source of millions of files says itself which few stand for all (``state_files()``, paths of files and folders);
    of any other, every file is looked at once.

    Returns:
        ``files`` hashes relative paths and sizes and is the same on every machine; ``state`` adds times of change.
    """
    files, state = (hashlib.blake2b(digest_size=16) for _ in range(2))
    files.update(repr((spec.name, sorted(spec.options.items()))).encode())
    if spec.path is not None:
        listing = (
            _some(source.state_files(), source.path)
            if hasattr(source, "state_files")
            else _listing(Path(spec.path))
        )
        for name, size, changed in listing:
            files.update(f"{name}\0{size}\0".encode())
            state.update(f"{name}\0{changed}\0".encode())
    else:
        files.update(repr(source).encode())
    return {
        "name": source.name,
        "license": source.license,
        "modality": source.modality,
        "studies": len(source),
        "files": files.hexdigest(),
        "state": state.hexdigest(),
    }


def _some(paths: Sequence[Path], root: str | Path) -> Iterator[tuple[str, int, int]]:
    """The same for chosen files; of a folder, when something was last added to it or removed."""
    for path in paths:
        stat = path.stat()
        size = 0 if path.is_dir() else stat.st_size
        yield path.relative_to(root).as_posix(), size, stat.st_mtime_ns


def _listing(root: Path) -> Iterator[tuple[str, int, int]]:
    """(relative path, bytes, time of change in ns) of every file, in order."""
    if not root.is_dir():
        stat = root.stat()
        yield root.name, stat.st_size, stat.st_mtime_ns
        return
    folders = [root]
    while folders:
        entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
        folders += [Path(entry.path) for entry in reversed(entries) if entry.is_dir(follow_symlinks=True)]
        for entry in entries:
            if not entry.is_dir():
                stat = entry.stat()
                yield Path(entry.path).relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns


def code_state() -> str:
    """Hash over the code that decides the bytes of a data set."""
    package = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(
        [*package.glob("*.py"), *package.glob("imaging/*.py"), *package.glob("dataset/**/*.py")]
    ):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages whose behaviour shows in the bytes."""
    found = {"unireason_lib": __version__}
    for package in ("numpy", "pillow", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def ledger_of(config: BuildConfig, sources: Sequence[Any]) -> dict[str, Any]:
    states = [source_state(spec, source) for spec, source in zip(config.sources, sources, strict=True)]
    settings = public_settings(config)
    return {"settings": settings, "sources": states, "code": code_state(), "versions": versions()}


def public_settings(config: BuildConfig) -> dict[str, Any]:
    """The settings without anything secret and without paths, which may differ from machine to machine."""
    settings = config.to_dict()
    settings["sources"] = [{"name": s["name"], "options": s["options"]} for s in settings["sources"]]
    secret = re.compile(r"key|token|password|cache|folder|url", re.I)
    settings["writer_options"] = {
        name: value for name, value in settings["writer_options"].items() if not secret.search(name)
    }
    return settings


def check_ledger(path: Path, ledger: Mapping[str, Any]) -> None:
    """Begin a ledger, or compare with the one that is there."""
    from unireason_lib.dataset.parquet import write_text

    if not path.exists():
        write_text(path, json.dumps(ledger, indent=1, sort_keys=True) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changes = []
    for old, new in zip(before["sources"], ledger["sources"], strict=False):
        if old != new:
            changes.append(
                f"the source {new['name']} has changed ({old['studies']} studies then, {new['studies']} now)"
            )
    names = sorted(set(before["settings"]) | set(ledger["settings"]))
    for name in names:
        old, new = before["settings"].get(name), ledger["settings"].get(name)
        if old != new:
            changes.append(f"{name} was {json.dumps(old)[:80]} and is {json.dumps(new)[:80]}")
    changes += ["another version of the code"] if before["code"] != ledger["code"] else []
    changes += ["other package versions"] if before["versions"] != ledger["versions"] else []
    if changes:
        raise fault(
            path.parent.parent,
            "the sources and settings that this build was begun with",
            "; ".join(changes),
            "undo the change to go on, or build into another folder",
        )


def refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and not (folder / ".build").is_dir() and any(folder.iterdir()):
        raise fault(
            folder, "a new or empty folder, or a build to go on with", "other files", "choose another --out"
        )


@contextlib.contextmanager
def lock(work: Path, wait: bool = False) -> Iterator[None]:
    """One build a folder at a time; the lock ends with its process, however that ends. Another waits or is refused."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fault(
            work.parent, "a folder that can be written", str(error.strerror), "choose another --out"
        ) from error
    with open(work / "lock", "w") as file:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if not wait:
                    raise fault(
                        work.parent,
                        "no other build here",
                        "one that is running",
                        "wait for it, or choose another --out",
                    ) from None
                print(f"another build of {work.parent.name} is waited for", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)
