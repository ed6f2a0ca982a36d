"""Run a study: its plan, notebook by notebook, and one table of everything that was answered.

Each run is a notebook that papermill executes in a process of its own, several at a time, stage by
stage; the executed notebooks lie in ``runs/ablation/NAME``, beside the table of all replies
``NAME.csv.gz`` and ``NAME.json``, which says how it was made. A run that is in there is not made
again, so the same call goes on after a kill or a failure; a run that fails stops only those that
build on it. Each run names its git commit, and a study that several made says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from unireason_lib.ablation.claims import judge, table_of_claims, table_of_conditions
from unireason_lib.ablation.grid import STAGES, Grid, Job, plan
from unireason_lib.config import load_profile
from unireason_lib.errors import GridError
from unireason_lib.evaluation.statistics import plain
from unireason_lib.evaluation.table import (
    POOLED,
    beside,
    consistency,
    mean,
    pooled,
    read_pooled,
    write_pooled,
)
from unireason_lib.inference import read_results
from unireason_lib.io import locked, read_json, write_json
from unireason_lib.notebooks import execute

SUFFIXES = {"replies": "", "textures": ", textures"}
"""Beginning of a file that notebook 06 leaves -> suffix of its condition in the pooled table."""


class Study(NamedTuple):
    """What came of :func:`run_study`."""

    table: pd.DataFrame  # all replies so far, see unireason_lib.evaluation.table
    failed: dict[str, str]  # name of a run -> what went wrong
    skipped: list[str]  # runs that were not begun, since one that they need failed
    missing: list[str]  # conditions and seeds without replies; none: the study is whole


def run_study(
    grid: Grid,
    root: Path,
    *,
    seeds: int | None = None,
    only: Collection[str] = (),
    workers: int = 1,
    keep: Path | None = None,
    look: bool = False,
    dry_run: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
) -> Study:
    """Run what is not done yet of a project's study, and judge the claims when it is whole.

    Args:
        seeds, only: As for :func:`~.grid.plan`.
        workers: Notebooks at a time. With ``CUDA_VISIBLE_DEVICES=0,1,...`` each has one of them.
        keep: Another folder for the table and what made it; tests that it holds already, from
            another machine perhaps, are not made again. A ``GridError`` for those of another grid.
        look: Show the table of a part of the study, too; without verdicts.
        dry_run: Only show the runs and what they cost.
        command: That makes the study, for the record.
    """
    jobs, folder = plan(grid, seeds=seeds, only=only), root / "runs" / "ablation" / grid.name
    failed, skipped = {}, []
    with locked(folder / ".lock", f"the study {grid.name}"):
        record = _Record(grid, root, folder, keep, command)
        needed = record.needed(jobs)
        minutes = sum(grid.minutes.get(job.stage, 0) for job in needed) / workers
        say(f"{grid.name}: {len(jobs)} runs, {len(needed)} to be made; about {minutes:.0f} min")
        for job in needed if dry_run else ():
            say(f"{job.name}: {', '.join(job.conditions)}\n  {job.command()}")
        if needed and not dry_run:
            failed, skipped = _run(needed, record, workers, say)
        table, missing = record.table, record.missing()
        whole = not missing and len(jobs) == len(record.jobs)
        verdicts = judge(grid, table) if whole else []
        if len(table) and not dry_run:
            record.write([one.to_dict() for one in verdicts])
    if not whole:
        say(f"{len(missing)} tests of the study are missing; claims are judged when it is whole")
    if len(table) and (whole or look):
        say("\n" + table_of_conditions(table, grid.conditions).to_markdown(index=False))
    if verdicts:
        say("\n" + table_of_claims(verdicts).to_markdown(index=False))
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    return Study(table, failed, skipped, missing)


class _Record:
    """The runs that passed and the table of replies, read from and written to one folder."""

    def __init__(self, grid: Grid, root: Path, folder: Path, keep: Path | None, command: str):
        self.grid, self.root, self.folder = grid, root, folder
        self.about = (keep or folder) / f"{grid.name}.json"
        self.jobs = {job.key: job for job in plan(grid)}
        kept = read_json(self.about, GridError) if self.about.exists() else {"runs": [], "made": []}
        self.runs = {run["key"]: run for run in kept["runs"] if run["key"] in self.jobs}
        if keep and len(self.runs) < len(kept["runs"]):
            expected, found = "results of this grid, or none", "runs of another form of it"
            raise GridError(self.about, expected, found, "keep it elsewhere")
        self.made, self.table = [*kept["made"], {"command": command}], pd.DataFrame(columns=POOLED)
        if (packed := self.about.with_suffix(".csv.gz")).exists():
            table = read_pooled(packed)  # it may hold more than the other file says
            names = table["condition"].str.removesuffix(SUFFIXES["textures"])
            pairs = pd.MultiIndex.from_arrays([names, table["seed"]])
            done = [
                (name, self.jobs[k].seed) for k in self.runs for name in self.jobs[k].conditions
            ]
            self.table = table[pairs.isin(done)]

    def missing(self) -> list[str]:
        """Conditions and seeds without replies."""
        gone = [j for j in self.jobs.values() if j.stage == "test" and j.key not in self.runs]
        return [f"{name}, seed {job.seed}" for job in gone for name in job.conditions]

    def needed(self, jobs: Sequence[Job]) -> list[Job]:
        """The runs to be made: tests without replies, and models that those need and are gone."""
        needed: dict[str, Job] = {}
        for job in reversed(jobs):  # what builds on a run stands behind it
            test = job.stage == "test"
            wanted = test or any(one.needs == job.key for one in needed.values())
            there = job.key in self.runs and (test or (self.root / job.makes).exists())
            needed |= {job.key: job} if wanted and not there else {}
        return [*reversed(needed.values())]

    def add(self, job: Job, seconds: float, commit: str) -> None:
        """Write down a run that passed, and the replies that notebook 06 left."""
        run = {"key": job.key, "stage": job.stage, "conditions": job.conditions, "seed": job.seed}
        run |= {"seconds": seconds, "commit": commit, "parameters": dict(job.parameters)}
        self.runs[job.key] = run | {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        if job.stage == "test":
            replies, files = self.root / job.makes, {}
            for path in sorted(replies.parent.glob("*.jsonl")):
                kind, _, control = path.stem.partition(".")
                if kind in SUFFIXES and control != "slices":
                    files |= {(n + SUFFIXES[kind], job.seed, control): path for n in job.conditions}
            self.table = pd.concat([*([self.table] if len(self.table) else []), pooled(files)])
            if (slices := beside(replies, "slices")).exists():
                overlap = mean(consistency(read_results(slices)), "overlap")
                self.runs[job.key]["consistency"] = {"overlap": plain(overlap)}
        self.write()

    def write(self, verdicts: Sequence[dict[str, Any]] = ()) -> None:
        """Write the table and how it was made."""
        content = self.grid.model_dump(include={"name", "about", "profile", "overrides", "seeds"})
        content |= {"made": self.made, "runs": [*self.runs.values()], "missing": self.missing()}
        write_pooled(self.table, self.about.with_suffix(".csv.gz"))
        write_json(self.about, content | {"verdicts": verdicts})


def _run(
    jobs: Sequence[Job], record: _Record, workers: int, say: Callable[[str], None]
) -> tuple[dict[str, str], list[str]]:
    """Run some jobs, stage by stage; gives what :class:`Study` has of failed and skipped ones."""
    left, failed, skipped = {job.key: job for job in jobs}, {}, []
    processes = multiprocessing.get_context("spawn")
    commits = {run.get("commit") for run in record.runs.values()}
    gpus, named = processes.SimpleQueue(), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for worker in range(workers):
        gpus.put(named[worker % len(named)])
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    with ProcessPoolExecutor(workers, processes, _begin, (gpus, threads)) as pool:
        for stage in STAGES:
            now = [job for job in jobs if job.stage == stage]
            skipped += [job.name for job in now if job.needs in left]
            how = (record.root, record.folder, record.grid.profile, record.grid.overrides)
            running = {pool.submit(_execute, j, *how): j for j in now if j.needs not in left}
            for future in as_completed(running):
                job, row = running[future], future.result()
                if row["status"] == "passed":
                    del left[job.key]
                    if commits and row["commit"] not in commits:
                        before = ", ".join(sorted(commits))
                        say(f"warning: the code changed: {before} so far, now {row['commit']}")
                    commits.add(row["commit"])
                    record.add(job, row["seconds"], row["commit"])
                else:
                    failed[job.name] = row["error"]
                end = f"{row['seconds']} s  {row['status']}  {row['error']}".rstrip()
                say(f"  {len(jobs) - len(left)} of {len(jobs)}  {job.name}  {end}")
    return failed, skipped


def _begin(gpus: Any, threads: str) -> None:
    """A worker has a GPU and threads of its own, and ends with the study, its kernel with it."""
    if gpu := gpus.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    study = multiprocessing.parent_process()
    threading.Thread(target=lambda: (study.join(), os._exit(1)), daemon=True).start()


def _execute(job: Job, root: Path, folder: Path, profile: str, overrides: str) -> dict[str, Any]:
    """Run one notebook; its row of :func:`unireason_lib.notebooks.execute`, and its commit."""
    row = {"seconds": 0.0, "status": "failed", "commit": _commit(root)}
    try:
        notebook = next((root / "notebooks").glob(f"{STAGES[job.stage]}_*.ipynb"))
        settings, out = load_profile(profile, overrides), folder / f"{job.name}.ipynb"
        with contextlib.redirect_stdout(None):
            row |= execute(notebook, out, dict(job.parameters), settings)
    except Exception as failure:  # one run must not end the study
        row["error"] = f"{type(failure).__name__}: {failure}"[:300]
    return row


def _commit(root: Path) -> str:
    """The commit of the code, and whether it was changed since: ``"1a2b3c4d5e6f-dirty"``."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):  # no git here
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"
