"""What an ablation grid costs: its runs, each stage once, at the price of a profile's stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unireason_lib.ablation.grid import load_grid
from unireason_lib.ablation.plan import Job
from unireason_lib.ablation.plan import plan as jobs_of
from unireason_lib.planning.bill import Bill, bill
from unireason_lib.planning.machines import Range, assumptions
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
            lines.append((NAMES[stage], str(count), hours(self.hours[stage]), self.cost[stage].text(number)))
        total, paid = Range(0, 0), Range(0, 0)
        for stage in self.runs:
            total, paid = total + self.hours[stage], paid + self.cost[stage]
        lines.append(("in all", str(sum(self.runs.values())), hours(total), paid.text(number)))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {stage: {"runs": self.runs[stage], "hours": self.hours[stage], "cost": self.cost[stage]}
                for stage in self.runs}  # fmt: skip


def grid_hours(path: str | Path, profile: str, settings: Any, made: Bill) -> GridCost:
    """Add up the runs of a grid.

    Args:
        path: Of the grid.
        profile: Size of the study.
        settings: That profile, with changes.
        made: The bill of that profile, whose machine and samples are taken.
    """
    grid = load_grid(path)
    runs: dict[str, int] = {}
    times: dict[str, Range] = {}
    costs: dict[str, Range] = {}
    for job in jobs_of(grid.at(profile)):
        one = _job(job, settings if grid.at(profile) is not grid else None, profile, made)
        total, paid = Range(0, 0), Range(0, 0)
        for line in one.lines:
            total, paid = total + line.hours, paid + line.cost
        runs[job.stage] = runs.get(job.stage, 0) + 1
        times[job.stage] = times.get(job.stage, Range(0, 0)) + total
        costs[job.stage] = costs.get(job.stage, Range(0, 0)) + paid
    return GridCost(runs, times, costs)


def _job(job: Job, settings: Any, profile: str, made: Bill) -> Bill:
    """The bill of one run: fewer records where it leaves a dimension out, no regions where it fetches none."""
    own = job.parameters.get("OVERRIDES", "")
    changed = load_profile(profile, own) if own or settings is None else settings
    records = dict(assumptions()["records"])
    for d in records:
        count = job.parameters.get(f"COUNT_{d.upper()}")
        records[d] = records[d] if count is None else int(count)
    samples = dict(made.samples)
    if job.parameters.get("FORM", "full") != "full":
        samples = {d: type(s)(s.dimension, s.pictures, (), s.asked, s.written, 0) for d, s in samples.items()}
    return bill(
        changed,
        made.shape,
        made.cluster,
        samples,
        strategy=made.strategy,
        records=records,
        stages=(job.stage,),
    )
