"""A file of results that survives: each line is appended in one piece and synced; one that a crash
tore is cut off when the run goes on. ``out.jsonl.run.json`` says what made the results, and a run
that differs is refused. A sample that failed has ``error`` instead of a reply.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unireason_lib.errors import RequestError
from unireason_lib.io import append_lines, locked, read_json, replaceable, write_json, write_whole


class ResultsFile:
    """Append results to a file, and know by ``done`` which are there; used in ``with``. Failed ones
    are taken out, to be tried again. ``run``, any JSON object, is what makes the results, and must
    be equal when a run goes on; ``opened`` shows the images again and is not compared.

    A :class:`RequestError` for a file of another run or none, or a line that is no result; a
    :class:`DatasetError` while another process writes it, or when the disk is full."""

    def __init__(
        self, path: str | Path, run: Mapping[str, Any], opened: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path).resolve()  # two links to one file must not become two locks
        self.run, self.opened = json.loads(json.dumps([run, opened]))
        self.done: set[str] = set()

    def __enter__(self) -> ResultsFile:
        replaceable(self.path, RequestError)
        with ExitStack() as stack:
            lock = self.path.with_name(self.path.name + ".lock")
            stack.enter_context(locked(lock, str(self.path)))
            self._check_run()
            self.path.touch()
            self._take_out()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one result with its ``id``: wholly on the disk, or nothing of it."""
        append_lines(self.path, [record])
        self.done.add(record["id"])

    def _check_run(self) -> None:
        """Refuse results of another run; note what makes these."""
        note, do = run_file(self.path), "write to another file, or delete this one"
        if self.path.exists() and self.path.stat().st_size > 0:
            changes = f"results without {note.name}"
            if note.exists():
                before = read_json(note, RequestError).get("run") or {}
                changes = "; ".join(differences(before, self.run))
            if changes:
                raise RequestError(self.path, "results of the same run", changes, do)
        write_json(note, {"run": self.run, "opened": self.opened})

    def _take_out(self) -> None:
        """Note what is done; take out a torn last line and the failed ones."""
        kept = []
        for record, line in _records(self.path):
            if (name := record["id"]) in self.done:
                found = f"{name!r} twice"
                raise RequestError(self.path, "one line for each id", found, "take one out")
            if "error" not in record:
                self.done.add(name)
                kept.append(line)
        if sum(map(len, kept)) < self.path.stat().st_size:
            write_whole(self.path, kept)


def run_file(path: Path) -> Path:
    """The file beside a file of results that says what made them."""
    return path.with_name(path.name + ".run.json")


def run_note(path: str | Path) -> dict[str, Any]:
    """What made a file of results (``run``) and opens its images (``opened``); empty when nobody
    noted it."""
    note = run_file(Path(path))
    return read_json(note, RequestError) if note.is_file() else {}


def read_results(path: str | Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of results, or the one object of a ``.json`` that no batch made; a
    :class:`RequestError` when the file is missing or a line in it is no result."""
    path = Path(path)
    if not path.is_file():
        raise RequestError(path, "a file of results", "no such file", "check the path")
    if path.suffix.lower() == ".json" and not run_file(path).exists():
        yield _checked(read_json(path, RequestError), path)
    else:
        yield from (record for record, _ in _records(path))


def _records(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each line whose line end was written: what it says, and its bytes."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield _checked(record, f"{path}, line {number}"), line


def _checked(record: Any, where: object) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise RequestError(where, "a result with an id", "none", "take it out and ask again")
    return record


def differences(before: Mapping[str, Any], now: Mapping[str, Any], under: str = "") -> list[str]:
    """What two runs do not have in common, in words."""
    changes = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += differences(old, new, f"{under}{key}.")
        elif old != new:
            changes.append(f"{under}{key} was {json.dumps(old)} and is now {json.dumps(new)}")
    return changes
