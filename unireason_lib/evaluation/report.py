"""The table of a run: every accuracy with its interval, and beside it what is reached without
looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from unireason_lib.errors import RequestError
from unireason_lib.evaluation.metrics import measure, reliability, with_ends
from unireason_lib.evaluation.statistics import Comparison, compare
from unireason_lib.evaluation.table import markdown, read_results
from unireason_lib.inference.results import run_file
from unireason_lib.io import read_json

PROPORTIONS = {
    "accuracy": "accuracy",
    "blank": "blank images",
    "question_only": "question only",
    "majority": "one letter",
    "chance": "chance",
    "concluded": "conclusion",
    "followed": "rationale-answer consistency",
    "abstained": "abstained",
    "format": "format compliance",
    "hit": "IoU >= 0.5",
}
"""Columns of :meth:`Report.table` that are shown in percent, and their titles in Markdown.
``blank``: accuracy of the same model on blank images; ``question_only``: of the option that was
most often right in training; ``majority``: of always giving the letter that is right most often in
these questions; ``concluded``: of the option that the reasoning names last; ``followed``: whether
the letter is that option's."""

OTHERS = {
    "iou_first": "IoU first",
    "iou_best": "IoU best",
    "iou_all": "IoU all",
    "word_f1": "word F1",
    "crop_fraction": "crop fraction",
}
COST = ("rounds", "own_tokens", "injected_tokens", "seconds")


@dataclass(frozen=True)
class Report:
    """What a file of results says."""

    results: pd.DataFrame  # of read_results
    blank: pd.DataFrame | None = None  # replies to the same questions with blank images
    name: str = ""
    run: Mapping[str, Any] | None = None  # what made it, from the file beside the results

    @classmethod
    def from_file(cls, path: str | Path) -> Report:
        """Read what :func:`unireason_lib.evaluation.evaluate` wrote, and the replies to blank
        images beside it (:func:`blank_file`), if they are there and of the same benchmark. A
        ``RequestError`` when a file is missing or is none of results."""
        path, blank = Path(path), blank_file(path)
        results, run = read_results(path), _run(path)
        if results.empty or "truth" not in results or results["dimension"].isna().any():
            found = "none" if results.empty else "no truth or dimension in some"
            raise RequestError(path, "lines of an evaluation", found, "give what evaluate wrote")
        same = blank.is_file() and _run(blank).get("benchmark") == run.get("benchmark")
        return cls(results, read_results(blank) if same else None, path.name, run)

    @property
    def failed(self) -> pd.DataFrame:
        """The questions that could not be asked; they count as wrong."""
        return self.results[self.results["failed"] == 1]

    def table(self) -> pd.DataFrame:
        """All, by dimension, by family, and by both.

        Returns:
            ``dimension``, ``family`` (``"all"`` for sums), ``n`` questions, ``failed`` of them,
            ``patients``; each measure of :data:`PROPORTIONS` and :data:`OTHERS` with its mean and
            ``<measure>_low``, ``<measure>_high`` (chance and :data:`COST` with the mean only). NaN
            where a measure applies to no reply.
        """
        results, scored = self.results, self.results["chance"].notna()
        letters = results[scored].groupby("dimension")["truth"].agg(lambda truth: truth.mode()[0])
        majority = results["truth"] == results["dimension"].map(letters)
        seen = {} if self.blank is None else self.blank.set_index("id")["correct"]
        results = results.assign(
            accuracy=results["correct"],
            majority=majority.where(scored),
            blank=results["id"].map(seen),
        )
        names = [sorted(results[column].unique()) for column in ("family", "dimension")]
        names = [["all", *one] if len(one) > 1 else ["all"] for one in names]
        rows = []
        for family, dimension in product(*names):
            of_family = results["family"].eq(family) | (family == "all")
            part = results[of_family & (results["dimension"].eq(dimension) | (dimension == "all"))]
            row = {"dimension": dimension, "family": family, "n": len(part)}
            row |= {"failed": int(part["failed"].sum()), "patients": part["patient"].nunique()}
            for name in (name for name in (*PROPORTIONS, *OTHERS) if name != "chance"):
                row |= with_ends(name, measure(part, part[name].astype(float)))
            row |= {name: part[name].mean() for name in ("chance", *COST) if name in part}
            rows += [row] if len(part) else []
        return pd.DataFrame(rows)

    def to_markdown(self) -> str:
        """The table with its notes, in Markdown."""
        table, run = self.table(), self.run or {}
        shown = table[["dimension", "family", "n", "failed"]].copy()
        for names, scale, digits in ((PROPORTIONS, 100, 1), (OTHERS, 1, 2)):
            for name, title in names.items():
                if table[name].notna().any():
                    ends = table.reindex(columns=[name, f"{name}_low", f"{name}_high"]) * scale
                    shown[title] = [_cell(*row, digits) for row in ends.to_numpy()]
        model, benchmark = run.get("model"), run.get("benchmark") or {}
        head = {
            "": self.name,
            "model ": model.get("name") if isinstance(model, Mapping) else model,
            "benchmark ": " ".join(filter(None, map(benchmark.get, ("benchmark", "split")))),
            "control ": run.get("control", "none").replace("none", ""),
        }
        head = ", ".join(f"{word}{value}" for word, value in head.items() if value)
        whole = table.iloc[0]
        notes = [
            f"{whole['n']} questions about {whole['patients']} patients, {whole['failed']} failed"
            " (counted as wrong)",
            "95 % intervals over patients: Student's t, Wilson's of proportions",
        ]
        if self.blank is None:
            notes.append("no run with blank images yet (evaluate --with-blank)")
        costs = [f"{name.replace('_', ' ')} {whole[name]:.3g}" for name in COST if name in whole]
        notes.append(f"per reply: {', '.join(costs)}")
        if "other_syntax" in self.results:  # of replies that have such boxes
            other = self.results["other_syntax"]
            written = f"{other.sum():.0f} boxes in {other.count()} replies"
            notes.append(f"{written} are JSON (bbox_2d), as stock Qwen writes, and fetch nothing")
        bins = reliability(self.results).query("n > 0").itertuples()
        bins = [f"{b.low:g}-{b.high:g}: {100 * b.accuracy:.1f} (n {b.n})" for b in bins]
        notes += [f"accuracy by IoU of the best box: {'; '.join(bins)}"] if bins else []
        return "\n".join([head, "", markdown(shown), "", *(f"- {note}" for note in notes)])

    def to_dict(self) -> dict[str, Any]:
        """Everything that the report says, ready for JSON."""
        records = {"rows": self.table(), "reliability": reliability(self.results)}
        plain = {
            name: table.astype(object).where(table.notna(), None).to_dict("records")
            for name, table in records.items()
        }
        return {"name": self.name, "run": self.run, "failed": len(self.failed), **plain}

    def compare(
        self,
        other: Report | Sequence[Report],
        value: str = "correct",
        *,
        also: Sequence[Report] = (),
        paired_seeds: bool = False,
    ) -> Comparison:
        """How much better is the other run (or condition) on the questions that all were asked?

        Args:
            other: Another run of the benchmark, or the runs of another condition, one a seed.
            value: Column of the results (``correct``, ``followed``, ``iou_first``, ...).
            also: Further runs of this condition, with other seeds.
            paired_seeds: Whether the k-th runs of both share what their seed decides.

        Raises:
            RequestError: No question is common to all, or one has another right answer elsewhere.
        """
        sides = [[self, *also], [other] if isinstance(other, Report) else list(other)]
        tables = [[one.results.dropna(subset=value) for one in side] for side in sides]
        every = pd.concat([table for side in tables for table in side]).set_index("id")
        answers = every["truth"].fillna("").groupby("id").unique()
        for name, found in answers[answers.map(len) > 1].items():
            do = "ask both the same questions: same split, seed, size and options"
            found = f"{name} with the right answers {' and '.join(map(repr, found))}"
            raise RequestError("comparison", "runs of one benchmark", found, do)
        a, b = ([table.set_index("id")[value].to_dict() for table in side] for side in tables)
        return compare(a, b, every["patient"].to_dict(), paired_seeds)


def blank_file(path: str | Path) -> Path:
    """Where the replies to blank images are kept: ``result.jsonl`` -> ``result.blank.jsonl``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.blank{path.suffix}")


def _run(path: Path) -> Mapping[str, Any]:
    """What made a file of results; empty when nobody noted it."""
    note = run_file(path)
    return (read_json(note, RequestError).get("run") or {}) if note.is_file() else {}


def _cell(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value):
        return "-"
    ends = "" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"
