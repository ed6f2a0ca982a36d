"""What a table of replies says of the claims: differences with intervals, corrected for their
number (Holm 1979), and the verdicts that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from unireason_lib.ablation.grid import Claim, Grid
from unireason_lib.errors import UniReasonError
from unireason_lib.evaluation.statistics import Comparison, Interval, compare, holm, mean_over_runs
from unireason_lib.evaluation.table import paired_runs, runs

LEAST_SEEDS = 3
"""Fewer say something about checkpoints and nothing about conditions."""

LEVEL = 0.05
"""Of all claims together, after Holm's correction."""

VALUES = {"correct": "%", "iou_first": "IoU", "format": "format %", "followed": "consistency %"}
"""Column of the table of replies -> heading in the table of conditions, behind the dimension."""


@dataclass(frozen=True)
class Verdict:
    """What came of a claim."""

    name: str
    claim: Claim
    comparison: Comparison | None = None  # of its conditions; None: the table has no replies
    p: float | None = None  # after Holm's correction for all claims; None: cannot be judged
    verdict: str = "cannot tell"  # "supported at this scale", "contradicted", "inconclusive"
    why: str = ""  # in words

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        comparison = self.comparison.to_dict() if self.comparison else None
        about = {"claim": self.name, **self.claim.model_dump(), "verdict": self.verdict}
        return {**about, "why": self.why, "p_holm": self.p, "comparison": comparison}


def judge(grid: Grid, table: pd.DataFrame) -> list[Verdict]:
    """Compare the conditions of each claim, seed by seed, on the seeds that both have.

    "supported at this scale": better, by an interval that excludes zero and with p below
    :data:`LEVEL` after the correction; "contradicted": worse in the same way; "inconclusive":
    neither; "cannot tell": fewer than :data:`LEAST_SEEDS` seeds, no spread, or no replies. A claim
    that cannot be judged still counts as one in the correction.
    """
    verdicts = [_compared(Verdict(name, claim), table) for name, claim in grid.claims.items()]
    p_values = holm([1.0 if one.why else one.comparison.p for one in verdicts])
    return [one if one.why else _judged(one, p) for one, p in zip(verdicts, p_values, strict=True)]


def _compared(one: Verdict, table: pd.DataFrame) -> Verdict:
    """With its comparison; ``why`` says what stands against judging it, if anything does."""
    claim, why = one.claim, ""
    try:
        worse, better, patients, _ = paired_runs(
            table, claim.worse, claim.better, claim.value, **claim.where
        )
        comparison = compare(worse, better, patients, paired_seeds=True)
    except UniReasonError as error:
        return replace(one, why=str(error))
    if min(comparison.seeds) < LEAST_SEEDS:
        why = f"{min(comparison.seeds)} seeds in both conditions, {LEAST_SEEDS} are needed"
    elif math.isnan(comparison.p):
        why = "nothing varies between seeds and patients, so nothing says how sure it is"
    return replace(one, comparison=comparison, why=why)


def _judged(one: Verdict, p: float) -> Verdict:
    low, high = one.comparison.difference.low, one.comparison.difference.high
    side = "includes" if low <= 0 <= high else "lies above" if low > 0 else "lies below"
    if p < LEVEL and side != "includes":
        verdict = "supported at this scale" if low > 0 else "contradicted"
        return replace(one, p=p, verdict=verdict, why=f"the interval {side} zero")
    why = "the interval includes zero"
    if side != "includes":
        why = "its own interval excludes zero, but p is 5 % or more after the correction"
    return replace(one, p=p, verdict="inconclusive", why=why)


def means(table: pd.DataFrame, condition: str, **where: str) -> dict[str, Interval]:
    """``"2D %"``, ``"3D IoU"``, ... -> mean of a condition over seeds and questions, with its 95 %
    interval; what is not measured is left out. ``where``: as for ``evaluation.table.runs``."""
    found = {}
    for value, heading in VALUES.items():
        for dimension in ("2d", "3d"):
            try:
                chosen = runs(table, condition, value, dimension=dimension, **where)
                found[f"{dimension.upper()} {heading}"] = mean_over_runs(*chosen)
            except UniReasonError:  # no such replies, or no question that all seeds have
                continue
    return found


def table_of_conditions(table: pd.DataFrame, names: Iterable[str], **where: str) -> pd.DataFrame:
    """Means of some conditions with their intervals, as text."""
    rows = []
    for name in names:
        seeds = table.loc[table["condition"] == name, "seed"].nunique()
        cells = {h: shown(i, "%" in h) for h, i in means(table, name, **where).items()}
        rows += [{"condition": name, "seeds": seeds, **cells}] if cells else []
    return pd.DataFrame(rows).fillna("")


def table_of_claims(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Claims, their differences and verdicts, as text."""
    rows = []
    for one in verdicts:
        claim, found = one.claim, one.comparison
        row = {"claim": one.name, "better": claim.better, "worse": claim.worse}
        row["on"] = ", ".join(filter(None, (claim.dimension, claim.kind, claim.value)))
        percent = not claim.value.startswith("iou")
        row["difference (95 %)"] = shown(found.difference, percent, "+") if found else ""
        row["p, Holm"] = "" if one.p is None else f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"
        rows.append({**row, "verdict": one.verdict})
    return pd.DataFrame(rows)


def shown(interval: Interval, percent: bool = True, sign: str = "") -> str:
    """``"53.1 (50.2 to 56.0)"``, in percent or as it is."""
    scale, form = (100, f"{sign}.1f") if percent else (1, f"{sign}.3f")
    ends = (interval.value, interval.low, interval.high)
    return "{} ({} to {})".format(*(format(scale * x, form) for x in ends))
