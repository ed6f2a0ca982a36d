"""Questions in files: what a row must say, and why a path in it is not trusted.

A batch is a ``.jsonl``, ``.json`` or ``.csv`` file with one question a row. Columns go by the names that public data
sets use (M3D-VQA, 3D-RAD, PMC-VQA, OmniMedVQA), whatever their case and spacing:

==============  ======================================================================================================
scan            ``image``, ``image path``, ``image name``, ``figure path``; for volumes also ``volume``,
                ``volume path``, ``volume name``
question        ``question``
options         ``option a`` ... or ``choice a`` ...; in JSON also ``options``, a list or an object of letters. A
                missing option is empty, ``NA``, ``N/A``, ``nan`` or ``-``.
truth           ``answer choice``, ``answer letter``, ``answer label`` (a letter), or ``answer``, ``gt answer``,
                ``truth`` (a letter, or the text of an option)
id              ``id``, ``question id``, ``qid``; without one a row is called ``row-1``, ``row-2``, ...
==============  ======================================================================================================

A row that cannot be asked keeps its place and carries its :attr:`Sample.problem`; it fails alone. Only a file that
is no table at all, and ids that are not unique, are refused as a whole.

Whoever writes the file could be anyone: a path in it is followed only below the folder that the user named.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from unireason_lib.errors import RequestError, explain
from unireason_lib.prompts import LETTERS, question_text

MISSING = ("", "NA", "N/A", "nan", "NaN", "-")
"""How tables write that there is no such option (``Na``, sodium, is one)."""

SCANS = ("image", "image_path", "image_name", "figure_path")
VOLUMES = ("volume", "volume_path", "volume_name", "volumename")
IDS = ("id", "question_id", "qid")
TRUTH_LETTERS = ("answer_choice", "answerchoice", "answer_letter", "answer_label")
TRUTHS = ("answer", "gt_answer", "truth")
TYPES = ("question_type", "questiontype")


@dataclass(frozen=True)
class Sample:
    """One row of a file of questions.

    Attributes:
        id: Its name in the results, unique in the file.
        dimension: ``"2d"`` or ``"3d"``.
        scan: Path of the picture or volume as the row has it. Untrusted: see :func:`inside`.
        question: The question in words.
        options: Letter -> text; empty for a free answer.
        truth: The right letter, without options the right words, None when the row does not say.
        question_type: What the file says about the kind of question.
        row: Number of the row, from 1; 0 for a question that comes from no file.
        problem: Why the row cannot be asked, or None.
    """

    id: str
    dimension: str
    scan: str = ""
    question: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    truth: str | None = None
    question_type: str | None = None
    row: int = 0
    problem: Exception | None = None


def read_samples(path: str | Path, dimension: str) -> list[Sample]:
    """Read a file of questions.

    Args:
        path: ``.jsonl`` (or ``.ndjson``), ``.json`` with a list, ``.csv`` or ``.tsv``, in UTF-8.
        dimension: ``"2d"`` or ``"3d"``: what the scans are.

    Returns:
        One sample a row, in order; blank lines are no rows.

    Raises:
        RequestError: The file is missing, empty or no such table, or two rows have the same id.
    """
    path = Path(path)
    rows = list(read_rows(path))
    if not rows:
        raise RequestError(explain(path, expected="at least one row", found="none", do="check the file"))
    samples = [sample_of(row, number, dimension) for number, row in enumerate(rows, start=1)]
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        where = [sample.row for sample in samples if sample.id == twice[0]]
        others = f" (and {len(twice) - 1} other ids)" if len(twice) > 1 else ""
        raise RequestError(
            explain(
                path,
                expected="a different id in every row",
                found=f"{twice[0]!r} in rows {', '.join(map(str, where[:5]))}{others}",
                do="correct the ids, or leave the column out: rows are then numbered",
            )
        )
    return samples


def letters_of(texts: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> text of those options that are not missing.

    Raises:
        RequestError: A key is no letter A to H, or a value is neither text nor number.
    """
    options = {}
    for key, text in texts.items():
        letter = str(key).strip().upper()
        if letter not in tuple(LETTERS):
            raise RequestError(
                explain("options", expected="letters A to H", found=repr(key), do="name options A, B, C, ...")
            )
        if text is None or str(text).strip() in MISSING:
            continue
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            found = type(text).__name__
            raise RequestError(
                explain(f"option {letter}", expected="text", found=found, do="write the option")
            )
        options[letter] = str(text).strip()
    return dict(sorted(options.items()))


def inside(root: str | Path, name: str, absolute: bool = False) -> Path:
    """The file or folder that an untrusted path names, if it lies below a folder.

    Args:
        root: The folder that may be read.
        name: A path from a data file.
        absolute: Whether an absolute path is good too, if it leads below ``root``.

    Returns:
        ``root / name``. It may be missing; if it exists it is a regular file, or a folder of such.

    Raises:
        RequestError: The path is absolute, has ``..`` in it, leads out of ``root`` through a link (for a folder: a
            file in it does), or is a device, a pipe or a socket.
    """
    root = Path(root).resolve()
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name[:1] == "\\"
    climbs = ".." in (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if not name or "\0" in name or climbs or (rooted and not absolute):
        found = "'..'" if climbs else "an absolute path" if rooted else "a zero byte" if name else "nothing"
        raise _outside(name, "a relative path without '..'", found)
    path = root / name
    try:
        _check_below(root, path.resolve(), name)
    except (OSError, RuntimeError) as error:  # names too long, circular links, folders that may not be read
        raise _outside(name, "a path that can be followed", _brief(error)) from error
    return path


def _check_below(root: Path, real: Path, name: str) -> None:
    if not real.is_relative_to(root):
        raise _outside(name, "a path below that folder", "one that leads out of it")
    if real.is_dir():
        for entry in real.iterdir():
            if not entry.resolve().is_relative_to(root):
                raise _outside(name, "files below that folder", f"the link {entry.name} that leads out of it")
    elif real.exists() and not real.is_file():
        raise _outside(name, "a regular file or a folder", "a device, pipe or socket")


def _outside(name: str, expected: str, found: str) -> RequestError:
    do = "put the scan below the folder of --image-root or --data-root, and name it from there"
    return RequestError(explain(f"path {name[:200]!r}", expected=expected, found=found, do=do))


# -- rows -----------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[Mapping[str, Any] | Exception]:
    """Rows with plain keys (``Image Path`` -> ``image_path``), or why a row is none.

    Raises:
        RequestError: The file is missing, of another kind, or not in UTF-8.
    """
    if not path.is_file():
        raise RequestError(
            explain(path, expected="a file of questions", found="no such file", do="check the path")
        )
    kind = path.suffix.lower()
    readers = {".jsonl": _lines, ".ndjson": _lines, ".json": _list, ".csv": _table, ".tsv": _table}
    if kind not in readers:
        raise RequestError(
            explain(path, expected=", ".join(readers), found=kind or "no suffix", do="rename or convert it")
        )
    try:
        for number, row in enumerate(readers[kind](path), start=1):
            if isinstance(row, Mapping):
                yield {_plain(key): value for key, value in row.items() if isinstance(key, str)}
            elif isinstance(row, Exception):
                yield row
            else:
                found = type(row).__name__
                yield RequestError(
                    explain(f"row {number}", expected="an object", found=found, do="correct the row")
                )
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            explain(path, expected=f"a {kind} file in UTF-8", found=_brief(error), do="save it again")
        ) from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    found = _brief(error)
                    yield RequestError(
                        explain(f"line {number}", expected="a JSON object", found=found, do="correct it")
                    )


def _list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        do = "correct it; a file with one object a line is called .jsonl"
        raise RequestError(explain(path, expected="JSON", found=_brief(error), do=do)) from error
    if not isinstance(rows, list):
        found = "an object" if isinstance(rows, dict) else type(rows).__name__
        raise RequestError(explain(path, expected="a list of objects", found=found, do="put it into [ ]"))
    return rows


def _table(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        names = {_plain(name) for name in table.fieldnames or ()}
        if "question" not in names or not names & {*SCANS, *VOLUMES}:
            raise RequestError(
                explain(
                    path,
                    expected="columns Image Path (or image) and Question",
                    found=", ".join(table.fieldnames or ())[:200] or "no header",
                    do="name the columns in the first line",
                )
            )
        yield from table


def _plain(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# -- one sample -----------------------------------------------------------------------------------------------------


def sample_of(row: Mapping[str, Any] | Exception, number: int, dimension: str) -> Sample:
    """A row of :func:`read_rows` as a sample; what is wrong with it is its ``problem``."""
    if isinstance(row, Exception):
        return Sample(f"row-{number}", dimension, row=number, problem=row)
    name, kind = _first(row, IDS), _first(row, TYPES)
    named = isinstance(name, str | int | float) and str(name).strip()
    known: dict[str, Any] = {"id": str(name).strip() if named else f"row-{number}"}
    known["question_type"] = None if kind is None else str(kind)
    problem = None
    try:
        known["scan"] = _words(row, (*VOLUMES, *SCANS) if dimension == "3d" else SCANS, "the scan's path")
        known["question"] = _words(row, ("question",), "question")
        known["options"] = _options(row)
        question_text(known["question"], known["options"])
        known["truth"] = _truth(row, known["options"])
    except RequestError as error:
        problem = error
    return Sample(dimension=dimension, row=number, problem=problem, **known)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _words(row: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    value = _first(row, names)
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if value is None or isinstance(value, str) else type(value).__name__
        expected = f"text under {' or '.join(names)}"
        raise RequestError(explain(what, expected=expected, found=found, do="fill it in"))
    return value.strip()


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    listed = row.get("options")
    if listed in (None, ""):
        return letters_of(
            {
                letter: _first(row, (f"option_{letter}".lower(), f"choice_{letter}".lower()))
                for letter in LETTERS
            }
        )
    if isinstance(listed, Mapping):
        return letters_of(listed)
    if not isinstance(listed, list) or len(listed) > len(LETTERS):
        found = f"{len(listed)} options" if isinstance(listed, list) else type(listed).__name__
        expected = f"a list of at most {len(LETTERS)} texts, or letters with texts"
        raise RequestError(explain("options", expected=expected, found=found, do='write ["left", "right"]'))
    return letters_of(dict(zip(LETTERS, listed, strict=False)))


def _truth(row: Mapping[str, Any], options: Mapping[str, str]) -> str | None:
    """The right letter or, without options, the right words; None when the row does not say."""
    letter, words = (_stated(_first(row, names)) for names in (TRUTH_LETTERS, TRUTHS))
    if not options:
        return words or letter
    told = letter or words
    if told is None:
        return None
    named = [key for key, text in options.items() if text.casefold() == told.casefold()]
    if told.upper() in options:
        named = [told.upper()]
    if len(named) != 1:
        raise RequestError(
            explain(
                "truth",
                expected=f"one of the letters {', '.join(options)}, or the text of one option",
                found=repr(told[:80]),
                do="correct the answer, or leave it out",
            )
        )
    return named[0]


def _stated(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text in MISSING else text
