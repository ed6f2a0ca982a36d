"""Questions of six families, with four options each, about what is outlined in a study and visible.

Exactly one option is true by measurement. Left and right are the patient's; lengths are those of
the boxes, in their unit. What the images do not show (:meth:`View.visible`) is never asked about,
and absent are only names that the source looked for. The kinds of each family and their words are
in ``phrasings.yaml``.

Anatomy answers many questions by itself: :func:`learn_prior` learns what can be known without
looking; with it :func:`ask` keeps questions such that this knowledge is worth nothing, and
:func:`question_only_baseline` measures what remains.
"""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unireason_lib.dataset.questions.anatomy import MEASURED, WORDS, Anatomy
from unireason_lib.dataset.questions.baseline import question_only_baseline
from unireason_lib.dataset.questions.kinds import KINDS, Draft, capital
from unireason_lib.dataset.questions.prior import FOUR_VALUES, AnswerPrior, Fact, keep_probability
from unireason_lib.dataset.study import Structure
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError

__all__ = ["FAMILIES", "WORDS", "AnswerPrior", "Fact", "Question", "ask", "keep_probability"]
__all__ += ["learn_prior", "question_only_baseline"]

FAMILIES: Mapping[str, tuple[str, ...]] = {f: tuple(ks) for f, ks in WORDS["families"].items()}
"""The six families and their kinds of questions."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question."""

    id: str  # <study>/<family>/<number>
    study: str
    patient: str
    family: str  # of FAMILIES, as the kind
    kind: str
    dimension: Literal["2d", "3d"]
    text: str
    options: Mapping[str, str]  # letter -> text, four of them
    answer: str  # the right letter
    evidence: tuple[Structure, ...] = ()  # what to look at, in order
    names: tuple[str, ...] = ()  # what it is called
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the reasoning may state; as JSON

    @property
    def truth(self) -> str:
        """Text of the right option."""
        return self.options[self.answer]


def ask(
    view: View,
    *,
    families: Iterable[str] | None = None,
    per_family: int = 1,
    seed: int = 0,
    prior: AnswerPrior | None = None,
) -> list[Question]:
    """Ask about a study as it is shown. ``families``: which, None means all; ``per_family``
    questions of each, or as many as there are; another ``seed`` gives other questions; ``prior``:
    see :func:`learn_prior`, None keeps all. All follows from (seed, study, family, number)."""
    families = tuple(FAMILIES if families is None else families)
    if unknown := ", ".join(sorted(set(families) - set(FAMILIES))):
        raise DatasetError("families", f"some of {', '.join(FAMILIES)}", unknown, "correct it")
    anatomy, questions = Anatomy(view, prior, seed), []
    for family in families:
        themes: set[tuple] = set()
        for number in range(per_family):
            rng = random.Random(f"{seed}/{view.study.id}/{family}/{number}")
            for kind, draft in _drafts(anatomy, FAMILIES[family], rng):
                theme = kind, tuple(s.label for s in draft.evidence), frozenset(draft.options)
                if theme not in themes and _distinct(draft.options):
                    themes.add(theme)
                    questions.append(_question(view, family, number, kind, draft, rng))
                    break
            else:
                break
    return questions


def learn_prior(views: Iterable[View], *, seed: int = 0) -> AnswerPrior:
    """Learn what can be known without looking, from a stream of some hundreds or thousands of
    studies like those to be asked about; ``seed`` as for :func:`ask`."""
    tables: dict[tuple, dict] = defaultdict(lambda: defaultdict(Counter))
    studies = 0
    for view in views:
        studies += 1
        anatomy = Anatomy(view, seed=seed)
        for kind, axes in ((k, axes) for k in MEASURED for axes in anatomy.axes(k)):
            table = tables[kind, anatomy.dimension, axes]
            for names in anatomy.names[kind]:
                if (value := anatomy.value(kind, axes, names)) is not None:
                    table[names][value] += 1
    facts = {Fact(*key, n): counts for key, table in tables.items() for n, counts in table.items()}
    return AnswerPrior(facts, studies)


def _drafts(anatomy: Anatomy, kinds: Sequence[str], rng: random.Random) -> Iterator[tuple]:
    """Drafts of a random kind; of the next one when a kind has nothing (more) to ask."""
    prior = anatomy.prior
    for kind in rng.sample(kinds, len(kinds)):
        for fact in anatomy.candidates(kind, rng):
            value = anatomy.value(kind, fact.axes, fact.names) if kind in MEASURED else ""
            if value is None:
                continue
            if kind in FOUR_VALUES and anatomy.chance(fact) >= prior.keep_value(fact, value):
                continue
            draft = KINDS[kind](anatomy, fact, value, rng)
            if draft and (not draft.claims or anatomy.chance(fact) < prior.keep(draft.claims)):
                evidence = draft.evidence or map(anatomy.structure, draft.names)
                yield kind, draft._replace(evidence=tuple(evidence))


def _distinct(texts: Sequence[str]) -> bool:
    """Whether no option is contained in another, as whole words."""
    padded = [f" {text.casefold()} " for text in texts]
    return not any(one in other for one, other in itertools.permutations(padded, 2))


def _question(view: View, family: str, number: int, kind: str, draft: Draft, rng) -> Question:
    """Letters and words for a draft."""
    study, d = view.study, view.study.dimension
    name = f"{study.id}/{family.replace(' ', '-')}/{number}"
    words = {word: rng.choice(texts[d]) for word, texts in WORDS["words"].items()}
    words["here"] = words["here"].format(modality=study.modality)
    words["format"] = words["format"].format(unit=view.frame.unit)
    words |= {**dict(zip("ab", draft.names, strict=False)), **draft.words}
    words["A"] = capital(words.get("a", ""))
    text = rng.choice(WORDS["families"][family][kind]).format(**words)
    order = rng.sample(range(4), 4)
    options = {letter: draft.options[k] for letter, k in zip("ABCD", order, strict=True)}
    about = study.id, study.patient, family, kind, d, text, options, "ABCD"[order.index(0)]
    return Question(name, *about, draft.evidence, tuple(draft.names), draft.facts)
