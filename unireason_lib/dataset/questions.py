"""Questions of six families, with four options each, about what is outlined in a study.

structure localization  ``box`` (which of four boxes encloses it), ``name`` (which structure fills a box)
spatial localization    ``quadrant`` (patient directions), ``cell`` (grid over the picture), ``height`` (quarter of the
                        slices)
existence verification  ``pair`` (both, only one, only the other, neither), ``present``, ``absent`` (one of four),
                        ``count`` (of lesions)
size comparison         ``largest``, ``smallest`` (of four), ``ratio`` (two, in four classes), ``extent`` (mm)
spatial relationship    ``relation`` (patient directions), ``clock`` (hour over the picture), ``which side`` (of four)
lesion analysis         ``texture``, ``density``, ``size class``, ``host``, ``place`` (in the host), ``extent`` (mm)

Exactly one option is true by measurement; near-ties are never asked (:mod:`unireason_lib.dataset.scene`).
Existence is yes or no: with four options we ask it about two structures at once (yes-yes, yes-no, no-yes, no-no) or
turn it round (``present``, ``absent``). Absent structures are names that the source looked for and did not find, so a
source that outlines one thing a picture gets few of these. Density, a matter of two or three values, is asked
together with a second property for the same reason.

Laterality is the patient's, taken from ``study.directions``; in a radiological view the patient's left is on
the right of the picture. Without known directions the words left and right are never used: grid cells and the
clock face, which belong to the picture, take their place. Without known spacing nothing is said in
millimetres; volumes are still compared, since their ratio does not depend on it.

Anatomy answers many questions by itself: the liver is on the right in nearly everybody. Give :func:`ask` a
census of the source (:func:`take_census`) and such questions are thinned out until reading them does not
help; :mod:`unireason_lib.dataset.audit` measures it. Without one, or on a single brain of which everything is
known, they are asked, and can be answered blindly.

Everything follows from (seed, study.id, family, number): a study has the same questions whatever is asked
beside it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unireason_lib.dataset.census import Census
from unireason_lib.dataset.drafts import FAMILIES, Draft, capital
from unireason_lib.dataset.phrasings import HERE, IT, PHRASINGS
from unireason_lib.dataset.scene import Scene, known_facts
from unireason_lib.dataset.study import Structure, Study
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, explain

__all__ = ["FAMILIES", "Question", "ask", "take_census"]

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        id: ``<study>/<family>/<number>``.
        study, patient: Whom it is about.
        family: One of :data:`FAMILIES`.
        dimension: ``"2d"`` or ``"3d"``.
        text: The question, without options.
        options: Letter -> text, four of them.
        answer: The right letter.
        evidence: What to point at, in order. Absent structures cannot be pointed at: a question whose answer
            is that nothing is there may have none.
        facts: What the reasoning may state: ``kind``, ``names`` (of the evidence, as they read in a
            sentence), and measured values. Plain values, none of them free text from outside.
    """

    id: str
    study: str
    patient: str
    family: str
    dimension: Literal["2d", "3d"]
    text: str
    options: Mapping[str, str]
    answer: str
    evidence: tuple[Structure, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def truth(self) -> str:
        """Text of the right option."""
        return self.options[self.answer]


def ask(
    study: Study,
    *,
    families: Iterable[str] | None = None,
    per_family: int = 1,
    seed: int = 0,
    view: View | None = None,
    census: Census | None = None,
) -> list[Question]:
    """Ask about a study.

    Args:
        study: What is asked about. Its pixels are not read.
        families: Which of :data:`FAMILIES`; None means all.
        per_family: Questions of each family. Where a study has no more to ask, there are fewer.
        seed: Another seed gives other questions.
        view: How the study will be shown. With it, boxes in questions are pixels of its frame, as the model
            writes them; without, percent of the picture.
        census: What can be known without looking, see :func:`take_census`. Questions are thinned until it
            does not help.

    Returns:
        Questions with unique ids, family by family. The first of three per family is the one that would be
        asked alone.

    Raises:
        DatasetError: An unknown family.
    """
    families = tuple(FAMILIES if families is None else families)
    if not set(families) <= set(FAMILIES):
        unknown = ", ".join(sorted(set(families) - set(FAMILIES)))
        raise DatasetError(
            explain("families", expected=f"some of {', '.join(FAMILIES)}", found=unknown, do="correct it")
        )
    scene = Scene(study, view, census, seed)
    questions = []
    for family in families:
        asked: set[Any] = set()
        for number in range(per_family):
            scene.rng = random.Random(f"{seed}/{study.id}/{family}/{number}")
            draft = _new_draft(scene, family, asked)
            if draft is None:
                break
            asked.add(_theme(draft))
            questions.append(_question(scene, family, number, draft))
    return questions


def take_census(studies: Iterable[Study], *, seed: int = 0) -> Census:
    """Learn what can be known without looking, from a sample of the studies that will be asked about.

    The more studies, the finer: a model that is trained on many questions knows their statistics well.

    Args:
        studies: Some hundreds or thousands, of one source, the same in every run (its first ones, say). Read
            as a stream.
        seed: Of the choice of pairs where a study has more structures than can be paired.
    """
    return Census.of(known_facts(Scene(study, seed=seed)) for study in studies)


def _new_draft(scene: Scene, family: str, asked: set[Any]) -> Draft | None:
    """A draft of a random kind; of the next one when a kind has nothing (more) to ask."""
    kinds = FAMILIES[family]
    for kind in scene.rng.sample(kinds, len(kinds)):
        for draft in kind(scene):
            if _theme(draft) not in asked and _distinct(draft.options):
                return draft
    return None


def _theme(draft: Draft) -> Any:
    """What makes two questions about one study the same question."""
    return draft.kind, tuple(structure.label for structure in draft.evidence), frozenset(draft.options)


def _distinct(texts: Sequence[str]) -> bool:
    """Whether no option is contained in another, as a whole word."""
    folded = [text.casefold() for text in texts]
    return not any(
        one in other and re.search(rf"(?<!\w){re.escape(one)}(?!\w)", other)
        for one, other in itertools.permutations(folded, 2)
    )


def _question(scene: Scene, family: str, number: int, draft: Draft) -> Question:
    rng, study = scene.rng, scene.study
    order = rng.sample(range(len(draft.options)), len(draft.options))
    letters = LETTERS[: len(order)]
    words = {
        "here": rng.choice(HERE[study.dimension]).format(modality=study.modality),
        "it": rng.choice(IT[study.dimension]),
        "plane": "picture" if study.dimension == "2d" else "plane of the slices",
        **draft.words,
    }
    words["A"] = capital(words.get("a", ""))
    return Question(
        id=f"{study.id}/{family.replace(' ', '-')}/{number}",
        study=study.id,
        patient=study.patient,
        family=family,
        dimension=study.dimension,
        text=rng.choice(PHRASINGS[draft.kind]).format(**words),
        options={letter: draft.options[k] for letter, k in zip(letters, order, strict=True)},
        answer=letters[order.index(0)],
        evidence=draft.evidence,
        facts={"kind": draft.kind, **draft.facts},
    )
