"""What a study has found so far: collected from its runs, kept in two small files, and taken up again from them.

A study of many hours may be made by several machines, or by one that is lost between two seeds. What is kept of it (a
table of all answers, and how it came about) is enough to go on: a test whose answers are there is not made again, and
neither is what only such tests need.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unireason_lib import __version__
from unireason_lib.ablation.claims import Verdict, judge
from unireason_lib.ablation.grid import Grid
from unireason_lib.ablation.ledger import Ledger, wall_minutes
from unireason_lib.ablation.plan import DATA, Job, last_jobs, plan
from unireason_lib.errors import DatasetError, GridError
from unireason_lib.evaluation.consistency import read_consistency, slices_file
from unireason_lib.evaluation.tidy import Rows, read_tidy, tidy, write_tidy
from unireason_lib.io import write_whole

BESIDE = {
    "blind": "replies.blank.jsonl",
    "other pictures": "replies.other.jsonl",
    "random crops": "replies.random-crop.jsonl",
    "no crops": "replies.no-crop.jsonl",
    "textures": "textures.none.jsonl",
    "textures, random crops": "textures.random-crop.jsonl",
    "textures, no crops": "textures.no-crop.jsonl",
}
"""What notebook 06 asks a model besides, and the file it leaves beside the replies. In the table of a study each is a
condition of its own, named ``"CONDITION, WHAT"``."""

_OF_A_RUN = ("key", "stage", "conditions", "seed", "seconds", "finished", "code", "base")
_OF_A_FOLDER = ("RUN", "RESULTS", "MODEL")


@dataclass(frozen=True)
class Results:
    """What a study has found so far.

    Attributes:
        rows: Its tidy table: right answers to the benchmark, and beside them what the same model says when something
            is taken away (:data:`BESIDE`).
        lines: Key of a run that passed -> what the ledger says of it.
        consistency: Key of a test -> agreement of its cuboids with the boxes on their slices
            (:mod:`unireason_lib.evaluation.consistency`); left out where no cuboid was written.
        made: How its parts were made, the oldest first: command, version, Python, packages.
    """

    rows: Rows = field(default_factory=list)
    lines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    consistency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made: tuple[Mapping[str, Any], ...] = ()

    @property
    def failed(self) -> dict[str, int]:
        """``"NAME, seed 0"`` -> replies that a machine failed on, where there are any: they stand as wrong and have no
        form."""
        return dict(
            Counter(
                f"{row['condition']}, seed {row['seed']}"
                for row in self.rows
                if row["in_format"] is None
            )
        )

    @property
    def tests(self) -> set[str]:
        """Keys of the tests whose answers are in the table, under all the conditions that share them."""
        there = {(row["condition"], row["seed"]) for row in self.rows}
        return {
            key
            for key, line in self.lines.items()
            if line["stage"] == "test"
            and all((name, line["seed"]) in there for name in line["conditions"])
        }

    def missing(self, grid: Grid) -> list[tuple[str, int]]:
        """Conditions and seeds of a grid that there are no answers of."""
        there = {(row["condition"], row["seed"]) for row in self.rows}
        return [test for test in last_jobs(plan(grid)) if test not in there]


def collect(
    grid: Grid, root: Path, ledger: Ledger, command: str, earlier: Results = Results()
) -> Results:
    """Put together what passed here and what was kept earlier; a test that is under way does not count.

    Args:
        grid: The study.
        root: Of the project.
        ledger: Of its runs here.
        command: That makes them.
        earlier: Parts of the study that were made elsewhere.
    """
    jobs, passed = plan(grid), ledger.passed()
    before: dict[tuple[str, int], Rows] = {}
    for row in earlier.rows:
        before.setdefault((row["condition"], row["seed"]), []).append(row)
    rows: Rows = []
    agreement: dict[str, Mapping[str, Any]] = {}
    kept = earlier.tests
    for (name, seed), job in last_jobs(jobs).items():
        replies = root / job.makes
        files = {
            name: replies,
            **{f"{name}, {what}": replies.with_name(file) for what, file in BESIDE.items()},
        }
        if job.key in passed and replies.exists():
            rows += tidy({(told, seed): path for told, path in files.items() if path.exists()})
            if slices_file(replies).exists():
                agreement[job.key] = read_consistency(replies).to_dict()
        elif job.key in kept:
            rows += [row for told in files for row in before.get((told, seed), ())]
            agreement |= {k: v for k, v in earlier.consistency.items() if k == job.key}
    known = {**earlier.lines, **passed}
    lines = {job.key: known[job.key] for job in jobs if job.key in known}
    here = {
        "command": command,
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    made = earlier.made if not any(key in passed for key in lines) else (*earlier.made, here)
    return Results(rows, lines, agreement, made)


def write_results(grid: Grid, found: Results, folder: Path, *, judged: bool = True) -> None:
    """Write ``NAME.csv.gz`` (the tidy table) and ``NAME.json`` (how it came about, and the verdicts).

    Each is written whole, and one that was broken off between the two is read as it should be (:func:`read_kept`).

    Args:
        grid: The study.
        found: What it has found.
        folder: Where to; ``data/results`` keeps a study beside the code.
        judged: Whether the study has ended. Before that there are no verdicts: if one may stop when the figures
            please, intervals mean nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told, table, new = _files(folder, grid.name)
    write_tidy(found.rows, new)
    lines = list(found.lines.values())
    content: dict[str, Any] = {
        "name": grid.name,
        "about": grid.about,
        "profile": grid.profile,
        "overrides": grid.overrides,
        "seeds": list(grid.seeds),
        "conditions": list(grid.conditions),
        "made": list(found.made),
        "table_sha256": table_digest(new),
        "minutes": {
            "of all runs": round(sum(line["seconds"] for line in lines) / 60, 1),
            "while any was under way": round(wall_minutes(lines), 1),
        },
        "runs": [
            {
                **{name: line[name] for name in line if name in _OF_A_RUN or name.startswith(DATA)},
                "parameters": {
                    k: v for k, v in line["parameters"].items() if k not in _OF_A_FOLDER
                },
            }
            for line in lines
        ],
        "consistency": dict(found.consistency),
        "missing": [f"{name}, seed {seed}" for name, seed in found.missing(grid)],
        "verdicts": [_plain(one) for one in judge(found.rows, grid.claims)]
        if judged and found.rows
        else [],
    }
    write_whole(told, json.dumps(content, indent=1) + "\n")
    os.replace(new, table)


def read_kept(folder: Path, name: str) -> Results:
    """Read ``NAME.json`` and ``NAME.csv.gz``; nothing is kept where neither is there.

    Raises:
        GridError: One is damaged or missing, or they do not belong together.
    """
    told, table, new = _files(folder, name)
    if not told.exists() and not table.exists():
        return Results()
    try:
        content = json.loads(told.read_text(encoding="utf-8"))
        lines = {line["key"]: line for line in content["runs"]}
        for line in lines.values():
            [line[name] for name in (*_OF_A_RUN, "parameters")]
        expected = content["table_sha256"]
        if new.exists() and table_digest(new) == expected:  # broken off before the last rename
            table = new
        found, rows = table_digest(table), read_tidy(table)
        kept = Results(rows, lines, content["consistency"], tuple(content["made"]))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, DatasetError) as error:
        said = f"{type(error).__name__}: {error}"
        do = "get both files whole from where they were made, or go on without --parts"
        raise GridError(told, "results of a study beside their table", said, do) from error
    if found != expected:
        raise GridError(
            table,
            f"the table that {told.name} was written with (SHA-256 {expected[:12]})",
            found[:12],
            "get both files from one place",
        )
    return kept


def still_needed(jobs: Sequence[Job], kept: Results) -> list[Job]:
    """The runs to be made when the answers to some tests are kept: the other tests and what they build on. That is made
    again where it is shared with a kept test."""
    by_key = {job.key: job for job in jobs}
    needed, done = set(), kept.tests
    for job in jobs:
        one = None if job.stage != "test" or job.key in done else job
        while one is not None:
            needed.add(one.key)
            one = by_key.get(one.needs) if one.needs else None
    return [job for job in jobs if job.key in needed]


def table_digest(path: Path) -> str:
    """SHA-256 of the text of a table of results, whatever packed it."""
    return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / f"{name}.json", folder / f"{name}.csv.gz", folder / f"{name}.new.csv.gz"


def _plain(one: Verdict) -> Mapping[str, Any]:
    claim = one.claim
    return {
        "claim": claim.name,
        **{
            name: getattr(claim, name)
            for name in ("says", "better", "worse", "dimension", "kind", "value", "part")
        },
        "verdict": one.verdict,
        "why": one.why,
        "p_holm": one.p,
        "comparison": None if one.comparison is None else one.comparison.to_dict(),
    }
