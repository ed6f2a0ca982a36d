"""What a table of replies says of the claims: differences with intervals, corrected for their
number (Holm 1979), and the verdicts that follow."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd

from unireason_lib.ablation.grid import Claim, Grid
from unireason_lib.errors import UniReasonError
from unireason_lib.evaluation.statistics import Comparison, holm, plain
from unireason_lib.evaluation.table import compare, mean, select

LEAST_SEEDS = 3  # fewer say something about checkpoints and nothing about conditions
LEVEL = 0.05  # of all claims together, after Holm's correction

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
        found = {"p_holm": self.p, "verdict": self.verdict, "why": self.why}
        found["comparison"] = plain(self.comparison)
        return {"claim": self.name, **self.claim.model_dump(), **found}


def judge(grid: Grid, table: pd.DataFrame) -> list[Verdict]:
    """Compare the conditions of each claim, seed by seed, on the seeds that both have.

    "supported at this scale": better, by an interval that excludes zero and with p below
    :data:`LEVEL` after the correction; "contradicted": worse in the same way; "inconclusive":
    neither; "cannot tell": fewer than :data:`LEAST_SEEDS` seeds, no spread, or no replies. A claim
    that cannot be judged still counts as one in the correction.
    """
    verdicts = [_compared(name, claim, table) for name, claim in grid.claims.items()]
    p_values = holm([1.0 if one.why else one.comparison.p for one in verdicts])
    return [one if one.why else _judged(one, p) for one, p in zip(verdicts, p_values, strict=True)]


def _compared(name: str, claim: Claim, table: pd.DataFrame) -> Verdict:
    """With its comparison; ``why`` says what stands against judging it, if anything does."""
    try:
        sides = [select(table, side, **claim.where) for side in (claim.worse, claim.better)]
        comparison, why = compare(*sides, claim.value, paired_seeds=True), ""
    except UniReasonError as error:
        return Verdict(name, claim, why=str(error))
    if min(comparison.seeds) < LEAST_SEEDS:
        why = f"{min(comparison.seeds)} seeds in both conditions, {LEAST_SEEDS} are needed"
    elif math.isnan(comparison.p):
        why = "nothing varies between seeds and patients, so nothing says how sure it is"
    return Verdict(name, claim, comparison, why=why)


def _judged(one: Verdict, p: float) -> Verdict:
    low, high = one.comparison.difference.low, one.comparison.difference.high
    verdict, why = "inconclusive", "the interval includes zero"
    if low > 0 or high < 0:
        verdict = "supported at this scale" if low > 0 else "contradicted"
        why = f"the interval lies {'above' if low > 0 else 'below'} zero"
        if p >= LEVEL:
            verdict, why = "inconclusive", f"{why}, but p is 5 % or more after the correction"
    return replace(one, p=p, verdict=verdict, why=why)


def table_of_conditions(table: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Means of some conditions over seeds and questions, as text with their 95 % intervals, by
    dimension; what is not measured is left out."""
    rows = []
    for name in names:
        part = table[(table["condition"] == name) & (table["control"] == "none")]
        row = {"condition": name, "seeds": part["seed"].nunique()}
        for (value, title), dimension in product(VALUES.items(), ("2d", "3d")):
            if found := mean(part[part["dimension"] == dimension], value):
                row[f"{dimension.upper()} {title}"] = found.text(100 if "%" in title else 1)
        rows += [row] if len(row) > 2 else []
    return pd.DataFrame(rows).fillna("")


def table_of_claims(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Claims, their differences and verdicts, as text."""

    def row(one: Verdict) -> dict[str, str]:
        claim, scale = one.claim, 1 if one.claim.value.startswith("iou") else 100
        difference = one.comparison and one.comparison.difference.text(scale, "+")
        return {
            "claim": one.name,
            "better": claim.better,
            "worse": claim.worse,
            "on": ", ".join(filter(None, (claim.dimension, claim.kind, claim.value))),
            "difference (95 %)": difference or "cannot tell",
            "p, Holm": "cannot tell" if one.p is None else f"{one.p:.3f}",
            "verdict": one.verdict,
        }

    return pd.DataFrame(map(row, verdicts))
