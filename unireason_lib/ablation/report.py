"""What a study found: one table of all answers, means with intervals, and the verdicts on its claims."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unireason_lib import __version__
from unireason_lib.ablation.claims import Verdict, judge
from unireason_lib.ablation.grid import Grid
from unireason_lib.ablation.kept import Kept, table_digest
from unireason_lib.ablation.ledger import Ledger
from unireason_lib.ablation.plan import Job, last_jobs
from unireason_lib.evaluation.statistics import Interval, mean_over_runs
from unireason_lib.evaluation.tidy import Rows, conditions, runs, tidy, write_tidy
from unireason_lib.inference.fingerprint import model_identity
from unireason_lib.inference.results import write_whole

MEASURES: tuple[tuple[str, str, str | None], ...] = (
    ("2D, %", "correct", "2d"),
    ("3D, %", "correct", "3d"),
    ("IoU 2D", "iou_first", "2d"),
    ("IoU 3D", "iou_first", "3d"),
    ("form, %", "in_format", None),
)
"""Columns of the table of conditions: heading, value, dimension."""


def collect_rows(jobs: Sequence[Job], root: Path, kept: Kept = Kept()) -> Rows:  # noqa: B008 (frozen)
    """The tidy table of the tests that are there: right answers to the benchmark, and beside them what the same model
    says to grey pictures, as the condition ``"NAME, blind"``. What is not there may have been kept."""
    before: dict[tuple[str, int], Rows] = {}
    for row in kept.rows:
        before.setdefault((row["condition"], row["seed"]), []).append(row)
    rows, tests = [], kept.tests
    for (name, seed), job in last_jobs(jobs).items():
        replies = root / job.makes
        files = {name: replies, f"{name}, blind": replies.with_name("replies.blank.jsonl")}
        if replies.exists():
            rows += tidy({(told, seed): path for told, path in files.items() if path.exists()})
        elif job.key in tests:
            rows += [row for told in files for row in before.get((told, seed), ())]
    return rows


def missing_tests(jobs: Sequence[Job], rows: Rows) -> list[tuple[str, int]]:
    """Conditions and seeds of a plan that the table has no answers of."""
    there = {(row["condition"], row["seed"]) for row in rows}
    return [test for test in last_jobs(jobs) if test not in there]


def means(rows: Rows, name: str, *, samples: int = 2000) -> dict[str, Interval]:
    """Heading -> mean of a condition with its interval over seeds and questions; measures that it lacks are left
    out."""
    found = {}
    for heading, value, dimension in MEASURES:
        where = {"dimension": dimension} if dimension else {}
        if any(
            row["condition"] == name
            and row[value] is not None
            and (not dimension or row["dimension"] == dimension)
            for row in rows
        ):
            found[heading] = mean_over_runs(*runs(rows, name, value, **where), samples=samples)
    return found


def table_of_conditions(rows: Rows, names: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """Lines of text for :func:`unireason_lib.tutorial.results.aligned`."""
    known = conditions(rows)
    lines = [("condition", "seeds", *(heading for heading, *_ in MEASURES))]
    for name in names or known:
        if name not in known:
            continue
        found, cells = means(rows, name), []
        for heading, *_ in MEASURES:
            one = found.get(heading)
            scale, digits = (100, 1) if "%" in heading else (1, 3)
            cells.append(
                ""
                if one is None
                else f"{scale * one.value:.{digits}f} ({scale * one.low:.{digits}f}-{scale * one.high:.{digits}f})"
            )
        lines.append((name, str(len(known[name])), *cells))
    return lines


def table_of_claims(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """The same for claims."""
    lines = [("claim", "better", "worse", "on", "difference (95 %)", "p, Holm", "h", "verdict")]
    for one in verdicts:
        claim, found = one.claim, one.comparison
        scale, digits = (100, 1) if claim.value != "iou_first" else (1, 3)
        difference, h = "", ""
        if found is not None:
            d = found.difference
            difference = (
                f"{scale * d.value:+.{digits}f} ({scale * d.low:+.{digits}f} to {scale * d.high:+.{digits}f})"
            )
            h = "" if found.h is None else f"{found.h:+.2f}"
        on = ", ".join(
            filter(None, (claim.dimension, claim.kind, claim.value if claim.value != "correct" else ""))
        )
        p = "" if one.p is None else f"{one.p:.3g}"
        lines.append((claim.name, claim.better, claim.worse, on, difference, p, h, one.verdict))
    return lines


def write_results(
    grid: Grid,
    jobs: Sequence[Job],
    rows: Rows,
    ledger: Ledger,
    folder: Path,
    command: str,
    base: str,
    kept: Kept = Kept(),  # noqa: B008 (frozen)
    *,
    judged: bool = True,
) -> None:
    """Write ``NAME.csv.gz`` (the tidy table) and ``NAME.json`` (how it came about, and the verdicts), each whole.

    Args:
        grid: The study.
        jobs: Its runs.
        rows: From :func:`collect_rows`.
        ledger: Of its runs.
        folder: Where to; ``data/results`` keeps a study beside the code.
        command: That made it.
        base: Folder or hub id of the model that all runs start from, for its digest.
        kept: Earlier parts of the study that the rows hold.
        judged: Whether the study has ended. Before that there are no verdicts: one that may stop when its figures
            please has no intervals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{grid.name}.csv.gz"
    write_tidy(rows, table)
    known = {**kept.lines, **ledger.passed()}
    lines = [known[job.key] for job in jobs if job.key in known]
    content: dict[str, Any] = {
        "name": grid.name,
        "about": grid.about,
        "command": command,
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "base": model_identity(base),
        "table_sha256": table_digest(table),
        "code": sorted({line["code"] for line in lines}),
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "runs": [
            {
                **{name: line[name] for name in ("key", "stage", "conditions", "seed", "seconds", "code")},
                "parameters": {
                    k: v for k, v in line["parameters"].items() if k not in ("RUN", "RESULTS", "MODEL")
                },
            }
            for line in lines
        ],
        "missing": [f"{name}, seed {seed}" for name, seed in missing_tests(jobs, rows)],
        "verdicts": [_plain(one) for one in judge(rows, grid.claims)] if judged and rows else [],
    }
    write_whole(folder / f"{grid.name}.json", json.dumps(content, indent=1) + "\n")


def _plain(one: Verdict) -> Mapping[str, Any]:
    return {
        "claim": one.claim.name,
        "better": one.claim.better,
        "worse": one.claim.worse,
        "dimension": one.claim.dimension,
        "value": one.claim.value,
        "verdict": one.verdict,
        "why": one.why,
        "p_holm": one.p,
        "comparison": None if one.comparison is None else one.comparison.to_dict(),
    }
