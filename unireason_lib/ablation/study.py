"""Run a study: its plan, notebook by notebook, and one table of everything that was answered.

Each run is a notebook that papermill executes in a kernel of its own, several at a time. It leaves
the executed notebook and a JSON record in ``runs/ablation/NAME``. A run whose record says "passed"
and whose result is there is not made again, so the same call goes on after a kill. A run that fails
stops only the runs that build on it. Records name the git commit: nothing is refused because code
changed, but a study that several commits made says so.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from unireason_lib.ablation.claims import judge, table_of_claims, table_of_conditions
from unireason_lib.ablation.grid import STAGES, Grid, Job, estimate, plan
from unireason_lib.config import load_profile, near
from unireason_lib.errors import GridError
from unireason_lib.evaluation.table import pooled, read_pooled, write_pooled
from unireason_lib.io import locked, read_json, write_json

FILES = {
    ("", "none"): "replies.jsonl",
    ("", "blank"): "replies.blank.jsonl",
    ("", "other"): "replies.other.jsonl",
    ("", "random-crop"): "replies.random-crop.jsonl",
    ("", "no-crop"): "replies.no-crop.jsonl",
    (", textures", "none"): "textures.none.jsonl",
    (", textures", "random-crop"): "textures.random-crop.jsonl",
    (", textures", "no-crop"): "textures.no-crop.jsonl",
}
"""(What is added to the name of the condition, control) -> file of replies that notebook 06 leaves."""

CODE = ("unireason_lib", "notebooks", "data/tiny-base")
"""What git is asked about: results follow from these."""


@dataclass(frozen=True)
class Study:
    """What came of :func:`run_study`.

    Attributes:
        table: All replies so far (:mod:`unireason_lib.evaluation.table`).
        failed: Name of a run -> what went wrong.
        skipped: Names of runs that were not begun because one that they need failed.
        missing: Conditions and seeds of the grid that have no replies; none: the study is whole.
        interrupted: Whether Ctrl-C ended it.
    """

    table: pd.DataFrame
    failed: dict[str, str]
    skipped: list[str]
    missing: list[str]
    interrupted: bool


class Records:
    """What is known of the runs of a study, here and in the folder that it is kept in.

    Args:
        grid: The study.
        root: Of the project.
        keep: Folder with ``NAME.json`` and ``NAME.csv.gz`` of an earlier part, or of none.
    """

    def __init__(self, grid: Grid, root: Path, keep: Path | None = None) -> None:
        self.grid, self.root, self.keep = grid, root, keep
        self.folder = root / "runs" / "ablation" / grid.name
        self.tests = {
            (name, job.seed): job
            for job in plan(grid)
            if job.stage == "test"
            for name in job.conditions
        }
        self.kept, self.kept_table = read_study(keep, grid.name) if keep else ({}, None)
        known = [read_json(path, GridError) for path in self.folder.glob("*.json")]
        self.runs = {run["key"]: run for run in (*self.kept.get("runs", ()), *known)}
        self.kept_tests = {r["key"] for r in self.kept.get("runs", ()) if r["stage"] == "test"}
        foreign = self.kept_tests - {job.key for job in self.tests.values()}
        if foreign:
            found = f"{len(foreign)} tests of another form of this grid"
            raise GridError(keep, "results of this grid or none", found, "keep it elsewhere")

    def passed(self, job: Job) -> bool:
        """Whether it was made here."""
        status = self.runs.get(job.key, {}).get("status")
        return status == "passed" and (self.root / job.makes).exists()

    def needed(self, jobs: Sequence[Job]) -> list[Job]:
        """The runs that are still to be made: tests without replies, and what those build on."""
        by_key, needed = {job.key: job for job in jobs}, set()
        for job in (job for job in jobs if job.stage == "test" and job.key not in self.kept_tests):
            while job is not None and not self.passed(job):
                needed.add(job.key)
                job = by_key.get(job.needs)
        return [job for job in jobs if job.key in needed]

    def minutes(self) -> dict[str, float]:
        """Stage -> minutes of a run: measured, else as the grid says."""
        spent: dict[str, list[float]] = {}
        for run in self.runs.values():
            if run["status"] == "passed":
                spent.setdefault(run["stage"], []).append(run["seconds"] / 60)
        return {**self.grid.minutes, **{stage: fmean(each) for stage, each in spent.items()}}

    def commits(self) -> list[str]:
        """Commits that the runs were made by."""
        made = [run.get("commit") for run in self.runs.values() if run["status"] == "passed"]
        return list(dict.fromkeys(filter(None, made)))

    def add(self, job: Job, commit: str, status: str, seconds: float, error: str) -> None:
        """Write down how a run ended."""
        self.runs[job.key] = {
            "key": job.key,
            "stage": job.stage,
            "conditions": list(job.conditions),
            "seed": job.seed,
            "status": status,
            "seconds": round(seconds, 1),
            "error": error,
            "commit": commit,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "parameters": dict(job.parameters),
        }
        write_json(self.folder / f"{job.name}.json", self.runs[job.key])

    def table(self) -> pd.DataFrame:
        """All replies, a condition and seed after another; a test under way does not count."""
        parts = []
        for (name, seed), job in self.tests.items():
            if self.passed(job):
                folder = (self.root / job.makes).parent
                files = {(name + s, seed, c): folder / file for (s, c), file in FILES.items()}
                parts.append(pooled({key: file for key, file in files.items() if file.exists()}))
            elif job.key in self.kept_tests:
                table, names = self.kept_table, {name + suffix for suffix, _ in FILES}
                parts.append(table[table["condition"].isin(names) & (table["seed"] == seed)])
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def missing(self) -> list[str]:
        """Conditions and seeds without replies."""
        return [
            f"{name}, seed {seed}"
            for (name, seed), job in self.tests.items()
            if not self.passed(job) and job.key not in self.kept_tests
        ]

    def write(self, command: str, judged: bool) -> pd.DataFrame:
        """Write table and runs to the folder of the study, and to ``keep``; gives the table."""
        table, planned = self.table(), {job.key for job in plan(self.grid)}
        packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
        made = {"command": command, "packages": packages, "commits": self.commits()}
        content = {
            **self.grid.model_dump(include={"name", "about", "profile", "overrides", "seeds"}),
            "made": [*(m for m in self.kept.get("made", ()) if m != made), made],
            "runs": [r for k, r in self.runs.items() if k in planned and r["status"] == "passed"],
            "missing": self.missing(),
            "verdicts": [one.to_dict() for one in judge(self.grid, table)] if judged else [],
        }
        for folder in filter(None, (self.keep, self.folder / "results")):
            write_pooled(table, folder / f"{self.grid.name}.csv.gz")  # first: it may hold more
            write_json(folder / f"{self.grid.name}.json", content)
        return table


def read_study(folder: Path, name: str) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """``NAME.json`` and ``NAME.csv.gz`` of a kept study; ({}, None) where there is neither.

    Raises:
        GridError: One is missing or damaged, or the table lacks replies of a test.
    """
    about, table = folder / f"{name}.json", folder / f"{name}.csv.gz"
    if not about.exists() and not table.exists():
        return {}, None
    content, replies = read_json(about, GridError), read_pooled(table)
    there = set(zip(replies["condition"], replies["seed"], strict=True))
    for run in content["runs"]:
        for condition in run["conditions"] if run["stage"] == "test" else ():
            if (condition, run["seed"]) not in there:
                found, do = f"none in {table.name}", "get both files from one place"
                raise GridError(about, f"replies of {condition}, seed {run['seed']}", found, do)
    return content, replies


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

    The first Ctrl-C interrupts the cells that run, so that a training saves a checkpoint; the second
    one ends their kernels.

    Args:
        grid: The study.
        root: Of the project.
        seeds: The first so many of the grid's; more than it has enlarge the study. None: all.
        only: Conditions; empty: all.
        workers: Notebooks at a time. With ``CUDA_VISIBLE_DEVICES=0,1,...`` each has one of them.
        retries: How often a run that failed is begun again.
        keep: Folder for the table and the record of the runs, written after every test. Tests that
            are there already, from another machine perhaps, are not made again.
        look: Show the table of a part of the study, too; without verdicts.
        dry_run: Only show the runs and what they cost.
        command: That makes the study, for the record.
        say: Takes lines of text.

    Raises:
        GridError: An unknown condition or parameter, or ``keep`` holds tests of another grid.
        DatasetError: Another process runs this study.
    """
    chosen = grid.seeds if seeds is None else grid.first_seeds(seeds)
    if len(chosen) > len(grid.seeds):
        grid = grid.model_copy(update={"seeds": chosen})
    jobs = plan(grid, seeds=chosen, only=only)
    check_parameters(jobs, root)
    folder = root / "runs" / "ablation" / grid.name
    with locked(folder / ".lock", f"the study {grid.name}"):
        records = Records(grid, root, keep)
        waiting = records.needed(jobs)
        cost = _time_of(waiting, records, workers)
        say(f"{grid.name}: {len(jobs)} runs, {len(waiting)} to be made{cost}")
        if dry_run:
            for job in waiting:
                say(f"{job.name}: {', '.join(job.conditions)}\n  {job.command()}")
            waiting = []
        failed, skipped, interrupted = _run(waiting, records, workers, retries, command, say)
        whole = not (records.missing() or interrupted or only) and chosen == grid.seeds
        table = records.write(command, judged=whole)
    study = Study(table, failed, skipped, records.missing(), interrupted)
    if study.missing:
        say(f"\n{len(study.missing)} of {len(records.tests)} tests of the study are missing")
    if not whole and not look:
        say("Results are shown when the study is whole, or its table with --look.")
    elif len(table):
        say("\n" + table_of_conditions(table, grid.conditions).to_markdown(index=False))
    if whole and grid.claims:
        say("\n" + table_of_claims(judge(grid, table)).to_markdown(index=False))
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    say(f"{folder.relative_to(root)} holds the executed notebooks and the table of all replies")
    return study


def _run(
    jobs: Sequence[Job],
    records: Records,
    workers: int,
    retries: int,
    command: str,
    say: Callable[[str], None],
) -> tuple[dict[str, str], list[str], bool]:
    """Run some jobs; gives the errors of those that failed, the names of those that could not be
    begun, and whether Ctrl-C ended it."""
    waiting, left, failed = list(jobs), {job.key: job for job in jobs}, {}
    running: dict[Future, tuple[Job, str]] = {}
    tries: Counter[str] = Counter()
    commits = records.commits()
    executor = _Executor(records.grid, records.root, records.folder, workers)

    def finish(future: Future) -> None:
        job, commit = running.pop(future)
        status, seconds, error = future.result()
        records.add(job, commit, status, seconds, error)
        tries[job.key] += 1
        if status == "passed":
            del left[job.key]
        elif status == "failed" and tries[job.key] <= retries:
            waiting.insert(0, job)
        elif status == "failed":
            failed[job.name] = error
        done = f"{len(jobs) - len(left)} of {len(jobs)}"
        said = f"{job.name}  {seconds:.1f} s  {status}{': ' if error else ''}{error}"
        say(f"  {done}  {said}{_time_of(left.values(), records, workers)}")
        if job.stage == "test" and status == "passed" and records.keep:
            records.write(command, judged=False)  # so that this machine may be lost

    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                ready = [job for job in waiting if job.needs not in left]
                for job in ready[: workers - len(running)]:
                    commit = git_version(records.root)
                    if commits and commit not in commits:
                        say(f"warning: the code changed: {', '.join(commits)} so far, now {commit}")
                    commits = list(dict.fromkeys([*commits, commit]))
                    waiting.remove(job)
                    running[pool.submit(executor.execute, job)] = job, commit
                if not running:
                    return failed, [job.name for job in waiting], False
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finish(future)
        except KeyboardInterrupt:
            say("Stopping the running cells; Ctrl-C once more ends them at once.")
            executor.interrupt()
            try:
                wait(running)
            except KeyboardInterrupt:
                executor.kill()
            for future in list(running):
                finish(future)
            return failed, [], True


class _Executor:
    """Notebooks in threads, each with a kernel; Ctrl-C, which no thread gets, is passed on to them."""

    def __init__(self, grid: Grid, root: Path, out: Path, workers: int) -> None:
        self.notebooks, self.out = root / "notebooks", out
        self.kernels: set[Any] = set()
        self.interrupted = threading.Event()
        self.settings = load_profile(grid.profile, grid.overrides).notebook
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self.gpus = [gpus[worker % len(gpus)] for worker in range(workers)]
        package, path = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")
        self.env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), **os.environ}
        self.env["PYTHONPATH"] = os.pathsep.join([package, path])
        self.env.pop("MPLBACKEND", None)  # a kernel's own keeps the figures
        if self.settings.offline:
            offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
            self.env |= dict.fromkeys(offline, "1")

    def execute(self, job: Job) -> tuple[str, float, str]:
        """Run one notebook; gives status, seconds, and a line about what went wrong."""
        import papermill
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        def stop_if_interrupted(**_: Any) -> None:
            if self.interrupted.is_set():  # the cell saved what it had and ended well
                raise KeyboardInterrupt

        (path,) = self.notebooks.glob(f"{STAGES[job.stage]}_*.ipynb")
        no_other = KernelSpecManager(kernel_dirs=[])  # so the kernel is this interpreter
        kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=no_other)
        began, gpu, status, error = time.monotonic(), self.gpus.pop(), "passed", ""
        env = {**self.env, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        try:
            run_sync(kernel.start_kernel)(cwd=str(self.notebooks), env=env)
            self.kernels.add(kernel)
            papermill.execute_notebook(
                path,
                self.out / f"{job.name}.ipynb",
                dict(job.parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=180,
                execution_timeout=self.settings.cell_timeout,
                km=kernel,
                on_cell_executed=stop_if_interrupted,
            )
        except papermill.PapermillExecutionError as failure:
            status, error = (
                "failed",
                f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}",
            )
        except (Exception, KeyboardInterrupt) as failure:  # one run must not end the study
            status, error = "failed", f"{type(failure).__name__}: {failure}"
        finally:
            self.kernels.discard(kernel)
            self.gpus.append(gpu)
            run_sync(kernel.shutdown_kernel)(now=True)
        if status == "passed" and not (self.notebooks.parent / job.makes).exists():
            status, error = "failed", f"the notebook ended well, but {job.makes} is not there"
        status = "interrupted" if self.interrupted.is_set() and status == "failed" else status
        return status, time.monotonic() - began, " ".join(error.split())[:300]

    def interrupt(self) -> None:
        """Interrupt the cells that run."""
        from jupyter_core.utils import run_sync

        self.interrupted.set()
        for kernel in list(self.kernels):
            run_sync(kernel.interrupt_kernel)()

    def kill(self) -> None:
        """End the kernels at once."""
        from jupyter_core.utils import run_sync

        for kernel in list(self.kernels):
            run_sync(kernel.shutdown_kernel)(now=True)


def check_parameters(jobs: Sequence[Job], root: Path) -> None:
    """papermill only warns about a parameter that a notebook lacks, and would run its defaults.

    Raises:
        GridError: A notebook is not there, or does not declare a parameter of a run.
    """
    import papermill

    for stage, number in STAGES.items():
        given = {name for job in jobs if job.stage == stage for name in job.parameters}
        for path in sorted((root / "notebooks").glob(f"{number}_*.ipynb"))[:1] if given else ():
            declared = papermill.inspect_notebook(str(path))
            for name in sorted(given - set(declared)):
                hint = near(name, declared)
                raise GridError(path.name, "a parameter that it declares", repr(name), hint)


def git_version(root: Path) -> str:
    """The commit of the code that results follow from, and whether it has changes besides."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    except OSError:
        return "no git"
    return f"{commit or 'no commit'}{' with uncommitted changes' if changed else ''}"


def _time_of(jobs: Iterable[Job], records: Records, workers: int) -> str:
    """What some runs will take, where it is known."""
    minutes = estimate(jobs, records.minutes())
    return f"; about {minutes / workers:.0f} min to go" if minutes else ""
