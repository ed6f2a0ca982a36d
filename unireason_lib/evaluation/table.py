"""Replies as a table (pandas): one row a reply, with the same columns and rules everywhere.

A question that could not be asked, or whose reply was lost, has **failed**: it counts as wrong
(``correct`` and ``concluded`` 0), and has no boxes, no format and no letter (NaN). A reply that
chooses no option is an abstention: wrong as well. NaN always means that nothing is to be measured.

Replies of many runs are pooled into one small CSV, compressed where its name ends in ``.gz``, which
is kept beside the code and from which all claims can be computed again.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from unireason_lib import inference
from unireason_lib.dataset.rationales import conclusion
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.metrics import HIT, word_f1
from unireason_lib.evaluation.statistics import Run
from unireason_lib.io import write_whole

WORDS = ("condition", "control", "id", "patient", "dimension", "family", "kind")
NUMBERS = ("correct", "iou_first", "iou_all", "format", "concluded", "followed", "failed")
POOLED = ("condition", "seed", *WORDS[1:], *NUMBERS)
"""Columns of a pooled table. ``concluded``: the option that the reasoning names last is the right
one, whichever letter is then given (none named: wrong; NaN: nobody reasons in this file).
``followed``: the letter is that of the option named last (NaN: none was named), the
rationale-answer consistency."""

_NAMED_AFTER_CONTROL = {
    "blind": "blank",
    "other pictures": "other",
    "random crops": "random-crop",
    "no crops": "no-crop",
}
"""How tables of version 0.1, without a column for it, named a control: ``"joint, blind"``."""


def read_results(path: str | Path) -> pd.DataFrame:
    """A file of results as :func:`as_table` has it; errors as
    :func:`unireason_lib.inference.read_results`."""
    return as_table(inference.read_results(path))


def as_table(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each line of results (:func:`unireason_lib.evaluation.run.line_of`).

    Returns:
        The keys of the lines, and as numbers: ``failed``, ``correct``, ``format``, ``concluded``,
        ``followed`` (see :data:`POOLED`), ``abstained``, ``hit`` (best box with an IoU of 0.5 or
        more), ``word_f1`` (open answers), and what is reached without looking: ``chance``,
        ``question_only`` (the option that was most often right in training).
    """
    lines = list(lines)
    reasons = any("</think>" in (line.get("text") or "") for line in lines)
    table = pd.DataFrame([{**line, **_measures(line, reasons)} for line in lines])
    for name in ("iou_first", "iou_best", "iou_all", "crop_fraction", "seconds"):
        table[name] = pd.to_numeric(table.get(name, math.nan))
    return table


def _measures(line: Mapping[str, Any], reasons: bool) -> dict[str, float]:
    truth, options, failed = line.get("truth"), line.get("options") or {}, "error" in line
    reply = math.nan if failed else 1.0  # times a measure that a failed question does not have
    best, guess, prediction = line.get("iou_best"), line.get("guess"), line.get("prediction")
    thought, closed, _ = (line.get("text") or "").partition("</think>")
    letter = conclusion(thought, options) if closed and options else None
    scored = bool(options) and truth is not None
    return {
        "failed": float(failed),
        "correct": math.nan if truth is None else float(not failed and bool(line.get("correct"))),
        "format": reply * bool(line.get("in_format")),
        "concluded": float(letter == truth) if reasons and scored else math.nan,
        "followed": math.nan if letter is None else float(letter == prediction),
        "abstained": reply * (prediction is None) if options else math.nan,
        "hit": math.nan if best is None else float(best >= HIT),
        "word_f1": math.nan if options or truth is None else word_f1(line.get("answer", ""), truth),
        "chance": 1 / len(options) if scored else math.nan,
        "question_only": math.nan if guess is None else float(guess == truth),
    }


def pooled(files: Mapping[Sequence[Any], str | Path]) -> pd.DataFrame:
    """The table of many files of results.

    Args:
        files: (condition, seed) or (condition, seed, control) -> file of results.

    Returns:
        The columns :data:`POOLED`, in the order of the files and, within one, of question ids.

    Raises:
        DatasetError: A file holds no replies.
    """
    parts = []
    for (condition, seed, *control), path in files.items():
        table = read_results(path)
        if table.empty:
            raise DatasetError(path, "replies to a benchmark", "none", "evaluate that run first")
        table = table.assign(
            condition=condition, seed=seed, control=control[0] if control else "none"
        )
        parts.append(table.reindex(columns=POOLED).sort_values("id"))
    return pd.concat(parts, ignore_index=True)


def write_pooled(table: pd.DataFrame, path: str | Path) -> None:
    """Write a pooled table, whole; the same rows give the same bytes (with the same zlib)."""
    text = table.to_csv(columns=list(POOLED), index=False, float_format="%g", lineterminator="\n")
    packed = Path(path).suffix == ".gz"
    write_whole(path, gzip.compress(text.encode(), mtime=0) if packed else text)


def read_pooled(path: str | Path) -> pd.DataFrame:
    """Read a pooled table. Columns that an older one lacks are NaN.

    Raises:
        DatasetError: It is damaged, lacks a column, or a number is none.
    """
    kinds = {"seed": "int64", **dict.fromkeys(WORDS, str)}
    kinds |= dict.fromkeys([*NUMBERS, "in_format"], float)
    blank = {name: [""] for name, kind in kinds.items() if kind is float}
    try:
        table = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=blank)
        table = table.rename(columns={"in_format": "format"})
        if missing := {"seed", "correct", "iou_first", "format", *WORDS} - {*table, "control"}:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        expected, do = "a pooled table of results", "make it again from the files of results"
        raise DatasetError(path, expected, str(error)[:160], do) from error
    if "failed" not in table:
        table["failed"] = table["format"].isna().astype(float)
    table = table if "control" in table else _with_control(table)
    return table.reindex(columns=POOLED)


def _with_control(table: pd.DataFrame) -> pd.DataFrame:
    split = table["condition"].str.rpartition(", ")
    control = split[2].map(_NAMED_AFTER_CONTROL)
    plain = table["condition"].where(control.isna(), split[0])
    return table.assign(condition=plain, control=control.fillna("none"))


def runs(
    table: pd.DataFrame, condition: str, value: str = "correct", **where: str
) -> tuple[list[Run], dict[str, str]]:
    """The runs of a condition, one a seed, as :mod:`~.statistics` takes them.

    Args:
        table: Pooled.
        value: Column that is compared; rows where it is NaN are left out.
        where: Columns and what they must hold (``dimension="3d"``, ``control="blank"``); without
            ``control`` the runs without any.

    Returns:
        The runs in order of seeds, and the patient of every question.

    Raises:
        DatasetError: There are no such rows.
    """
    by_seed, patients = _by_seed(table, condition, value, where)
    return [by_seed[seed] for seed in sorted(by_seed)], patients


def paired_runs(
    table: pd.DataFrame, a: str, b: str, value: str = "correct", **where: str
) -> tuple[list[Run], list[Run], dict[str, str], list[int]]:
    """The runs of two conditions, seed by seed; arguments as for :func:`runs`.

    Returns:
        Runs of a and of b for the seeds that both have, the patient of every question, the seeds.

    Raises:
        DatasetError: One has no such rows, or they have no seed in common.
    """
    (left, patients), (right, others) = (_by_seed(table, name, value, where) for name in (a, b))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        expected, do = f"a seed that both {a!r} and {b!r} have", "run both with the same seeds"
        raise DatasetError("table", expected, f"{sorted(left)} and {sorted(right)}", do)
    both = [[runs_of[seed] for seed in seeds] for runs_of in (left, right)]
    return *both, {**patients, **others}, seeds


def _by_seed(
    table: pd.DataFrame, condition: str, value: str, where: Mapping[str, str]
) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    rows = table[(table["condition"] == condition) & table[value].notna()]
    for name, wanted in {"control": "none", **where}.items():
        rows = rows[rows[name] == wanted]
    if rows.empty:
        found = f"none where {dict(where)}" if where else "none"
        do = f"choose one of {', '.join(sorted(table['condition'].unique()))}"
        raise DatasetError("table", f"rows of {condition!r} with {value}", found, do)
    by_seed = {
        int(seed): dict(zip(part["id"], part[value], strict=True))
        for seed, part in rows.groupby("seed")
    }
    return by_seed, dict(zip(rows["id"], rows["patient"], strict=True))


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """A table in Markdown, columns aligned; numbers with so many digits, NaN and None as ``-``."""

    def words(value: Any) -> str:
        if isinstance(value, str) or not pd.api.types.is_scalar(value):
            return str(value).replace("|", "\\|")
        if pd.isna(value):
            return "-"
        return f"{value:.{digits}g}" if isinstance(value, float) else str(value)

    rows = [list(map(str, table.columns)), *(list(map(words, row)) for row in table.values)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = ([w.ljust(n) for w, n in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)
