"""Benchmarks by name.

- ``phantom``: held-out phantom patients, made when they are asked about; any other source of
  :mod:`unireason_lib.dataset.sources`: questions about its structures;
- ``parquet``: a data set as our build or the authors' release has it (``sft/``, ``rl/``);
- ``m3d-vqa``, ``3d-rad`` (volumes), ``vqa-rad``, ``slake``, ``pathvqa`` (open and yes-or-no
  questions), ``pmc-vqa``, ``omnimedvqa`` (multiple choice): files held by the user.

Training counts phantom patients from 0 upwards; those of ``test`` begin at 1,000,000 and those of
``val`` at 2,000,000, so no split meets another whatever is built.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.dataset.hub import ImageTable, record_images
from unireason_lib.dataset.questions import FAMILIES, WORDS, Question, ask, learn_prior
from unireason_lib.dataset.release import open_release, release_split
from unireason_lib.dataset.schema import Record, box_of
from unireason_lib.dataset.sources import SOURCES, open_source
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark, Item, items_of, most_likely_answers
from unireason_lib.evaluation.public import LAYOUTS, public_items
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame, Serialization, slice_range
from unireason_lib.inference import Reading
from unireason_lib.io import sha256_of
from unireason_lib.prompts import question_text

FIRST_PATIENT = {"train": 0, "test": 1_000_000, "val": 2_000_000}  # of phantoms
FIRST_3D = 500_000  # within a split: nobody is asked about both in a slice and in a volume
PATIENTS = 400_000  # of a split and dimension, at most
QUADRANTS = ("Left and anterior", "Right and anterior", "Left and posterior", "Right and posterior")
TRAINING = 20_000  # rows of Parquet from which is learnt what is most often right


def open_benchmark(
    name: str,
    path: str | Path | None = None,
    *,
    split: str = "test",
    limit: int | None = None,
    frame: ProcessorFrame = QWEN_FRAME,
    size: Sequence[int] | None = None,
    window: Any = None,
    serialization: Serialization | None = None,
    **options: Any,
) -> Benchmark:
    """Open a benchmark; a ``DatasetError`` for an unknown name, option or split, or nothing usable
    behind the path.

    Args:
        name: See the module; ``name:path`` gives the path as well, and the folder of a data set
            (with ``sft/`` or ``rl/``) alone is enough.
        path: Its file or folder, where it has one.
        split: ``"test"``; of phantoms also ``"val"`` or ``"train"`` (what was learnt by heart), of
            Parquet ``"all"``.
        limit: At most so many questions, the first ones; None: all, of phantoms 500.
        frame: Of the model that will be asked; generated boxes are written for it.
        size, window: How volumes are laid out and shown; None: as the checkpoint's
            ``serialization`` says (another one is a ``ScanWarning``), else the benchmark's own.
        options: Of :func:`study_items` (``seed``, ``dimension``, ...), :func:`parquet_items` or
            :func:`~.public.public_items`.
    """
    makers = dict.fromkeys(["phantom", *SOURCES], study_items)
    makers |= dict.fromkeys(LAYOUTS, public_items) | {"parquet": parquet_items}
    if path is None and any((Path(name) / form).is_dir() for form in ("sft", "rl")):
        name, path = "parquet", name
    elif path is None:
        name, _, path = name.partition(":")
    if name not in makers or (limit is not None and limit < 1):
        do = "name one of them, as name:path where it needs files, or a folder with sft/ or rl/"
        expected = f"one of {', '.join(makers)}, and a limit of 1 or more"
        raise DatasetError("benchmark", expected, f"{name!r} and {limit}", do)
    if serialization is not None and name != "parquet":
        dimension = LAYOUTS[name].dimension if name in LAYOUTS else "3d"
        reading = Reading.like(serialization, dimension=dimension, size=size, window=window)
        size, window = reading.size, reading.window
        if name in LAYOUTS:
            options.setdefault("image_size", serialization.image_size)
    shown = {"frame": frame, "size": size and tuple(size), "window": window}
    skipped: list = []
    given = name, path or None, split, shown, skipped
    known = inspect.signature(makers[name])
    try:
        known.bind(*given, **options)
    except TypeError as error:
        expected = f"options of {', '.join([*known.parameters][len(given) :])}"
        raise DatasetError(f"benchmark {name}", expected, error, "correct or remove them") from None
    items, content = makers[name](*given, **options)
    items = tuple(islice(items, limit or (500 if name == "phantom" else None)))
    path = str(Path(path).resolve()) if path else None
    identity = shown | {"name": name, "path": path, "split": split, "frame": frame.to_dict()}
    identity = json.loads(json.dumps(identity | options, default=str))  # as a run notes it
    opened = identity | {"limit": limit}
    return Benchmark(name, items, identity | content, tuple(skipped), opened)


def study_items(
    name: str,
    path: str | Path | None,
    split: str,
    shown: Mapping[str, Any],
    skipped: list,
    *,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    a_patient: int | None = None,
    per_family: int = 1,
    prior_studies: int | None = None,
    skip_patients: int = 0,
    **options: Any,
) -> tuple[Iterator[Item], dict[str, Any]]:
    """Questions about the studies of a source, by the rules of the training data, which ``seed``
    chooses: ``per_family`` of some ``families`` about each study, of which ``a_patient`` (of
    phantoms 2) are asked in turn. Studies that cannot be read are skipped.

    From ``prior_studies`` the answer prior is learnt, and which option is the most likely one: of
    phantoms 300 training patients, of another source its first ones (None: no prior). ``options``
    as for :func:`~unireason_lib.dataset.sources.open_source`; phantoms are by turns a slice of one
    patient and the volume of another, or one of them with ``dimension="2d"`` or ``"3d"``. The first
    ``skip_patients`` of a source are passed over.
    """
    if name == "phantom":
        if split not in FIRST_PATIENT or path:
            expected = "no path, and the split train, test or val"
            raise DatasetError(name, expected, f"{path} and {split!r}", f"write {name} alone")
        a_patient, sources = a_patient or 2, []
        prior_studies = 300 if prior_studies is None else prior_studies
        dimension = options.pop("dimension", None)
        for d in [dimension] if dimension else ["2d", "3d"]:
            phantoms = partial(open_source, "phantom", dimension=d, **options)
            asked = phantoms(start=FIRST_PATIENT[split] + FIRST_3D * (d == "3d"), count=PATIENTS)
            sources.append((asked, phantoms(start=0, count=prior_studies)))
        shown = {**shown, "size": shown["size"] or sources[0][0].config.shape}
    else:
        source = open_source(name, path, **options)
        sources = [(source, source)]
    each = min(a_patient or len(families), len(families))

    def stream(source: Any, training: Any) -> Iterator[Item]:
        """The questions, study by study, each of the next families in turn."""
        views = [View(study, **shown) for study in islice(training, prior_studies or 0)]
        prior = learn_prior(views, seed=seed) if views else None
        known = (_item(q, view) for view in views for q in ask(view, prior=prior, seed=seed))

        @lru_cache(maxsize=4)  # the questions of one study come one after the other
        def images_of(k: int) -> list:
            return View(source[k], **shown).images()

        def make(k: int) -> Iterator[Item]:
            turn = [families[(k * each + n) % len(families)] for n in range(each)]
            view = View(source[k], **shown)
            for question in ask(view, families=turn, seed=seed, prior=prior, per_family=per_family):
                yield _item(question, view, source=source.name, load=partial(images_of, k))

        rows = (
            (f"{source.name}[{k}]", partial(make, k)) for k in range(skip_patients, len(source))
        )
        return most_likely_answers(items_of(rows, skipped), known)

    turns = zip_longest(*(stream(*pair) for pair in sources))
    return (item for turn in turns for item in turn if item is not None), {}


def _item(question: Question, view: View, load: Any = None, source: str = "") -> Item:
    same = ("id", "patient", "dimension", "family", "kind", "answer")
    return Item(
        **{name: getattr(question, name) for name in same},
        question=question.text,
        options=dict(question.options),
        load=load,
        source=source,
        truth_boxes=tuple((one.name, view.box(one)) for one in question.evidence),
        frame=view.frame,
        about={"names": list(question.names)},
    )


def parquet_items(
    name: str,
    path: str | Path | None,
    split: str,
    shown: Mapping[str, Any],
    skipped: list,
    *,
    m3d_root: str | None = None,
    volumes: str | None = None,
    dimension: str | None = None,
) -> tuple[Iterator[Item], dict[str, Any]]:
    """The questions of a data set: of ``sft/`` where it is (its replies hold true boxes), else of
    ``rl/``, split as in training and shown as the rows say. ``m3d_root`` and ``volumes`` as for
    ``open_release``; of a data set of ours ``m3d_root`` holds the scans that it does not store."""
    if path is None or not Path(path).is_dir():
        raise DatasetError(path, "the folder of a data set", "none", "give it: parquet:FOLDER")
    if shown["size"] or shown["window"]:
        do = "build the data set again to lay volumes out differently"
        raise DatasetError(path, "no size or window", "some", do)
    folder = Path(path)
    form = "sft" if any((folder / "sft").glob("*.parquet")) else "rl"
    data = open_release(folder, m3d_root=m3d_root, volumes=volumes)
    roots = {"release": data, "": m3d_root} if m3d_root else {}
    images = partial(record_images, table=ImageTable(folder), roots=roots)

    def items_of_split(split: str, skipped: list) -> Iterator[Item]:
        def make(*row: Any) -> Iterator[Item]:
            record = data.record(*row)
            if split in ("all", release_split(record)) and dimension in (None, record.dimension):
                yield record_item(record, images)

        rows = ((row[0], partial(make, *row)) for row in data.rows(form, split))
        return items_of(rows, skipped)

    items = items_of_split(split, skipped)
    if split != "train" and any((folder / form).glob("train-*.parquet")):
        items = most_likely_answers(items, islice(items_of_split("train", []), TRAINING))
    manifest = folder / "manifest.json"
    files = [manifest] if manifest.is_file() else sorted((folder / form).glob("*.parquet"))
    return items, {"content": " ".join(sha256_of(file) for file in files)}


def record_item(record: Record, images: Callable[[Record], list[Image.Image]]) -> Item:
    """A record, ours or of the release, as an item whose images ``images`` gives; a
    ``RequestError`` when its words cannot be asked."""
    if not record.asked:
        question_text(record.question, record.options)
    same = ("id", "dimension", "question", "kind", "source", "asked")
    return Item(
        **{name: getattr(record, name) for name in same},
        patient=record.patient or record.study or record.id,
        family=record.family or "all",
        options=dict(record.options),
        answer=record.answer or None,
        load=partial(images, record),
        truth_boxes=tuple((name, box_of(box)) for name, box in record.evidence),
        frame=record.frame,
        about={"names": list(record.names)} if record.names else {},
    )


def slice_benchmark(benchmark: Benchmark, lines: Iterable[Mapping[str, Any]]) -> Benchmark:
    """Does a model refer to the same place in a volume and in its slices? Each slice of the cuboid
    that is the first box in a reply (``lines``) to a question about one structure is asked about
    alone, as an image: the rectangle of the cuboid should be the box that is written there.

    ``about`` of these items holds ``parent`` (the question about the volume), ``slice`` and
    ``cuboid``; which option is right is not known. A ``DatasetError`` when there is no such reply.
    """
    volumes = {item.id: item for item in benchmark if item.dimension == "3d"}
    items: list[Item] = []
    words = WORDS["families"]["spatial localization"]["quadrant"][3]
    options = dict(zip("ABCD", QUADRANTS, strict=True))
    asked = {"dimension": "2d", "kind": "quadrant", "options": options, "answer": None}
    asked |= {"truth_boxes": (), "guess": None}
    for line in (line for line in lines if line.get("boxes") and line["id"] in volumes):
        parent, box = volumes[line["id"]], box_of(line["boxes"][0])
        if not isinstance(box, Box3D) or len(parent.truth_boxes) != 1:
            continue
        name = next(iter(parent.about.get("names", ())), f"the {parent.truth_boxes[0][0]}")
        question = words.format(a=name, it="image")
        load = lru_cache(maxsize=1)(parent.load)  # slices of one volume are asked together
        for z in slice_range(box, line["frame"][2]):
            about = {"parent": parent.id, "slice": z, "cuboid": list(box.as_tuple())}
            own = {"id": f"{parent.id}#z{z:03d}", "about": about, "question": question}
            items.append(replace(parent, **asked, **own, load=lambda z=z, load=load: [load()[z]]))
    if not items:
        expected = "replies about one structure of a volume that begin with a cuboid"
        do = "ask a model that writes boxes in volumes, or more questions"
        raise DatasetError(f"slices of {benchmark.name}", expected, "none", do)
    identity = {**benchmark.identity, "mode": "slices"}
    return replace(benchmark, items=tuple(items), identity=identity, skipped=())
