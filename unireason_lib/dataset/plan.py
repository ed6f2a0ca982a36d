"""What to build: sources, settings, and the plan that cuts the work into units.

The studies of all sources are numbered, and the numbers cut into **units** of neighbours. A unit is what one
process works off at a time and what is repeated after a crash; it depends on nothing but the settings.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from unireason_lib.dataset.records import plain
from unireason_lib.dataset.splits import FRACTIONS, check_fractions
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import QWEN_FRAME
from unireason_lib.errors import DatasetError, explain
from unireason_lib.imaging import ProcessorFrame

UNIT = 64
"""Most studies in a unit: what is lost when a worker is killed, and what one holds in memory."""

_OPTION = re.compile(r"[a-z_][a-z0-9_]*=.*")


@dataclass(frozen=True)
class SourceSpec:
    """Which source, where, and with which options.

    Attributes:
        name: A name of the registry in :mod:`unireason_lib.dataset.sources`.
        path: Its folder; None for sources that need none.
        options: Further arguments of the source.
    """

    name: str
    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """``"phantom"``, ``"decathlon:/data/Task03_Liver"``, ``"phantom:dimension=2d,count=5000"``,
        ``"name:path,option=value"``.

        Values are read as JSON where they are (numbers, true, null), else as text.
        """
        name, _, rest = text.partition(":")
        pieces = rest.split(",") if rest else []
        options: dict[str, Any] = {}
        while pieces and _OPTION.fullmatch(pieces[-1]):
            key, _, value = pieces.pop().partition("=")
            with contextlib.suppress(ValueError):
                value = json.loads(value)
            options[key] = value
        return cls(name, ",".join(pieces) or None, dict(sorted(options.items())))


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides the bytes of a data set.

    Attributes:
        sources: Where studies come from.
        limit: At most so many studies of each source; None takes all.
        families: Which question families; None takes all.
        per_family: Questions a study and family.
        census: From how many studies of each source, the first ones, to learn what can be known without
            looking, so that such questions are thinned out; 0 keeps all. They are read twice. With few, what is
            chance among them shows in the wrong options, and a reader of words can learn it.
        size: Slices, rows and columns of a volume; None is the paper's.
        window: How to show scans; None is each study's own.
        frame: Processor in whose pixels boxes are written.
        seed: Of questions, templates and the split.
        writer: ``"template"`` or ``"llm"``.
        writer_options: Arguments of the writer.
        fractions: Split -> share of the patients.
        near_duplicates: Whether scans are compared so that one scan under two names stays in one split.
        pictures: ``"licensed"``: stored where the licence of the source allows; ``"all"``: I hold the right
            to pass them on, or keep them to myself; ``"none"``: text and paths only.
        rows_per_file: Rows of one file of ``sft/`` and ``rl/``.
        file_megabytes: Pictures are collected into files of about this size.
    """

    sources: tuple[SourceSpec, ...]
    limit: int | None = None
    families: tuple[str, ...] | None = None
    per_family: int = 1
    census: int = 2000
    size: tuple[int, int, int] | None = None
    window: str | tuple[float, float] | None = None
    frame: ProcessorFrame = QWEN_FRAME
    seed: int = 0
    writer: Literal["template", "llm"] = "template"
    writer_options: Mapping[str, Any] = field(default_factory=dict)
    fractions: Mapping[str, float] = field(default_factory=lambda: dict(FRACTIONS))
    near_duplicates: bool = True
    pictures: Literal["licensed", "all", "none"] = "licensed"
    rows_per_file: int = 50_000
    file_megabytes: int = 256

    def __post_init__(self) -> None:
        check_fractions(self.fractions)
        for name in ("limit", "per_family", "rows_per_file", "file_megabytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise fault(name, "a number of 1 or more", str(value), "correct it")
        if not self.sources:
            raise fault("sources", "at least one", "none", "give --source, for instance --source phantom")
        from unireason_lib.dataset.questions import FAMILIES

        if unknown := set(self.families or ()) - set(FAMILIES):
            raise fault(
                "families", f"some of {', '.join(FAMILIES)}", ", ".join(sorted(unknown)), "correct it"
            )
        if self.pictures not in ("licensed", "all", "none"):
            raise fault("pictures", "licensed, all or none", repr(self.pictures), "choose one")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the ledger and for workers."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BuildConfig:
        """The way back from :meth:`to_dict`."""
        tuples = {
            name: tuple(values[name])
            for name in ("families", "size", "window")
            if isinstance(values[name], list)
        }
        sources = tuple(SourceSpec(**source) for source in values["sources"])
        return cls(**{**values, **tuples, "sources": sources, "frame": ProcessorFrame(**values["frame"])})


@dataclass(frozen=True)
class Unit:
    """Neighbouring studies of one source: numbers ``start`` to ``stop - 1`` of it, ``first`` the number of
    the first one among all studies."""

    number: int
    source: int
    start: int
    stop: int
    first: int
    kind: Literal["census", "records"] = "records"


def plan_units(counts: Sequence[int], kind: Literal["census", "records"] = "records") -> list[Unit]:
    """Cut the studies of all sources into units. The size of a unit follows from the number of studies
    alone: small sets are still spread over several workers, large ones have at most :data:`UNIT` in each."""
    size = max(1, min(UNIT, sum(counts) // 64))
    units: list[Unit] = []
    first = 0
    for source, count in enumerate(counts):
        for start in range(0, count, size):
            units.append(Unit(len(units), source, start, min(start + size, count), first + start, kind))
        first += count
    return units


def open_sources(config: BuildConfig, folder: Path | None = None) -> list[Any]:
    """Open the sources of the settings.

    Raises:
        DatasetError: An unknown source or a bad path; a source that cannot make its k-th study; the data
            set would be written into a source.
    """
    from unireason_lib.dataset.sources import IndexedSource, open_source

    opened = []
    for spec in config.sources:
        if folder is not None and spec.path and folder.is_relative_to(Path(spec.path).resolve()):
            raise fault(
                folder, f"a folder outside of the source {spec.path}", "one inside", "choose another --out"
            )
        source = open_source(spec.name, spec.path, **spec.options)
        if not isinstance(source, IndexedSource):
            raise fault(
                spec.name, "a source with len() and source[k]", type(source).__name__, "add both to it"
            )
        opened.append(source)
    return opened


def studies_of(source: Any, limit: int | None) -> int:
    """How many studies of a source are used."""
    return min(len(source), limit) if limit else len(source)


def may_redistribute(source: Any) -> bool:
    """Whether the licence of a source lets its pictures be passed on with the data set."""
    return bool(getattr(source, "redistributable", False))


def lookup_of(source: Any, study: Study) -> str:
    """Where the scan of a study lies under the root of its source, for rows that are written without pictures."""
    if said := study.details.get("scan"):
        return str(said)
    if isinstance(study.scan_source, str | Path) and (root := getattr(source, "path", None)):
        return Path(study.scan_source).resolve().relative_to(Path(root).resolve()).as_posix()
    return study.id


def part_path(work: Path, unit: Unit, name: str) -> Path:
    return work / "units" / f"{unit.number // 1000:04d}" / f"{unit.number:07d}.{name}.parquet"


def done_path(work: Path, unit: Unit) -> Path:
    return part_path(work, unit, "done").with_suffix(".json")


def census_path(work: Path, source: int) -> Path:
    """Where the census of a source is kept."""
    return work / "census" / f"{source:02d}.json"


def fault(subject: object, expected: str, found: str, do: str) -> DatasetError:
    return DatasetError(explain(subject, expected=expected, found=found, do=do))
