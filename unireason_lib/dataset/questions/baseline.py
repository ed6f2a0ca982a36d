"""The question-only baseline: how well does a reader do who never sees an image?

It scores every option by its words, by those of the question in combination with it, and by the
options beside it: a conditional logit over hashed features, learnt from some patients and tested on
the others. When it stays near chance, what a model reaches above that is from the images.
"""

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_STOP = frozenset("a an the of is are in on to and or by it this that these which what how".split())
_BUCKETS = 1 << 18
FOLDS = 3  # parts into which patients are divided


@dataclass(frozen=True, eq=False)
class BaselineScore:
    """How well the reader does on patients that it had not read about. An interval
    (:func:`unireason_lib.evaluation.statistics.interval`) needs both fields: questions about one
    patient are right or wrong together."""

    correct: np.ndarray  # (n,) 1 where the answer to a question was right, else 0
    patients: tuple[str, ...]  # whom each question is about

    @property
    def questions(self) -> int:
        """How many were asked."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Proportion of right answers."""
        return float(self.correct.mean())


def question_only_baseline(
    questions: Sequence[Any], *, epochs: int = 6
) -> dict[str, BaselineScore]:
    """Train and test the reader on questions or records of many patients.

    They are divided by patient into three parts, each answered by a reader that learnt from the
    others in ``epochs`` passes. Returns the score of every family that has questions, and of
    ``"all"``; a few hundred questions a family say something."""
    rng = np.random.default_rng(0)
    patients = sorted({q.patient for q in questions})
    fold_of = dict(zip(patients, rng.permutation(len(patients)) % FOLDS, strict=True))
    fold = np.array([fold_of[q.patient] for q in questions])
    inputs = [_features(getattr(q, "text", "") or q.question, q.options) for q in questions]
    truths = [list(q.options).index(q.answer) for q in questions]
    right = np.zeros(len(questions))
    for part in range(FOLDS):
        weights = _train(inputs, truths, rng, np.flatnonzero(fold != part), epochs)
        for k in np.flatnonzero(fold == part):
            right[k] = np.argmax([weights[f].sum() for f in inputs[k]]) == truths[k]
    members = {"all": list(range(len(questions)))}
    for k, question in enumerate(questions):
        members.setdefault(question.family, []).append(k)
    who = [q.patient for q in questions]
    return {
        name: BaselineScore(right[ks], tuple(who[k] for k in ks)) for name, ks in members.items()
    }


def _features(text: str, options: dict[str, str]) -> list[np.ndarray]:
    """For every option the hashed numbers of its features."""
    asked, terms = _terms(text), [_terms(option) for option in options.values()]
    numbers = [[float(n) for n in re.findall(r"\d+(?:\.\d+)?", o)] for o in options.values()]
    rows = []
    for k, (letter, option) in enumerate(options.items()):
        rank = sum(other < numbers[k] for other in numbers) if numbers[k] else -1
        bins = (f"n{i}:{round(8 * np.log1p(x / 8))}" for i, x in enumerate(numbers[k]))
        own = [*terms[k], f"={option}", f"#{rank}", *bins]
        beside = [f"{b}~" for j, other in enumerate(terms) if j != k for b in other]
        names = [letter, *own, *beside, *(f"{a}&{b}" for a in own for b in (*asked, *beside))]
        rows.append(np.unique([zlib.crc32(name.encode()) % _BUCKETS for name in names]))
    return rows


def _terms(text: str) -> list[str]:
    """Words that mean something, and pairs of neighbours."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in _STOP]
    return list(dict.fromkeys([*words, *map(" ".join, itertools.pairwise(words))]))


def _train(inputs, truths, rng: np.random.Generator, chosen: np.ndarray, epochs: int) -> np.ndarray:
    """Conditional logit by AdaGrad: the options' scores, through a softmax, shall be the truth."""
    weights, squares = np.zeros(_BUCKETS), np.full(_BUCKETS, 1e-2)
    for k in np.concatenate([rng.permutation(chosen) for _ in range(epochs)]):
        scores = np.array([weights[f].sum() for f in inputs[k]])
        error = np.exp(scores - scores.max())
        error /= error.sum()
        error[truths[k]] -= 1
        for f, e in zip(inputs[k], error, strict=True):
            e = e / len(f) ** 0.5
            squares[f] += e * e
            weights[f] -= 0.1 * e / np.sqrt(squares[f])
    return weights
