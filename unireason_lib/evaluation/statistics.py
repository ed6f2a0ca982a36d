"""How sure are we? Intervals, paired comparisons, and what many comparisons cost.

Other **patients** would give another accuracy, and questions about one patient are right or wrong
together. Another **seed** would give another checkpoint. All checkpoints of a condition are asked
the same questions, so seeds cross patients, and the variance of the mean over both is that of a
two-way analysis of variance with random effects (Searle, Casella and McCulloch 1992, ch. 4):

    variance = V(patients) + max(0, V(seeds) - V(residual)),   at least V(seeds)

Each V is what the spread of those means says about the grand mean. The luck of single replies, the
residual, is in both spreads and is counted once. How well the sum is known is given by the degrees
of freedom of Satterthwaite (1946); 95 % intervals and p-values are those of Student's t. With one
seed the statement is about checkpoints; only several make it one about ways of training.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit
from scipy.stats import nct


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie."""

    value: float
    low: float  # ends of the 95 % interval; NaN where the data cannot tell
    high: float
    n: int  # values in the mean
    patients: int  # whom they are about

    def text(self, scale: float = 100, sign: str = "") -> str:
        """``"53.1 (50.2 to 56.0)"``, in percent or (``scale=1``) as it is."""
        form = f"{sign}.1f" if scale == 100 else f"{sign}.3f"
        value, low, high = (format(scale * x, form) for x in (self.value, self.low, self.high))
        return f"{value} (cannot tell)" if math.isnan(self.low) else f"{value} ({low} to {high})"


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

    def text(self, name: str = "accuracy", scale: float = 100) -> str:
        """The difference of ``name``, times ``scale``, and how sure it is, in one line."""
        d, (a, b) = self.difference, self.seeds
        p = f"p {self.p:.2g} (Student's t, {self.df:.1f} degrees of freedom)"
        p = "p: cannot tell, nothing varies" if math.isnan(self.p) else p
        alone = "" if min(a, b) > 1 else ", so about checkpoints and not about ways of training"
        return (
            f"{name}: {scale * self.b:.3g} against {scale * self.a:.3g}, {d.text(scale, '+')}, {p};"
            f" {self.questions} questions, {d.patients} patients, {b} against {a} seeds{alone}"
        )


def plain(found: Interval | Comparison | None) -> dict[str, Any] | None:
    """Ready for JSON, which has no NaN and no infinity: both become None."""

    def finite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unknown = {name for name, v in pairs if isinstance(v, float) and not math.isfinite(v)}
        return dict(pairs) | dict.fromkeys(unknown)

    return found and asdict(found, dict_factory=finite)


def interval(values: np.ndarray, patients: Sequence[Hashable]) -> Interval:
    """The mean over ``(seeds, questions)`` values of one condition, about these ``patients``, with
    Student's interval, without ends where nothing varies or there is one patient only.

    Of rights and wrongs it is Wilson's, for as many independent questions as would have this
    standard error, or for as many as there are patients where these do not differ (all right, all
    wrong, or one proportion)."""
    _, code, counts = np.unique(patients, return_inverse=True, return_counts=True)
    value, k = float(values.mean()), len(counts)
    error, df = _standard_error([_sums(values, code)], counts)
    if not np.isin(values, (0, 1)).all():
        return Interval(value, *_ends(value, error, df, values, 0), values.size, k)
    if error > 0 and value not in (0, 1):
        worth = min(float(values.size), value * (1 - value) / error**2)
    else:
        worth, df = float(k), math.inf
    return Interval(value, *wilson(value * worth, worth, df), values.size, k)


def difference(
    a: np.ndarray, b: np.ndarray, patients: Sequence[Hashable], paired_seeds: bool = False
) -> Comparison:
    """How much better is b than a? Both are ``(seeds, questions)``, about these ``patients``; with
    ``paired_seeds`` the k-th seeds of both share what a seed decides (base, records, their order),
    and differences are taken seed by seed."""
    _, code, counts = np.unique(patients, return_inverse=True, return_counts=True)
    parts = [_sums(b - a, code)] if paired_seeds else [-_sums(a, code), _sums(b, code)]
    value, (error, df) = float(b.mean() - a.mean()), _standard_error(parts, counts)
    ends = _ends(value, error, df, np.concatenate([a, b]), -1)
    return Comparison(
        a=float(a.mean()),
        b=float(b.mean()),
        difference=Interval(value, *ends, a.shape[1], len(counts)),
        p=2 * float(stdtr(df, -abs(value) / error)) if error > 0 else math.nan,
        standard_error=error,
        df=df,
        seeds=(len(a), len(b)),
        questions=a.shape[1],
    )


def wilson(successes: float, n: float, df: float = math.inf) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927), never outside [0, 1]: ``successes`` of
    ``n``, which may be fractional; with Student's quantile for a finite ``df``."""
    z, p = _quantile(df), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 0.0 if successes <= 0 else middle - half, 1.0 if successes >= n else middle + half


def power(standard_error: float, df: float, effect: float, level: float = 0.05) -> float:
    """How often a study finds a true ``effect``: two-sided at a level, and in its own direction, by
    the noncentral t (Johnson, Kotz and Balakrishnan 1995, ch. 31). ``standard_error`` of the
    difference in such a study, known with ``df``; seeds - 1 is the cautious choice."""
    return float(nct.sf(_quantile(df, level), df, effect / standard_error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (Holm 1979) of some p-values. One that is NaN (cannot tell) stays so, and
    counts among the claims that were made."""
    p = np.nan_to_num(np.array(p_values, float), nan=1.0)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.maximum.accumulate(steps)[np.argsort(order)]
    return np.where(np.isnan(p_values), math.nan, adjusted).tolist()


def _sums(table: np.ndarray, code: np.ndarray) -> np.ndarray:
    """``(seeds, questions)`` -> sums ``(seeds, patients)``."""
    return np.stack([np.bincount(code, row) for row in table])


def _standard_error(parts: Sequence[np.ndarray], counts: np.ndarray) -> tuple[float, float]:
    """Standard error of a sum of means, and its degrees of freedom; (0, inf) where nothing varies
    or there is one patient only. ``parts``: signed sums ``(seeds, patients)`` of each condition, or
    of their differences; ``counts``: questions of each patient."""
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
