"""Replies as one table (pandas): a row a reply, with the same columns and rules everywhere.

A question that could not be asked, or whose reply was lost, has **failed**: it counts as wrong
(``correct`` and ``concluded`` 0), and has no boxes, no format and no letter (NaN). A reply that
chooses no option is an abstention: wrong as well. NaN always means that nothing is to be measured.
"""

import gzip
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from unireason_lib.boxes import Box2D
from unireason_lib.dataset.rationales import conclusion
from unireason_lib.dataset.schema import box_of
from unireason_lib.errors import DatasetError, RequestError, raising
from unireason_lib.evaluation.statistics import Comparison, Interval, difference, interval
from unireason_lib.inference.results import read_results, run_note
from unireason_lib.io import write_whole

WORDS = ("control", "id", "patient", "dimension", "family", "kind")
NUMBERS = ("correct", "iou_first", "iou_all", "format", "concluded", "followed", "failed")
POOLED = ("condition", "seed", *WORDS, *NUMBERS)
"""Columns of a pooled table, the replies of many runs. ``concluded``: the option that the reasoning
names last is the right one, whichever letter is then given (none named: wrong; NaN: nobody reasons
in this file). ``followed``: the letter is that of the option named last (NaN: none was named), the
rationale-answer consistency."""

PERCENT = ("accuracy", "blank", "question_only", "majority", "concluded", "followed")
PERCENT += ("abstained", "format", "hit")
TITLES = {
    **{"blank": "accuracy with blank images, %", "question_only": "question-only baseline, %"},
    **{"majority": "most frequent letter, %", "concluded": "reasoning ends on the right option, %"},
    **{"followed": "rationale-answer consistency, %", "abstained": "no option chosen, %"},
    **{"format": "format compliance, %", "hit": "a box with IoU of 0.5 or more, %"},
    **{"iou_first": "IoU of the first box", "iou_best": "IoU of the best box"},
    **{"iou_all": "IoU of all true boxes", "iou_average_box": "IoU of the average box"},
    "crop_fraction": "area of a crop, of the image",
}
OTHERS = ("iou_first", "iou_best", "iou_all", "iou_average_box", "crop_fraction")
ALONE = ("chance", "rounds", "own_tokens", "injected_tokens", "seconds")  # without intervals


def read_table(path: str | Path) -> pd.DataFrame:
    """A file of results as :func:`as_table` has it; a ``RequestError`` for another file."""
    table = as_table(read_results(path))
    missing = sorted({"truth", "dimension", "family", "patient"} - {*table})
    if table.empty or missing or table["dimension"].isna().any():
        found = "none" if table.empty else f"no {' and '.join(missing) or 'dimension'} in some"
        raise RequestError(path, "lines of an evaluation", found, "give what evaluate wrote")
    return table


def as_table(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each line of results (:func:`~.run.line_of`): its keys, ``seed`` (0), and as
    numbers ``failed``, ``correct``, ``format``, ``concluded``, ``followed`` (see :data:`POOLED`),
    ``abstained``, ``hit`` (best box with an IoU of 0.5 or more), ``iou_average_box``
    (:func:`average_box_iou`), ``chance`` and ``question_only`` (the option that was most often
    right in training is right)."""
    lines = list(lines)
    reasons = any("</think>" in (line.get("text") or "") for line in lines)
    table = pd.DataFrame([{**line, "seed": 0, **_measures(line, reasons)} for line in lines])
    for name in ("iou_first", "iou_best", "iou_all", "crop_fraction", "seconds"):
        table[name] = pd.to_numeric(table.get(name, math.nan))
    return table.assign(iou_average_box=average_box_iou(lines))


def average_box_iou(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """For each line the mean IoU of its true boxes with the average box (as fractions of the image)
    of the same structure in the other patients: what one who knows anatomy and does not look may
    reach. NaN where no other patient has the structure, or no IoU is measured."""
    boxes = defaultdict(list)
    for line in lines:
        for name, box in line.get("truth_boxes") or ():
            boxes[line["dimension"], name].append((line["patient"], np.divide(box, _sides(line))))
    values = []
    for line in lines:
        overlaps = []
        truth = () if line.get("iou_first") is None else line.get("truth_boxes") or ()
        for name, box in truth:
            others = [b for who, b in boxes[line["dimension"], name] if who != line["patient"]]
            if others:
                average = box_of(np.mean(others, axis=0) * _sides(line))
                overlaps.append(average.iou(box_of(box)))
        values.append(fmean(overlaps) if overlaps else math.nan)
    return values


def _sides(line: Mapping[str, Any]) -> tuple[int, ...]:
    """Width and height (and number of slices) for each corner of a box."""
    height, width, slices = line["frame"]
    return (width, height, slices) * 2 if line["dimension"] == "3d" else (width, height) * 2


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
        "hit": math.nan if best is None else float(best >= 0.5),
        "chance": 1 / len(options) if scored else math.nan,
        "question_only": math.nan if guess is None else float(guess == truth),
    }


def mean(table: pd.DataFrame, value: str = "correct") -> Interval | None:
    """Mean of a column over the seeds and questions of one condition, with its interval, of the
    questions that all seeds have; None when there is none."""
    wide = _wide(table, value)
    return interval(wide.to_numpy(), _patients(table, wide.columns)) if wide.size else None


def compare(
    a: pd.DataFrame, b: pd.DataFrame, value: str = "correct", paired_seeds: bool = False
) -> Comparison:
    """How much better is b than a, rows of one condition each, on the questions that all their runs
    were asked? With ``paired_seeds`` (see :func:`~.statistics.difference`) on the seeds that both
    have. A ``DatasetError`` when no question or seed is common, or a right answer differs."""
    if paired_seeds:
        a, b = a[a["seed"].isin(b["seed"])], b[b["seed"].isin(a["seed"])]
    left, right = _wide(a, value), _wide(b, value)
    if paired_seeds:  # a seed may have no value of this column
        seeds = left.index.intersection(right.index)
        left, right = left.loc[seeds], right.loc[seeds]
    shared = left.columns.intersection(right.columns)
    if shared.empty or left.empty or right.empty:
        found = f"none with {value} in {len(left)} and {len(right)} runs"
        raise DatasetError("table", "questions that all runs share", found, "ask all the same")
    if "truth" in a and "truth" in b:
        truths = pd.concat([a, b]).dropna(subset="truth").groupby("id")["truth"].unique()
        for name, found in truths[truths.map(len) > 1].items():
            do = "ask both the same questions: same split, seed, size and options"
            found = f"{name} with the right answers {' and '.join(map(repr, found))}"
            raise DatasetError("comparison", "runs of one benchmark", found, do)
    a_values, b_values = left[shared].to_numpy(), right[shared].to_numpy()
    return difference(a_values, b_values, _patients(a, shared), paired_seeds)


def _wide(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Seeds x questions, of those questions that all seeds have."""
    known = table.dropna(subset=value)
    return known.pivot(index="seed", columns="id", values=value).dropna(axis=1).astype(float)


def _patients(table: pd.DataFrame, questions: pd.Index) -> np.ndarray:
    patients = table.drop_duplicates("id").set_index("id")["patient"]
    return patients[questions].astype(str).to_numpy()


def summary(results: pd.DataFrame, blank: pd.DataFrame | None = None) -> pd.DataFrame:
    """All replies of a run, by dimension, by family (``"all"`` for sums), and by both: ``n``
    questions, ``failed`` of them, ``patients``; means of ``accuracy``, of what is reached without
    looking (``blank`` images; ``question_only``; ``majority``: always the letter that is right most
    often; ``chance``) and of the other columns of :func:`as_table`, each with the ends of its
    interval (``<measure>_low``, ``<measure>_high``)."""
    scored = results["chance"].notna()
    letters = results[scored].groupby("dimension")["truth"].agg(lambda truth: truth.mode()[0])
    majority = results["truth"] == results["dimension"].map(letters)
    seen = {} if blank is None else blank.set_index("id")["correct"]
    results = results.assign(
        accuracy=results["correct"],
        majority=majority.astype(float).where(scored),
        blank=results["id"].map(seen).astype(float),
    )
    rows, costs = [], [name for name in ALONE if name in results]
    families, dimensions = (["all", *sorted({*results[k]})] for k in ("family", "dimension"))
    for family, dimension in product(families, dimensions):
        part = results[results["family"].eq(family) | (family == "all")]
        part = part[part["dimension"].eq(dimension) | (dimension == "all")]
        row = {"dimension": dimension, "family": family, "n": len(part)}
        row |= {"failed": int(part["failed"].sum()), "patients": part["patient"].nunique()}
        for name in (*PERCENT, *OTHERS):
            found = mean(part, name)
            ends = (found.value, found.low, found.high) if found else [math.nan] * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        rows += [row | part[costs].mean().to_dict()] if len(part) else []
    return pd.DataFrame(rows)


def report(path: str | Path) -> tuple[pd.DataFrame, str]:
    """The :func:`summary` of a file of results, with the blank images :func:`beside` it if these
    are of the same benchmark, and in Markdown: all measures by dimension, three of them by family,
    and notes."""
    path, blank = Path(path), beside(path, "blank")
    results = read_table(path)
    run, of_blank = (run_note(one).get("run") or {} for one in (path, blank))
    same = blank.is_file() and of_blank.get("benchmark") == run.get("benchmark")
    table = summary(results, read_table(blank) if same else None)
    shown, whole = table[["dimension", "family", "n", "failed"]].copy(), table.iloc[0]
    for name in (name for name in (*PERCENT, *OTHERS) if table[name].notna().any()):
        ends = table[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        scale, title = (100, f"{name}, %") if name in PERCENT else (1, name)
        cells = [Interval(*row, 0, 0).text(scale) if row[0] == row[0] else "-" for row in ends]
        shown[TITLES.get(name, title)] = cells
    rows, sums = shown["dimension"] != "all", shown["family"] == "all"
    if shown.loc[rows, "dimension"].nunique() == 1:
        sums &= rows
    wide = shown[sums].drop(columns="family").set_index("dimension").rename_axis(None).T
    some = ["dimension", "family", "n", "accuracy, %", TITLES["blank"], TITLES["iou_first"]]
    parts = shown.loc[rows & (shown["family"] != "all"), [x for x in some if x in shown]]
    notes = [
        f"{path.name}, control {run.get('control')}"
        + "; no run with blank images yet" * (not same),
        f"{whole['n']} questions about {whole['patients']} patients, {whole['failed']} failed"
        " (counted as wrong); 95 % intervals over patients: Student's t, Wilson's of proportions",
        "per reply: " + ", ".join(f"{name} {whole[name]:.3g}" for name in ALONE if name in whole),
    ]
    if "other_syntax" in results:  # of replies that have such boxes
        other = results["other_syntax"].dropna()
        written = f"{other.map(len).sum()} boxes in {len(other)} replies"
        notes.append(f"{written} are JSON (bbox_2d), as stock Qwen writes, and fetch nothing")
    texts = [wide.to_markdown(), "", parts.to_markdown(index=False), ""]
    return table, "\n".join([*texts, *(f"- {note}" for note in notes)])


def beside(path: str | Path, what: str) -> Path:
    """Where replies to ``"blank"`` images or about single ``"slices"`` are kept: ``result.jsonl``
    -> ``result.blank.jsonl``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{what}{path.suffix}")


def pooled(files: Mapping[Sequence[Any], str | Path]) -> pd.DataFrame:
    """The table (:data:`POOLED`) of many files of results, given by (condition, seed) or by
    (condition, seed, control)."""
    parts = []
    for (condition, seed, *control), path in files.items():
        run = {"condition": condition, "seed": seed, "control": "".join(control) or "none"}
        parts.append(read_table(path).assign(**run).reindex(columns=POOLED).sort_values("id"))
    return pd.concat(parts, ignore_index=True)


def write_pooled(table: pd.DataFrame, path: str | Path) -> None:
    """Write a pooled table, whole and compressed; the same rows give the same bytes."""
    text = table.to_csv(columns=list(POOLED), index=False, float_format="%g", lineterminator="\n")
    write_whole(path, gzip.compress(text.encode(), mtime=0))


def read_pooled(path: str | Path) -> pd.DataFrame:
    """Read a pooled table; a ``DatasetError`` when it is damaged or lacks a column."""
    kinds = {"condition": str, "seed": int, **dict.fromkeys(WORDS, str)}
    kinds |= dict.fromkeys(NUMBERS, float)
    missing = {name: [""] for name in NUMBERS}
    do = "make it again from the files of results"
    with raising(DatasetError, path, "a pooled table of results", do):
        table = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=missing)
        return table[list(POOLED)]


def select(table: pd.DataFrame, condition: str, **where: str) -> pd.DataFrame:
    """The rows of a condition where columns hold these words (``dimension="3d"``); ``control`` is
    ``"none"`` if not given. A ``DatasetError`` when there are none."""
    rows = table[table["condition"] == condition]
    for name, wanted in {"control": "none", **where}.items():
        rows = rows[rows[name] == wanted]
    if rows.empty:
        do = f"choose one of {', '.join(sorted(table['condition'].unique()))}"
        raise DatasetError("table", f"rows of {condition!r}", f"none where {where}", do)
    return rows


def consistency(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The replies to a :func:`~.benchmarks.slice_benchmark`, a row for each cuboid without failed
    slices: ``id`` (of the question about the volume), ``seed`` (0), ``patient``, ``boxed``
    (proportion of its slices with a box) and ``overlap``, the mean over its slices of the IoU of
    its rectangle with the slice's first box, 0 without one (the paper shows 0.7601 to 0.8342)."""
    rows = []
    for line in lines:
        boxes = [box_of(box) for box in (line.get("boxes") or ())[:1]]
        across, boxes = box_of(line["about"]["cuboid"]).xy, [b for b in boxes if type(b) is Box2D]
        row = {"id": line["about"]["parent"], "patient": line["patient"], "boxed": len(boxes)}
        overlap = across.iou(boxes[0]) if boxes else 0.0
        rows.append({**row, "overlap": overlap, "failed": "error" in line})
    columns = {"patient": "first", "boxed": "mean", "overlap": "mean", "failed": "any"}
    table = pd.DataFrame(rows).groupby("id", as_index=False).agg(columns)
    return table[~table.pop("failed")].assign(seed=0)
