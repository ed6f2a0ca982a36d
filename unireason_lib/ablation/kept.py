"""A study in parts: results that were kept, taken up again where the runs themselves are not.

A study of many hours may be made by several machines, or by one that is lost between two seeds. What it keeps (a table,
and how that came about, see :mod:`unireason_lib.ablation.report`) is enough to go on: a test whose answers are there is
not made again, and neither is what only such tests need.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unireason_lib.ablation.plan import Job
from unireason_lib.errors import DatasetError, GridError, explain
from unireason_lib.evaluation.tidy import Rows, read_tidy


@dataclass(frozen=True)
class Kept:
    """What is kept of a study.

    Attributes:
        rows: Its tidy table.
        lines: Key of a run -> what the ledger said of it.
        base: Digest of the model that all started from.
    """

    rows: Rows = field(default_factory=list)
    lines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None

    @property
    def tests(self) -> set[str]:
        """Keys of the tests whose answers are in the table, under all the conditions that share them."""
        there = {(row["condition"], row["seed"]) for row in self.rows}
        return {
            key
            for key, line in self.lines.items()
            if line["stage"] == "test" and all((name, line["seed"]) in there for name in line["conditions"])
        }


def table_digest(path: Path) -> str:
    """SHA-256 of the text of a table of results, whatever packed it."""
    return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()


def read_kept(folder: Path, name: str) -> Kept:
    """Read ``NAME.json`` and ``NAME.csv.gz``; nothing is kept where neither is there.

    Raises:
        GridError: One is damaged or missing, or they do not belong together.
    """
    told, table = folder / f"{name}.json", folder / f"{name}.csv.gz"
    if not told.exists() and not table.exists():
        return Kept()
    try:
        content = json.loads(told.read_text(encoding="utf-8"))
        lines = {line["key"]: line for line in content["runs"]}
        for line in lines.values():
            line["stage"], line["seed"], line["conditions"], line["seconds"], line["code"]
        expected, base = content["table_sha256"], content["base"]
        found, rows = table_digest(table), read_tidy(table)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, DatasetError) as error:
        said = f"{type(error).__name__}: {error}"
        do = "get both files whole from where they were made, or go on without --parts"
        raise GridError(
            explain(told, expected="results of a study beside their table", found=said, do=do)
        ) from error
    if found != expected:
        raise GridError(
            explain(
                table,
                expected=f"the table that {told.name} was written with (SHA-256 {expected[:12]})",
                found=found[:12],
                do="get both files from one place",
            )
        )
    return Kept(rows, lines, base)


def check_kept(kept: Kept, jobs: Sequence[Job], folder: Path, code: str, base: Mapping[str, Any]) -> None:
    """Refuse parts that are not of this study: the same runs from another base, or by other code.

    Args:
        kept: From :func:`read_kept`.
        jobs: The plan.
        folder: Where it was read, for errors.
        code: As :func:`unireason_lib.ablation.plan.code_hash` has it now; empty: of whatever code.
        base: Digest of the model that all runs start from.

    Raises:
        GridError: They are not.
    """
    mine = [kept.lines[job.key] for job in jobs if job.key in kept.lines]
    if mine and kept.base != base:
        raise GridError(
            explain(folder, expected=f"runs from the base {base}", found=str(kept.base), do="take that base")
        )
    other = [line for line in mine if code and line["code"] != code]
    if other:
        raise GridError(
            explain(
                folder,
                expected=f"runs of the code as it is now ({code})",
                found=f"{len(other)} of other code ({other[0]['code']})",
                do="go back to that code, or keep them all the same with --mixed",
            )
        )


def still_needed(jobs: Sequence[Job], kept: Kept) -> list[Job]:
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
