"""Many runs in one table: a row for every condition, seed and question.

Files of replies are large and full of words; what claims rest on is little. This is that little, as CSV, so that it can
be kept beside the code, compressed where the name ends in ``.gz``, and read by anything.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unireason_lib.dataset.rationales import conclusion
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.statistics import Run
from unireason_lib.inference import read_results
from unireason_lib.io import write_whole

COLUMNS = (
    "condition",
    "seed",
    "id",
    "patient",
    "dimension",
    "family",
    "kind",
    "correct",
    "in_format",
    "iou_first",
    "concluded",
    "followed",
)
"""Of the table; from ``correct`` on numbers, empty where there is nothing to measure. A failed reply has no form.

``concluded``: the option named last in the reasoning is the right one, whichever letter is then given; naming none
counts as wrong, and empty is a file of replies without any reasoning. ``followed``: the letter is that of the option
named last; empty where none is named.
"""

_WORDS = COLUMNS.index("correct")  # columns before it hold words
_ADDED = COLUMNS.index("concluded")  # older tables lack those from here on

Rows = list[dict[str, Any]]


def tidy(files: Mapping[tuple[str, int], str | Path]) -> Rows:
    """The table of some files of replies.

    Args:
        files: (Condition, seed) -> file that :func:`unireason_lib.evaluation.evaluate` wrote.

    Returns:
        Rows in the order of the files and, within one, of question ids. A failed reply counts as wrong.

    Raises:
        DatasetError: A file holds no replies.
    """
    rows: Rows = []
    for (condition, seed), path in files.items():
        lines = list(read_results(path))
        if not lines:
            raise DatasetError(path, "replies to a benchmark", "none", "evaluate that run first")
        reasons = any("</think>" in (line.get("text") or "") for line in lines)
        for line in sorted(lines, key=lambda line: line["id"]):
            kept = {name: line.get(name) for name in COLUMNS[3:]} | (
                _reasoned(line) if reasons else {}
            )
            numbers = {
                name: None if kept[name] is None else float(kept[name]) for name in COLUMNS[_WORDS:]
            }
            numbers["correct"] = numbers["correct"] or 0.0
            rows.append({"condition": condition, "seed": seed, "id": line["id"], **kept, **numbers})
    return rows


def _reasoned(line: Mapping[str, Any]) -> dict[str, bool | None]:
    thought, end, _ = (line.get("text") or "").partition("</think>")
    letter = conclusion(thought, line["options"]) if end else None
    if letter is None:
        return {"concluded": False, "followed": None}
    return {
        "concluded": letter == line["truth"],
        "followed": letter == line["prediction"],
    }


def write_tidy(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write the table, whole; the same rows give the same bytes (compressed: with the same zlib)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        short = {name: f"{row[name]:g}" for name in COLUMNS[_WORDS:] if row[name] is not None}
        writer.writerow({**{name: row[name] for name in COLUMNS[:_WORDS]}, **short})
    packed = Path(path).suffix == ".gz"
    write_whole(
        path, gzip.compress(text.getvalue().encode(), mtime=0) if packed else text.getvalue()
    )


def read_tidy(path: str | Path) -> Rows:
    """Read the table. Columns that an older one lacks (``concluded``, ``followed``) are empty.

    Raises:
        DatasetError: It is damaged, lacks a column, or a number is none.
    """
    content = Path(path).read_bytes()
    try:
        content = gzip.decompress(content) if Path(path).suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(path, "gzip", str(error), "make it anew") from error
    with io.StringIO(content.decode("utf-8"), newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in COLUMNS[:_ADDED] if name not in (reader.fieldnames or ())]
        if lacking:
            raise DatasetError(
                path, f"columns {', '.join(COLUMNS)}", f"no {lacking[0]}", "make it anew"
            )
        rows = []
        for number, row in enumerate(reader, 2):
            try:
                numbers = {
                    name: float(row[name]) if row.get(name) else None for name in COLUMNS[_WORDS:]
                }
                words = {name: row[name] for name in COLUMNS[:_WORDS]}
                rows.append({**words, "seed": int(row["seed"]), **numbers})
            except ValueError as error:
                raise DatasetError(
                    f"{path}:{number}", "numbers", str(error), "make it anew"
                ) from error
    return rows


def runs(
    rows: Iterable[Mapping[str, Any]], condition: str, value: str = "correct", **where: str
) -> tuple[list[Run], dict[str, str]]:
    """What :func:`unireason_lib.evaluation.statistics.compare` takes: the runs of a condition, one a seed.

    Args:
        rows: The table.
        condition: Which.
        value: Column that is compared; rows where it is empty are left out.
        where: Columns and what they must hold (``dimension="3d"``).

    Returns:
        The runs in order of seeds, and the patient of every question.

    Raises:
        DatasetError: There are no such rows.
    """
    found, patients = _by_seed(rows, condition, value, where)
    return [found[seed] for seed in sorted(found)], patients


def paired_runs(
    rows: Sequence[Mapping[str, Any]], a: str, b: str, value: str = "correct", **where: str
) -> tuple[list[Run], list[Run], dict[str, str], list[int]]:
    """The runs of two conditions, seed by seed. What a seed decides (the records drawn, their order, where RL starts)
    is then the same on both sides, so a seed that only one of them has is left out.

    Args:
        rows: The table.
        a, b: The conditions.
        value: Column that is compared.
        where: Columns and what they must hold.

    Returns:
        Runs of a and of b, the patient of every question, and the seeds.

    Raises:
        DatasetError: One has no such rows, or they have no seed in common.
    """
    (left, patients), (right, others) = (_by_seed(rows, name, value, where) for name in (a, b))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        raise DatasetError(
            "table",
            f"a seed that both {a!r} and {b!r} have",
            f"{sorted(left)} and {sorted(right)}",
            "run both with the same seeds",
        )
    return (
        [left[seed] for seed in seeds],
        [right[seed] for seed in seeds],
        {**patients, **others},
        seeds,
    )


def _by_seed(
    rows: Iterable[Mapping[str, Any]], condition: str, value: str, where: Mapping[str, str]
) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    rows = list(rows)
    found: dict[int, dict[str, float]] = {}
    patients: dict[str, str] = {}
    for row in rows:
        if row["condition"] != condition or row[value] is None:
            continue
        if all(row[name] == wanted for name, wanted in where.items()):
            found.setdefault(row["seed"], {})[row["id"]] = row[value]
            patients[row["id"]] = row["patient"]
    if not found:
        raise DatasetError(
            "table",
            f"rows of {condition!r} with {value}",
            f"none{f' where {where}' if where else ''}",
            f"choose one of {', '.join(sorted({row['condition'] for row in rows}))}",
        )
    return found, patients


def conditions(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Condition -> its seeds, in the order of the table."""
    found: dict[str, list[int]] = {}
    for row in rows:
        seeds = found.setdefault(row["condition"], [])
        if row["seed"] not in seeds:
            seeds.append(row["seed"])
    return found
