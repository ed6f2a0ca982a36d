"""How sure are we? Intervals, paired comparisons, and what many comparisons cost.

Two kinds of luck are in every accuracy. Other **patients** would give another number, and questions
about one patient are right or wrong together. Another **seed** would give another checkpoint. All
checkpoints of a condition are asked the same questions, so seeds cross patients, and the variance
of the mean over both is that of a two-way analysis of variance with random effects (Searle, Casella
and McCulloch 1992, ch. 4):

    variance = V(patients) + max(0, V(seeds) - V(residual)),   at least V(seeds)

Each V is what the spread of those means says about the grand mean. The luck of single replies, the
residual, is in both spreads and is counted once. How well the sum is known is given by the degrees
of freedom of Satterthwaite (1946); 95 % intervals and p-values are those of Student's t. With one
seed the statement is about checkpoints; only several make it one about ways of training.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from unireason_lib.errors import RequestError

Run = Mapping[str, float]
"""Question id -> value (1 right, 0 wrong, or any measure) in one run: one seed of a condition."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie."""

    value: float
    low: float  # ends of the 95 % interval; NaN where the data cannot tell
    high: float
    n: int  # values in the mean
    patients: int  # whom they are about

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class Comparison:
    """Two conditions, or two checkpoints, that were asked the same questions."""

    a: float  # means of the two
    b: float
    difference: Interval  # b - a
    p: float  # two-sided, from Student's t; NaN where nothing varies, so that nobody can tell
    standard_error: float  # of the difference
    df: float  # degrees of freedom (Satterthwaite)
    seeds: tuple[int, int]  # runs of a and of b
    questions: int  # that all runs were asked
    h: float | None  # Cohen's h of two proportions; None for other measures
    mcnemar: float | None  # exact p; for one run each of rights and wrongs

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        return _plain(asdict(self)) | {"difference": self.difference.to_dict()}

    def to_markdown(self, name: str = "accuracy", scale: float = 100, unit: str = " points") -> str:
        """One line: ``name``, the difference times ``scale`` in ``unit``, and how sure it is."""
        digits = 1 if scale == 100 else 3
        d, form = self.difference, f"+.{digits}f"
        low, value, high = (format(scale * x, form) for x in (d.low, d.value, d.high))
        p = f"p {self.p:.2g} (Student's t, {self.df:.1f} degrees of freedom)"
        p = "p cannot be told, nothing varies" if math.isnan(self.p) else p
        exact = "" if self.mcnemar is None else f", McNemar's p {self.mcnemar:.2g}"
        about = f"{self.seeds[1]} against {self.seeds[0]} seeds"
        if min(self.seeds) < 2:
            about += ", so about these checkpoints and not about ways of training"
        return (
            f"- {name}: {scale * self.b:.{digits}f} against {scale * self.a:.{digits}f}, difference"
            f" {value}{unit} [{low}, {high}], {p}{exact}; {self.questions} questions,"
            f" {d.patients} patients, {about}"
        )


def mean(values: Sequence[float], patients: Sequence[Hashable]) -> Interval | None:
    """:func:`mean_over_runs` of one run, from the value of each question (NaN: does not apply, left
    out) and its patient; None when no value is left."""
    run = {k: v for k, v in enumerate(values) if not math.isnan(v)}
    return mean_over_runs([run], dict(enumerate(patients))) if run else None


def mean_over_runs(runs: Sequence[Run], patients: Mapping[str, Hashable]) -> Interval:
    """Mean of a condition over its seeds and questions, with its interval.

    Args:
        runs: One a seed; questions that all were asked count.
        patients: Question id -> patient.

    Returns:
        Student's interval; of rights and wrongs Wilson's, for as many independent questions as
        would have this standard error, or for as many as there are patients where all are right or
        all wrong. Without ends where nothing varies or there is one patient only.

    Raises:
        RequestError: No question was asked in all runs.
    """
    (values,), code, counts = _table([runs], patients)
    value, k = float(values.mean()), len(counts)
    error, df = _standard_error([_sums(values, code)], counts)
    if np.isin(values, (0, 1)).all():
        extreme = value in (0, 1)
        worth = float(k if extreme or k < 2 else values.size)
        if error > 0 and not extreme:
            worth = min(worth, value * (1 - value) / error**2)
        low, high = wilson(value * worth, worth, math.inf if extreme or k < 2 else df)
    else:
        low, high = _ends(value, error, df, values, 0)
    return Interval(value, low, high, values.size, k)


def compare(
    a: Run | Sequence[Run],
    b: Run | Sequence[Run],
    patients: Mapping[str, Hashable],
    paired_seeds: bool = False,
) -> Comparison:
    """How much better is b than a on the same questions?

    Args:
        a, b: A run, or the runs of a condition (one a seed).
        patients: Question id -> patient.
        paired_seeds: Whether the k-th runs of both share what their seed decides (base, records and
            their order), so that differences are taken seed by seed.

    Raises:
        RequestError: No question was asked in all runs, or paired conditions have different numbers
            of runs.
    """
    a, b = ([runs] if isinstance(runs, Mapping) else list(runs) for runs in (a, b))
    if paired_seeds and len(a) != len(b):
        found = f"{len(a)} and {len(b)}"
        raise RequestError("paired seeds", "as many runs of each", found, "leave the others out")
    (left, right), code, counts = _table([a, b], patients)
    if paired_seeds:
        parts = [_sums(right - left, code)]
    else:
        parts = [-_sums(left, code), _sums(right, code)]
    mean_a, mean_b, values = float(left.mean()), float(right.mean()), np.concatenate([left, right])
    difference, (error, df) = mean_b - mean_a, _standard_error(parts, counts)
    ends = _ends(difference, error, df, values, -1)
    proportions = bool(np.isin(values, (0, 1)).all())
    single = proportions and len(a) == len(b) == 1
    return Comparison(
        a=mean_a,
        b=mean_b,
        difference=Interval(difference, *ends, left.shape[1], len(counts)),
        p=2 * float(stdtr(df, -abs(difference) / error)) if error > 0 else math.nan,
        standard_error=error,
        df=df,
        seeds=(len(a), len(b)),
        questions=left.shape[1],
        h=cohens_h(mean_a, mean_b) if proportions else None,
        mcnemar=mcnemar(left[0], right[0]) if single else None,
    )


def wilson(successes: float, n: float, df: float = math.inf) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927): good in small cells, never outside
    [0, 1]. ``successes`` of ``n``, which may be fractional; Student's quantile for a finite ``df``.
    """
    if n <= 0:
        return 0.0, 1.0
    z, p = _quantile(df), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 0.0 if successes <= 0 else middle - half, 1.0 if successes >= n else middle + half


def power(standard_error: float, df: float, effect: float, level: float = 0.05) -> float:
    """How often a study finds an effect: two-sided at a level, and in its own direction, by the
    noncentral t (Johnson, Kotz and Balakrishnan 1995, ch. 31).

    Args:
        standard_error: Of the difference in such a study. One :class:`Comparison` over few seeds
            knows it roughly; take the root mean square of several.
        df: Degrees of freedom that each study knows it with; seeds - 1 is the cautious choice.
        effect: True difference, in the unit of the error.

    Raises:
        RequestError: An error that is not positive.
    """
    from scipy.stats import nct, norm

    if not standard_error > 0:
        do, found = "compare runs that differ in something", f"{standard_error:g}"
        raise RequestError("power", "a standard error above 0", found, do)
    critical, shift = _quantile(df, level), effect / standard_error
    if df > 10_000:  # as good as normal, where the noncentral t loses its digits
        return float(norm.sf(critical - shift))
    return float(nct.sf(critical, df, shift))


def holm(p_values: Sequence[float] | Mapping[Any, float]) -> Any:
    """Holm's correction (Holm 1979): adjusted p-values, in the order or under the names of those
    given. One that is NaN (cannot tell) stays so, and counts among the claims that were made."""
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values())), strict=True))
    p = np.nan_to_num(np.array(p_values, float), nan=1.0)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps) if len(p) else steps
    return np.where(np.isnan(p_values), math.nan, adjusted).tolist()


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided p-value that two models are equally often the only one that is right. It
    takes questions as independent, so with several about one patient it is too sure of itself."""
    from scipy.stats import binomtest

    a, b = np.asarray(a, bool), np.asarray(b, bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return 1.0 if only_a + only_b == 0 else float(binomtest(only_b, only_a + only_b, 0.5).pvalue)


def cohens_h(a: float, b: float) -> float:
    """Effect size of two proportions, ``2 asin sqrt b - 2 asin sqrt a`` (Cohen 1988): 0.2 is small,
    0.5 medium, 0.8 large."""
    return 2 * math.asin(math.sqrt(b)) - 2 * math.asin(math.sqrt(a))


def _table(
    conditions: Sequence[Sequence[Run]], patients: Mapping[str, Hashable]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """For each condition ``(seeds, questions)``; for each question the number of its patient; for
    each patient how many questions. Questions that all runs have."""
    every = [run for runs in conditions for run in runs]
    shared = set.intersection(*map(set, every)) if every else set()
    if not shared or not all(conditions):
        found = f"{len(shared)} that {len(every)} runs share"
        raise RequestError("comparison", "questions", found, "ask all the same benchmark")
    ids = [name for name in every[0] if name in shared]
    _, code = np.unique([str(patients[name]) for name in ids], return_inverse=True)
    tables = [np.array([[float(run[i]) for i in ids] for run in runs]) for runs in conditions]
    return tables, code, np.bincount(code).astype(float)


def _sums(table: np.ndarray, code: np.ndarray) -> np.ndarray:
    """``(seeds, questions)`` -> sums ``(seeds, patients)``."""
    return np.stack([np.bincount(code, row) for row in table])


def _standard_error(parts: Sequence[np.ndarray], counts: np.ndarray) -> tuple[float, float]:
    """Standard error of a sum of means over seeds and patients, and its degrees of freedom.

    Args:
        parts: Sums ``(seeds, patients)``, with their sign: one for each condition whose seeds are
            its own, or one of differences.
        counts: ``(patients,)`` questions.

    Returns:
        (0, inf) where nothing varies or there is one patient only.
    """
    n, k = counts.sum(), len(counts)
    if k < 2:
        return 0.0, math.inf
    total = sum(part.mean(0) for part in parts)
    off = total - total.sum() / n * counts
    patients = k / (k - 1) * float(off @ off) / n**2
    variance, of_seeds, terms = patients, 0.0, [(patients, k - 1)]
    for part in (part for part in parts if len(part) > 1):
        s, means = len(part), part.sum(1) / n
        seeds = float(means.var(ddof=1)) / s
        left = part - part.mean(0) - np.outer(means - means.mean(), counts)
        residual = k / (k - 1) * float((left**2).sum()) / n**2 / (s - 1) / s
        variance, of_seeds = variance + max(0.0, seeds - residual), of_seeds + seeds
        terms.append((seeds, s - 1))
    variance = max(variance, of_seeds)
    scale = max(float(np.abs(part).max()) for part in parts) or 1.0
    if variance <= (1e-12 * scale) ** 2:  # rounding
        return 0.0, math.inf
    return math.sqrt(variance), variance**2 / sum(v**2 / df for v, df in terms)


def _quantile(df: float, level: float = 0.05) -> float:
    """Student's two-sided critical value."""
    return float(ndtri(1 - level / 2) if math.isinf(df) else stdtrit(df, 1 - level / 2))


def _ends(
    value: float, error: float, df: float, values: np.ndarray, least: float
) -> tuple[float, float]:
    """Student's interval, NaN without an error; of measures in [0, 1] inside [``least``, 1]."""
    half = _quantile(df) * error if error > 0 else math.nan
    bounded = values.min() >= 0 and values.max() <= 1
    low, high = np.clip([value - half, value + half], *((least, 1) if bounded else (None, None)))
    return float(low), float(high)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: both become None."""
    return {
        name: None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in values.items()
    }
