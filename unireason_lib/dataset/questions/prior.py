"""The answer prior: what can be known without looking, and how questions are kept free of it.

The liver lies on the right: whoever learns to answer that has not learnt to look. An
:class:`AnswerPrior` is a table of frequencies over a sample of studies:

    Fact("relation", "3d", (0, 2), ("the aorta", "the lesion"))     "+-": 61, "--": 40 ...

Every option claims such facts. With probabilities P1 ... P4, P1 that of the truth, a question is
kept with probability ``min(P) / P1``: then every option is right equally often, *given the words*.
Where an option can be anything (a length, a box) the wrong ones are those of *other patients*.
Several claims are multiplied as if independent; the question-only baseline measures what remains.
"""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from unireason_lib.errors import DatasetError, raising
from unireason_lib.io import read_json, write_json

CERTAIN = 0.02  # relative to the most likely option: below this the answer is as good as known
ENOUGH = 20  # with fewer counts nothing is drawn from what was counted
FOUR_VALUES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("quadrant", "relation", "place"), ("++", "+-", "-+", "--")),
    **dict.fromkeys(("level", "count"), ("0", "1", "2", "3")),
    "pair": ("yy", "yn", "ny", "nn"),
}
"""Kinds whose four values are the four options; of other kinds, two have to occur."""
_PSEUDO, _VALUES = 0.1, 4  # pseudo-counts of a value, and how many values a fact is taken to have

Axes, Names = tuple[int, ...], tuple[str, ...]
Value = str | tuple[float, ...]  # what is true of a fact: a category, or measurements


class Fact(NamedTuple):
    """What a claim is about."""

    kind: str  # of question
    dimension: str
    axes: Axes = ()  # along which it is measured; 0 is x
    names: Names = ()  # in alphabetical order


Claim = tuple[Fact, Value]  # that a fact has a value


def keep_probability(probabilities: Sequence[float]) -> float:
    """``min(P) / P1``, the truth's P1 first; 0 if the least likely option is next to impossible."""
    lowest = min(probabilities)
    return 0.0 if lowest < CERTAIN * max(probabilities) else lowest / probabilities[0]


@dataclass(frozen=True)
class AnswerPrior:
    """How often each value of each fact was true."""

    counts: Mapping[Fact, Mapping[Value, int]]  # number of studies in which it was the truth
    studies: int = 0  # how many were looked at
    _samples: dict[Fact, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """The prior of all studies of several, in any order."""
        counts, studies = defaultdict(Counter), 0
        for part in parts:
            studies += part.studies
            for fact, values in part.counts.items():
                counts[fact].update(values)
        return cls(dict(counts), studies)

    def keep_value(self, fact: Fact, value: Value) -> float:
        """Probability to keep a question whose options are the :data:`FOUR_VALUES` of a fact."""
        counted, others = self.counts.get(fact, {}), set(FOUR_VALUES[fact.kind]) - {value}
        return keep_probability([counted.get(v, 0) + _PSEUDO for v in (value, *others)])

    def keep(self, options: Sequence[Sequence[Claim]]) -> float:
        """Probability to keep a question whose options make these claims, the true one first."""

        def probability(fact: Fact, value: Value) -> float:
            counted = self.counts.get(fact, {})
            return (counted.get(value, 0) + _PSEUDO) / (sum(counted.values()) + _PSEUDO * _VALUES)

        return keep_probability([math.prod(itertools.starmap(probability, o)) for o in options])

    @cached_property
    def open_names(self) -> dict[tuple, frozenset]:
        """Kind, dimension and axes -> names of the facts about which one has to look: met, and no
        value nearly certain."""
        names = defaultdict(list)
        for fact, values in self.counts.items():
            ranked = sorted((*values.values(), 0, 0, 0), reverse=True)
            least = ranked[3 if fact.kind in FOUR_VALUES else 1]
            if least + _PSEUDO >= CERTAIN * (ranked[0] + _PSEUDO):
                names[fact[:3]].append(fact.names)
        return {key: frozenset(of_key) for key, of_key in names.items()}

    def occurring(self, fact: Fact, values: Iterable[str]) -> list[str]:
        """The values that ever occur, as one that never does would give itself away; all of
        ``values`` while that is not known."""
        counted = self.counts.get(fact, {})
        return sorted(counted if sum(counted.values()) >= ENOUGH else values)

    def elsewhere(self, fact: Fact, apart: Callable[[Sequence], bool]) -> tuple[list, list] | None:
        """What was measured in other patients, and the standard deviation of each number in it;
        None where fewer than one in ten sets of four are ``apart``: those would come up again."""
        if fact not in self._samples:
            rows = sorted(v for v, n in self.counts.get(fact, {}).items() for _ in range(n))
            rng, trials = random.Random(str(fact)), range(50 if len(rows) >= ENOUGH else 0)
            few = (k for k in trials if apart(rng.choices(rows, k=4)))
            varied = next(itertools.islice(few, 4, None), None) is not None  # five are apart
            self._samples[fact] = (rows, np.std(rows, axis=0).tolist()) if varied else None
        return self._samples[fact]

    def save(self, path: str | Path) -> None:
        """Write it as JSON: one record a fact, in a fixed order."""
        table = sorted(self.counts.items())
        facts = [[*fact, sorted(values.items())] for fact, values in table]
        write_json(path, {"studies": self.studies, "facts": facts})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; :class:`DatasetError` when it is something else."""
        saved, counts = read_json(path), {}
        with raising(DatasetError, path, "a saved answer prior", "learn the prior again"):
            for kind, dimension, axes, names, values in saved["facts"]:
                pairs = ((v if isinstance(v, str) else tuple(v), int(n)) for v, n in values)
                counts[Fact(kind, dimension, tuple(axes), tuple(names))] = dict(pairs)
            return cls(counts, int(saved["studies"]))
