"""Run a study: its plan, notebook by notebook, and one table of everything that was answered.

Each run is a notebook that papermill executes in a process of its own, several at a time, stage by
stage; the executed notebooks lie in ``runs/ablation/NAME``, beside the table of all replies
``NAME.csv.gz`` and ``NAME.json``, which says how it was made. A run that is in there is not made
again, so the same call resumes after a kill or a failure; a run that fails stops only those that
build on it. Each run names its git commit, and a study that several made says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import pandas as pd

from unireason_lib.ablation.claims import Verdict, judge, table_of_claims, table_of_conditions
from unireason_lib.ablation.grid import STAGES, Grid, Job, plan
from unireason_lib.config import load_profile
from unireason_lib.errors import GridError
from unireason_lib.evaluation import mean, table
from unireason_lib.evaluation.statistics import plain
from unireason_lib.inference import read_results
from unireason_lib.io import locked, read_json, write_json
from unireason_lib.notebooks import execute

SUFFIXES = {"replies": "", "textures": ", textures"}
"""Beginning of a file that notebook 06 leaves -> suffix of its condition in the pooled table."""


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
        workers: Notebooks at a time.
        keep: Another folder for the table and what made it; tests that it holds already, from
            another machine perhaps, are not made again. A ``GridError`` for those of another grid.
        look: Show the table of a part of the study, too; without verdicts.
        dry_run: Only show the runs and what they cost.
        command: That makes the study, for the record.
    """
    jobs, folder = plan(grid, seeds=seeds, only=only), root / "runs" / "ablation" / grid.name
    with locked(folder / ".lock", f"the study {grid.name}"):
        study = Study(grid, root, keep or folder, command, say)
        needed = study.needed(jobs)
        minutes = sum(grid.minutes.get(job.stage, 0) for job in needed) / workers
        say(f"{grid.name}: {len(jobs)} runs, {len(needed)} to be made; about {minutes:.0f} min")
        if dry_run:
            for job in needed:
                say(f"{job.name}: {', '.join(job.conditions)}\n  {job.command()}")
        elif needed:
            study.make(needed, workers, folder)
        whole = not study.missing and len(jobs) == len(study.jobs)
        verdicts = judge(grid, study.table) if whole else []
        if len(study.table) and not dry_run:
            study.write(verdicts)
    if not whole:
        say(f"{len(study.missing)} tests are missing; claims are judged when the study is whole")
    if len(study.table) and (whole or look):
        say("\n" + table_of_conditions(study.table, grid.conditions).to_markdown(index=False))
    if verdicts:
        say("\n" + table_of_claims(verdicts).to_markdown(index=False))
    for name, error in study.failed.items():
        say(f"failed: {name}: {error}")
    return study


class Study:
    """The runs of a grid that passed and their replies, read from and written to one folder."""

    def __init__(self, grid: Grid, root: Path, kept_in: Path, command: str, say: Any) -> None:
        self.grid, self.root, self.say = grid, root, say
        self.about = kept_in / f"{grid.name}.json"
        self.jobs = {job.key: job for job in plan(grid)}
        self.failed: dict[str, str] = {}  # name of a run -> what went wrong
        kept = read_json(self.about, GridError) if self.about.exists() else {"runs": [], "made": []}
        self.runs = {run["key"]: run for run in kept["runs"] if self._is_of_grid(run)}
        own = root / "runs" / "ablation" / grid.name  # runs of another form of it stay there unused
        if kept_in != own and len(self.runs) < len(kept["runs"]):
            expected, found = "results of this grid, or none", "runs of another form of it"
            raise GridError(self.about, expected, found, "keep it elsewhere")
        self.made = [*kept["made"], {"command": command}]
        self.table = pd.DataFrame(columns=table.POOLED)  # all replies so far, see evaluation.table
        if (packed := self.about.with_suffix(".csv.gz")).exists():
            rows = table.read_pooled(packed)  # it may hold more than the other file says
            names = rows["condition"].str.removesuffix(SUFFIXES["textures"])
            tests = [run for run in self.runs.values() if run["stage"] == "test"]
            done = [(name, run["seed"]) for run in tests for name in run["conditions"]]
            self.table = rows[pd.MultiIndex.from_arrays([names, rows["seed"]]).isin(done)]

    def _is_of_grid(self, run: Mapping[str, Any]) -> bool:
        """Whether a kept run belongs to this form of the grid; a test with all that share it."""
        job = self.jobs.get(run["key"])
        return bool(job) and (job.stage != "test" or {*job.conditions} == {*run["conditions"]})

    @property
    def missing(self) -> list[str]:
        """Conditions and seeds without replies; none: the study is whole."""
        gone = [j for j in self.jobs.values() if j.stage == "test" and j.key not in self.runs]
        return [f"{name}, seed {job.seed}" for job in gone for name in job.conditions]

    def needed(self, jobs: Sequence[Job]) -> list[Job]:
        """The runs to be made: tests without replies, and models that those need and are gone."""
        needed: list[Job] = []
        for job in reversed(jobs):  # what builds on a run stands behind it
            test = job.stage == "test"
            wanted = test or any(one.needs == job.key for one in needed)
            there = job.key in self.runs and (test or (self.root / job.makes).exists())
            needed += [job] if wanted and not there else []
        return needed[::-1]

    def make(self, jobs: Sequence[Job], workers: int, folder: Path) -> None:
        """Run some jobs, each when what it builds on is there, and keep what passed."""
        left, threads = {job.key for job in jobs}, max(1, (os.cpu_count() or 1) // workers)
        spawn, waiting, running = multiprocessing.get_context("spawn"), [*jobs], {}
        with ProcessPoolExecutor(workers, spawn, _begin, (str(threads),)) as pool:
            while True:
                ready = [job for job in waiting if job.needs not in left]
                waiting = [job for job in waiting if job.needs in left]
                running |= {
                    pool.submit(_execute, j, self.root, folder, self.grid): j for j in ready
                }
                if not running:  # what still waits builds on a run that failed
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, row = running.pop(future), future.result()
                    if row["status"] == "passed":
                        left.remove(job.key)
                        self.add(job, row["seconds"], row["commit"])
                    else:
                        self.failed[job.name] = row["error"]
                    end = f"{row['seconds']} s  {row['status']}  {row['error']}".rstrip()
                    self.say(f"  {len(jobs) - len(left)} of {len(jobs)}  {job.name}  {end}")

    def add(self, job: Job, seconds: float, commit: str) -> None:
        """Write down a run that passed, and the replies that notebook 06 left."""
        job = self.jobs[job.key]  # with all conditions that share it, perhaps some were left out
        commits = {run.get("commit", "unknown") for run in self.runs.values()}
        if commits and commit not in commits:
            known = ", ".join(sorted(commits))
            self.say(f"warning: the code changed: {known} so far, now {commit}")
        run = {"key": job.key, "stage": job.stage, "conditions": job.conditions, "seed": job.seed}
        run |= {"seconds": seconds, "commit": commit, "parameters": dict(job.parameters)}
        self.runs[job.key] = run | {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        if job.stage == "test":
            replies, files = self.root / job.makes, {}
            for path in sorted(replies.parent.glob("*.jsonl")):
                kind, _, control = path.stem.partition(".")
                if kind in SUFFIXES and control != "slices":
                    files |= {(n + SUFFIXES[kind], job.seed, control): path for n in job.conditions}
            before = [self.table] if len(self.table) else []
            self.table = pd.concat([*before, table.pooled(files)])
            if (slices := table.beside(replies, "slices")).exists():
                overlap = mean(table.consistency(read_results(slices)), "overlap")
                self.runs[job.key]["consistency"] = {"overlap": plain(overlap)}
        self.write()

    def write(self, verdicts: Iterable[Verdict] = ()) -> None:
        """Write the table and how it was made."""
        content = self.grid.model_dump(include={"name", "about", "profile", "overrides", "seeds"})
        content |= {"made": self.made, "runs": [*self.runs.values()], "missing": self.missing}
        table.write_pooled(self.table, self.about.with_suffix(".csv.gz"))
        write_json(self.about, content | {"verdicts": [one.to_dict() for one in verdicts]})


def _begin(threads: str) -> None:
    """A worker has threads of its own, and ends with the study, its kernel with it."""
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    study = multiprocessing.parent_process()
    threading.Thread(target=lambda: (study.join(), os._exit(1)), daemon=True).start()


def _execute(job: Job, root: Path, folder: Path, grid: Grid) -> dict[str, Any]:
    """Run one notebook; its row of :func:`unireason_lib.notebooks.execute`, and its commit."""
    row = {"seconds": 0.0, "status": "failed", "commit": _commit(root)}
    try:
        notebook = next((root / "notebooks").glob(f"{STAGES[job.stage]}_*.ipynb"))
        settings = load_profile(grid.profile, grid.overrides)
        with contextlib.redirect_stdout(None):
            out = folder / f"{job.name}.ipynb"
            row |= execute(notebook, out, dict(job.parameters), settings)
    except Exception as failure:  # one run must not end the study
        row["error"] = f"{type(failure).__name__}: {failure}"[:300]
    if row["status"] == "passed" and not (root / job.makes).exists():
        row |= {"status": "failed", "error": f"it made no {job.makes}"}
    return row


def _commit(root: Path) -> str:
    """The commit of the code, and whether it was changed since: ``"1a2b3c4d5e6f-dirty"``."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):  # no git here
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"
