"""Run a plan: notebook by notebook, some at a time, here or on a Ray cluster; what failed stops only what needs it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unireason_lib.ablation.grid import Grid
from unireason_lib.ablation.ledger import Ledger
from unireason_lib.ablation.plan import Job, check_made_by, made_by
from unireason_lib.errors import GridError
from unireason_lib.profiles import load_profile

Outcome = tuple[str, float, str]
"""Status (``"passed"``, ``"failed"``, ``"interrupted"``), seconds, one line about what went wrong."""

Submit = Callable[[Job], Any]


@dataclass(frozen=True)
class Study:
    """What came of a plan.

    Attributes:
        passed, failed, skipped: Runs that passed (earlier ones included), that failed, and that could not be begun
            because one that they need failed.
        interrupted: Whether Ctrl-C ended it.
    """

    passed: tuple[Job, ...]
    failed: tuple[Job, ...]
    skipped: tuple[Job, ...]
    interrupted: bool = False


def folder_of(grid: Grid, root: Path) -> Path:
    """Where ledger, executed notebooks and tables of a study are."""
    return root / "runs" / "ablation" / grid.name


def finished(jobs: Sequence[Job], ledger: Ledger, root: Path) -> set[str]:
    """Keys of runs that passed and whose result is still there."""
    passed = ledger.passed()
    return {job.key for job in jobs if job.key in passed and (root / job.makes).exists()}


def run_jobs(
    jobs: Sequence[Job],
    grid: Grid,
    root: Path,
    *,
    workers: int = 1,
    retries: int = 1,
    ray: str | None = None,
    mixed: bool = False,
    on_end: Callable[[Job, Outcome, int, int], None] = lambda job, outcome, done, total: None,
) -> Study:
    """Run what is not finished.

    Args:
        jobs: From :func:`unireason_lib.ablation.plan.plan`.
        grid: Their grid.
        root: Of the project.
        workers: Notebooks at a time, here.
        retries: How often a run that fails is begun again; it goes on from its last checkpoint.
        ray: Address of a Ray cluster whose nodes see the project under the same path, or ``"local"``.
        mixed: Whether runs of other code or from another base are kept.
        on_end: Called for every run that ended: the run, its outcome, how many are done, and of how many.

    Returns:
        What came of it. After Ctrl-C: up to then; runs under way save a checkpoint.

    Raises:
        GridError: Runs of other code or from another base, code or base that change while it runs, another process
            that runs this study, or no cluster.
    """
    folder = folder_of(grid, root)
    ledger, here = Ledger(folder / "ledger.jsonl"), made_by(grid, root)
    if not mixed:
        passed = ledger.passed()
        check_made_by((passed[job.key] for job in jobs if job.key in passed), here, ledger.path)

    def made_now(job: Job) -> Mapping[str, str]:
        """Each run reads the code anew, so it is looked at before and after each."""
        found = made_by(grid, root)
        if found != here and not mixed:
            what = next(name for name in found if found[name] != here[name])
            do = f"put the {what} back, delete {job.makes} if it is there, and give the command again; or give --mixed"
            raise GridError(
                f"{what} of the study",
                f"as it was when the study began ({here[what][:16]})",
                f"{found[what][:16]}, seen at {job.name}",
                do,
            )
        return found

    done = finished(jobs, ledger, root)
    waiting = [job for job in jobs if job.key not in done]
    failed: dict[str, Job] = {}
    skipped: list[Job] = []
    tries: dict[str, int] = {}
    interrupted = False
    out = folder / "notebooks"
    model = load_profile(grid.profile, grid.overrides).model
    gpus = None if model.device == "cpu" else model.gpus
    with _alone(folder), _crew(root, out, workers, ray, gpus) as (submit, most, wait_for_some):
        running: dict[Any, Job] = {}
        try:
            while waiting or running:
                for job in [job for job in waiting if job.needs in failed]:
                    waiting.remove(job)
                    failed[job.key] = job
                    skipped.append(job)
                ready = [job for job in waiting if job.needs is None or job.needs in done]
                for job in ready[: most - len(running)]:
                    made_now(job)
                    waiting.remove(job)
                    running[submit(job)] = job
                if not running:
                    continue
                for handle, outcome in wait_for_some(list(running)):
                    job = running.pop(handle)
                    status, seconds, error = outcome
                    ledger.add(job, status, seconds, error, made_now(job))
                    if status == "passed":
                        done.add(job.key)
                    elif status == "interrupted":
                        raise KeyboardInterrupt
                    elif tries.get(job.key, 0) < retries:
                        tries[job.key] = tries.get(job.key, 0) + 1
                        waiting.insert(0, job)
                        continue
                    else:
                        failed[job.key] = job
                    on_end(job, outcome, len(done), len(jobs))
        except KeyboardInterrupt:
            interrupted = True
    never = {job.key for job in skipped}
    return Study(
        tuple(job for job in jobs if job.key in done),
        tuple(job for job in failed.values() if job.key not in never),
        tuple(skipped),
        interrupted,
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes with one study would train into the same folders."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise GridError(
            folder, "a study that no one runs", "another process running it", "wait for it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def execute_job(root: str, out: str, job: Job) -> Outcome:
    """Run one notebook; the executed one is written whole into ``out``. Whatever goes wrong is an outcome."""
    began = time.monotonic()
    try:
        return _execute(Path(root), Path(out), job)
    except Exception as error:  # one run must not end a study
        return (
            "failed",
            time.monotonic() - began,
            " ".join(f"{type(error).__name__}: {error}".split())[:500],
        )


def _execute(root: Path, out: Path, job: Job) -> Outcome:
    from unireason_lib.tutorial.document import write_notebook
    from unireason_lib.tutorial.execution import execute
    from unireason_lib.tutorial.runner import find_notebooks, share_parameters

    (path,) = find_notebooks(root / "notebooks", [job.notebook])
    profile = load_profile(job.parameters["PROFILE"], job.parameters["OVERRIDES"])
    given = {name: value for name, value in job.parameters.items() if name != "PROFILE"}
    shared = share_parameters([path], profile, given)[path]
    execution = execute(
        path,
        parameters=shared,
        timeout=profile.notebook.cell_timeout,
        offline=profile.notebook.offline,
    )
    write_notebook(out / f"{job.name}.ipynb", execution.notebook)
    status, error = execution.status, execution.error
    if status == "passed" and not (root / job.makes).exists():
        status, error = "failed", f"the notebook ended well, but {job.makes} is not there"
    return status, execution.seconds, error


@contextlib.contextmanager
def _crew(
    root: Path, out: Path, workers: int, ray: str | None, gpus: float | None
) -> Iterator[tuple[Submit, int, Any]]:
    """Who runs notebooks: how to hand one over, how many at a time, and how to wait for those that end."""
    if ray is not None:
        with _ray_cluster(root, out, ray, gpus) as crew:
            yield crew
        return
    if workers == 1:  # in this thread, so that Ctrl-C reaches the cell that runs
        results: dict[int, Outcome] = {}

        def now(job: Job) -> int:
            results[id(job)] = execute_job(str(root), str(out), job)
            return id(job)

        yield now, 1, lambda handles: [(handle, results.pop(handle)) for handle in handles]
        return
    with ThreadPoolExecutor(workers) as pool:

        def some(handles: list) -> list[tuple[Any, Outcome]]:
            ended, _ = wait(handles, return_when=FIRST_COMPLETED)
            return [(handle, handle.result()) for handle in ended]

        try:
            yield lambda job: pool.submit(execute_job, str(root), str(out), job), workers, some
        finally:  # after Ctrl-C some are under way
            from unireason_lib.tutorial.execution import interrupt_running

            if interrupt_running():
                print("\nStopping the running cells; once more stops at once.", file=sys.stderr)


@contextlib.contextmanager
def _ray_cluster(
    root: Path, out: Path, address: str, gpus: float | None
) -> Iterator[tuple[Submit, int, Any]]:
    try:
        import ray
    except ImportError as error:
        raise GridError("--ray", "the package ray", "none", "pip install -e '.[ray]'") from error
    own: Mapping[str, Any] = (
        {"num_cpus": 2, "include_dashboard": False} if address == "local" else {}
    )
    try:
        ray.init(address, log_to_driver=False, **own)
    except Exception as error:  # Ray raises whatever its parts do
        said = " ".join(str(error).split())[:200]
        raise GridError(
            f"--ray {address}", "a cluster that answers", said, "start it, or correct the address"
        ) from error

    def some(handles: list) -> list[tuple[Any, Outcome]]:
        ended, _ = ray.wait(handles)
        found = []
        for handle in ended:
            began = time.monotonic()
            try:
                found.append((handle, ray.get(handle)))
            except ray.exceptions.RayError as error:  # a node that died is a run that failed
                said = " ".join(str(error).split())[-200:]
                found.append((handle, ("failed", time.monotonic() - began, said)))
        return found

    kind, each = ("CPU", 1.0) if gpus is None else ("GPU", gpus)
    try:
        most = int(ray.cluster_resources().get(kind, 0) / each) if each > 0 else 0
        if not most:
            raise GridError(
                f"--ray {address}",
                f"{each:g} {kind} for a run, as model.device and model.gpus of the profile say",
                f"a cluster with {ray.cluster_resources().get(kind, 0):g}",
                "start nodes that have some, or --set model.device=cpu",
            )
        task = ray.remote(max_retries=2)(execute_job).options(**{f"num_{kind.lower()}s": each})
        yield lambda job: task.remote(str(root), str(out), job), most, some
    finally:
        ray.shutdown()
