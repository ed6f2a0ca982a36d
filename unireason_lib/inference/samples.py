"""Questions in files: ``.jsonl``, ``.json`` (a list) or ``.csv``, one question a row.

Columns go by the names of public data sets (M3D-VQA, 3D-RAD, PMC-VQA, OmniMedVQA), whatever their
case and spacing; options by columns (``Choice A``), in JSON also as a list or an object of letters
under ``options``. A row that cannot be asked carries its :attr:`Sample.problem` and fails alone.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unireason_lib.errors import RequestError, raising
from unireason_lib.prompts import LETTERS, question_text

KINDS = (".jsonl", ".json", ".csv", ".tsv")
IMAGES = ("image", "image_path", "image_name", "figure_path")
COLUMNS = {"2d": IMAGES, "3d": ("volume", "volume_path", "volume_name", "volumename", *IMAGES)}
IDS = ("id", "question_id", "qid")
TRUTH_LETTERS = ("answer_choice", "answerchoice", "answer_letter", "answer_label")
TRUTHS = ("answer", "gt_answer", "truth")
MISSING = ("", "NA", "N/A", "nan", "NaN", "-")  # no such option; ``Na``, sodium, is one

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One row of a file of questions."""

    id: str  # its name in the results, unique in the file
    dimension: str  # "2d" or "3d"
    scan: str = ""  # path as the row has it; untrusted, see scan_below
    question: str = ""
    options: Mapping[str, str] = field(default_factory=dict)  # letter -> text; empty: free answer
    truth: str | None = None  # the right letter, without options the right words
    problem: Exception | None = None  # why it cannot be asked


def read_samples(path: str | Path, dimension: str) -> list[Sample]:
    """Read a file of questions in UTF-8: one sample a row, in order; ``dimension`` of the scans. A
    :class:`RequestError` when it is missing, empty or no table, or two rows have the same id."""
    rows = read_rows(Path(path))
    samples = [sample_of(row, number, dimension) for number, row in enumerate(rows, start=1)]
    if all(sample.problem for sample in samples):
        found = f"none; the first: {samples[0].problem}" if samples else "none"
        raise RequestError(path, "at least one row that can be asked", found, "check the file")
    name, count = Counter(sample.id for sample in samples).most_common(1)[0]
    if count > 1:
        do = "correct the ids, or leave the column out: rows are then numbered"
        raise RequestError(path, "a different id in every row", f"{name!r} in {count} rows", do)
    return samples


def read_rows(path: Path) -> list[Row | Exception]:
    """Rows with plain keys (``Image Path`` -> ``image_path``), or why a row is none."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in KINDS:
        found = f"a file {kind}" if path.is_file() else "no such file"
        raise RequestError(path, f"questions ({', '.join(KINDS)})", found, "check the path")
    do = "correct it; a file with one object a line is called .jsonl"
    with raising(RequestError, path, f"a list of objects, as {kind} in UTF-8", do):
        text = path.read_text(encoding="utf-8-sig")
        if kind == ".json":
            rows = json.loads(text)
        elif kind == ".jsonl":
            rows = [_row_of(line) for line in text.split("\n") if line.strip()]
        else:
            delimiter = "\t" if kind == ".tsv" else ","
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
        if not isinstance(rows, list):
            raise TypeError(f"a {type(rows).__name__}")
    return [_plain_keys(row, number) for number, row in enumerate(rows, start=1)]


def _row_of(line: str) -> Any:
    """What a line of JSON says; a broken one is one bad row."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _plain_keys(row: Any, number: int) -> Row | Exception:
    if not isinstance(row, Mapping):
        found = str(row)[:160] if isinstance(row, Exception) else type(row).__name__
        return RequestError(f"row {number}", "an object", found, "correct the row")
    return {re.sub(r"[^a-z0-9]+", "_", str(key).lower()).strip("_"): row[key] for key in row}


def sample_of(row: Row | Exception, number: int, dimension: str) -> Sample:
    """A row of :func:`read_rows` as a sample; what is wrong with it is its ``problem``."""
    values: dict[str, Any] = {"id": f"row-{number}"}
    try:
        if isinstance(row, Exception):
            raise row
        values["id"] = str(_first(row, IDS, values["id"])).strip()
        values["scan"] = _words(row, COLUMNS[dimension])
        values["question"] = _words(row, ("question",))
        values["options"] = _options(row)
        question_text(values["question"], values["options"])
        values["truth"] = _truth(row, values["options"])
    except RequestError as problem:
        values["problem"] = problem
    return Sample(dimension=dimension, **values)


def _first(row: Row, names: tuple[str, ...], default: Any = "") -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), default)


def _words(row: Row, names: tuple[str, ...]) -> str:
    value = _first(row, names)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise RequestError("row", f"text under {' or '.join(names)}", repr(value)[:80], "fill it in")


def _options(row: Row) -> dict[str, str]:
    """Letter -> text of those options that are not missing."""
    listed = row.get("options")
    if listed in (None, ""):
        listed = {k: _first(row, (f"option_{k}".lower(), f"choice_{k}".lower())) for k in LETTERS}
    elif isinstance(listed, list) and len(listed) <= len(LETTERS):
        listed = dict(zip(LETTERS, listed, strict=False))
    texts = listed.values() if isinstance(listed, Mapping) else [[]]
    if any(isinstance(text, bool | list | dict) for text in texts):
        expected = f"a list of at most {len(LETTERS)} texts, or letters with texts"
        raise RequestError("options", expected, repr(listed)[:80], 'write ["left", "right"]')
    texts = {str(k).strip().upper(): str("" if v is None else v).strip() for k, v in listed.items()}
    return {letter: text for letter, text in sorted(texts.items()) if text not in MISSING}


def _truth(row: Row, options: Mapping[str, str]) -> str | None:
    """The right letter or, without options, the right words; None when the row does not say."""
    values = [str(_first(row, names)).strip() for names in (TRUTH_LETTERS, TRUTHS)]
    letter, words = (None if value in MISSING else value for value in values)
    if not options or not (letter or words):
        return words or letter
    truth = letter or words
    named = [key for key, text in options.items() if text.casefold() == truth.casefold()]
    named = [truth.upper()] if truth.upper() in options else named
    if len(named) != 1:
        expected = f"one of the letters {', '.join(options)}, or the text of one option"
        raise RequestError("truth", expected, repr(truth[:80]), "correct it, or leave it out")
    return named[0]
