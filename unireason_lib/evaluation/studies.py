"""Benchmarks from outlined scans: any source of studies is asked by the same rules as the training data.

``phantom`` makes its patients when they are asked for. Training counts patients from 0 upwards; the patients of
``test`` begin at 1,000,000 and those of ``val`` at 2,000,000, so no split meets another whatever is built.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.questions import FAMILIES, Question, ask, take_census
from unireason_lib.dataset.records import plain
from unireason_lib.dataset.sources import IndexedSource, open_source
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, UniReasonError, explain
from unireason_lib.evaluation.items import Benchmark, Item, Skipped

if TYPE_CHECKING:
    from unireason_lib.dataset.census import Census
    from unireason_lib.imaging import ProcessorFrame

FIRST_PATIENT: Mapping[str, int] = {"train": 0, "test": 1_000_000, "val": 2_000_000}
"""Number of the first phantom patient of each split."""

_FIRST_3D = 500_000  # within a split: nobody is asked about both in a slice and in a volume
_CENSUS = 300
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
    census: int = _CENSUS,
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
        census: Patients of the training data from whom is learnt what can be known without looking (see
            :class:`~unireason_lib.dataset.census.Census`), and which option is the most likely one; 0 asks everything.
        config: Of the phantoms, see :class:`~unireason_lib.dataset.sources.PhantomConfig`.
    """
    if split not in FIRST_PATIENT:
        raise DatasetError(
            explain("split", expected="train, test or val", found=repr(split), do="choose one of them")
        )
    families = tuple(FAMILIES if families is None else families)
    options = {} if config is None else {"config": dict(config)}
    streams = []
    for d in ("2d", "3d") if dimension is None else (dimension,):
        first = FIRST_PATIENT[split] + (_FIRST_3D if d == "3d" else 0)
        source = open_source("phantom", start=first, count=_ROOM, dimension=d, **options)
        known, guesses = None, {}
        if census:
            training = open_source("phantom", start=0, count=census, dimension=d, **options)
            studies = list(training)
            known = take_census(studies, seed=seed)
            views = (View(study, size or source.config.shape, window, frame) for study in studies)
            guesses = _counts(
                q for view in views for q in ask(view.study, view=view, census=known, seed=seed)
            )
        shown = {"size": tuple(size or source.config.shape), "window": window, "frame": frame}
        streams.append(_items(source, families, a_patient, seed, known, guesses, shown, []))
    items = tuple(islice(_in_turn(streams), 500 if limit is None else limit))
    identity = {
        "benchmark": "phantom",
        "split": split,
        "seed": seed,
        "families": families,
        "a_patient": a_patient,
        "census": census,
        "dimension": dimension,
        "config": config or {},
        "serialization": _serialization(frame, tuple(size or source.config.shape), window),
    }
    return Benchmark("phantom", items, plain(identity))


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
    census: int = 0,
    **options: Any,
) -> Benchmark:
    """Questions about the studies of any source of :mod:`unireason_lib.dataset.sources`.

    Args:
        name, path, options: As for :func:`unireason_lib.dataset.sources.open_source`.
        limit: Questions; None takes all.
        frame, size, window, seed, families: As for :func:`phantom_benchmark`; size None is the paper's.
        per_family: Questions of a family about each study.
        census: Studies of this source from which is learnt what can be known without looking. Of a single scan
            everything is known: such benchmarks are asked without one, and anatomy alone answers some of their
                questions.

    Returns:
        The benchmark; studies that cannot be read are skipped.
    """
    families = tuple(FAMILIES if families is None else families)
    source = open_source(name, path, **options)
    known = take_census(islice(source, census), seed=seed) if census else None
    skipped: list[Skipped] = []
    shown = {"size": size and tuple(size), "window": window, "frame": frame}
    items = _items(source, families, len(families), seed, known, {}, shown, skipped, per_family)
    identity = {
        "benchmark": name,
        "root": None if path is None else str(Path(path).resolve()),
        "options": options,
        "seed": seed,
        "families": families,
        "per_family": per_family,
        "census": census,
        "serialization": _serialization(frame, size, window),
    }
    return Benchmark(source.name, tuple(islice(items, limit)), plain(identity), tuple(skipped))


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
            counts[item.dimension, item.kind or item.family][item.options[item.answer].casefold()] += 1
    return tuple(
        replace(item, guess=_guess(item.options, counts.get((item.dimension, item.kind or item.family), {})))
        for item in items
    )


def _items(
    source: IndexedSource,
    families: tuple[str, ...],
    a_study: int,
    seed: int,
    census: Census | None,
    guesses: Mapping[str, Counter[str]],
    shown: Mapping[str, Any],
    skipped: list[Skipped],
    per_family: int = 1,
) -> Iterator[Item]:
    """The questions about one study after the other; study k is asked ``a_study`` families, the next ones in turn."""

    @lru_cache(maxsize=4)  # the questions of one study come one after the other
    def pictures(k: int) -> list:
        return View(source[k], **shown).images()

    for k in range(len(source)):
        mine = [families[(k * a_study + n) % len(families)] for n in range(min(a_study, len(families)))]
        try:
            study = source[k]
            view = View(replace(study, scan_source="", labels_source=None), **shown)
            asked = ask(view.study, families=mine, per_family=per_family, seed=seed, view=view, census=census)
            found = [_item(question, view, source.name, guesses, k, pictures) for question in asked]
        except UniReasonError as error:
            skipped.append(Skipped(f"{source.name}[{k}]", str(error)))
            continue
        yield from found


def _item(
    question: Question, view: View, source: str, guesses: Mapping[str, Counter[str]], k: int, pictures
) -> Item:
    kind = str(question.facts.get("kind", ""))
    return Item(
        id=question.id,
        patient=question.patient,
        dimension=question.dimension,
        family=question.family,
        question=question.text,
        options=dict(question.options),
        answer=question.answer,
        load=lambda: pictures(k),
        kind=kind,
        source=source,
        truth_boxes=tuple((structure.name, view.box(structure)) for structure in question.evidence),
        frame=view.frame,
        guess=_guess(question.options, guesses[kind]) if kind in guesses else None,
        about={"names": [str(name) for name in question.facts.get("names", ())]},
    )


def _counts(questions: Iterable[Question]) -> dict[str, Counter[str]]:
    """Kind of question -> how often each text was the right option."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        counts[str(question.facts.get("kind", ""))][question.truth.casefold()] += 1
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
