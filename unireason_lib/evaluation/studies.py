"""Benchmarks from outlined scans: any source of studies is asked by the rules of the training data.

Training counts phantom patients from 0 upwards; those of ``test`` begin at 1,000,000 and those of
``val`` at 2,000,000, so no split meets another whatever is built.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.questions import FAMILIES, AnswerPrior, Question, ask, learn_prior
from unireason_lib.dataset.sources import Source, open_source
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, UniReasonError
from unireason_lib.evaluation.items import Benchmark, Item, Skipped, best_option

if TYPE_CHECKING:
    from unireason_lib.imaging import ProcessorFrame

FIRST_PATIENT: Mapping[str, int] = {"train": 0, "test": 1_000_000, "val": 2_000_000}
"""Number of the first phantom patient of each split."""

FIRST_3D = 500_000  # within a split: nobody is asked about both in a slice and in a volume
PATIENTS = 400_000  # of a split and dimension, at most

Guesses = Mapping[str, Counter[str]]
"""Kind of question -> how often each text was the right option in training."""


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
    prior_studies: int = 300,
    config: Mapping[str, Any] | None = None,
) -> Benchmark:
    """Held-out phantom patients: a slice of one, the volume of the next, and so on.

    Args:
        split: ``"test"``, ``"val"``, or ``"train"`` (to see what was learnt by heart).
        limit: Questions; None: 500. The first hundred of five hundred are the hundred.
        size: Slices, rows and columns of a volume; None: those of the phantoms.
        seed: Of the questions.
        dimension: Only ``"2d"`` or ``"3d"``; None: both.
        families: Which; None: all six.
        a_patient: Families asked of a patient, in turn: more patients with few questions each say
            more than few with many.
        prior_studies: Training patients from whom the answer prior is learnt, and which option is
            the most likely one; 0 asks everything.
        config: Of the phantoms, see :class:`~unireason_lib.dataset.sources.PhantomConfig`.
    """
    if split not in FIRST_PATIENT:
        raise DatasetError("split", "train, test or val", repr(split), "choose one of them")
    families = tuple(families or FAMILIES)
    options = {} if config is None else {"config": dict(config)}
    streams = []
    for d in (dimension,) if dimension else ("2d", "3d"):
        first = FIRST_PATIENT[split] + (FIRST_3D if d == "3d" else 0)
        source = open_source("phantom", start=first, count=PATIENTS, dimension=d, **options)
        shown = {"size": tuple(size or source.config.shape), "window": window, "frame": frame}
        prior, guesses = None, defaultdict(Counter)
        if prior_studies:
            training = open_source("phantom", start=0, count=prior_studies, dimension=d, **options)
            views = [View(study, **shown) for study in training]
            prior = learn_prior(views, seed=seed)
            for question in chain.from_iterable(ask(v, prior=prior, seed=seed) for v in views):
                guesses[question.kind][question.truth.casefold()] += 1
        streams.append(_items(source, families, a_patient, seed, prior, guesses, shown, []))
    in_turn = (item for row in zip_longest(*streams) for item in row if item is not None)
    items = tuple(islice(in_turn, 500 if limit is None else limit))
    identity = {
        "benchmark": "phantom",
        "split": split,
        "seed": seed,
        "families": families,
        "a_patient": a_patient,
        "prior_studies": prior_studies,
        "dimension": dimension,
        "config": config or {},
        "serialization": shown | {"frame": asdict(frame)},
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
    """Questions about the studies of any source; those that cannot be read are skipped.

    Args:
        name, path, options: As for :func:`unireason_lib.dataset.sources.open_source`.
        limit: Questions; None: all.
        size, window, seed, families: As for :func:`phantom_benchmark`; size None is the paper's.
        per_family: Questions of a family about each study.
        prior_studies: Studies of this source from which the answer prior is learnt. Of a single
            scan everything is known, so anatomy alone answers some of its questions.
    """
    families = tuple(families or FAMILIES)
    source = open_source(name, path, **options)
    skipped: list[Skipped] = []
    shown = {"size": size and tuple(size), "window": window, "frame": frame}
    first = (View(study, **shown) for study in islice(source, prior_studies))
    prior = learn_prior(first, seed=seed) if prior_studies else None
    items = _items(source, families, len(families), seed, prior, {}, shown, skipped, per_family)
    identity = {
        "benchmark": name,
        "root": None if path is None else str(Path(path).resolve()),
        "options": options,
        "seed": seed,
        "families": families,
        "per_family": per_family,
        "prior_studies": prior_studies,
        "serialization": shown | {"frame": asdict(frame)},
    }
    chosen = tuple(islice(items, limit))
    return Benchmark(source.name, chosen, _json_values(identity), tuple(skipped))


def _items(
    source: Source,
    families: tuple[str, ...],
    a_study: int,
    seed: int,
    prior: AnswerPrior | None,
    guesses: Guesses,
    shown: Mapping[str, Any],
    skipped: list[Skipped],
    per_family: int = 1,
) -> Iterator[Item]:
    """The questions, study by study; each is asked ``a_study`` families, the next ones in turn."""

    @lru_cache(maxsize=4)  # the questions of one study come one after the other
    def images_of(k: int) -> list:
        return View(source[k], **shown).images()

    for k in range(len(source)):
        turn = (k * a_study + n for n in range(min(a_study, len(families))))
        chosen = [families[n % len(families)] for n in turn]
        try:
            view = View(source[k], **shown)
            asked = ask(view, families=chosen, per_family=per_family, seed=seed, prior=prior)
            load = partial(images_of, k)
            items = [_item(question, view, source.name, guesses, load) for question in asked]
        except UniReasonError as error:
            skipped.append(Skipped(f"{source.name}[{k}]", str(error)))
            continue
        yield from items


def _item(q: Question, view: View, source: str, guesses: Guesses, load: Callable) -> Item:
    return Item(
        id=q.id,
        patient=q.patient,
        dimension=q.dimension,
        family=q.family,
        question=q.text,
        options=dict(q.options),
        answer=q.answer,
        load=load,
        kind=q.kind,
        source=source,
        truth_boxes=tuple((structure.name, view.box(structure)) for structure in q.evidence),
        frame=view.frame,
        guess=best_option(q.options, guesses.get(q.kind, {})),
        about={"names": list(q.names)},
    )


def _json_values(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))
