"""A file of results that survives: each line is appended in one piece and synced; one that a crash
tore is cut off on resuming. ``out.jsonl.run.json`` says what made the results, and a run
that differs is refused. A sample that failed has ``error`` instead of a reply.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unireason_lib.errors import RequestError
from unireason_lib.io import (
    append_lines,
    differences,
    locked,
    read_json,
    replaceable,
    write_json,
    write_whole,
)


def complete_results(
    path: str | Path,
    run: Mapping[str, Any],
    questions: Sequence[Any],
    lines_of: Callable[[list[Any]], Iterable[Mapping[str, Any]]],
    *,
    opened: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> None:
    """Append the lines of those questions (told by their ``id``) that have none in a file of
    results yet, or failed: ``lines_of`` gives them. ``run``, any JSON object, is what makes the
    results, and must be equal when a run is resumed; ``opened`` shows the images again and is not
    compared.

    A :class:`RequestError` for a file of another run or none, or a line that is no result; a
    :class:`DatasetError` while another process writes it, or when the disk is full."""
    path = Path(path).resolve()  # two links to one file must not become two locks
    run, opened = json.loads(json.dumps([run, opened]))
    replaceable(path, RequestError)
    with locked(path.with_name(path.name + ".lock"), str(path)):
        _check_run(path, run)
        write_json(run_file(path), {"run": run, "opened": opened})
        path.touch()
        done = _take_out(path)
        if todo := [one for one in questions if one.id not in done]:
            count = {"total": len(questions), "initial": len(questions) - len(todo)}
            for line in tqdm(lines_of(todo), **count, unit="sample", disable=quiet):
                append_lines(path, [line])


def _check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Refuse results of another run."""
    note = run_file(path)
    if path.exists() and path.stat().st_size > 0:
        changes = f"results without {note.name}"
        if note.exists():
            before = read_json(note, RequestError).get("run") or {}
            changes = "; ".join(differences(before, run))
        if changes:
            do = "write to another file, or delete this one"
            raise RequestError(path, "results of the same run", changes, do)


def _take_out(path: Path) -> set[str]:
    """The ids of what is done; a torn last line and the failed ones are taken out."""
    done, kept = set(), []
    for record, line in _records(path):
        if (name := record["id"]) in done:
            raise RequestError(path, "one line for each id", f"{name!r} twice", "take one out")
        if "error" not in record:
            done.add(name)
            kept.append(line)
    if sum(map(len, kept)) < path.stat().st_size:
        write_whole(path, kept)
    return done


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
