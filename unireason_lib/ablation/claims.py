"""What a table says of the claims: differences with intervals, corrected for their number, and verdicts that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unireason_lib.ablation.grid import Claim
from unireason_lib.errors import UniReasonError
from unireason_lib.evaluation.statistics import Comparison, compare, holm
from unireason_lib.evaluation.tidy import paired_runs

LEAST_SEEDS = 3
"""Fewer say something about checkpoints and nothing about conditions."""

LEVEL = 0.05
"""Of the family of all claims, after Holm's correction."""

VERDICTS = ("reproduced", "reversed", "not seen", "cannot tell")


@dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Attributes:
        claim: The claim.
        comparison: Of the two conditions; None where there are no rows for it.
        p: p-value after Holm's correction (Holm 1979) for all claims; None where it cannot be judged.
        verdict: One of :data:`VERDICTS`.
        why: In words.
    """

    claim: Claim
    comparison: Comparison | None
    p: float | None
    verdict: str
    why: str


def judge(
    rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim], *, samples: int = 4000
) -> list[Verdict]:
    """Compare what each claim compares, and say what follows.

    "reproduced": better by an interval that excludes zero, and significant after the correction. "reversed": the same
    the other way round. "not seen": neither. "cannot tell": fewer than :data:`LEAST_SEEDS` seeds, or no
    questions.

    Both are compared on the seeds that both have, seed by seed.

    Args:
        rows: The tidy table.
        claims: What is claimed.
        samples: Resamples of the bootstrap over seeds and questions.
    """
    found: list[Comparison | str] = []
    for claim in claims:
        try:
            worse, better, patients, _ = paired_runs(
                rows, claim.worse, claim.better, claim.value, **claim.where
            )
            found.append(compare(worse, better, patients, paired_seeds=True, samples=samples))
        except UniReasonError as error:
            found.append(str(error))
    enough = [isinstance(one, Comparison) and min(one.seeds) >= LEAST_SEEDS for one in found]
    # claims that cannot be judged count among those that were made
    corrected = holm([one.p if known else 1.0 for one, known in zip(found, enough, strict=True)])
    return [
        _verdict(claim, one, p if known else None)
        for claim, one, p, known in zip(claims, found, corrected, enough, strict=True)
    ]


def _verdict(claim: Claim, found: Comparison | str, p: float | None) -> Verdict:
    if isinstance(found, str):
        return Verdict(claim, None, None, "cannot tell", found)
    if p is None:
        return Verdict(
            claim,
            found,
            None,
            "cannot tell",
            f"{min(found.seeds)} seeds that both conditions have, {LEAST_SEEDS} are needed",
        )
    d = found.difference
    if p < LEVEL and d.low > 0:
        return Verdict(claim, found, p, "reproduced", "the interval lies above zero")
    if p < LEVEL and d.high < 0:
        return Verdict(claim, found, p, "reversed", "the interval lies below zero")
    why = "the interval holds zero"
    if not d.low <= 0 <= d.high:
        why = "its own interval leaves out zero, but p is not below 5 % after the correction for all claims"
    return Verdict(claim, found, p, "not seen", why)
