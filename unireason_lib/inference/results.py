"""A file of results that survives: one whole line for each finished sample, never two, never a part.

What can go wrong with hours of results, and what is done about it here:

- the process is killed: each line is appended in one piece and synced to the disk before the next sample starts; a last
  line that was torn all the same (no line end) is cut off when the run goes on, and its sample is done again;
- the run goes on with another model, input or setting: beside ``out.jsonl`` stands ``out.jsonl.run.json``, which says
  what made the results; a run that differs is refused, and told in what;
- two processes write at once: ``out.jsonl.lock`` is held while writing. The system releases it with the process,
  however that ends, so an old lock file means nothing;
- a sample failed: its line has ``error`` instead of a reply. The next run takes such lines out and tries again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unireason_lib.errors import RequestError, explain

_DIFFERENT = "choose another --output, or delete this one to start afresh"


class ResultsFile:
    """Append results to a file, and know which are there already.

    Use as a context manager::

        with ResultsFile("out.jsonl", run={"model": ...}, retry=ids) as results:
            for id in ids:
                if id not in results.done:
                    results.append({"id": id, ...})

    Args:
        path: The file; made when missing, with its folders.
        run: What makes the results: any JSON object. It must be equal when a run goes on.
        retry: Ids whose failed lines are taken out on entry, to be tried again.

    Attributes:
        done: Ids that need not be done again: all in the file except those taken out for another try.

    Raises:
        RequestError: On entry: another process writes the file, it was made by another run or not by a run at all, or a
            line in it is no result.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], retry: Collection[str] = ()) -> None:
        self.path = Path(path).resolve()  # two links to one file must not become two locks
        self.run = json.loads(json.dumps(run))
        self.retry = set(retry)
        self.done: set[str] = set()
        self._file: int | None = None

    @property
    def made_by(self) -> Path:
        """Where it is written what made the results."""
        return run_file(self.path)

    def __enter__(self) -> ResultsFile:
        if self.path.is_dir():
            raise RequestError(
                explain(
                    self.path, expected="a file name", found="a folder", do="add a name like results.jsonl"
                )
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            self._check_run()
            self._take_stock()
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            _sync_folder(self.path.parent)
        except BaseException:
            self._held.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._held.release()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one result. When this returns, it is on the disk.

        Args:
            record: A JSON object with the key ``id``.

        Raises:
            OSError: The disk is full or broken. What was written of the line is taken back.
        """
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        line = (
            text.encode("utf-8", "backslashreplace") + b"\n"
        )  # half a surrogate pair becomes its JSON escape
        size = os.fstat(self._file).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self.done.add(str(record["id"]))

    # -- on entry -----------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        from filelock import FileLock, Timeout

        self._held = FileLock(self.path.with_name(self.path.name + ".lock"), timeout=0)
        try:
            self._held.acquire()
        except Timeout as error:
            do = "wait for it, or choose another --output"
            raise RequestError(
                explain(
                    self.path, expected="a file that no one writes", found="another run writing it", do=do
                )
            ) from error

    def _check_run(self) -> None:
        results = self.path.exists() and self.path.stat().st_size > 0
        if results and not self.made_by.exists():
            found = f"results without {self.made_by.name}"
            raise RequestError(
                explain(
                    self.path, expected="a new file, or one made by this command", found=found, do=_DIFFERENT
                )
            )
        if results:
            before = _object(self.made_by).get("run")
            differences = _differences(before if isinstance(before, dict) else {}, self.run)
            if differences:
                found = "; ".join(differences)
                raise RequestError(
                    explain(self.path, expected="results of the same run", found=found, do=_DIFFERENT)
                )
            return
        started = datetime.now(UTC).isoformat(timespec="seconds")
        write_whole(self.made_by, json.dumps({"run": self.run, "started": started}, indent=2) + "\n")

    def _take_stock(self) -> None:
        """Note what is done; cut off a torn last line; take out the failed lines that are tried again."""
        if not self.path.exists():
            return
        keep, whole = 0, True
        for record, end in _records(self.path):
            name, failed = str(record["id"]), "error" in record
            if name in self.done:
                raise RequestError(
                    explain(
                        self.path, expected="one line for each id", found=f"{name!r} twice", do="take one out"
                    )
                )
            if failed and name in self.retry:
                whole = False
            else:
                self.done.add(name)
            keep = end
        with self.path.open("r+b") as file:
            if keep < self.path.stat().st_size:
                file.truncate(keep)
                os.fsync(file.fileno())
        if not whole:
            kept = (record for record, _ in _records(self.path) if str(record["id"]) in self.done)
            write_whole(self.path, (json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def run_file(path: Path) -> Path:
    """The file beside a file of results that says what made them."""
    return path.with_name(path.name + ".run.json")


def read_results(path: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of results, whole ones only; or the one object of a ``.json`` that no batch made.

    Raises:
        RequestError: The file is missing, or a line in it is no result.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(
            explain(path, expected="a file of results", found="no such file", do="check the path")
        )
    if path.suffix.lower() == ".json" and not run_file(path).exists():
        record = _object(path)
        if not isinstance(record.get("id"), str):
            do = "give what infer wrote"
            raise RequestError(explain(path, expected="a result with an id", found="none", do=do))
        yield record
        return
    for record, _ in _records(path):
        yield record


def write_whole(path: str | Path, text: str | bytes | Iterator[str]) -> None:
    """Write a file under a temporary name, then rename it: a reader finds the old or the new one, never a part."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in [text] if isinstance(text, str | bytes) else text:
                file.write(part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(name, path.stat().st_mode & 0o777)
        else:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole line and the byte at which it ends. A line is whole when its line end was written."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                do = "take the line out; its sample will be done again"
                raise RequestError(
                    explain(f"{path}, line {number}", expected="a result with an id", found="none", do=do)
                )
            yield record, end


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestError(
            explain(path, expected="a JSON object", found="something else", do="check the file")
        )
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], under: str = "") -> list[str]:
    """What two runs do not share, in words."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{under}{key}.")
        elif old != new:
            found.append(f"{under}{key} was {json.dumps(old)} and is now {json.dumps(new)}")
    return found


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk only when its folder is."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
