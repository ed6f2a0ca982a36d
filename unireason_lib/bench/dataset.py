"""How fast a data set is built, and what large ones would take.

Rates have a target in studies or records a second; to fit the table, ``baseline_s`` is then the time that the
target allows and ``ours_s`` the time taken, so a ratio of 1 and more meets it. The machine must be quiet: two
workers cannot be twice as fast on two cores that somebody else uses.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from unireason_lib.dataset.build import BuildConfig, SourceSpec, study_records
from unireason_lib.dataset.crew import crew
from unireason_lib.dataset.ledger import check_ledger, ledger_of
from unireason_lib.dataset.plan import open_sources, plan_units
from unireason_lib.dataset.questions import take_census
from unireason_lib.dataset.sources.phantom import INSIDE, LABELS, phantom, phantom_slice
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.unit import make_writer
from unireason_lib.imaging import ProcessorFrame

SMALL = {"size": (8, 64, 64), "frame": ProcessorFrame(8, 2, 32 * 32, 512 * 512)}
"""How the laptop experiment shows its phantoms."""

PHANTOMS_A_SECOND = 200
RECORDS_A_SECOND = 1000
TWO_WORKERS = 1.8
FLAT = 1.1


def bench_phantoms(studies: int = 200, repeats: int = 3) -> list[dict]:
    """Phantom studies of 8 x 64 x 64 that one core makes: volume, labels, measured structures."""
    seconds = _median(lambda: [phantom(seed) for seed in range(studies)], repeats)
    return [_rate_row("phantom studies of 8x64x64, one core", studies, seconds, PHANTOMS_A_SECOND, "studies")]


def bench_records(studies: int = 200, repeats: int = 3) -> list[dict]:
    """Records from label maps of slices, one core: measuring, questions, reasoning, checks, without pictures.

    Returns:
        Two rows: all questions kept; and thinned by a census, which draws several questions for one that is kept.
    """
    slices = [phantom_slice(seed) for seed in range(studies)]
    config = BuildConfig((SourceSpec("phantom"),), **SMALL)
    writer = make_writer(config)
    rows = []
    for name, census in (("", None), (", thinned by a census", take_census(slices[:100]))):
        made: list[int] = []

        def run(census=census, made=made) -> None:
            made.append(
                sum(
                    len(
                        study_records(
                            config, _labelled(s), writer=writer, census=census, encode=False
                        ).records
                    )
                    for s in slices
                )
            )

        seconds = _median(run, repeats)
        rows.append(
            _rate_row(
                f"records from labelled slices, one core{name}",
                made[-1],
                seconds,
                RECORDS_A_SECOND,
                "records",
            )
        )
    return rows


def bench_workers(studies: int = 640, repeats: int = 3) -> list[dict]:
    """The same units by one worker and by two, both warm; how long two take to start is said, not counted."""
    config = BuildConfig(
        (SourceSpec("phantom", None, {"dimension": "2d", "count": studies}),), census=0, **SMALL
    )
    runs = {workers: [] for workers in (1, 2)}
    for _ in range(repeats):
        for workers, times in runs.items():
            times.append(_times_of_units(config, studies, workers))
    (_, one), (start, two) = (map(median, zip(*times, strict=True)) for times in runs.values())
    ratio = one / two
    return [
        {
            "name": f"building a set of slices: two workers / one worker ({start:.1f} s to start two)",
            "baseline_s": one,
            "ours_s": two,
            "ratio": ratio,
            "target": TWO_WORKERS,
            "ok": ratio >= TWO_WORKERS,
        }
    ]


def bench_memory(few: int = 1000, many: int = 5000) -> list[dict]:
    """Peak memory of whole builds of few and of many studies, each in a process of its own. Fewer than a thousand
    need less: units and row groups are not full yet."""
    (small, small_s), (large, large_s) = _peak_memory(few), _peak_memory(many)
    ratio = large / small
    return [
        {
            "name": f"peak memory of a build, {many:,} / {few:,} studies ({large:.0f} / {small:.0f} MB, at most)",
            "baseline_s": small_s,
            "ours_s": large_s,
            "ratio": ratio,
            "target": FLAT,
            "ok": ratio <= FLAT,
        }
    ]


def bench_scale(studies: int = 12, cores: Sequence[int] = (16, 64), efficiency: float = 0.9) -> list[dict]:
    """What the paper's 220K records and SA-Med2D's 4.6M images would take, from the rates of this machine.

    Measured is all that is done to a study that has been read: slices of 256 x 256 and volumes of 32 x 256 x
    256, with PNG encoding. Reading comes on top: it depends on the disk and the format.

    Args:
        studies: Studies of each dimension to measure.
        cores: For how many cores to say it.
        efficiency: Share of the cores' time that is not lost; two workers here reach 0.9 or more.

    Returns:
        For each set and number of cores a row: seconds on one core (``baseline_s``) and on all (``ours_s``).
    """
    flat, flat_records = _seconds_a_study([phantom_slice(seed, 256) for seed in range(studies)])
    deep, deep_records = _seconds_a_study([phantom(seed, (32, 256, 256)) for seed in range(studies)])
    sets = {
        "220,000 records (170K of pictures, 50K of volumes)": 170_000 / flat_records * flat
        + 50_000 / deep_records * deep,
        f"4.6 million pictures ({4.6 * flat_records:.0f} million records)": 4_600_000 * flat,
    }
    return [
        {
            "name": f"{name}, {n} cores: {seconds / n / efficiency / 3600:.2f} h (extrapolated)",
            "baseline_s": seconds,
            "ours_s": seconds / n / efficiency,
            "ratio": n * efficiency,
        }
        for name, seconds in sets.items()
        for n in cores
    ]


def _labelled(study: Study) -> Study:
    """The study made again from its label map, as a source would."""
    return Study.from_labels(
        study.labels,
        LABELS,
        scan=study.scan,
        inside=INSIDE,
        attributes={s.label: dict(s.attributes) for s in study.structures if s.attributes},
        id=study.id,
        patient=study.patient,
        source=study.source,
        modality=study.modality,
        spacing=study.spacing,
        directions=study.directions,
    )


def _median(run: Callable[[], Any], repeats: int) -> float:
    run()  # fills caches
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def _rate_row(name: str, count: int, seconds: float, target: float, what: str) -> dict[str, Any]:
    rate = count / seconds
    return {
        "name": f"{name} ({rate:,.0f} {what} a second, {target:,} asked)",
        "baseline_s": count / target,
        "ours_s": seconds,
        "ratio": rate / target,
        "rate": rate,
        "target": 1.0,
        "ok": rate >= target,
    }


def _times_of_units(config: BuildConfig, studies: int, workers: int) -> tuple[float, float]:
    """Seconds until all workers are at work, and those that the other units then take."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / ".build"
        work.mkdir()
        check_ledger(work / "ledger.json", ledger_of(config, open_sources(config)))
        units = plan_units([studies])
        begun = time.perf_counter()
        with crew(config, Path(folder), workers, None) as run:
            list(run(units[: 2 * workers]))  # processes start and import
            started = time.perf_counter()
            done = list(run(units[4:]))
            ended = time.perf_counter()
        assert len(done) == len(units) - 4
    return started - begun, ended - started


_MEMORY = """
import json, sys, time
from unireason_lib.bench.imaging import peak_kib
from unireason_lib.bench.dataset import SMALL
from unireason_lib.dataset.build import BuildConfig, SourceSpec, build
started = time.perf_counter()
options = {"dimension": "2d", "count": int(sys.argv[1])}
build(BuildConfig((SourceSpec("phantom", None, options),), census=0, pictures="all", **SMALL), sys.argv[2])
print(json.dumps([peak_kib() / 1024, time.perf_counter() - started]))
"""


def _peak_memory(studies: int) -> tuple[float, float]:
    """MB and seconds of a build in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _MEMORY, str(studies), str(Path(folder) / "set")]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    megabytes, seconds = json.loads(found.stdout)
    return megabytes, seconds


def _seconds_a_study(studies: Sequence[Study]) -> tuple[float, float]:
    """Seconds and records a study, pictures encoded, at the paper's sizes."""
    config = BuildConfig((SourceSpec("phantom"),))
    writer = make_writer(config)
    started = time.perf_counter()
    records = [len(study_records(config, study, writer=writer).records) for study in studies]
    return (time.perf_counter() - started) / len(studies), sum(records) / len(studies)
