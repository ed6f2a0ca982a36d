"""What a reader knows without looking, and how questions are thinned until that knowledge is worth nothing.

The liver lies on the right, it is larger than a kidney, the aorta is always there: questions about such facts
can be answered with closed eyes, and a model that learns to answer them has not learnt to look. A **census**
is that reader. It counts, over a sample of studies, how often each *claim* about the structures is true:

    key    "3d side 0|the aorta|the liver"   (where along x is the aorta, seen from the liver?)
    value  "+"  296 times,  "-"  4 times

Every option of a question makes such claims, so the census can say how likely each option is before anybody
looks. If P1 ... P4 are those chances and P1 belongs to the truth, the question is kept with probability
``min(P) / P1``: among the questions that are left, every option is right equally often, *given the words*. It
is the same thinning for all families, be the claims about sides, sizes, presence or textures; where one
answer is nearly certain, nothing is left, as it should be.

Where an option can be anything (a length, a box), no thinning is needed: the wrong options are those of
*other patients*. Four lengths of four lesions are equally likely to be this patient's.

Chances of several claims are multiplied as if they were independent, and rare words have few counts, so this
reader is not
perfect: :mod:`unireason_lib.dataset.audit` measures what is left with another one. Without a census all
questions are kept, and those whose answer anatomy determines can be answered without looking.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import pstdev
from typing import Any

Claim = tuple[str, str]
"""(what it is about, what is said of it)."""

CERTAIN = 0.02
"""When the least likely option has less than this share of the chance of the most likely one, the answer is
as good as known, and too few of such questions could be kept to be worth asking."""

ENOUGH = 20
"""With fewer counts, nothing is called certain."""

_PRIOR, _VALUES = 0.1, 4  # pseudo-counts a value, and how many values a key is taken to have


@dataclass(frozen=True)
class Census:
    """How often each claim was true.

    Attributes:
        counts: Key -> value -> number of studies (or of structures in them) in which it was the truth.
        studies: How many studies were looked at.
    """

    counts: Mapping[str, Mapping[str, int]]
    studies: int = 0

    @classmethod
    def of(cls, facts: Iterable[Iterable[Claim]]) -> Census:
        """Count the true claims of each study."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        studies = 0
        for study in facts:
            studies += 1
            for key, value in study:
                counts[key][value] += 1
        return cls({key: dict(values) for key, values in counts.items()}, studies)

    @classmethod
    def merged(cls, parts: Iterable[Census]) -> Census:
        """The census of all studies of several."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        studies = 0
        for part in parts:
            studies += part.studies
            for key, values in part.counts.items():
                counts[key].update(values)
        return cls({key: dict(values) for key, values in counts.items()}, studies)

    @cached_property
    def _totals(self) -> dict[str, float]:
        return {key: sum(values.values()) + _PRIOR * _VALUES for key, values in self.counts.items()}

    @cached_property
    def _closed(self) -> frozenset[str]:
        """Keys about which nobody needs to look."""
        closed = set()
        for key, values in self.counts.items():
            first, second = sorted((0, *values.values()))[-1:-3:-1]
            if first >= ENOUGH and second < CERTAIN * first:
                closed.add(key)
        return frozenset(closed)

    def is_open(self, key: str) -> bool:
        """Whether more than one value occurs for a key, as far as is known."""
        return key not in self._closed

    @cached_property
    def _pair_keys(self) -> dict[str, list[str]]:
        """``"3d clock"`` -> the keys about it that name two structures."""
        keys: dict[str, list[str]] = defaultdict(list)
        for key in sorted(self.counts):
            if key.count("|") == 2:
                keys[key[: key.index("|")]].append(key)
        return keys

    @cached_property
    def _remembered(self) -> dict[Any, Any]:
        return {}

    def can_differ(self, key: str, cases: Sequence[Sequence[str]]) -> bool:
        """Whether a question about a key can be kept at all.

        Args:
            key: What it would be about.
            cases: Values that would be the four options; of one of these sets, all have to occur.
        """
        if (key, cases) not in self._remembered:
            seen = self.counts.get(key, {})
            chances = ([seen.get(value, 0) + _PRIOR for value in values] for values in cases)
            self._remembered[key, cases] = any(share_kept(options) > 0 for options in chances)
        return self._remembered[key, cases]

    def open_pairs(self, what: str, cases: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
        """Pairs of names about which one has to look.

        Args:
            what: Beginning of their keys, e.g. ``"3d clock"``.
            cases: As for :meth:`can_differ`.
        """
        if ("pairs", what, cases) not in self._remembered:
            keys = (key for key in self._pair_keys.get(what, ()) if self.can_differ(key, cases))
            self._remembered["pairs", what, cases] = [tuple(key.split("|")[1:]) for key in keys]
        return self._remembered["pairs", what, cases]

    def partners(self, what: str, cases: Sequence[Sequence[str]]) -> dict[str, set[str]]:
        """The same pairs, as name -> the other names."""
        if ("partners", what, cases) not in self._remembered:
            found: dict[str, set[str]] = defaultdict(set)
            for a, b in self.open_pairs(what, cases):
                found[a].add(b)
                found[b].add(a)
            self._remembered["partners", what, cases] = dict(found)
        return self._remembered["partners", what, cases]

    def samples(self, key: str) -> list[tuple[float, ...]]:
        """What was measured in the patients, for keys whose values are measures (:func:`measure_claim`)."""
        if ("samples", key) not in self._remembered:
            found = sorted((_numbers(value), count) for value, count in self.counts.get(key, {}).items())
            self._remembered["samples", key] = [numbers for numbers, count in found for _ in range(count)]
        return self._remembered["samples", key]

    def spread(self, key: str) -> tuple[float, ...]:
        """Standard deviation of each number of :meth:`samples`."""
        if ("spread", key) not in self._remembered:
            columns = zip(*self.samples(key), strict=True)
            self._remembered["spread", key] = tuple(pstdev(column) for column in columns)
        return self._remembered["spread", key]

    def varied(self, key: str, apart: Callable[[Sequence[tuple[float, ...]]], bool]) -> bool:
        """Whether four random patients differ enough in what was measured, in one of ten cases or more.

        Args:
            key: As for :meth:`samples`.
            apart: Whether some measures are all different enough.
        """
        if ("varied", key) not in self._remembered:
            known, rng = self.samples(key), random.Random(key)
            enough = len(known) >= ENOUGH
            found = enough and sum(apart(rng.sample(known, 4)) for _ in range(200)) >= 20
            self._remembered["varied", key] = found
        return self._remembered["varied", key]

    def scattered(self, key: str) -> bool:
        """Whether four values drawn for a key are all different in one of ten cases or more. No, when too few were
        met to draw from: made up ones would be told from the true one by their implausibility."""
        if ("scattered", key) not in self._remembered:
            seen, rng = self.counts.get(key, {}), random.Random(key)
            values = sorted(seen)
            weights = [seen[value] for value in values]
            known = sum(weights) >= ENOUGH
            drawn = (rng.choices(values, weights, k=4) for _ in range(200 if known else 0))
            self._remembered["scattered", key] = sum(len(set(four)) == 4 for four in drawn) >= 20
        return self._remembered["scattered", key]

    def weights(self, key: str, values: Sequence[str]) -> list[int] | None:
        """How often each value was met for a key; None while there are few counts, or none of these."""
        seen = self.counts.get(key, {})
        weights = [seen.get(value, 0) for value in values]
        return weights if sum(weights) >= ENOUGH else None

    def chance(self, claim: Claim) -> float:
        """Probability that the claim is true, before looking."""
        key, value = claim
        seen = self.counts.get(key)
        return 1 / _VALUES if seen is None else (seen.get(value, 0) + _PRIOR) / self._totals[key]

    def keep(self, options: Sequence[Sequence[Claim]]) -> float:
        """Probability with which a question is kept.

        Args:
            options: The claims of every option, the true one first.
        """
        return share_kept([self._product(claims) for claims in options])

    def keep_presence(self, d: str, options: Sequence[Mapping[str, bool]]) -> float:
        """The same for options that say of each of some names whether it is there.

        Organs come and go together (lungs and heart on upper slices), so the chance of a combination is taken
        from pairs: the product over pairs, divided by the single chances that it counts too often (Kirkwood's
        approximation).

        Args:
            d: ``"2d"`` or ``"3d"``.
            options: Name -> whether it is there, the true option first; all over the same names.
        """
        names = sorted(options[0])
        pairs = [(f"{d} there|{a}|{b}", a, b) for a, b in itertools.combinations(names, 2)]
        singles = [(f"{d} there|{name}", name) for name in names]
        chances = []
        for there in options:
            said = {name: "ny"[is_there] for name, is_there in there.items()}
            chance = self._product((key, said[a] + said[b]) for key, a, b in pairs)
            if len(names) > 2:
                chance /= self._product((key, said[name]) for key, name in singles) ** (len(names) - 2)
            chances.append(chance)
        return share_kept(chances)

    def _product(self, claims: Iterable[Claim]) -> float:
        product = 1.0
        for claim in claims:
            product *= self.chance(claim)
        return product

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        text = json.dumps({"studies": self.studies, "counts": self.counts}, sort_keys=True)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Census:
        """Read what :meth:`save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def measure_claim(key: str, numbers: Iterable[float]) -> Claim:
    """A claim whose value is what was measured."""
    return key, ",".join(f"{number:.4g}" for number in numbers)


def _numbers(value: str) -> tuple[float, ...]:
    return tuple(map(float, value.split(",")))


def share_kept(chances: Sequence[float]) -> float:
    """``min(P) / P1``, or 0 when the least likely option is next to impossible."""
    lowest = min(chances)
    return 0.0 if lowest < CERTAIN * max(chances) else lowest / chances[0]


def presence_claim(d: str, there: Mapping[str, bool], *names: str) -> Claim:
    """Which of one or two names (in alphabetical order) are there."""
    return f"{d} there|{'|'.join(names)}", "".join("ny"[there[name]] for name in names)
