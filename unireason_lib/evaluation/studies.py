"""Benchmarks from outlined scans: any source of studies is asked by the same rules as the training data.

``phantom`` makes its patients when they are asked for. Training counts patients from 0 upwards; the patients of
``test`` begin at 1,000,000 and those of ``val`` at 2,000,000, so no split meets another whatever is built.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.questions import FAMILIES, AnswerPrior, Question, ask, learn_prior
from unireason_lib.dataset.sources import Source, open_source
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, UniReasonError
from unireason_lib.evaluation.items import Benchmark, Item, Skipped

if TYPE_CHECKING:
    from unireason_lib.imaging import ProcessorFrame

FIRST_PATIENT: Mapping[str, int] = {"train": 0, "test": 1_000_000, "val": 2_000_000}
"""Number of the first phantom patient of each split."""

_FIRST_3D = 500_000  # within a split: nobody is asked about both in a slice and in a volume
_PRIOR_STUDIES = 300
_ROOM = 400_000


def phantom_benchmark(
    *,
    split: str,
    limit: int | None,
    frame: ProcessorFrame,
    size: Sequence[int] | None = None,
    window: Any = None,
    seed: int = 0,
    dimension: str | None = None,
    families: Sequence[str] | None = None,
    a_patient: int = 2,
    prior_studies: int = _PRIOR_STUDIES,
    config: Mapping[str, Any] | None = None,
) -> Benchmark:
    """Held-out phantom patients: a slice of one, the volume of the next, and so on.

    Args:
        split: ``"test"``, ``"val"``, or ``"train"`` (to see what was learnt by heart).
        limit: Questions; None takes 500. The first hundred of five hundred are the hundred.
        frame: Of the model.
        size: Slices, rows and columns of a volume; None takes those of the phantoms.
        window: How scans are shown; None is the phantoms' own.
        seed: Of the questions.
        dimension: Only ``"2d"`` or ``"3d"``; None takes both.
        families: Which; None takes all six.
        a_patient: Families asked of a patient, in turn: more patients with few questions each say more than few with
            many.
        prior_studies: Patients of the training data from whom the answer prior is learnt (see
            :class:`~unireason_lib.dataset.questions.AnswerPrior`), and which option is the most likely one; 0 asks
            everything.
        config: Of the phantoms, see :class:`~unireason_lib.dataset.sources.PhantomConfig`.
    """
    if split not in FIRST_PATIENT:
        raise DatasetError("split", "train, test or val", repr(split), "choose one of them")
    families = tuple(FAMILIES if families is None else families)
    options = {} if config is None else {"config": dict(config)}
    streams = []
    for d in ("2d", "3d") if dimension is None else (dimension,):
        first = FIRST_PATIENT[split] + (_FIRST_3D if d == "3d" else 0)
        source = open_source("phantom", start=first, count=_ROOM, dimension=d, **options)
        known, guesses = None, {}
        shown = {"size": tuple(size or source.config.shape), "window": window, "frame": frame}
        if prior_studies:
            training = open_source("phantom", start=0, count=prior_studies, dimension=d, **options)
            views = [View(study, **shown) for study in training]
            known = learn_prior(views, seed=seed)
            guesses = _counts(q for view in views for q in ask(view, prior=known, seed=seed))
        streams.append(_items(source, families, a_patient, seed, known, guesses, shown, []))
    items = tuple(islice(_in_turn(streams), 500 if limit is None else limit))
    identity = {
        "benchmark": "phantom",
        "split": split,
        "seed": seed,
        "families": families,
        "a_patient": a_patient,
        "prior_studies": prior_studies,
        "dimension": dimension,
        "config": config or {},
        "serialization": _serialization(frame, tuple(size or source.config.shape), window),
    }
    return Benchmark("phantom", items, _json_values(identity))


def study_benchmark(
    name: str,
    path: Any = None,
    *,
    limit: int | None,
    frame: ProcessorFrame,
    size: Sequence[int] | None = None,
    window: Any = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    per_family: int = 1,
    prior_studies: int = 0,
    **options: Any,
) -> Benchmark:
    """Questions about the studies of any source of :mod:`unireason_lib.dataset.sources`.

    Args:
        name, path, options: As for :func:`unireason_lib.dataset.sources.open_source`.
        limit: Questions; None takes all.
        frame, size, window, seed, families: As for :func:`phantom_benchmark`; size None is the paper's.
        per_family: Questions of a family about each study.
        prior_studies: Studies of this source from which the answer prior is learnt. Of a single scan everything is
            known: such benchmarks are asked without a prior, and anatomy alone answers some of their questions.

    Returns:
        The benchmark; studies that cannot be read are skipped.
    """
    families = tuple(FAMILIES if families is None else families)
    source = open_source(name, path, **options)
    skipped: list[Skipped] = []
    shown = {"size": size and tuple(size), "window": window, "frame": frame}
    first = (View(study, **shown) for study in islice(source, prior_studies))
    known = learn_prior(first, seed=seed) if prior_studies else None
    items = _items(source, families, len(families), seed, known, {}, shown, skipped, per_family)
    identity = {
        "benchmark": name,
        "root": None if path is None else str(Path(path).resolve()),
        "options": options,
        "seed": seed,
        "families": families,
        "per_family": per_family,
        "prior_studies": prior_studies,
        "serialization": _serialization(frame, size, window),
    }
    return Benchmark(
        source.name, tuple(islice(items, limit)), _json_values(identity), tuple(skipped)
    )


def most_likely_answers(items: Iterable[Item], training: Iterable[Item]) -> tuple[Item, ...]:
    """Give every item its guess: of its options, the one that was right most often in training.

    Counts are kept by dimension and kind of question (the family where no kind is known), so this is a reader who
    knows the answers of the training set well and never looks at a picture.

    Args:
        items: What is asked.
        training: Questions of the same form with their answers.
    """
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for item in training:
        if item.answer in item.options:
            counts[item.dimension, item.kind or item.family][
                item.options[item.answer].casefold()
            ] += 1
    return tuple(
        replace(
            item,
            guess=_guess(item.options, counts.get((item.dimension, item.kind or item.family), {})),
        )
        for item in items
    )


def _items(
    source: Source,
    families: tuple[str, ...],
    a_study: int,
    seed: int,
    prior: AnswerPrior | None,
    guesses: Mapping[str, Counter[str]],
    shown: Mapping[str, Any],
    skipped: list[Skipped],
    per_family: int = 1,
) -> Iterator[Item]:
    """The questions about one study after the other; study k is asked ``a_study`` families, the next ones in turn."""

    @lru_cache(maxsize=4)  # the questions of one study come one after the other
    def shown_images(k: int) -> list:
        return View(source[k], **shown).images()

    for k in range(len(source)):
        mine = [
            families[(k * a_study + n) % len(families)] for n in range(min(a_study, len(families)))
        ]
        try:
            view = View(source[k], **shown)
            asked = ask(view, families=mine, per_family=per_family, seed=seed, prior=prior)
            load = partial(shown_images, k)
            found = [_item(question, view, source.name, guesses, load) for question in asked]
        except UniReasonError as error:
            skipped.append(Skipped(f"{source.name}[{k}]", str(error)))
            continue
        yield from found


def _item(
    question: Question,
    view: View,
    source: str,
    guesses: Mapping[str, Counter[str]],
    load: Callable[[], list],
) -> Item:
    return Item(
        id=question.id,
        patient=question.patient,
        dimension=question.dimension,
        family=question.family,
        question=question.text,
        options=dict(question.options),
        answer=question.answer,
        load=load,
        kind=question.kind,
        source=source,
        truth_boxes=tuple((structure.name, view.box(structure)) for structure in question.evidence),
        frame=view.frame,
        guess=_guess(question.options, guesses[question.kind])
        if question.kind in guesses
        else None,
        about={"names": list(question.names)},
    )


def _counts(questions: Iterable[Question]) -> dict[str, Counter[str]]:
    """Kind of question -> how often each text was the right option."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        counts[question.kind][question.truth.casefold()] += 1
    return counts


def _guess(options: Mapping[str, str], counts: Mapping[str, int]) -> str | None:
    """The letter whose text was right most often; None when none of them was ever."""
    known = {letter: counts.get(text.casefold(), 0) for letter, text in options.items()}
    return max(known, key=lambda letter: known[letter]) if any(known.values()) else None


def _in_turn(streams: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """An item of each stream, then the next of each; streams that are at their end are left out."""
    streams = list(streams)
    while streams:
        for stream in list(streams):
            if (item := next(stream, None)) is None:
                streams.remove(stream)
            else:
                yield item


def _serialization(frame: ProcessorFrame, size: Any, window: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {"size": size and list(size), "window": window, "frame": asdict(frame)}


def _json_values(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))
