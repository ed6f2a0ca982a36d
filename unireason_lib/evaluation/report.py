"""The table of a run: every accuracy with its interval, and beside it what is reached without
looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    def from_file(cls, path: str | Path, blank: str | Path | None = None) -> Report:
        """Read results.

        Args:
            path: What :func:`unireason_lib.evaluation.evaluate` wrote.
            blank: The same with the control ``blank`` or ``noise``; by default
                ``<name>.blank.jsonl`` beside it, if it is there and of the same benchmark.

        Raises:
            RequestError: A file is missing, is none of results, or the blank one is of another
                benchmark or control.
        """
        path = Path(path)
        results, run = read_results(path), _run(path)
        if results.empty or "truth" not in results or results["dimension"].isna().any():
            found = "none" if results.empty else "no truth or dimension in some"
            raise RequestError(path, "lines of an evaluation", found, "give what evaluate wrote")
        given, blank = blank is not None, Path(blank or blank_file(path))
        other = _run(blank)
        same = other.get("benchmark") == run.get("benchmark")
        if given and other and not (same and other.get("control") in ("blank", "noise")):
            found = f"{'the same' if same else 'another'} one with control {other.get('control')!r}"
            do = "make it with evaluate --with-blank"
            raise RequestError(blank, "the same benchmark with blank images", found, do)
        found = given or (same and blank.is_file())
        return cls(results, read_results(blank) if found else None, path.name, run)

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
        results, rows = self._measured(), []
        dimensions, families = sorted(results["dimension"].unique()), results["family"].unique()
        groups = [("all", "all")]
        groups += [(d, "all") for d in dimensions] if len(dimensions) > 1 else []
        groups += [("all", f) for f in families] if min(len(dimensions), len(families)) > 1 else []
        groups += [(d, f) for d in dimensions for f in families] if len(families) > 1 else []
        for d, f in groups:
            part = results if d == "all" else results[results["dimension"] == d]
            part = part if f == "all" else part[part["family"] == f]
            rows += [self._row(d, f, part)] if len(part) else []
        return pd.DataFrame(rows)

    def _measured(self) -> pd.DataFrame:
        """The results with the columns that need more than one line."""
        results = self.results.assign(accuracy=self.results["correct"])
        scored = results[results["chance"].notna()]
        letters = scored.groupby("dimension")["truth"].agg(lambda truth: truth.mode().iloc[0])
        common = results["dimension"].map(letters)
        results["majority"] = (results["truth"] == common).where(results["chance"].notna())
        seen = {} if self.blank is None else self.blank.set_index("id")["correct"]
        return results.assign(blank=results["id"].map(seen))

    def _row(self, dimension: str, family: str, part: pd.DataFrame) -> dict[str, Any]:
        row: dict[str, Any] = {"dimension": dimension, "family": family, "n": len(part)}
        row |= {"failed": int(part["failed"].sum()), "patients": part["patient"].nunique()}
        for name in (name for name in (*PROPORTIONS, *OTHERS) if name != "chance"):
            row |= with_ends(name, measure(part, part[name].astype(float)))
        return row | {name: part[name].mean() for name in ("chance", *COST) if name in part}

    def to_markdown(self) -> str:
        """The table with its notes, in Markdown."""
        table = self.table()
        shown = table[["dimension", "family", "n", "failed"]].copy()
        for names, scale, digits in ((PROPORTIONS, 100, 1), (OTHERS, 1, 2)):
            for name, title in names.items():
                if table[name].notna().any():
                    ends = table.reindex(columns=[name, f"{name}_low", f"{name}_high"]) * scale
                    shown[title] = [_cell(*row, digits) for row in ends.to_numpy()]
        return "\n".join([self._headline(), "", markdown(shown), "", *self._notes(table)])

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
        a, b = [self, *also], [other] if isinstance(other, Report) else list(other)
        runs, patients, truths = [], {}, {}
        for report in [*a, *b]:
            known = report.results.dropna(subset=value)
            runs.append(dict(zip(known["id"], known[value], strict=True)))
            patients |= dict(zip(known["id"], known["patient"], strict=True))
            for name, truth in zip(known["id"], known["truth"].fillna(""), strict=True):
                if truths.setdefault(name, truth) != truth:
                    found = f"{name} with the right answers {truth!r} and {truths[name]!r}"
                    do = "ask both the same questions: same split, seed, size and options"
                    raise RequestError(report.name, "runs of one benchmark", found, do)
        return compare(runs[: len(a)], runs[len(a) :], patients, paired_seeds)

    def _headline(self) -> str:
        run = self.run or {}
        model, benchmark = run.get("model"), run.get("benchmark") or {}
        model = model.get("name") if isinstance(model, Mapping) else model
        asked = " ".join(str(benchmark[k]) for k in ("benchmark", "split") if benchmark.get(k))
        control = run.get("control", "none")
        parts = [self.name, model and f"model {model}", asked and f"benchmark {asked}"]
        return ", ".join(filter(None, [*parts, control != "none" and f"control {control}"]))

    def _notes(self, table: pd.DataFrame) -> list[str]:
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
        bins = [
            f"{b.low:g}-{b.high:g}: {100 * b.accuracy:.1f} (n {b.n})"
            for b in reliability(self.results).itertuples()
            if b.n
        ]
        notes += [f"accuracy by IoU of the best box: {'; '.join(bins)}"] if bins else []
        return [f"- {note}" for note in notes]


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
