"""How sure are we? Intervals, paired comparisons, and what many comparisons cost.

Two things make naive intervals too short. Questions about one patient succeed and fail together, so **patients** are
resampled, not questions (a cluster bootstrap). And a *condition* ("trained with boxes") is more than one checkpoint:
another seed gives another model. A claim about conditions therefore resamples **seeds and patients** together.

With few seeds a bootstrap over them is too narrow twice over: resampling S values shrinks their variance by (S - 1)
/ S, and their spread is itself hardly known. It is also too wide: means of seeds differ already because single
replies do, and that has been counted when patients were resampled. All three are put right here. Deviations of seeds
are widened by sqrt(S / (S - 1)), and narrowed to what is left of their variance without the noise of replies (the
residuals of seeds x patients, as in an analysis of variance). The interval is stretched from normal to Student's t,
with the degrees of freedom of Satterthwaite (1946) for the sum of the variances, in which the spread of seeds counts
in full, since it is known no better for having been narrowed. p-values are those of the same t. :func:`compare` says
so when there is one seed only: then its statement is about two checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unireason_lib.errors import RequestError

FEW = 20
"""With fewer patients than this, or when all replies agree, a share gets Wilson's interval: the percentile bootstrap
covers too little there (and nothing at all when every value is the same)."""

_AS_NORMAL = 10_000  # degrees of freedom from which Student's t is as good as normal

_CHUNK = 4_000_000  # numbers of a matrix of resamples in memory at a time


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes:
        value: The mean.
        low, high: Ends of the interval; NaN when one patient only was seen.
        n: Values in the mean.
        clusters: Patients they come from.
        method: ``"bootstrap"``, ``"wilson"`` or ``"none"``.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    method: str = "bootstrap"

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        plain = {name: getattr(self, name) for name in ("value", "low", "high")}
        plain = {
            name: None if math.isnan(number) else round(number, 6) for name, number in plain.items()
        }
        return {**plain, "n": self.n, "clusters": self.clusters, "method": self.method}


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    bounded: bool = True,
) -> Interval:
    """Mean with a percentile interval of a bootstrap that resamples clusters.

    Args:
        values: One a question.
        clusters: The patient of each.
        samples: Resamples.
        seed: Of the resampling.
        level: Of the interval.
        bounded: Whether values lie between 0 and 1; counts and times do not.

    Returns:
        The interval. Shares (all values 0 or 1) of fewer than :data:`FEW` patients, or all alike, get Wilson's
        interval for as many questions as they are worth, see :func:`design_effect`.

    Raises:
        RequestError: No values, or another number of clusters.
    """
    values, sums, counts = _clustered(values, clusters)
    n, mean = len(values), float(values.mean())
    known = len(sums)
    share = bounded and bool(np.isin(values, (0, 1)).all())
    if share and (known < FEW or mean in (0, 1)):
        effective = n / design_effect(sums, counts)
        low, high = wilson(mean * effective, effective, level)
        return Interval(mean, low, high, n, known, "wilson")
    if known < 2:
        return Interval(mean, math.nan, math.nan, n, known, "none")
    means = _resampled_means(sums, counts, samples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n, known)


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927): good in small cells, and never outside [0, 1].

    Args:
        successes: How many were right; may be fractional.
        n: Of how many.
        level: Of the interval.
    """
    from scipy.stats import norm

    if n <= 0:
        return 0.0, 1.0
    z, p = float(norm.ppf((1 + level) / 2)), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 0.0 if successes <= 0 else middle - half, 1.0 if successes >= n else middle + half


def design_effect(sums: np.ndarray, counts: np.ndarray) -> float:
    """How many clustered questions are worth one independent one (Kish): the variance of the mean of clusters over
    that of a simple sample, at least 1 and at most the mean size of a cluster.

    Args:
        sums: (clusters,) sum of the shares 0 and 1 in each cluster.
        counts: (clusters,) questions in each.
    """
    n, k = counts.sum(), len(counts)
    p = sums.sum() / n
    if k < 2:
        return float(n)  # one patient: all questions may be one
    if p in (0, 1):
        return 1.0
    between = k / (k - 1) * float(((sums - p * counts) ** 2).sum()) / n**2
    return float(np.clip(between / (p * (1 - p) / n), 1.0, max(1.0, n / k)))


def _clustered(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values, and the sum and count in every cluster."""
    values = np.asarray(list(values), float)
    if len(values) == 0 or len(values) != len(clusters):
        raise RequestError(
            "bootstrap",
            "one value or more, and a patient for each",
            f"{len(values)} values, {len(clusters)} patients",
            "check which lines are measured",
        )
    code = _codes(clusters)
    return values, np.bincount(code, values), np.bincount(code).astype(float)


def _codes(names: Sequence[Hashable]) -> np.ndarray:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names])


def _weights(draw: np.random.Generator, clusters: int, samples: int) -> np.ndarray:
    """(samples, clusters): how often each cluster is drawn in each resample."""
    return draw.multinomial(clusters, np.full(clusters, 1 / clusters), size=samples)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    draw, means = np.random.default_rng(seed), []
    step = max(1, _CHUNK // len(sums))
    for first in range(0, samples, step):
        weights = _weights(draw, len(sums), min(step, samples - first))
        means.append((weights @ sums) / (weights @ counts))
    return np.concatenate(means)


# -- runs of a condition --------------------------------------------------------------------------------------------

Run = Mapping[str, float]
"""Question id -> value (1 right, 0 wrong, or any measure) in one run, that is for one seed of a condition."""


@dataclass(frozen=True)
class Comparison:
    """Two conditions, asked the same questions.

    Attributes:
        a, b: Means of the two.
        difference: ``b - a`` with its interval.
        p: Two-sided p-value of no difference: Student's t of the difference over its resampled deviation, with the
            degrees of freedom of the interval.
        h: Cohen's h of the two shares; None for measures that are no shares.
        d: Cohen's d of the other measures: the difference over the deviation of single values, pooled over both.
        mcnemar: Exact p-value of McNemar's test; None unless there is one run each of rights and wrongs. It takes
            questions as independent, so with several questions a patient it is too sure of itself.
        seeds: Runs of a and of b.
        questions: Asked in all runs.
        error: Standard error of the difference: its deviation over the resamples.
        freedom: Degrees of freedom that this is known with (Satterthwaite's).
        over: ``"questions"``: a statement about these checkpoints; ``"seeds and questions"``: about the conditions.
    """

    a: float
    b: float
    difference: Interval
    p: float
    h: float | None
    d: float | None
    mcnemar: float | None
    seeds: tuple[int, int]
    questions: int
    error: float
    freedom: float
    over: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": round(self.a, 6),
            "b": round(self.b, 6),
            "difference": self.difference.to_dict(),
            "p": self.p,
            "h": self.h,
            "d": self.d,
            "mcnemar": self.mcnemar,
            "seeds": list(self.seeds),
            "questions": self.questions,
            "error": round(self.error, 6),
            "freedom": None if math.isinf(self.freedom) else round(self.freedom, 2),
            "over": self.over,
        }


def compare(
    a: Run | Sequence[Run],
    b: Run | Sequence[Run],
    patients: Mapping[str, Hashable],
    *,
    paired_seeds: bool = False,
    samples: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """How much better is b than a on the same questions?

    Args:
        a, b: A run, or the runs of a condition (one a seed).
        patients: Question id -> patient.
        paired_seeds: Whether the k-th runs of both share what their seed decides (the base, the order of the data), so
            that they are resampled together.
        samples, seed, level: Of the bootstrap.

    Raises:
        RequestError: No question was asked in all runs, or paired conditions have different numbers of runs.
    """
    a, b = ([runs] if isinstance(runs, Mapping) else list(runs) for runs in (a, b))
    ids = _common(a, b, paired_seeds)
    left, right = (
        np.array([[float(run[name]) for name in ids] for run in runs]) for runs in (a, b)
    )
    code = _codes([patients[name] for name in ids])
    counts = np.bincount(code).astype(float)
    sums = [np.stack([np.bincount(code, row) for row in table]) for table in (left, right)]
    drawn = [(sums[1] - sums[0], 1)] if paired_seeds else [(sums[0], -1), (sums[1], 1)]
    means = _hierarchical(drawn, counts, samples, seed)
    value = float(right.mean() - left.mean())
    freedom = float(_freedom(drawn, counts))
    error = float(means.std())
    p = _p_value(value, error, freedom)
    means = value + (means - value) * _stretch(freedom, level)
    if len(counts) < 2:
        low = high = math.nan
    else:
        low, high = (float(end) for end in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    shares = bool(np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all())
    single = len(a) == len(b) == 1
    return Comparison(
        a=float(left.mean()),
        b=float(right.mean()),
        difference=Interval(value, low, high, len(ids), len(counts)),
        p=p if len(counts) > 1 else 1.0,
        h=cohens_h(float(left.mean()), float(right.mean())) if shares else None,
        d=None if shares else cohens_d(left, right),
        mcnemar=mcnemar(left[0], right[0]) if single and shares else None,
        seeds=(len(a), len(b)),
        questions=len(ids),
        error=error,
        freedom=freedom,
        over="questions" if single else "seeds and questions",
    )


def power(error: float, freedom: float, effect: float, level: float = 0.05) -> float:
    """How often a study sees an effect: two-sided at a level, and in its own direction.

    The share of studies in which the effect, as the noncentral t has it (Johnson, Kotz and Balakrishnan 1995, ch. 31),
    lies above Student's critical value.

    Args:
        error: Standard error of the difference in such a study. That of one :class:`Comparison` over few seeds is known
            roughly, and power computed from it is too high on average: take the root mean square of several.
        freedom: Degrees of freedom that each study knows it with; seeds - 1 is on the safe side.
        effect: True difference, in the unit of the error.
        level: Of the p-value below which it counts as seen.

    Raises:
        RequestError: An error that is not positive.
    """
    from scipy.stats import nct, norm, t

    if not error > 0:
        raise RequestError(
            "power",
            "a standard error above 0",
            f"{error:g}",
            "compare runs that differ in something",
        )
    if freedom > _AS_NORMAL:
        return float(norm.sf(norm.isf(level / 2) - effect / error))
    return float(nct.sf(t.isf(level / 2, freedom), freedom, effect / error))


def mean_over_runs(
    runs: Sequence[Run],
    patients: Mapping[str, Hashable],
    *,
    samples: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of a condition over its seeds and questions, with an interval that resamples both; Wilson's, for as many
    questions as there are patients, where all replies are right or all wrong."""
    ids = _common(runs, runs, False)
    table = np.array([[float(run[name]) for name in ids] for run in runs])
    if len(runs) == 1:
        return bootstrap_mean(
            table[0], [patients[i] for i in ids], samples=samples, seed=seed, level=level
        )
    code = _codes([patients[name] for name in ids])
    counts = np.bincount(code).astype(float)
    if table.min() == table.max() and table.max() in (0, 1):
        low, high = wilson(float(table.max()) * len(counts), len(counts), level)
        return Interval(float(table.max()), low, high, table.size, len(counts), "wilson")
    drawn = [(np.stack([np.bincount(code, row) for row in table]), 1)]
    means, value = _hierarchical(drawn, counts, samples, seed), float(table.mean())
    means = value + (means - value) * _stretch(_freedom(drawn, counts), level)
    if ((table >= 0) & (table <= 1)).all():
        means = means.clip(0, 1)
    low, high = (float(end) for end in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(value, low, high, table.size, len(counts))


def _common(a: Sequence[Run], b: Sequence[Run], paired: bool) -> list[str]:
    shared = set.intersection(*(set(run) for run in [*a, *b])) if a and b else set()
    if not shared or (paired and len(a) != len(b)):
        raise RequestError(
            "comparison",
            "runs that share questions" + (", as many of each" if paired else ""),
            f"{len(shared)} shared, {len(a)} and {len(b)} runs",
            "ask both the same benchmark",
        )
    return [name for name in (a[0] if a else {}) if name in shared]


Drawn = Sequence[tuple[np.ndarray, int]]
"""Tables (runs, clusters) of sums of values whose seeds are resampled each by themselves, with their signs."""


def _hierarchical(drawn: Drawn, counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Signed sums of means, patients resampled once for all tables and seeds for each.

    Args:
        drawn: One table of differences when seeds are paired, else one a condition.
        counts: (clusters,) questions.
    """
    draw = np.random.default_rng(seed)
    n = counts.sum()
    step, found = max(1, _CHUNK // max(len(counts), 1)), []
    for first in range(0, samples, step):
        size = min(step, samples - first)
        patients = _weights(draw, len(counts), size)
        total = np.zeros(size)
        for table, sign in drawn:
            chosen = _weights(draw, len(table), size) / len(table)
            # deviations of runs from their mean, over the patients as they are
            away = (table.sum(1) - table.sum(1).mean()) / n
            of_seeds, whole = _seed_variance(table, counts)
            wider = (
                math.sqrt(of_seeds / whole * len(table) / (len(table) - 1)) if whole > 0 else 0.0
            )
            total += sign * (
                (patients @ table.mean(0)) / (patients @ counts) + wider * (chosen @ away)
            )
        found.append(total)
    return np.concatenate(found)


def _seed_variance(table: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Variance of the means of runs: what is left of it without the noise of single replies, and as it is."""
    if len(table) < 2:
        return 0.0, 0.0
    n, k, runs = counts.sum(), len(counts), len(table)
    means = table.sum(1) / n
    whole = float(means.var(ddof=1))
    left = table - table.mean(0) - np.outer(means - means.mean(), counts)
    noise = float((left**2).sum()) / n**2 * k / max(1, k - 1) / (runs - 1)
    return max(0.0, whole - noise), whole


def _freedom(drawn: Drawn, counts: np.ndarray) -> float:
    """Satterthwaite's degrees of freedom of the sum of the variances; infinite where nothing varies."""
    n, k, total, terms = counts.sum(), len(counts), 0.0, []
    for table, _ in drawn:
        of_seeds, whole = _seed_variance(table, counts)
        total += of_seeds / len(table)
        terms += [(whole / len(table), len(table) - 1)] if len(table) > 1 else []
    if k > 1:
        mean = sum(sign * table.mean(0) for table, sign in drawn)
        off = mean - mean.sum() / n * counts
        terms.append((k / (k - 1) * float((off**2).sum()) / n**2, k - 1))
        total += terms[-1][0]
    uncertain = sum(variance**2 / df for variance, df in terms)
    return total**2 / uncertain if uncertain > 0 else math.inf


def _stretch(freedom: float, level: float) -> float:
    """Student's quantile over the normal one."""
    from scipy.stats import norm, t

    quantile = (1 + level) / 2
    return float(t.ppf(quantile, freedom) / norm.ppf(quantile)) if 0 < freedom < math.inf else 1.0


def _p_value(value: float, deviation: float, freedom: float) -> float:
    from scipy.stats import norm, t

    if deviation <= 0:
        return 1.0 if value == 0 else 0.0
    law = t(freedom) if 0 < freedom < math.inf else norm
    return min(1.0, 2 * float(law.sf(abs(value) / deviation)))


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided p-value that two models are equally often the only one that is right.

    Args:
        a, b: 1 right, 0 wrong, question by question.
    """
    from scipy.stats import binomtest

    a, b = np.asarray(a, bool), np.asarray(b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_b, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float] | Mapping[Any, float]) -> Any:
    """Holm's correction: adjusted p-values, in the order (or under the names) of those given.

    An adjusted value below 0.05 rejects while at most one of twenty such families of comparisons holds any false
    rejection (Holm 1979).
    """
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values())), strict=True))
    order = np.argsort(p_values, kind="stable")
    m, worst, adjusted = len(order), 0.0, [0.0] * len(order)
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (m - rank) * float(p_values[place])))
        adjusted[int(place)] = worst
    return adjusted


def cohens_h(a: float, b: float) -> float:
    """Effect size of two shares, ``2 asin sqrt b - 2 asin sqrt a`` (Cohen 1988).

    0.2 is small, 0.5 medium, 0.8 large.
    """
    return 2 * math.asin(math.sqrt(b)) - 2 * math.asin(math.sqrt(a))


def cohens_d(a: np.ndarray, b: np.ndarray) -> float:
    """Effect size of two measures, their difference over the pooled deviation (Cohen 1988); 0 where nothing varies.

    0.2 is small, 0.5 medium, 0.8 large.
    """
    deviation = math.sqrt((float(a.var()) + float(b.var())) / 2)
    return float(b.mean() - a.mean()) / deviation if deviation > 0 else 0.0


def runs_of(
    lines: Sequence[Mapping[str, Any]], value: str = "correct"
) -> tuple[dict[str, float], dict[str, str]]:
    """Lines of results as a run, and the patients of its questions.

    Args:
        lines: Of one run; failures and questions without truth are left out.
        value: Key of the line.
    """
    known = [line for line in lines if "error" not in line and line.get(value) is not None]
    return {line["id"]: float(line[value]) for line in known}, {
        line["id"]: line["patient"] for line in known
    }
