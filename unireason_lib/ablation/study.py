"""Run a study: its plan, notebook by notebook, and one table of everything that was answered.

Each run is a notebook that papermill executes in a process of its own, several at a time; the
executed notebooks lie in ``runs/ablation/NAME``, beside the table of all replies ``NAME.csv.gz``
and ``NAME.json``, which says how it was made. A run that is in there is not made again, so the same
call goes on after a kill; a run that fails stops only the runs that build on it. Nothing is refused
because code changed, but each run names its git commit, and a study that several made says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from unireason_lib.ablation.claims import judge, table_of_claims, table_of_conditions
from unireason_lib.ablation.grid import STAGES, Grid, Job, plan
from unireason_lib.config import load_profile
from unireason_lib.errors import GridError
from unireason_lib.evaluation.consistency import read_consistency, slices_file
from unireason_lib.evaluation.table import POOLED, pooled, read_pooled, write_pooled
from unireason_lib.io import locked, read_json, write_json
from unireason_lib.notebooks import execute

TEXTURES = ", textures"
FILES = {
    ("", "none"): "replies.jsonl",
    **{("", c): f"replies.{c}.jsonl" for c in ("blank", "other", "random-crop", "no-crop")},
    **{(TEXTURES, c): f"textures.{c}.jsonl" for c in ("none", "random-crop", "no-crop")},
}
"""(Suffix of the condition, control) in the pooled table -> file that notebook 06 leaves."""

CODE = ("unireason_lib", "notebooks", "data/tiny-base")
"""What results follow from, and git is asked about."""


@dataclass(frozen=True)
class Study:
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
    retries: int = 1,
    keep: Path | None = None,
    look: bool = False,
    dry_run: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
) -> Study:
    """Run what is not done yet, and judge the claims when the study is whole.

    Args:
        grid: The study.
        root: Of the project.
        seeds: The first so many of the grid's; None: all.
        only: Conditions; empty: all.
        workers: Notebooks at a time. With ``CUDA_VISIBLE_DEVICES=0,1,...`` each has one of them.
        retries: How often a run that failed is begun again.
        keep: Another folder for ``NAME.csv.gz`` and ``NAME.json``. Tests that it holds already,
            from another machine perhaps, are not made again.
        look: Show the table of a part of the study, too; without verdicts.
        dry_run: Only show the runs and what they cost.
        command: That makes the study, for the record.
        say: Takes lines of text.

    Raises:
        GridError: An unknown condition, or ``keep`` holds tests of another grid.
        DatasetError: Another process runs this study.
    """
    jobs = plan(grid, seeds=grid.seeds[:seeds], only=only)
    folder, failed, skipped = root / "runs" / "ablation" / grid.name, {}, []
    with locked(folder / ".lock", f"the study {grid.name}"):
        state = _State(grid, root, folder, keep, command)
        needed = state.needed(jobs)
        time_left = state.time_left(needed, workers)
        say(f"{grid.name}: {len(jobs)} runs, {len(needed)} to be made{time_left}")
        for job in needed if dry_run else ():
            say(f"{job.name}: {', '.join(job.conditions)}\n  {job.command()}")
        if not dry_run:
            failed, skipped = _run(needed, state, workers, retries, say)
        missing, table = state.missing(), state.table
        whole = not missing and len(jobs) == len(state.jobs)
        verdicts = judge(grid, table) if whole else []
        if len(table) and not dry_run:
            state.write(verdicts=[one.to_dict() for one in verdicts])
    if not whole:
        say(f"\n{len(missing)} tests of the study are missing; claims are judged when it is whole")
    if len(table) and (whole or look):
        say("\n" + table_of_conditions(table, grid.conditions).to_markdown(index=False))
    if verdicts:
        say("\n" + table_of_claims(verdicts).to_markdown(index=False))
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    say(f"\n{folder.relative_to(root)} holds the executed notebooks and the table of all replies")
    return Study(table, failed, skipped, missing)


class _State:
    """The runs that passed and the table of replies, read and written in one or two folders."""

    def __init__(self, grid: Grid, root: Path, folder: Path, keep: Path | None, command: str):
        self.grid, self.root, self.folder = grid, root, folder
        self.places = [folder, keep] if keep else [folder]
        self.jobs = {job.key: job for job in plan(grid)}
        self.runs, made, self.table = {}, [], pd.DataFrame(columns=POOLED)
        for place in (p for p in self.places if (p / f"{grid.name}.json").exists()):
            kept = read_json(about := place / f"{grid.name}.json", GridError)
            if place == keep and {run["key"] for run in kept["runs"]} - set(self.jobs):
                expected, found = "results of this grid, or none", "runs of another form of it"
                raise GridError(about, expected, found, "keep it elsewhere")
            runs = {run["key"]: run for run in kept["runs"] if run["key"] in self.jobs}
            if (packed := about.with_suffix(".csv.gz")).exists():
                self._add_replies(read_pooled(packed), [self.jobs[key] for key in runs])
            self.runs, made = {**runs, **self.runs}, made or kept["made"]
        packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
        self.made = [*made, {"command": command, "packages": packages}]

    def _add_replies(self, table: pd.DataFrame, jobs: Iterable[Job]) -> None:
        """Those of some tests that are not known yet."""
        new = {(n, j.seed) for j in jobs if j.key not in self.runs for n in j.conditions}
        conditions = table["condition"].str.removesuffix(TEXTURES)
        rows = [at in new for at in zip(conditions, table["seed"], strict=True)]
        parts = [part for part in (self.table, table[rows]) if len(part)]
        self.table = pd.concat(parts, ignore_index=True) if parts else self.table

    def _passed(self, job: Job) -> bool:
        there = job.stage == "test" or (self.root / job.makes).exists()
        return job.key in self.runs and there

    def missing(self) -> list[str]:
        """Conditions and seeds without replies."""
        gone = [j for j in self.jobs.values() if j.stage == "test" and not self._passed(j)]
        return [f"{name}, seed {job.seed}" for job in gone for name in job.conditions]

    def needed(self, jobs: Sequence[Job]) -> list[Job]:
        """The runs to be made: tests without replies, and what those build on."""
        needed = set()
        for job in (job for job in jobs if job.stage == "test"):
            at = job
            while at is not None and not self._passed(at):
                needed.add(at.key)
                at = self.jobs.get(at.needs)
        return [job for job in jobs if job.key in needed]

    def time_left(self, jobs: Iterable[Job], workers: int) -> str:
        """What some runs will take, from those that passed, else as the grid says."""
        runs = pd.DataFrame(self.runs.values(), columns=["stage", "seconds"])
        minutes = {**self.grid.minutes, **(runs.groupby("stage")["seconds"].mean() / 60)}
        each = [minutes.get(job.stage, float("nan")) / workers for job in jobs]
        return f"; about {sum(each):.0f} min to go" if sum(each) > 0.5 else ""

    def add(self, job: Job, commit: str, seconds: float) -> None:
        """Write down a run that passed."""
        run = {"key": job.key, "stage": job.stage, "conditions": job.conditions, "seed": job.seed}
        run |= {"seconds": seconds, "commit": commit, "parameters": dict(job.parameters)}
        run["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if job.stage == "test":
            replies = self.root / job.makes
            if slices_file(replies).exists():
                run["consistency"] = read_consistency(replies).to_dict()
            paths = {at: replies.with_name(file) for at, file in FILES.items()}
            at = [(s, c, f) for (s, c), f in paths.items() if f.exists()]
            files = {(name + s, job.seed, c): f for name in job.conditions for s, c, f in at}
            self._add_replies(pooled(files), [job])
        self.runs[job.key] = run
        self.write()

    def write(self, verdicts: Sequence[Any] = ()) -> None:
        """Write the table and how it was made."""
        content = {
            **self.grid.model_dump(include={"name", "about", "profile", "overrides", "seeds"}),
            "made": self.made,
            "runs": list(self.runs.values()),
            "missing": self.missing(),
            "verdicts": verdicts,
        }
        for place in self.places:  # the table first: it may hold more than the other says
            write_pooled(self.table, place / f"{self.grid.name}.csv.gz")
            write_json(place / f"{self.grid.name}.json", content)


def _run(
    jobs: Sequence[Job], state: _State, workers: int, retries: int, say: Callable[[str], None]
) -> tuple[dict[str, str], list[str]]:
    """Run some jobs; gives what :class:`Study` has of failed and skipped ones."""
    waiting, left, failed, tries = list(jobs), {job.key: job for job in jobs}, {}, Counter()
    running: dict[Future, tuple[Job, str]] = {}
    commits = {run["commit"] for run in state.runs.values() if "commit" in run}
    processes = multiprocessing.get_context("spawn")
    gpus = processes.SimpleQueue()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for worker in range(workers):
        gpus.put(named[worker % len(named)])
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    with ProcessPoolExecutor(workers, processes, _begin, (gpus, threads)) as pool:
        while True:
            ready = [job for job in waiting if job.needs not in left]
            for job in ready[: workers - len(running)]:
                commit = git_version(state.root)
                if commits and commit not in commits:
                    before = ", ".join(sorted(commits))
                    say(f"warning: the code changed: {before} so far, now {commit}")
                commits.add(commit)
                waiting.remove(job)
                how = (state.grid.profile, state.grid.overrides)
                running[pool.submit(_execute, job, state.root, state.folder, how)] = job, commit
            if not running:
                return failed, [job.name for job in waiting]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                (job, commit), row = running.pop(future), future.result()
                tries[job.key] += 1
                if row["status"] == "passed":
                    del left[job.key]
                    state.add(job, commit, row["seconds"])
                elif tries[job.key] <= retries:
                    waiting.insert(0, job)
                else:
                    failed[job.name] = row["error"]
                end = f"{row['seconds']} s  {row['status']}  {row['error']}".rstrip()
                time_left = state.time_left(left.values(), workers)
                say(f"  {len(jobs) - len(left)} of {len(jobs)}  {job.name}  {end}{time_left}")


def _begin(gpus: Any, threads: str) -> None:
    """A worker has a GPU and threads of its own, and ends with the study, its kernel with it."""
    if gpu := gpus.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    study = multiprocessing.parent_process()
    threading.Thread(target=lambda: (study.join(), os._exit(1)), daemon=True).start()


def _execute(job: Job, root: Path, folder: Path, profile: tuple[str, str]) -> dict[str, Any]:
    """Run one notebook; gives its row of :func:`unireason_lib.notebooks.execute`."""
    notebook = next((root / "notebooks").glob(f"{STAGES[job.stage]}_*.ipynb"))
    row = {"seconds": 0.0, "status": "failed"}
    try:
        with contextlib.redirect_stdout(None):
            out, given = folder / f"{job.name}.ipynb", dict(job.parameters)
            row = execute(notebook, out, given, load_profile(*profile))
    except Exception as failure:  # one run must not end the study
        row["error"] = f"{type(failure).__name__}: {failure}"[:300]
    if row["status"] == "passed" and not (root / job.makes).exists():
        row |= {"status": "failed", "error": f"it made no {job.makes}"}
    return row


def git_version(root: Path) -> str:
    """The commit of the code, and whether it was changed since: ``"1a2b3c4d5e6f-dirty"``."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return (git("rev-parse", "--short=12", "HEAD") or "unknown") + "-dirty" * bool(changed)
    except OSError:  # no git here
        return "unknown"
