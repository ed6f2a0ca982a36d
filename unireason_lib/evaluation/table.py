"""Replies as a table (pandas): one row a reply, with the same columns and rules everywhere.

A question that could not be asked, or whose reply was lost, has **failed**: it counts as wrong
(``correct`` and ``concluded`` 0), and has no boxes, no format and no letter (NaN). A reply that
chooses no option is an abstention: wrong as well. NaN always means that nothing is to be measured.
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

WORDS = ("control", "id", "patient", "dimension", "family", "kind")
NUMBERS = ("correct", "iou_first", "iou_all", "format", "concluded", "followed", "failed")
POOLED = ("condition", "seed", *WORDS, *NUMBERS)
"""Columns of a pooled table, the replies of many runs. ``concluded``: the option that the reasoning
names last is the right one, whichever letter is then given (none named: wrong; NaN: nobody reasons
in this file). ``followed``: the letter is that of the option named last (NaN: none was named), the
rationale-answer consistency."""


def read_results(path: str | Path) -> pd.DataFrame:
    """A file of results as :func:`as_table` has it."""
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
    """The table (:data:`POOLED`) of many files of results, given by (condition, seed) or by
    (condition, seed, control); a ``DatasetError`` when one holds no replies."""
    parts = []
    for (condition, seed, *control), path in files.items():
        table = read_results(path)
        if table.empty:
            raise DatasetError(path, "replies to a benchmark", "none", "evaluate that run first")
        run = {"condition": condition, "seed": seed, "control": "".join(control) or "none"}
        parts.append(table.assign(**run).reindex(columns=POOLED).sort_values("id"))
    return pd.concat(parts, ignore_index=True)


def write_pooled(table: pd.DataFrame, path: str | Path) -> None:
    """Write a pooled table, whole, compressed where the name ends in ``.gz``; the same rows give
    the same bytes (with the same zlib)."""
    text = table.to_csv(columns=list(POOLED), index=False, float_format="%g", lineterminator="\n")
    packed = Path(path).suffix == ".gz"
    write_whole(path, gzip.compress(text.encode(), mtime=0) if packed else text)


def read_pooled(path: str | Path) -> pd.DataFrame:
    """Read a pooled table; a ``DatasetError`` when it is damaged or lacks a column."""
    kinds = {"condition": str, "seed": int, **dict.fromkeys(WORDS, str)}
    kinds |= dict.fromkeys(NUMBERS, float)
    missing = {name: [""] for name in NUMBERS}
    try:
        table = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=missing)
        return table[list(POOLED)]
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        expected, do = "a pooled table of results", "make it again from the files of results"
        raise DatasetError(path, expected, str(error)[:160], do) from error


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
    rows = _where(table[table["condition"] == condition], value, where)
    if rows.empty:
        found = f"none where {where}" if where else "none"
        do = f"choose one of {', '.join(sorted(table['condition'].unique()))}"
        raise DatasetError("table", f"rows of {condition!r} with {value}", found, do)
    by_seed = [part.set_index("id")[value].to_dict() for _, part in rows.groupby("seed")]
    return by_seed, rows.set_index("id")["patient"].to_dict()


def paired_runs(
    table: pd.DataFrame, a: str, b: str, value: str = "correct", **where: str
) -> tuple[list[Run], list[Run], dict[str, str], list[int]]:
    """The runs of two conditions for the seeds that both have (arguments and errors: :func:`runs`),
    the patient of every question, and the seeds."""
    rows = _where(table, value, where)
    left, right = ({*rows.loc[rows["condition"] == name, "seed"]} for name in (a, b))
    seeds = sorted(map(int, left & right))
    if left and right and not seeds:
        expected, do = f"a seed that both {a!r} and {b!r} have", "run both with the same seeds"
        raise DatasetError("table", expected, f"{sorted(left)} and {sorted(right)}", do)
    both = rows[rows["seed"].isin(seeds)] if seeds else rows
    (of_a, patients), (of_b, others) = (runs(both, name, value, **where) for name in (a, b))
    return of_a, of_b, patients | others, seeds


def _where(table: pd.DataFrame, value: str, where: Mapping[str, str]) -> pd.DataFrame:
    rows = table[table[value].notna()]
    for name, wanted in {"control": "none", **where}.items():
        rows = rows[rows[name] == wanted]
    return rows


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; numbers with three digits, NaN as ``-``."""

    def words(value: Any) -> str:
        text = f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")
        return "-" if text in ("nan", "None") else text

    return table.map(words).to_markdown(index=False, disable_numparse=True)
