"""The ledger of a study: a line for every run of a notebook that ended, however it ended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from unireason_lib.ablation.plan import Job
from unireason_lib.training.logbook import append_lines, read_lines


class Ledger:
    """Lines are added whole; a line that a kill tore is passed over.

    Args:
        path: File of JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return read_lines(self.path) if self.path.exists() else []

    def add(
        self, job: Job, status: str, seconds: float, error: str, made_by: Mapping[str, str]
    ) -> None:
        """A run has ended. ``made_by`` is what :func:`unireason_lib.ablation.plan.made_by` says."""
        line = {
            "key": job.key,
            "stage": job.stage,
            "conditions": list(job.conditions),
            "seed": job.seed,
            "status": status,
            "seconds": round(seconds, 1),
            "error": error,
            "parameters": dict(job.parameters),
            **made_by,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        append_lines(self.path, [line])

    def passed(self) -> dict[str, dict[str, Any]]:
        """Key -> the line of a run that passed."""
        return {line["key"]: line for line in self.lines if line["status"] == "passed"}

    def minutes(self, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """Stage -> minutes of a run: the mean of those that passed, else what is given."""
        found: dict[str, list[float]] = {}
        for line in self.lines:
            if line["status"] == "passed":
                found.setdefault(line["stage"], []).append(line["seconds"] / 60)
        return {**(given or {}), **{stage: fmean(values) for stage, values in found.items()}}


def estimate(jobs: Sequence[Job], minutes: Mapping[str, float]) -> float | None:
    """Minutes that some runs take one after the other; None where a stage was never measured."""
    if any(job.stage not in minutes for job in jobs):
        return None
    return sum(minutes[job.stage] for job in jobs)


def wall_minutes(lines: Iterable[Mapping[str, Any]]) -> float:
    """Minutes during which any of some runs was under way, however many at a time."""
    spans = []
    for line in lines:
        end = datetime.strptime(line["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        spans.append((end - line["seconds"], end))
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 60
