"""Benchmarks from outlined scans: any source of studies is asked by the rules of the training data.

Training counts phantom patients from 0 upwards; those of ``test`` begin at 1,000,000 and those of
``val`` at 2,000,000, so no split meets another whatever is built.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.questions import FAMILIES, ask, learn_prior
from unireason_lib.dataset.sources import Source, open_source
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark, Item, best_option, items_of

if TYPE_CHECKING:
    from unireason_lib.imaging import ProcessorFrame

FIRST_PATIENT: Mapping[str, int] = {"train": 0, "test": 1_000_000, "val": 2_000_000}
"""Number of the first phantom patient of each split."""

FIRST_3D = 500_000  # within a split: nobody is asked about both in a slice and in a volume
PATIENTS = 400_000  # of a split and dimension, at most


def study_benchmark(
    name: str,
    path: Any = None,
    *,
    split: str = "test",
    limit: int | None = None,
    frame: ProcessorFrame,
    size: Sequence[int] | None = None,
    window: Any = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    a_patient: int | None = None,
    per_family: int = 1,
    prior_studies: int | None = None,
    **options: Any,
) -> Benchmark:
    """Questions about the studies of a source; those that cannot be read are skipped. Arguments as
    for :func:`~.benchmarks.open_benchmark`, and

    Args:
        name, path, options: As for :func:`unireason_lib.dataset.sources.open_source`. ``phantom``
            makes a slice of one patient, the volume of the next, and so on; only one of them with
            ``dimension="2d"`` or ``"3d"``.
        split: Of the phantoms: ``"test"``, ``"val"``, or ``"train"`` (what was learnt by heart).
        limit: None: all, of phantoms 500. A longer benchmark begins with a shorter one.
        seed: Of the questions.
        families: Which; None: all six.
        a_patient: Families asked of a patient, in turn; None: all, of phantoms 2 (more patients
            with few questions each say more than few with many).
        per_family: Questions of a family about each study.
        prior_studies: Studies from which the answer prior is learnt, and which option is the most
            likely one: of phantoms 300 training patients, of another source its first ones (None:
            no prior; of a single scan all is known, so anatomy alone answers some questions).

    Raises:
        DatasetError: An unknown split or option, or no study can be asked about.
    """
    phantoms, families = name == "phantom", tuple(families or FAMILIES)
    if phantoms and split not in FIRST_PATIENT:
        raise DatasetError("split", "train, test or val", repr(split), "choose one of them")
    if phantoms and path:
        raise DatasetError(name, "no path", repr(str(path)), f"write {name} alone")
    identity = {
        "benchmark": name,
        "split": split if phantoms else None,
        "root": str(Path(path).resolve()) if path else None,
        "options": options,
        "seed": seed,
        "families": families,
        "a_patient": a_patient,
        "per_family": per_family,
        "prior_studies": prior_studies,
    }
    if phantoms:
        limit, a_patient = limit or 500, a_patient or 2
        prior = 300 if prior_studies is None else prior_studies
        sources = []
        for d in (options["dimension"],) if options.get("dimension") else ("2d", "3d"):
            how = {**options, "dimension": d}
            first = FIRST_PATIENT[split] + (FIRST_3D if d == "3d" else 0)
            asked = open_source("phantom", start=first, count=PATIENTS, **how)
            known = open_source("phantom", start=0, count=prior, **how) if prior else []
            sources.append((asked, known))
        size = size or sources[0][0].config.shape
    else:
        source = open_source(name, path, **options)
        sources = [(source, islice(source, prior_studies or 0))]
    shown = {"size": size and tuple(size), "window": window, "frame": frame}
    turns, skipped = (a_patient or len(families), families, per_family, seed), []
    streams = [_items(asked, known, shown, skipped, *turns) for asked, known in sources]
    items = (item for row in zip_longest(*streams) for item in row if item is not None)
    chosen = tuple(islice(items, limit))
    identity |= {"serialization": shown | {"frame": asdict(frame)}}
    plain = json.loads(json.dumps(identity))  # tuples become lists, as in the file of a run
    return Benchmark(sources[0][0].name, chosen, plain, tuple(skipped))


def _items(
    source: Source,
    training: Iterable[Any],
    shown: Mapping[str, Any],
    skipped: list,
    a_study: int,
    families: tuple[str, ...],
    per_family: int,
    seed: int,
) -> Iterator[Item]:
    """The questions, study by study; each is asked ``a_study`` families, the next ones in turn."""
    views, counts = [View(study, **shown) for study in training], defaultdict(Counter)
    prior = learn_prior(views, seed=seed) if views else None
    for view in views:
        for question in ask(view, prior=prior, seed=seed):
            counts[question.kind][question.truth.casefold()] += 1

    @lru_cache(maxsize=4)  # the questions of one study come one after the other
    def images_of(k: int) -> list:
        return View(source[k], **shown).images()

    def make(k: int) -> Iterator[Item]:
        turn = (k * a_study + n for n in range(min(a_study, len(families))))
        chosen, view = [families[n % len(families)] for n in turn], View(source[k], **shown)
        for q in ask(view, families=chosen, per_family=per_family, seed=seed, prior=prior):
            yield Item(
                id=q.id,
                patient=q.patient,
                dimension=q.dimension,
                family=q.family,
                question=q.text,
                options=dict(q.options),
                answer=q.answer,
                load=partial(images_of, k),
                kind=q.kind,
                source=source.name,
                truth_boxes=tuple((s.name, view.box(s)) for s in q.evidence),
                frame=view.frame,
                guess=best_option(q.options, counts.get(q.kind, {})),
                about={"names": list(q.names)},
            )

    rows = ((f"{source.name}[{k}]", k) for k in range(len(source)))
    return items_of(rows, make, skipped)
