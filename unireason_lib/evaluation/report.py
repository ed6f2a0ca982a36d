"""The table of a run: every accuracy with its interval, and beside it what is reached without looking."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unireason_lib.errors import RequestError
from unireason_lib.evaluation.metrics import (
    SHARES,
    Bin,
    Cell,
    answered,
    cells,
    chance,
    reliability,
)
from unireason_lib.evaluation.statistics import Comparison, Interval, compare, runs_of
from unireason_lib.inference.results import read_results, run_file

COLUMNS = (
    *("accuracy", "blind", "guess", "majority", "abstained", "word_f1"),
    *("in_format", "iou_first", "iou_best", "hit"),
)
"""Measures of the table; those that apply to no row are left out."""

COST = ("crop_share", "rounds", "own_tokens", "injected_tokens", "seconds")

_COMPARED = {"correct": "accuracy", "iou_first": "IoU first", "iou_best": "IoU best"}

_TITLES = {
    "guess": "most likely",
    "majority": "one letter",
    "word_f1": "F1 of words",
    "in_format": "format",
    "iou_first": "IoU first",
    "iou_best": "IoU best",
    "hit": "IoU >= 0.5",
}


@dataclass(frozen=True)
class Report:
    """What a file of results says.

    Args:
        lines: Its lines.
        blind: Lines of the same questions with blanked pictures, if at hand.
        name: Of the run.
        run: What made it, as the file beside the results has it.
        samples: Resamples of the intervals.
    """

    lines: Sequence[Mapping[str, Any]]
    blind: Sequence[Mapping[str, Any]] = ()
    name: str = ""
    run: Mapping[str, Any] | None = None
    samples: int = 2000

    @classmethod
    def from_file(
        cls, path: str | Path, blind: str | Path | None = None, samples: int = 2000
    ) -> Report:
        """Read results.

        Args:
            path: What :func:`unireason_lib.evaluation.evaluate` wrote.
            blind: The same with the control ``blank``; by default ``<name>.blank.jsonl`` beside it, if it is there.
            samples: Resamples of the intervals.

        Raises:
            RequestError: A file is missing, is none of results, or the blind one is of another benchmark or control.
        """
        path = Path(path)
        lines = list(read_results(path))
        for line in lines:
            if "dimension" not in line or ("error" not in line and "prediction" not in line):
                raise RequestError(
                    f"{path}, {line['id']}",
                    "a line of an evaluation",
                    f"the keys {', '.join(line)[:100]}",
                    "give what evaluate wrote",
                )
        run = _run(path)
        beside = blank_file(path)
        if (
            blind is None
            and beside.is_file()
            and _run(beside).get("benchmark") == run.get("benchmark")
        ):
            blind = beside
        return cls(
            lines, () if blind is None else _blind(Path(blind), run), path.name, run, samples
        )

    @cached_property
    def cells(self) -> list[Cell]:
        """All, by dimension, by family, by both."""
        return cells(self.lines, self.blind, samples=self.samples)

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Lines of questions that could not be asked."""
        return [line for line in self.lines if "error" in line]

    def reliability(self, **options: Any) -> list[Bin]:
        """See :func:`unireason_lib.evaluation.metrics.reliability`."""
        return reliability(self.lines, **options)

    def rows(self) -> list[dict[str, Any]]:
        """The table in plain values: ``dimension``, ``family``, ``n``, ``patients``, and for every measure its mean
        and ``<measure>_low``, ``<measure>_high`` (None where there is none)."""
        found = []
        for cell in self.cells:
            row = {
                "dimension": cell.dimension,
                "family": cell.family,
                "n": cell.n,
                "patients": cell.patients,
            }
            for name, interval in cell.values.items():
                ends = (
                    {"value": None, "low": None, "high": None}
                    if interval is None
                    else interval.to_dict()
                )
                row |= {
                    name: ends["value"],
                    f"{name}_low": ends["low"],
                    f"{name}_high": ends["high"],
                }
            found.append(row)
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles and cells of the table in words."""
        shown = [
            name for name in COLUMNS if any(cell.values[name] is not None for cell in self.cells)
        ]
        titles = ["dimension", "family", "n", *(_TITLES.get(name, name) for name in shown)]
        body = [
            [
                cell.dimension,
                cell.family,
                str(cell.n),
                *(_words(name, cell.values[name]) for name in shown),
            ]
            for cell in self.cells
        ]
        return titles, body

    def text(self) -> str:
        """The report for a terminal."""
        if not self.cells:
            return f"{self.name}: no replies, {len(self.failed)} failed"
        titles, body = self.table()
        widths = [max(map(len, column)) for column in zip(titles, *body, strict=True)]
        lines = [self._headline(), ""]
        for row in (titles, *body):
            lines.append(
                "  ".join(
                    word.ljust(width) for word, width in zip(row, widths, strict=True)
                ).rstrip()
            )
        return "\n".join([*lines, "", *self._notes()])

    def markdown(self) -> str:
        """The table in Markdown, with its notes."""
        if not self.cells:
            return self.text()
        titles, body = self.table()
        rule = ["---"] * len(titles)
        rows = ["| " + " | ".join(row) + " |" for row in (titles, rule, *body)]
        return "\n".join(
            [self._headline(), "", *rows, "", *(f"- {note}" for note in self._notes())]
        )

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
            value: Key of the lines.
            also: Further runs of this condition, with other seeds.
            paired_seeds: Whether the k-th runs of both share what their seed decides.

        Raises:
            RequestError: No question is common to all, or one of them has another right answer elsewhere.
        """
        ours, theirs = [self, *also], [other] if isinstance(other, Report) else list(other)
        _same_truths([*ours, *theirs])
        runs, patients = zip(
            *(runs_of(report.lines, value) for report in [*ours, *theirs]), strict=True
        )
        a, b = list(runs[: len(ours)]), list(runs[len(ours) :])
        return compare(a, b, patients[0], paired_seeds=paired_seeds, samples=2 * self.samples)

    def comparisons(
        self,
        other: Report | Sequence[Report],
        *,
        also: Sequence[Report] = (),
        paired_seeds: bool = False,
    ) -> dict[str, Comparison]:
        """The comparison of right answers, and of boxes where there is truth: key of the lines -> what
        :meth:`compare` says."""
        theirs = [other] if isinstance(other, Report) else list(other)
        how = {"also": also, "paired_seeds": paired_seeds}
        return {
            value: self.compare(theirs, value, **how)
            for value in _COMPARED
            if all(runs_of(report.lines, value)[0] for report in [self, *also, *theirs])
        }

    def comparison(
        self,
        other: Report | Sequence[Report],
        *,
        also: Sequence[Report] = (),
        paired_seeds: bool = False,
    ) -> str:
        """:meth:`comparisons` in words."""
        theirs = [other] if isinstance(other, Report) else list(other)
        names = (
            " + ".join(report.name for report in reports) for reports in (theirs, [self, *also])
        )
        lines, over = [" against ".join(names) + ":"], "questions"
        for value, found in self.comparisons(theirs, also=also, paired_seeds=paired_seeds).items():
            scale, unit, number = (100, " points", ".1f") if value == "correct" else (1, "", ".3f")
            d, over = found.difference, found.over
            more = (
                f", McNemar p {found.mcnemar:.3g}, Cohen's h {found.h:+.2f}"
                if found.mcnemar is not None
                else ""
            )
            lines.append(
                f"  {_COMPARED[value]}: {found.b * scale:{number}} against {found.a * scale:{number}}, difference "
                f"{d.value * scale:+{number}}{unit} [{d.low * scale:+{number}}, {d.high * scale:+{number}}], "
                f"p {found.p:.3g}{more} ({found.questions} questions, {d.clusters} patients)"
            )
        checkpoints = "these are two checkpoints; what holds for two ways of training takes several seeds of each"
        seeds = f"seeds and patients resampled together: {len(theirs)} runs against {1 + len(also)}"
        return "\n".join([*lines, f"  {checkpoints if over == 'questions' else seeds}"])

    def _headline(self) -> str:
        said = self.run or {}
        model = said.get("model")
        model = model.get("name") if isinstance(model, Mapping) else model
        control = said.get("control", "none")
        parts = [self.name, f"model {model}" if model else "", f"benchmark {self._benchmark()}"]
        parts.append(f"control {control}" if control != "none" else "")
        return ", ".join(part for part in parts if part)

    def _benchmark(self) -> str:
        said = (self.run or {}).get("benchmark", {})
        return (
            " ".join(str(said[key]) for key in ("benchmark", "split") if said.get(key)) or "unknown"
        )

    def _notes(self) -> list[str]:
        everything = self.cells[0]
        notes = [
            f"{everything.n} replies about {everything.patients} patients, {len(self.failed)} failed"
        ]
        notes.append("intervals 95 %, patients resampled (Wilson's in small cells)")
        by_lot = chance(self.lines)
        if by_lot is not None:
            seen = "" if self.blind else "; no blind baseline yet (evaluate --with-blank)"
            notes.append(f"choosing by lot {100 * by_lot:.1f} %{seen}")
        cost = [(name, everything.values[name]) for name in COST]
        told = ", ".join(
            f"{name.replace('_', ' ')} {i.value:.3g}" for name, i in cost if i is not None
        )
        notes.append(f"a reply: {told}")
        bins = [
            f"{b.low:g}-{b.high:g}: {_words('accuracy', b.accuracy)} (n {b.n})"
            for b in self.reliability()
            if b.n
        ]
        if bins:
            notes.append("accuracy by IoU of the best box: " + "; ".join(bins))
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Everything that the report says, ready for JSON."""
        return {
            "name": self.name,
            "run": self.run,
            "failed": len(self.failed),
            "rows": self.rows(),
            "chance": chance(self.lines),
            "reliability": [
                {
                    "low": b.low,
                    "high": b.high,
                    "n": b.n,
                    "accuracy": b.accuracy and b.accuracy.to_dict(),
                }
                for b in self.reliability()
            ],
        }


def blank_file(path: str | Path) -> Path:
    """Where the blind baseline of a file of results is kept: ``result.jsonl`` -> ``result.blank.jsonl``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.blank{path.suffix}")


def _run(path: Path) -> Mapping[str, Any]:
    if not run_file(path).is_file():
        return {}
    try:
        found = json.loads(run_file(path).read_text(encoding="utf-8")).get("run")
    except (ValueError, AttributeError):
        found = None
    return found if isinstance(found, Mapping) else {}


def _blind(path: Path, run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    lines, theirs = list(read_results(path)), _run(path)
    same = not run or not theirs or theirs.get("benchmark") == run.get("benchmark")
    if not same or (theirs and theirs.get("control") not in ("blank", "noise")):
        found = f"{'the same' if same else 'another'} benchmark with the control {theirs.get('control')!r}"
        do = "make it with evaluate --with-blank"
        raise RequestError(path, "the same benchmark with blanked pictures", found, do)
    return answered(lines)


def _same_truths(reports: Sequence[Report]) -> None:
    """Whether a question is the same in all runs: its right answer is."""
    truths: dict[str, tuple[Any, str]] = {}
    for report in reports:
        for line in report.lines:
            truth, name = truths.setdefault(line["id"], (line.get("truth"), report.name))
            if truth != line.get("truth"):
                raise RequestError(
                    f"comparison of {report.name} and {name}",
                    "runs of one benchmark",
                    f"{line['id']} with the right answers {line.get('truth')!r} and {truth!r}",
                    "ask both the same questions: same split, seed, size and options",
                )


def _words(name: str, interval: Interval | None) -> str:
    if interval is None:
        return "-"
    scale, number = (100, ".1f") if name in SHARES else (1, ".2f")
    ends = (
        ""
        if math.isnan(interval.low)
        else f" [{interval.low * scale:{number}}, {interval.high * scale:{number}}]"
    )
    return f"{interval.value * scale:{number}}{ends}"
