"""Shards: the part of a build that many processes share.

The studies of a source are cut into shards of neighbours. :func:`process_shard` makes of one a
folder with the tables ``records``, ``images``, ``studies`` and ``refused``::

    study -> view -> questions -> reasoning -> record -> checks -> row

It depends on nothing but the settings, and writes into a temporary folder that is then renamed: a
folder that is there is done. Who calls it does not matter: this process, a pool, or Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import threading
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice, zip_longest
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from PIL import Image

from unireason_lib.dataset import schema
from unireason_lib.dataset.annotator import LLMWriter, RationaleRefused
from unireason_lib.dataset.checks import problems_of
from unireason_lib.dataset.questions import AnswerPrior, Question, ask, learn_prior
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources import open_source
from unireason_lib.dataset.sources.base import Entry, Source
from unireason_lib.dataset.splits import perceptual_hash, voxel_hash
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, ScanError, ScanWarning, UniReasonError, raising
from unireason_lib.imaging import Volume, slice_order_report
from unireason_lib.io import whole_folder

if TYPE_CHECKING:
    from unireason_lib.dataset.build import BuildConfig

SHARD = 64
"""Most studies in a shard: what is lost when a worker is killed, and what one holds in memory."""

_NUMBER = {"study_number": Value("int32")}
TABLES: Mapping[str, pa.Schema] = {
    "records": Features({**_NUMBER, **schema.SFT_FEATURES}).arrow_schema,
    "images": Features({**_NUMBER, **schema.IMAGE_FEATURES}).arrow_schema,
    "studies": schema.STUDY_FEATURES.arrow_schema,
    "refused": schema.REFUSED_FEATURES.arrow_schema,
}
"""Tables of a shard. ``study_number`` counts its ``studies``."""


@dataclass(frozen=True)
class Run:
    """One run of a build: its settings, and the folder of what is not finished."""

    config: BuildConfig = field(compare=False)
    work: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def shards(self, indexes: Sequence[Sequence[Entry]] | None = None) -> Iterator[Shard]:
        """All studies in order, in 16 shards or more, so that no process is idle."""
        indexes = open_run(self).indexes if indexes is None else indexes
        size = max(1, min(SHARD, sum(map(len, indexes)) // 16))
        for source, index in enumerate(indexes):
            for start in range(0, len(index), size):
                stop = min(start + size, len(index))
                yield Shard(self, source, start, tuple(index[k] for k in range(start, stop)))

    def prior_path(self, source: int) -> Path:
        """Where the answer prior of a source is."""
        return self.work / "priors" / f"{source:02d}.json"


class Opened(NamedTuple):
    """What the settings of a run name."""

    sources: list[Source]
    indexes: list[Sequence[Entry]]  # the studies of each that are used
    writer: Any


@lru_cache(maxsize=1)
def open_run(run: Run) -> Opened:
    """Sources and writer of a run, opened once a process. Of several folders of one data set or
    name, the second is called ``name-2`` and so on: their studies would have the same ids, but for
    tasks of the decathlon, which are in theirs."""
    sources, places, limit = [], defaultdict(list), run.config.limit
    for spec in run.config.sources:
        source = open_source(spec.name, spec.path, **spec.options)
        known = (source.name, getattr(source, "task", None))
        paths, path = places[known], source.path and Path(source.path).resolve()
        if path not in paths:
            paths.append(path)
        if number := paths.index(path):
            source = replace(source, title=f"{source.name}-{number + 1}")
        sources.append(source)
    indexes = [source.index() for source in sources]
    if limit is not None:
        indexes = [list(islice(index, limit)) for index in indexes]
    return Opened(sources, indexes, make_writer(run.config))


def make_writer(config: BuildConfig) -> Any:
    """The rationale writer of the settings."""
    options = {"seed": config.seed} if config.writer == "template" else {}
    with raising(DatasetError, "writer", "template or llm, and options of it", "correct them"):
        kind = {"template": TemplateWriter, "llm": LLMWriter}[config.writer]
        return kind(**{**options, **config.writer_options})


@dataclass(frozen=True)
class Shard:
    """Neighbouring studies of one source, the first of them the ``start``-th of it."""

    run: Run
    source: int
    start: int
    entries: tuple[Entry, ...]

    @property
    def folder(self) -> Path:
        """Where its tables are; the name follows from the studies, so it fits no others."""
        keys = repr([entry.key for entry in self.entries])
        digest = hashlib.blake2b(keys.encode(), digest_size=6).hexdigest()
        return self.run.work / f"shards/{self.source:02d}/{self.start:08d}-{digest}"


class Draft(NamedTuple):
    """A study that was read and asked about; the scan is gone, the reasoning is to come."""

    view: View
    questions: Sequence[Question]
    images: Sequence[Mapping[str, Any]]  # rows of the table
    study: Mapping[str, Any]  # its row
    shared: Mapping[str, Any]  # fields that all its records have in common


def process_shard(shard: Shard) -> Path:
    """Make the tables of one shard, whole or not at all, and return their folder. Errors of a
    writer that cannot continue come through; answers that were paid for are kept."""
    if shard.folder.is_dir():
        return shard.folder
    writer = open_run(shard.run).writer
    drafts, refused = read_shard(shard)
    if hasattr(writer, "prepare"):  # it asks many questions at a time, and keeps the answers
        writer.prepare((question, draft.view) for draft in drafts for question in draft.questions)
    tables: dict[str, list[Any]] = {**{name: [] for name in TABLES}, "refused": refused}
    for number, draft in enumerate(drafts):
        records = [record.to_row() for record in _records(draft, writer, refused)]
        rows = {"records": records, "images": draft.images if records else []}
        text = json.dumps(rows, sort_keys=True, default=lambda data: hashlib.sha1(data).hexdigest())
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        tables["studies"].append({**draft.study, "records": len(records), "digest": digest})
        for name, those in rows.items():
            tables[name] += [{"study_number": number, **row} for row in those]
    with whole_folder(shard.folder) as temporary:
        for name, rows in tables.items():
            table = pa.Table.from_pylist(rows, TABLES[name])
            pq.write_table(table, temporary / f"{name}.parquet", compression="zstd")
    return shard.folder


def learn_shard(shard: Shard) -> AnswerPrior:
    """The answer prior of one shard's studies, those that can be read."""
    config, source = shard.run.config, open_run(shard.run).sources[shard.source]

    def views() -> Iterator[View]:
        for entry in shard.entries:
            with contextlib.suppress(UniReasonError):  # counted when its records are due
                with _reading([]):
                    view = View(source.study(entry.key), config.size, config.window, config.frame)
                    view.visible_labels  # noqa: B018  (reads the scan: a broken one costs one study)
                yield view

    with warnings.catch_warnings(action="ignore", category=ScanWarning):
        return learn_prior(views(), seed=config.seed)


def read_shard(shard: Shard) -> tuple[list[Draft], list[dict[str, str]]]:
    """Read the studies of a shard and ask about them; and rows about those that are unreadable."""
    run, drafts, refused = shard.run, [], []
    source = open_run(run).sources[shard.source]
    prior = _prior(run, shard.source) if run.config.prior_studies else None
    for entry in shard.entries:
        name, texts = f"{source.name}[{entry.key}]", []
        try:
            with _reading(texts):
                study = source.study(entry.key)
                name = study.id
                study = replace(study, scan_source=study.scan)
            drafts.append(_draft(run.config, source, study, prior, texts))
        except UniReasonError as error:
            text = " ".join(str(error).split())
            if source.path is not None:  # the same words on every machine
                for root in (os.path.realpath(source.path), str(source.path)):
                    text = text.replace(root.rstrip("/") + "/", "")
            refused.append(_refusal("unreadable", text[:500], source.name, name))
        else:
            drafts[-1].study["warnings"] += dict.fromkeys(filter(None, texts))
    return drafts, refused


def _draft(
    config: BuildConfig, source: Source, study: Study, prior: AnswerPrior | None, texts: list[str]
) -> Draft:
    """Ask about a study whose scan was read, and encode its images; ``texts`` gets warnings."""
    array = study.scan.array if isinstance(study.scan, Volume) else study.scan
    row = {name: getattr(study, name) for name in ("id", "patient", "split", "source")}
    with _reading(texts):
        row |= {"perceptual_hash": perceptual_hash(array), "voxel_hash": voxel_hash(array)}
        texts += slice_order_report(array).messages if study.dimension == "3d" else ()
    view = View(study, config.size, config.window, config.frame)
    numbers = {"families": config.families, "per_family": config.per_family, "seed": config.seed}
    questions, images = ask(view, prior=prior, **numbers), ()
    stored = config.images == "all" or (config.images == "licensed" and source.redistributable)
    if questions and stored:
        with _reading(texts):
            planes = [view.pixels] if study.dimension == "2d" else view.pixels
        images = tuple(map(image_row, view.image_ids, planes))
    shared = {"spec": source.spec, "seed": config.seed, "stored": stored}
    return Draft(view.without_scan(), questions, images, {**row, "warnings": []}, shared)


@contextlib.contextmanager
def _reading(texts: list[str]) -> Iterator[None]:
    """Collect what is warned of, and make of whatever a decoder raises about a broken file our
    error, which costs one study."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScanWarning)
        try:
            yield
        except (UniReasonError, MemoryError, RecursionError):
            raise
        except Exception as error:
            raise ScanError(f"{type(error).__name__}: {error}") from error
    texts += [str(w.message) for w in caught if issubclass(w.category, ScanWarning)]


def _records(draft: Draft, writer: Any, refused: list[dict[str, str]]) -> Iterator[Record]:
    """Write the reasoning of a draft's questions: what passes all checks; the rest is refused."""
    place, seen = (draft.view.study.source, draft.view.study.id), set()
    for question in draft.questions:
        try:
            rationale = writer.write(question, draft.view)
        except RationaleRefused as error:  # a spent budget is none: it stops the build
            refused.append(_refusal("unwritable", str(error), *place, question.id))
            continue
        record = Record.make(draft.view, question, rationale, writer=writer.name, **draft.shared)
        wording = (record.question, *sorted(record.options.values()))
        problems = problems_of(record, draft.view, question)
        if wording in seen:
            problems.append(("duplicate question", record.question))
        if problems:
            refused.append(_refusal(*problems[0], *place, record.id, record.reply))
        else:
            seen.add(wording)
            yield record


def _refusal(*values: str) -> dict[str, str]:
    """What was left out, as a row: reason, what was found, source, study, perhaps record, reply."""
    return dict(zip_longest(schema.REFUSED_FEATURES, values, fillvalue=""))


def image_row(image_id: str, pixels: np.ndarray) -> dict[str, Any]:
    """An image, (Y, X) or (Y, X, 3) uint8, as a row of ``images``; PNG keeps every pixel."""
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG", compress_level=4)
    return {"image_id": image_id, "path": f"images/{image_id}.png", "bytes": stream.getvalue()}


@lru_cache(maxsize=1)
def _prior(run: Run, source: int) -> AnswerPrior:
    return AnswerPrior.load(run.prior_path(source))


# --- who works ---------------------------------------------------------------------------------

Execute = Callable[[Callable[[Shard], Any], Iterable[Shard]], Iterator[Any]]


@contextlib.contextmanager
def executor(workers: int, ray: str | None = None) -> Iterator[Execute]:
    """Give ``execute(function, shards)``, which yields results as they are done: in this process,
    in several, or at the address of a Ray cluster that sees the folders under the same paths."""
    if ray is None and workers < 2:
        yield map
        return

    def execute(function: Callable[[Shard], Any], shards: Iterable[Shard]) -> Iterator[Any]:
        waiting = iter(shards)  # in portions: memory does not grow with the shards
        while portion := list(islice(waiting, 16 * max(4, workers))):
            yield from run(function, portion)

    with _pool(workers) if ray is None else _ray(workers, ray) as run:
        yield execute


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Execute]:
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    held, alive = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _become_worker, (held,))
    try:
        yield pool.map
        pool.shutdown()
    except BrokenProcessPool as error:
        do = "use fewer, go on, and in a script build below `if __name__ == '__main__':`"
        raise DatasetError("workers", "processes that live", "one that was killed", do) from error
    finally:
        alive.close()  # whoever still works ends now: unfinished shards are made again
        pool.shutdown(wait=False, cancel_futures=True)


def _become_worker(held: Any) -> None:
    """One thread; Ctrl-C is left to the parent; the end comes when it lets go of the pipe."""

    def watch() -> None:
        with contextlib.suppress(EOFError):
            held.recv()
        os._exit(1)

    os.environ["OMP_NUM_THREADS"] = "1"
    pa.set_cpu_count(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _ray(workers: int, address: str) -> Iterator[Execute]:
    """The same shards as plain Ray tasks."""
    with raising(DatasetError, "--ray", "the package ray", "pip install -e '.[ray]'"):
        import ray
    own = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    ray.init(address, log_to_driver=False, **own)
    task = ray.remote(num_cpus=1, max_retries=2)
    try:
        yield lambda function, shards: ray.get([task(function).remote(s) for s in shards])
    finally:
        ray.shutdown()
