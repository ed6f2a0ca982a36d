"""Run a study: its plan, notebook by notebook, and one table of everything that was answered.

Each run is a notebook that papermill executes in a kernel of its own, several at a time, without
the cells that are tagged "lesson". It leaves the executed notebook and a JSON record in
``runs/ablation/NAME``. A run whose record says "passed" and whose result is there is not made
again, so the same call goes on after a kill; a run that fails stops only the runs that build on it.
Records name the git commit: nothing is refused because code changed, but a study that several
commits made says so.
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
from typing import Any

import pandas as pd

from unireason_lib.ablation.claims import judge, table_of_claims, table_of_conditions
from unireason_lib.ablation.grid import STAGES, Grid, Job, plan
from unireason_lib.config import load_profile
from unireason_lib.errors import GridError
from unireason_lib.evaluation.consistency import read_consistency, slices_file
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
    interrupted: bool  # by Ctrl-C


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

    The first Ctrl-C interrupts the running cells, so that a training saves a checkpoint; the second
    one ends their kernels.

    Args:
        grid: The study.
        root: Of the project.
        seeds: The first so many of the grid's; None: all.
        only: Conditions; empty: all.
        workers: Notebooks at a time. With ``CUDA_VISIBLE_DEVICES=0,1,...`` each has one of them.
        retries: How often a run that failed is begun again.
        keep: Folder for ``NAME.csv.gz`` (the table) and ``NAME.json`` (how it was made, verdicts),
            written after every test. Tests that it holds already, from another machine perhaps, are
            not made again.
        look: Show the table of a part of the study, too; without verdicts.
        dry_run: Only show the runs and what they cost.
        command: That makes the study, for the record.
        say: Takes lines of text.

    Raises:
        GridError: An unknown condition, or ``keep`` holds tests of another grid.
        DatasetError: Another process runs this study.
    """
    jobs = plan(grid, seeds=grid.seeds[:seeds], only=only)
    folder = root / "runs" / "ablation" / grid.name
    with locked(folder / ".lock", f"the study {grid.name}"):
        records = _Records(grid, root, folder, keep, command)
        needed = records.needed(jobs)
        time_left = records.time_left(needed, workers)
        say(f"{grid.name}: {len(jobs)} runs, {len(needed)} to be made{time_left}")
        for job in needed if dry_run else ():
            say(f"{job.name}: {', '.join(job.conditions)}\n  {job.command()}")
        jobs_now = [] if dry_run else needed
        failed, skipped, interrupted = _run(jobs_now, records, workers, retries, say)
        missing = records.missing()
        whole = not missing and len(jobs) == len(records.jobs)
        table = records.table() if dry_run else records.write(judged=whole)
    if not whole:
        say(f"\n{len(missing)} tests of the study are missing; claims are judged when it is whole")
    if len(table) and (whole or look):
        say("\n" + table_of_conditions(table, grid.conditions).to_markdown(index=False))
    if whole and grid.claims:
        say("\n" + table_of_claims(judge(grid, table)).to_markdown(index=False))
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    say(f"\n{folder.relative_to(root)} holds the executed notebooks and the table of all replies")
    return Study(table, failed, skipped, missing, interrupted)


class _Records:
    """What is known of the runs of a study, here and where it is kept."""

    def __init__(self, grid: Grid, root: Path, folder: Path, keep: Path | None, command: str):
        self.grid, self.root, self.folder, self.keep = grid, root, folder, keep
        self.jobs = {job.key: job for job in plan(grid)}
        self.tests = [job for job in self.jobs.values() if job.stage == "test"]
        self.replies: dict[str, pd.DataFrame] = {}  # key of a test -> its part of the table
        self.runs, self.made = {}, []
        if keep is not None and (about := keep / f"{grid.name}.json").exists():
            kept, table = read_json(about, GridError), read_pooled(keep / f"{grid.name}.csv.gz")
            if {run["key"] for run in kept["runs"]} - set(self.jobs):
                expected, found = "results of this grid, or none", "runs of another form of it"
                raise GridError(about, expected, found, "keep it elsewhere")
            self.runs, self.made = {run["key"]: run for run in kept["runs"]}, kept["made"]
            for job in (job for job in self.tests if job.key in self.runs):
                names = {name + suffix for name in job.conditions for suffix, _ in FILES}
                of_test = table["condition"].isin(names) & (table["seed"] == job.seed)
                self.replies[job.key] = table[of_test]
        for run in (read_json(path, GridError) for path in folder.glob("*.json")):
            self.runs |= {run["key"]: run} if run["key"] in self.jobs else {}
        packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
        self.made = [*self.made, {"command": command, "packages": packages}]

    def passed(self, job: Job) -> bool:
        """Whether it was made here."""
        status = self.runs.get(job.key, {}).get("status")
        return status == "passed" and (self.root / job.makes).exists()

    def missing(self) -> list[str]:
        """Conditions and seeds without replies."""
        gone = [j for j in self.tests if not self.passed(j) and j.key not in self.replies]
        return [f"{name}, seed {job.seed}" for job in gone for name in job.conditions]

    def needed(self, jobs: Sequence[Job]) -> list[Job]:
        """The runs to be made: tests without replies, and what those build on."""
        needed = set()
        for job in jobs:
            at = None if job.stage != "test" or job.key in self.replies else job
            while at is not None and not self.passed(at):
                needed.add(at.key)
                at = self.jobs.get(at.needs)
        return [job for job in jobs if job.key in needed]

    def time_left(self, jobs: Iterable[Job], workers: int) -> str:
        """What some runs will take, from those that passed, else as the grid says."""
        runs = pd.DataFrame(self.runs.values(), columns=["stage", "seconds", "status"])
        measured = runs[runs["status"] == "passed"].groupby("stage")["seconds"].mean() / 60
        minutes = {**self.grid.minutes, **measured}
        each = [minutes.get(job.stage, float("nan")) / workers for job in jobs]
        return f"; about {sum(each):.0f} min to go" if sum(each) > 0.5 else ""

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
        replies = self.root / job.makes
        if job.stage == "test" and status == "passed" and slices_file(replies).exists():
            self.runs[job.key]["consistency"] = read_consistency(replies).to_dict()
        write_json(self.folder / f"{job.name}.json", self.runs[job.key])

    def table(self) -> pd.DataFrame:
        """All replies; a test under way does not count."""
        for job in self.tests:
            if self.passed(job) and job.key not in self.replies:
                folder, names = (self.root / job.makes).parent, job.conditions
                files = {(n + s, job.seed, c): f for n in names for (s, c), f in FILES.items()}
                there = {at: folder / f for at, f in files.items() if (folder / f).exists()}
                self.replies[job.key] = pooled(there)
        parts = [self.replies[job.key] for job in self.tests if job.key in self.replies]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def write(self, judged: bool = False) -> pd.DataFrame:
        """Write the table and how it was made to the folder of the study and to ``keep``."""
        table, name = self.table(), self.grid.name
        content = {
            **self.grid.model_dump(include={"name", "about", "profile", "overrides", "seeds"}),
            "made": self.made,
            "runs": [run for run in self.runs.values() if run["status"] == "passed"],
            "missing": self.missing(),
            "verdicts": [one.to_dict() for one in judge(self.grid, table)] if judged else [],
        }
        for folder in filter(None, (self.folder / "results", self.keep)) if len(table) else ():
            write_pooled(table, folder / f"{name}.csv.gz")  # first: it may hold more than it says
            write_json(folder / f"{name}.json", content)
        return table


def _run(
    jobs: Sequence[Job], records: _Records, workers: int, retries: int, say: Callable[[str], None]
) -> tuple[dict[str, str], list[str], bool]:
    """Run some jobs; gives what :class:`Study` has of failed and skipped, and the interruption."""
    waiting, left, failed = list(jobs), {job.key: job for job in jobs}, {}
    running: dict[Future, tuple[Job, str]] = {}
    tries: Counter[str] = Counter()
    commits = {run["commit"] for run in records.runs.values() if "commit" in run}
    executor = _Executor(records.grid, records.root, records.folder, workers)

    def begin(job: Job) -> None:
        commit = git_version(records.root)
        if commits and commit not in commits:
            say(f"warning: the code changed: {', '.join(sorted(commits))} so far, now {commit}")
        commits.add(commit)
        waiting.remove(job)
        running[pool.submit(executor.execute, job)] = job, commit

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
        progress = (
            f"  {len(jobs) - len(left)} of {len(jobs)}  {job.name}  {seconds:.1f} s  {status}"
        )
        time_left = records.time_left(left.values(), workers)
        say(f"{progress}{': ' if error else ''}{error}{time_left}")
        if job.stage == "test" and records.keep:
            records.write()  # so that this machine may be lost

    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                ready = [job for job in waiting if job.needs not in left]
                ready.sort(key=lambda job: job.stage != "rl")  # its test waits for it
                for job in ready[: workers - len(running)]:
                    begin(job)
                if not running:
                    return failed, [job.name for job in waiting], False
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finish(future)
        except KeyboardInterrupt:
            say("Stopping the running cells; Ctrl-C once more ends them at once.")
            executor.stop("interrupt_kernel")
            wait(running)
            for future in list(running):
                finish(future)
            return failed, [], True
        finally:
            executor.stop("shutdown_kernel", now=True)


class _Executor:
    """Notebooks in threads, each with a kernel; Ctrl-C reaches no thread and is passed on here."""

    def __init__(self, grid: Grid, root: Path, out: Path, workers: int) -> None:
        self.notebooks, self.out = root / "notebooks", out
        self.kernels: set[Any] = set()
        self.stopped = threading.Event()
        self.settings = load_profile(grid.profile, grid.overrides).notebook
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self.gpus = [gpus[worker % len(gpus)] for worker in range(workers)]
        self.env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), **os.environ}
        package = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self.env["PYTHONPATH"] = os.pathsep.join(package)
        self.env.pop("MPLBACKEND", None)  # a kernel's own keeps the figures
        if self.settings.offline:
            names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
            self.env |= dict.fromkeys(names, "1")

    def execute(self, job: Job) -> tuple[str, float, str]:
        """Run one notebook; gives status, seconds, and a line about what went wrong."""
        import nbformat
        import papermill
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        def check(**_: Any) -> None:
            if self.stopped.is_set():  # the interrupted cell saved what it had and ended well
                raise KeyboardInterrupt

        native = KernelSpecManager(kernel_dirs=[])  # no registered kernel but this interpreter
        kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=native)
        began, gpu, status, error = time.monotonic(), self.gpus.pop(), "failed", ""
        env = {**self.env, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        self.kernels.add(kernel)
        try:
            quiet = ["--IPKernelApp.log_level=40", "--HistoryManager.hist_file=:memory:"]
            run_sync(kernel.start_kernel)(cwd=str(self.notebooks), env=env, extra_arguments=quiet)
            notebook = nbformat.read(next(self.notebooks.glob(f"{STAGES[job.stage]}_*.ipynb")), 4)
            kept = (c for c in notebook.cells if "lesson" not in c.metadata.get("tags", ()))
            notebook.cells = list(kept)
            papermill.execute_notebook(
                notebook,
                self.out / f"{job.name}.ipynb",
                dict(job.parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=180,
                execution_timeout=self.settings.cell_timeout,
                km=kernel,
                on_cell_executed=check,
            )
            there = (self.notebooks.parent / job.makes).exists()
            status, error = ("passed", "") if there else ("failed", f"it made no {job.makes}")
        except papermill.PapermillExecutionError as failure:
            error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
        except (Exception, KeyboardInterrupt) as failure:  # one run must not end the study
            error = f"{type(failure).__name__}: {failure}"
        finally:
            self.kernels.discard(kernel)
            self.gpus.append(gpu)
            run_sync(kernel.shutdown_kernel)(now=True)
        status = "interrupted" if status == "failed" and self.stopped.is_set() else status
        return status, time.monotonic() - began, " ".join(error.split())[:300]

    def stop(self, how: str, **options: Any) -> None:
        """Interrupt or shut down the kernels that run; no further cell begins."""
        from jupyter_core.utils import run_sync

        self.stopped.set()
        for kernel in list(self.kernels):
            run_sync(getattr(kernel, how))(**options)


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
