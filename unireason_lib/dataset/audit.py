"""The shortcut audit: how well does a reader do who never sees a picture?

The reader scores every option of a question by its words, by the words of the question in combination with
it, and by the other options beside it, and takes the best. The weights are learnt from part of the questions
(a conditional logit) and the accuracy is measured on the rest, never on a patient that it learnt from. When
it stays near chance, whatever a model scores above chance on these questions it has from the pictures.

It is meant to be as good as a reader of words can be with some thousand examples: it may learn that the liver
is on the right, that the spine is always there, that lengths of 30 mm are rare, which of four lengths in
order is mostly right, and at which coordinates the heart usually is.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.records import Record

_STOP = frozenset(
    "a an the of is are in on to and or by it this that these which what how where does do with from".split()
)
_BUCKETS = 1 << 18


@dataclass(frozen=True)
class BlindScore:
    """What the reader reached on questions of patients that it had not read about.

    Attributes:
        questions: How many were answered.
        accuracy: Share answered right.
        chance: Accuracy of guessing, the mean of 1 / number of options.
        majority: Accuracy of always choosing the letter that is right most often.
    """

    questions: int
    accuracy: float
    chance: float
    majority: float

    @property
    def error(self) -> float:
        """Standard error of the accuracy."""
        return (self.accuracy * (1 - self.accuracy) / max(1, self.questions)) ** 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson 1927), as if all questions were independent."""
        from scipy.stats import binomtest

        if not self.questions:
            return 0.0, 1.0
        found = binomtest(round(self.accuracy * self.questions), self.questions)
        return tuple(map(float, found.proportion_ci(method="wilson")))


def blind_audit(
    questions: Sequence[Question | Record], *, folds: int = 3, epochs: int = 6, seed: int = 0
) -> dict[str, BlindScore]:
    """Train and test the blind reader.

    Args:
        questions: From many patients, or records of them; a few hundred a family and more.
        folds: Parts into which the patients are divided; each is answered by a reader of the others.
        epochs: Passes over the questions that are learnt from.
        seed: Seed of folds and order.

    Returns:
        Name of the family -> score, and ``"all"`` for all of them. Families without questions are left out.
    """
    rng = np.random.default_rng(seed)
    patients = sorted({question.patient for question in questions})
    fold_of = dict(zip(patients, rng.permutation(len(patients)) % folds, strict=True))
    fold = np.array([fold_of[question.patient] for question in questions])
    asked = [question.text if isinstance(question, Question) else question.question for question in questions]
    inputs = [_features(text, question.options) for text, question in zip(asked, questions, strict=True)]
    truths = [list(question.options).index(question.answer) for question in questions]
    right = np.zeros(len(questions))
    for part in range(folds):
        weights = _train(inputs, truths, np.flatnonzero(fold != part), epochs, rng)
        for k in np.flatnonzero(fold == part):
            right[k] = int(np.argmax([weights[f].sum() for f in inputs[k]])) == truths[k]
    scores = {"all": _score(questions, right)}
    for family in dict.fromkeys(question.family for question in questions):
        of_family = [k for k, question in enumerate(questions) if question.family == family]
        scores[family] = _score([questions[k] for k in of_family], right[of_family])
    return scores


def _score(questions: Sequence[Question | Record], right: np.ndarray) -> BlindScore:
    letters = [question.answer for question in questions]
    majority = max(map(letters.count, set(letters))) / len(letters) if letters else 0.0
    chance = float(np.mean([1 / len(question.options) for question in questions])) if letters else 0.0
    return BlindScore(len(letters), float(right.mean()) if letters else 0.0, chance, majority)


def _features(text: str, options: Mapping[str, str]) -> list[np.ndarray]:
    """For every option the numbers of its features."""
    asked = _atoms(text)
    numbers = [tuple(map(float, re.findall(r"\d+(?:\.\d+)?", option))) for option in options.values()]
    ranks = [sum(other < mine for other in numbers) if mine else -1 for mine in numbers]
    atoms = [_atoms(option) for option in options.values()]
    found = []
    for (letter, option), own, mine, rank in zip(options.items(), atoms, numbers, ranks, strict=True):
        own = [*own, f"={option}", f"#{rank}", *(f"n{i}:{_bin(x)}" for i, x in enumerate(mine))]
        beside = [f"{a}|{b}" for a in own for other in atoms if other is not own for b in other]
        crossed = [f"{a}&{b}" for a in own for b in asked]
        names = [letter, *own, *crossed, *(f"{b}~" for b in beside)]
        found.append(np.unique([zlib.crc32(name.encode()) % _BUCKETS for name in names]))
    return found


def _atoms(text: str) -> list[str]:
    """Words that mean something, and pairs of neighbours."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in _STOP]
    return [*dict.fromkeys([*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))])]


def _bin(number: float) -> int:
    return round(8 * np.log1p(number / 8))


def _train(inputs, truths, chosen, epochs: int, rng: np.random.Generator) -> np.ndarray:
    """Conditional logit by AdaGrad: the options' scores, through a softmax, shall be the truth."""
    weights, squares = np.zeros(_BUCKETS), np.full(_BUCKETS, 1e-2)
    for _ in range(epochs):
        for k in rng.permutation(chosen):
            scores = np.array([weights[f].sum() for f in inputs[k]])
            error = np.exp(scores - scores.max())
            error /= error.sum()
            error[truths[k]] -= 1
            for f, e in zip(inputs[k], error, strict=True):
                e = e / len(f) ** 0.5
                squares[f] += e * e
                weights[f] -= 0.1 * e / np.sqrt(squares[f])
    return weights
