"""What an ablation grid costs: its runs, each stage once, at the price of a profile's stages."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unireason_lib.ablation.grid import joined, load_grid
from unireason_lib.ablation.plan import Job
from unireason_lib.ablation.plan import plan as jobs_of
from unireason_lib.planning.bill import Bill, bill
from unireason_lib.planning.machines import Range
from unireason_lib.planning.report import NAMES, hours, number
from unireason_lib.profiles import load_profile


@dataclass(frozen=True)
class GridCost:
    """Of a grid.

    Attributes:
        runs: Stage -> number of runs.
        hours: Stage -> hours of all of them, one after another.
        cost: Stage -> US dollars.
    """

    runs: dict[str, int]
    hours: dict[str, Range]
    cost: dict[str, Range]

    def table(self) -> list[tuple[str, ...]]:
        """Lines of a table, the first its head."""
        lines = [("runs of", "how many", "time, one at a time", "USD")]
        for stage, count in self.runs.items():
            lines.append(
                (NAMES[stage], str(count), hours(self.hours[stage]), self.cost[stage].text(number))
            )
        total, paid = Range(0, 0), Range(0, 0)
        for stage in self.runs:
            total, paid = total + self.hours[stage], paid + self.cost[stage]
        lines.append(("in all", str(sum(self.runs.values())), hours(total), paid.text(number)))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {stage: {"runs": self.runs[stage], "hours": self.hours[stage], "cost": self.cost[stage]}
                for stage in self.runs}  # fmt: skip


def grid_hours(path: str | Path, profile: str, made: Bill, changes: str = "") -> GridCost:
    """Add up the runs of a grid.

    Args:
        path: Of the grid.
        profile: Size of the study.
        made: The bill of that profile: machine, samples and numbers of records are taken from it.
        changes: Settings that were changed, as text; they count more than those of the grid.
    """
    runs: dict[str, int] = {}
    times: dict[str, Range] = {}
    costs: dict[str, Range] = {}
    study = load_grid(path)
    sft = load_profile(
        profile, joined(study.overrides if profile == study.profile else "", changes)
    ).sft
    if (
        not sft.steps
    ):  # all conditions learn for as many steps: those of the epochs over all records
        step = sft.batch_size * sft.accumulation * made.cluster.count
        changes = joined(
            changes, f"sft.steps={math.ceil(sft.epochs * sum(made.records.values()) / step)}"
        )
    for job in jobs_of(study.at(profile, changes)):
        one = _job(job, profile, made)
        total, paid = Range(0, 0), Range(0, 0)
        for line in one.lines:
            total, paid = total + line.hours, paid + line.cost
        runs[job.stage] = runs.get(job.stage, 0) + 1
        times[job.stage] = times.get(job.stage, Range(0, 0)) + total
        costs[job.stage] = costs.get(job.stage, Range(0, 0)) + paid
    return GridCost(runs, times, costs)


def _job(job: Job, profile: str, made: Bill) -> Bill:
    """The bill of one run: fewer records where it leaves a dimension out, no regions where none are fetched."""
    settings = load_profile(profile, job.parameters.get("OVERRIDES", ""))
    counts = {d: job.parameters.get(f"COUNT_{d.upper()}") for d in made.records}
    records = {d: made.records[d] if count is None else int(count) for d, count in counts.items()}
    samples = dict(made.samples)
    if job.parameters.get("FORM", "full") != "full" or settings.generation.max_rounds == 0:
        samples = {d: replace(sample, crops=(), boxes=0) for d, sample in samples.items()}
    return bill(
        settings,
        made.shape,
        made.cluster,
        samples,
        strategy=made.strategies.get(job.stage) if job.stage != "test" else None,
        records=records,
        questions=made.questions,
        stages=(job.stage,),
        served=made.served,
    )
