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

from unireason_lib.dataset.build import BuildConfig, study_records
from unireason_lib.dataset.questions import learn_prior
from unireason_lib.dataset.shards import Run, executor, make_writer, process_shard
from unireason_lib.dataset.sources.base import SourceSpec
from unireason_lib.dataset.sources.phantom import INSIDE, LABELS, phantom, phantom_slice
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import View
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
    return [
        _rate_row(
            "phantom studies of 8x64x64, one core", studies, seconds, PHANTOMS_A_SECOND, "studies"
        )
    ]


def bench_records(studies: int = 200, repeats: int = 3) -> list[dict]:
    """Records from label maps of slices, one core: measuring, questions, reasoning, checks, without images.

    Returns:
        Two rows: all questions kept; and debiased by an answer prior, which draws several questions for one kept.
    """
    slices = [phantom_slice(seed) for seed in range(studies)]
    config = BuildConfig((SourceSpec("phantom"),), images="none", **SMALL)
    writer, prior = make_writer(config), learn_prior(View(s, **SMALL) for s in slices[:100])
    rows = []
    for name, known in (("", None), (", debiased by an answer prior", prior)):
        made: list[int] = []

        def run(known=known, made=made) -> None:
            outcomes = (
                study_records(config, _labelled(s), writer=writer, prior=known) for s in slices
            )
            made.append(sum(len(outcome.records) for outcome in outcomes))

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
    """The same shards by one worker and by two, both warm; how long two take to start is said, not counted."""
    config = BuildConfig(
        (SourceSpec("phantom", None, {"dimension": "2d", "count": studies}),),
        prior_studies=0,
        **SMALL,
    )
    runs = {workers: [] for workers in (1, 2)}
    for _ in range(repeats):
        for workers, times in runs.items():
            times.append(_times_of_shards(config, workers))
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
    need less: shards and row groups are not full yet."""
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


def bench_scale(
    studies: int = 12, cores: Sequence[int] = (16, 64), efficiency: float = 0.9
) -> list[dict]:
    """What the paper's 220K records and SA-Med2D's 4.6M images would take, from the rates of this machine.

    Measured is all that is done to a study that has been read: slices of 256 x 256 and volumes of 32 x 256 x
    256, with PNG encoding. Reading comes on top: it depends on the disk and the format.

    Args:
        studies: Studies of each dimension to measure.
        cores: For how many cores to say it.
        efficiency: Fraction of the cores' time that is not lost; two workers here reach 0.9 or more.

    Returns:
        For each set and number of cores a row: seconds on one core (``baseline_s``) and on all (``ours_s``).
    """
    flat, flat_records = _seconds_a_study([phantom_slice(seed, 256) for seed in range(studies)])
    deep, deep_records = _seconds_a_study(
        [phantom(seed, (32, 256, 256)) for seed in range(studies)]
    )
    sets = {
        "220,000 records (170K of images, 50K of volumes)": 170_000 / flat_records * flat
        + 50_000 / deep_records * deep,
        f"4.6 million images ({4.6 * flat_records:.0f} million records)": 4_600_000 * flat,
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


def _times_of_shards(config: BuildConfig, workers: int) -> tuple[float, float]:
    """Seconds until all workers are at work, and those that the other shards then take."""
    with tempfile.TemporaryDirectory() as folder:
        shards = list(Run(config, Path(folder) / ".build").shards())
        begun = time.perf_counter()
        with executor(workers) as execute:
            list(execute(process_shard, shards[: 2 * workers]))  # processes start and import
            started = time.perf_counter()
            done = list(execute(process_shard, shards[4:]))
            ended = time.perf_counter()
        assert len(done) == len(shards) - 4
    return started - begun, ended - started


_MEMORY = """
import json, sys, time
from unireason_lib.bench.imaging import peak_kib
from unireason_lib.bench.dataset import SMALL
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec
started = time.perf_counter()
options = {"dimension": "2d", "count": int(sys.argv[1])}
build(BuildConfig((SourceSpec("phantom", None, options),), prior_studies=0, images="all", **SMALL), sys.argv[2])
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
    """Seconds and records a study, images encoded, at the paper's sizes."""
    config = BuildConfig((SourceSpec("phantom"),))
    writer = make_writer(config)
    started = time.perf_counter()
    records = [len(study_records(config, study, writer=writer).records) for study in studies]
    return (time.perf_counter() - started) / len(studies), sum(records) / len(studies)
