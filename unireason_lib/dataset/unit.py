"""One unit: from a few studies to checked rows and pictures in part files.

    study -> view -> questions -> reasoning -> record -> checks -> row

What a study that cannot be read or a record that fails a check costs is that study or record, and a line that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from unireason_lib.dataset.checks import Refusal, check_record, check_truth, refuse
from unireason_lib.dataset.plan import (
    BuildConfig,
    Unit,
    census_path,
    done_path,
    fault,
    lookup_of,
    may_redistribute,
    open_sources,
    part_path,
)
from unireason_lib.dataset.records import Record, image_ids_of, plain
from unireason_lib.dataset.splits import FINGERPRINT_BYTES, fingerprint
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, ScanError, UniReasonError
from unireason_lib.imaging import Volume, slice_order_report


class BuildStopped(DatasetError):
    """The build was interrupted; running the same command again goes on from here."""


@dataclass(frozen=True)
class Outcome:
    """What came of one study.

    Attributes:
        study: What the split needs: id, patient, own split, fingerprint; None when it was unreadable.
        records: The records that passed every check.
        pictures: Rows of ``images/``.
        refused: What did not.
        notices: What looked odd and was kept.
    """

    study: Mapping[str, Any] | None
    records: tuple[Record, ...] = ()
    pictures: tuple[Mapping[str, Any], ...] = ()
    refused: tuple[Refusal, ...] = ()
    notices: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Draft:
    """A study that was read and asked about; its pixels are gone, its reasoning is not written yet.

    Attributes:
        study: What the split needs.
        view: How it is shown; it cannot make pictures any more.
        questions: What is asked.
        lookup: Path of the scan, when its pictures are not stored.
        image_ids: Names of its pictures.
        pictures: Rows of ``images/``.
        notices: What looked odd.
    """

    study: Mapping[str, Any]
    view: View
    questions: tuple[Any, ...]
    lookup: str
    image_ids: tuple[str, ...]
    pictures: tuple[Mapping[str, Any], ...]
    notices: tuple[Mapping[str, Any], ...]


def study_records(
    config: BuildConfig,
    study: Study,
    *,
    writer: Any = None,
    census: Any = None,
    stored: bool = True,
    encode: bool = True,
) -> Outcome:
    """Everything that the pipeline makes of one study: the shortest way from a study to its records.

    Args:
        config: Settings; its sources and limit do not matter here.
        study: Any study.
        writer: A rationale writer; None makes the one of the settings.
        census: See :class:`~unireason_lib.dataset.census.Census`; None keeps all questions.
        stored: Whether its pictures may be stored with the set.
        encode: Whether to make the PNG rows.

    Raises:
        UniReasonError: The scan cannot be read.
    """
    draft = draft_of(config, study, census, encode, lookup="" if stored else study.id)
    return finish(config, draft, writer or make_writer(config))


def build_unit(
    config: BuildConfig, folder: Path, unit: Unit, stopping: Callable[[], bool] | None = None
) -> Unit:
    """Make the parts of one unit, whole or not at all.

    Args:
        config: Settings.
        folder: Folder of the data set.
        unit: Which studies.
        stopping: Asked before each study whether to give up.

    Returns:
        The unit, as a sign that it is done.
    """
    import pyarrow as pa

    from unireason_lib.dataset.parquet import SCHEMAS, sft_row, write_table, write_text

    sources, writer = _opened(config, folder)
    source = sources[unit.source]
    census = _census_of(census_path(folder / ".build", unit.source)) if config.census else None
    drafts: list[tuple[int, Draft | Refusal]] = []
    for k in range(unit.start, unit.stop):
        if stopping is not None and stopping():
            raise BuildStopped("stopped between two studies")
        drafts.append((unit.first + k - unit.start, read_and_ask(config, source, k, census)))
    write_ahead(writer, [draft for _, draft in drafts if isinstance(draft, Draft)])
    notes, rows, pictures = [], [], []
    for number, draft in drafts:
        if isinstance(draft, Refusal):
            notes.append({"number": number, "study": None, "refused": [draft.to_dict()], "notices": []})
            continue
        outcome = finish(config, draft, writer)
        rows += [(number, record) for record in outcome.records]
        if outcome.records:
            pictures += [{"_study": number, **row} for row in outcome.pictures]
        notes.append(
            {
                "number": number,
                "study": outcome.study,
                "records": len(outcome.records),
                "refused": [refusal.to_dict() for refusal in outcome.refused],
                "notices": list(outcome.notices),
            }
        )
    extra = pa.field("_study", pa.int64())
    parts = {}
    tables = {
        "rows": [{"_study": number, "_answer": r.answer, **sft_row(r)} for number, r in rows],
        "images": pictures,
    }
    for name, content in tables.items():
        if content:
            form = SCHEMAS["sft" if name == "rows" else "images"]
            schema = pa.schema(
                [extra, *([pa.field("_answer", pa.string())] if name == "rows" else []), *form]
            )
            path = part_path(folder / ".build", unit, name)
            file = write_table(path, [pa.Table.from_pylist(content, schema=schema)], schema, 64)
            parts[name] = {"rows": len(content), "bytes": file.bytes}
    done = {"unit": unit.number, "parts": parts, "studies": notes}
    write_text(done_path(folder / ".build", unit), json.dumps(done, ensure_ascii=False) + "\n")
    return unit


def read_and_ask(config: BuildConfig, source: Any, k: int, census: Any) -> Draft | Refusal:
    """The k-th study of a source as a draft, or a refusal when it cannot be read.

    Whatever a decoder raises about a broken file costs this study only; an error in asking is one of ours and
    is raised.
    """
    place = f"{source.name}[{k}]"
    try:
        with _reading():
            study = source[k]
        place = study.id
        stored = config.pictures == "all" or (config.pictures == "licensed" and may_redistribute(source))
        lookup = "" if stored else lookup_of(source, study)
        return draft_of(config, study, census, encode=stored, lookup=lookup)
    except UniReasonError as error:
        return Refusal("unreadable", _told(error, source), place, source=source.name)


def _told(error: Exception, source: Any) -> str:
    """What an error says, with paths as they are under the source's folder: the same on every machine."""
    text = " ".join(str(error).split())
    if (root := getattr(source, "path", None)) is not None:
        for written in (str(Path(root).resolve()), str(root)):
            text = text.replace(written.rstrip("/") + "/", "")
    return text[:500]


def draft_of(config: BuildConfig, study: Study, census: Any, encode: bool, lookup: str) -> Draft:
    """Read a study's scan as far as it is needed, and ask about it.

    Raises:
        UniReasonError: The scan cannot be read or shown.
    """
    from unireason_lib.dataset.questions import ask

    notices, drawing = [], bytes(FINGERPRINT_BYTES)
    pictures: tuple[Mapping[str, Any], ...] = ()
    if encode or config.near_duplicates:
        with _reading():
            scan = study.scan
            array = scan.array if isinstance(scan, Volume) else scan
            drawing = fingerprint(array) if config.near_duplicates else drawing
            if study.dimension == "3d" and (odd := slice_order_report(array)).suspicious:
                notices.append({"study": study.id, "notice": "slice order", "detail": _order_words(odd)})
        study = replace(study, scan_source=scan)  # read once, used several times
    view = View(replace(study, scan_source="", labels_source=None), config.size, config.window, config.frame)
    image_ids = image_ids_of(view)
    questions = ask(
        view.study,
        families=config.families,
        per_family=config.per_family,
        seed=config.seed,
        view=view,
        census=census,
    )
    if encode and questions:
        from unireason_lib.dataset.parquet import picture_row

        with _reading():
            shown = replace(view, study=study).images()
        pictures = tuple(picture_row(name, picture) for name, picture in zip(image_ids, shown, strict=True))
    about = {
        "id": study.id,
        "patient": study.patient,
        "split": study.split,
        "print": drawing.hex() if any(drawing) else "",
    }
    return Draft(about, view, tuple(questions), lookup, image_ids, pictures, tuple(notices))


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error of ours."""
    try:
        yield
    except (UniReasonError, MemoryError, RecursionError):
        raise
    except Exception as error:
        raise ScanError(f"{type(error).__name__}: {error}") from error


def finish(config: BuildConfig, draft: Draft, writer: Any) -> Outcome:
    """Write the reasoning of a draft's questions, and check what comes out."""
    records, refused, seen = [], [], set()
    serialization = plain(draft.view.serialization)
    for question in draft.questions:
        try:
            rationale = writer.write(question, draft.view)
        except UniReasonError as error:
            about = draft.view.study
            refused.append(Refusal("unwritable", str(error), about.id, question.id, about.source))
            continue
        record = Record.make(
            draft.view,
            question,
            rationale,
            writer=writer.name,
            seed=config.seed,
            lookup=draft.lookup,
            image_ids=draft.image_ids,
            serialization=serialization,
        )
        asked = (record.question, tuple(sorted(record.options.values())))
        found = check_record(record) or check_truth(record, draft.view, question)
        if found is None and asked in seen:
            found = ("duplicate question", record.question)
        if found is None:
            seen.add(asked)
            records.append(record)
        else:
            refused.append(refuse(record, found))
    return Outcome(draft.study, tuple(records), draft.pictures, tuple(refused), draft.notices)


def write_ahead(writer: Any, drafts: Sequence[Draft]) -> None:
    """Let a writer that works on many questions at a time do so; it remembers its answers for :func:`finish`."""
    if hasattr(writer, "prepare"):
        writer.prepare([(question, draft.view) for draft in drafts for question in draft.questions])


def make_writer(config: BuildConfig) -> Any:
    """The rationale writer of the settings.

    Raises:
        DatasetError: An unknown writer.
    """
    if config.writer == "template":
        from unireason_lib.dataset.rationales import TemplateWriter

        return TemplateWriter(**{"seed": config.seed, **config.writer_options})
    if config.writer == "llm":
        from unireason_lib.dataset.llm import LLMWriter

        return LLMWriter(**config.writer_options)
    raise fault("writer", "template or llm", repr(config.writer), "choose one")


def _order_words(odd: Any) -> str:
    found = [f"slices {list(odd.duplicates)} repeat the one before"] if odd.duplicates else []
    found += [f"breaks after slices {list(odd.breaks)}"] if odd.breaks else []
    found += ["slices look shuffled"] if odd.looks_shuffled else []
    return "; ".join(found)


def census_unit(config: BuildConfig, folder: Path, unit: Unit) -> Unit:
    """Count the claims of one unit's studies; unreadable ones have none."""
    from unireason_lib.dataset.parquet import write_text
    from unireason_lib.dataset.questions import take_census

    source = _opened(config, folder)[0][unit.source]

    census = take_census(readable(source, range(unit.start, unit.stop)), seed=config.seed)
    counts = {"studies": census.studies, "counts": census.counts}
    write_text(
        part_path(folder / ".build", unit, "census").with_suffix(".json"), json.dumps(counts, sort_keys=True)
    )
    return unit


def readable(source: Any, numbers: Iterable[int]) -> Iterator[Study]:
    """Those of the numbered studies that can be read; the others are named and counted when their records are due."""
    for k in numbers:
        with suppress(UniReasonError):
            with _reading():
                study = source[k]
            yield study


def _opened(config: BuildConfig, folder: Path) -> tuple[list[Any], Any]:
    """Sources and writer, opened once a process and build."""
    begun = (folder / ".build" / "ledger.json").stat().st_mtime_ns
    return _open(json.dumps(config.to_dict(), sort_keys=True), folder, begun)


@lru_cache(maxsize=1)
def _open(config_text: str, folder: Path, begun: int) -> tuple[list[Any], Any]:
    config = BuildConfig.from_dict(json.loads(config_text))
    return open_sources(config), make_writer(config)


def _census_of(path: Path) -> Any:
    return _load_census(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_census(path: Path, changed: int) -> Any:
    from unireason_lib.dataset.census import Census

    return Census.load(path)
