"""The whole construction: sources -> studies -> questions -> grounded reasoning -> checked records -> Parquet.

The studies of all sources are numbered, and the numbers cut into **units** of neighbours. A unit is worked
off by one process and depends on nothing but the settings: whoever makes it, whenever and beside whatever
else, writes the same bytes. Its parts get their names only when they are whole, so a build that is killed at
any moment goes on where it was. What needs to know *all* studies comes last and is done by one process:
duplicate ids, the split by patient, and the final files.

::

    out/.build/ledger.json        what is built from what; another source or setting later is refused
    out/.build/census/            what can be known without looking (see unireason_lib.dataset.census), taken first
    out/.build/units/000012.*     rows, pictures, and a note that the unit is done (studies, refusals, counts)
    out/sft/ rl/ images/          the data set (see unireason_lib.dataset.parquet)
    out/refused.jsonl             what was left out and why; out/notices.jsonl: what looked odd and was kept
    out/manifest.json README.md   written last: a folder with a manifest is finished

No time, host or user name goes into the data set; how long it took is in ``.build/log.jsonl``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unireason_lib.dataset.checks import Refusal
from unireason_lib.dataset.crew import Run, crew, progress_bar
from unireason_lib.dataset.ledger import check_ledger, ledger_of, lock, refuse_foreign, sweep
from unireason_lib.dataset.plan import (
    BuildConfig,
    SourceSpec,
    Unit,
    census_path,
    done_path,
    open_sources,
    part_path,
    plan_units,
    studies_of,
)
from unireason_lib.dataset.unit import (
    BuildStopped,
    Draft,
    Outcome,
    finish,
    make_writer,
    read_and_ask,
    readable,
    study_records,
)

__all__ = ["BuildConfig", "BuildReport", "BuildStopped", "SourceSpec", "build", "dry_run", "study_records"]


@dataclass(frozen=True)
class BuildReport:
    """How a build went.

    Attributes:
        folder: Where the data set is.
        manifest: What is in ``manifest.json``.
        seconds: Wall time of this run.
        built: Studies worked off in this run; the others were there already.
    """

    folder: Path
    manifest: Mapping[str, Any]
    seconds: float
    built: int

    @property
    def unreadable(self) -> int:
        """Number of studies that could not be read."""
        return self.manifest["refused"].get("unreadable", 0)


def build(
    config: BuildConfig,
    out: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: bool = False,
    wait: bool = False,
) -> BuildReport:
    """Build a data set, or go on with one.

    Args:
        config: What to build.
        out: Folder of the data set. Must be new, empty, or hold a build with the same settings and unchanged
            sources.
        workers: Processes. The result does not depend on it.
        ray: Address of a running Ray cluster that shares the folder, or ``"local"``; None stays on this
            machine without Ray.
        progress: Whether to show bars with rate and remaining time.
        wait: Whether another process that builds there is waited for, and its set taken; else it is an error.

    Returns:
        A report. Studies that could not be read are counted in it, and listed with everything else that was
        left out in ``refused.jsonl``.

    Raises:
        DatasetError: Impossible settings; the folder holds something else; source, settings or code differ
            from those the build was begun with; another process builds there; the disk is full.
        BuildStopped: Ctrl-C; everything finished is kept.
    """
    from unireason_lib.dataset.assembly import assemble

    started = time.perf_counter()
    folder = Path(out).resolve()
    work = folder / ".build"
    sources = open_sources(config, folder)
    ledger = ledger_of(config, sources)
    refuse_foreign(folder)
    with lock(work, wait):
        check_ledger(work / "ledger.json", ledger)
        counts = [studies_of(source, config.limit) for source in sources]
        units, total = plan_units(counts), sum(counts)
        manifest_path = folder / "manifest.json"
        if manifest_path.exists():
            shutil.rmtree(work / "units", ignore_errors=True)
            manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
            return BuildReport(folder, manifest, time.perf_counter() - started, 0)
        sweep(folder)
        todo = [unit for unit in units if not done_path(work, unit).exists()]
        left = sum(unit.stop - unit.start for unit in todo)
        with crew(config, folder, workers if len(todo) > 1 else 1, ray) as run:
            if todo and config.census:
                _take_census(
                    work, plan_units([min(config.census, n) for n in counts], "census"), run, progress
                )
            with progress_bar(progress, "studies", total, total - left) as bar:
                for unit in run(todo):
                    bar.update(unit.stop - unit.start)
        manifest = assemble(config, folder, units, sources, ledger["sources"], total, progress)
        shutil.rmtree(work / "units", ignore_errors=True)
        seconds = time.perf_counter() - started
        entry = {"seconds": round(seconds, 3), "studies": left, "workers": workers, "ray": bool(ray)}
        with open(work / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
    return BuildReport(folder, manifest, seconds, left)


def _take_census(work: Path, units: Sequence[Unit], run: Run, progress: bool) -> None:
    """One census a source, added up from those of its units."""
    from unireason_lib.dataset.parquet import write_text

    units = [unit for unit in units if not census_path(work, unit.source).exists()]
    part = {unit: part_path(work, unit, "census").with_suffix(".json") for unit in units}
    with progress_bar(progress, "census units", len(units)) as bar:
        for _ in run([unit for unit in units if not part[unit].exists()]):
            bar.update(1)
    for source in sorted({unit.source for unit in units}):
        studies, counts = 0, {}
        for unit in (unit for unit in units if unit.source == source):
            found = json.loads(part[unit].read_text(encoding="utf-8"))
            studies += found["studies"]
            for key, values in found["counts"].items():
                counts.setdefault(key, Counter()).update(values)
        text = json.dumps({"studies": studies, "counts": counts}, sort_keys=True)
        write_text(census_path(work, source), text)
    for path in part.values():
        path.unlink()


@dataclass(frozen=True)
class Estimate:
    """What a build would make and cost, from a few studies that were really worked off.

    Attributes:
        studies: Studies on offer.
        looked_at: Studies that were worked off for the estimate, evenly spread.
        unreadable: How many of these could not be read.
        records, pictures: Expected numbers.
        megabytes: Expected size of the data set.
        seconds: Expected time with ``workers`` processes.
        workers: Processes.
        refused: Records refused among those looked at, by reason.
        writer_cost: What the writer says its answers will cost, when it costs anything.
    """

    studies: int
    looked_at: int
    unreadable: int
    records: int
    pictures: int
    megabytes: float
    seconds: float
    workers: int
    refused: Mapping[str, int]
    writer_cost: Any = None


def dry_run(config: BuildConfig, *, workers: int = 1, sample: int = 32) -> Estimate:
    """Estimate a build without writing anything or paying for anything.

    Args:
        config: What would be built.
        workers: Processes it would be given.
        sample: Studies to work off.

    Raises:
        DatasetError: Impossible settings, or sources without studies.
    """
    from unireason_lib.dataset.parquet import sft_row
    from unireason_lib.dataset.questions import take_census

    sources = open_sources(config)
    counts = [studies_of(source, config.limit) for source in sources]
    total = sum(counts)
    numbers = np.unique(np.linspace(0, total - 1, min(sample, total)).round().astype(int)) if total else []
    writer = None if config.writer == "llm" else make_writer(config)
    drafts: list[Draft | Refusal] = []
    outcomes: list[Outcome] = []
    spent = learning = 0.0
    for index, (source, count) in enumerate(zip(sources, counts, strict=True)):
        first = sum(counts[:index])
        mine = [int(n) - first for n in numbers if first <= n < first + count]
        started = time.perf_counter()
        census = take_census(readable(source, mine), seed=config.seed) if config.census and mine else None
        learning += (time.perf_counter() - started) / max(1, len(mine)) * min(config.census, count)
        started = time.perf_counter()
        drafts += [read_and_ask(config, source, k, census) for k in mine]
        spent += time.perf_counter() - started
    read = [draft for draft in drafts if isinstance(draft, Draft)]
    if writer is not None:
        started = time.perf_counter()
        outcomes = [finish(config, draft, writer) for draft in read]
        spent += time.perf_counter() - started
    scale = total / max(1, len(drafts))
    records = (
        sum(len(outcome.records) for outcome in outcomes) if writer else sum(len(d.questions) for d in read)
    )
    pictures = [row for draft in read for row in draft.pictures]
    text = sum(len(json.dumps(sft_row(record))) for outcome in outcomes for record in outcome.records)
    refused = Counter(refusal.reason for outcome in outcomes for refusal in outcome.refused)
    return Estimate(
        studies=total,
        looked_at=len(drafts),
        unreadable=len(drafts) - len(read),
        records=round(records * scale),
        pictures=round(len(pictures) * scale),
        # Text shrinks to about a fifth in each of the two folders.
        megabytes=scale * (sum(len(row["bytes"]) for row in pictures) + 0.4 * text) / 1e6,
        seconds=(scale * spent + learning) / workers,
        workers=workers,
        refused=dict(refused),
        writer_cost=_cost_of_writing(config, read, scale),
    )


def _cost_of_writing(config: BuildConfig, drafts: Sequence[Draft], scale: float) -> Any:
    if config.writer != "llm":
        return None
    writer = make_writer(config)
    return writer.estimate([(q, draft.view) for draft in drafts for q in draft.questions], scale=scale)
