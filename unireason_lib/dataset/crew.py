"""Who works off the units: this process, a pool of processes, or a Ray cluster.

All three are one function that takes units and yields each as it is done, in whatever order; only a bounded
number is under way at a time, so memory does not grow with the number of units.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from unireason_lib.dataset.plan import BuildConfig, Unit, fault
from unireason_lib.dataset.unit import BuildStopped, build_unit, census_unit

Run = Callable[[Sequence[Unit]], Iterator[Unit]]


@contextlib.contextmanager
def crew(config: BuildConfig, folder: Path, workers: int, ray: str | None) -> Iterator[Run]:
    """Whoever works off units: a function that takes some and yields each as it is done, in whatever order."""
    try:
        if ray is not None:
            with _ray_cluster(config, folder, workers, ray) as run:
                yield run
        elif workers > 1 and config.writer != "llm":  # an LLM writer brings its own concurrency
            with _pool(config, folder, workers) as run:
                yield run
        else:
            yield lambda units: (_work(config, folder, unit) for unit in units)
    except KeyboardInterrupt:
        raise BuildStopped("stopped; run the same command again to go on from here") from None


def _in_flight(units: Sequence[Unit], submit: Callable, most: int, wait_for_some: Callable) -> Iterator[Unit]:
    """Keep a bounded number of tasks running."""
    waiting, running = iter(units), []
    while True:
        for unit in waiting:
            running.append(submit(unit))
            if len(running) >= most:
                break
        if not running:
            return
        done, running = wait_for_some(running)
        yield from done


@contextlib.contextmanager
def _pool(config: BuildConfig, folder: Path, workers: int) -> Iterator[Run]:
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    spawn = get_context("spawn")
    stop = spawn.Event()

    def some(running: list[Future]) -> tuple[list[Unit], list[Future]]:
        done, rest = wait(running, return_when=FIRST_COMPLETED)
        return [future.result() for future in done], list(rest)

    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_become_worker, initargs=(stop,)) as pool:
        try:
            yield lambda units: _in_flight(
                units, lambda unit: pool.submit(_work, config, folder, unit), 2 * workers, some
            )
        except BrokenProcessPool as error:
            raise fault(
                "workers",
                "workers that stay alive",
                "one that was killed",
                "check the memory, use fewer --workers",
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _ray_cluster(config: BuildConfig, folder: Path, workers: int, address: str) -> Iterator[Run]:
    """The same units as Ray tasks; all nodes must see the folder and the sources under the same paths."""
    try:
        import ray
    except ImportError as error:
        raise fault("--ray", "the package ray", "none", "pip install -e '.[ray]'") from error
    own = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, **own)
    except Exception as error:  # Ray raises whatever its parts do
        said = " ".join(str(error).split())[:200]
        raise fault(
            f"--ray {address}", "a cluster that answers", said, "start it, or correct the address"
        ) from error
    task = ray.remote(num_cpus=1, max_retries=2)(_work)
    most = max(2, int(2 * ray.cluster_resources().get("CPU", 1)))

    def some(running: list) -> tuple[list[Unit], list]:
        done, rest = ray.wait(running)
        try:
            return ray.get(done), rest
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error

    try:
        yield lambda units: _in_flight(units, lambda unit: task.remote(config, folder, unit), most, some)
    finally:
        ray.shutdown()


def _work(config: BuildConfig, folder: Path, unit: Unit) -> Unit:
    if unit.kind == "census":
        return census_unit(config, folder, unit)
    return build_unit(config, folder, unit, _stopping)


_stop: Any = None


def _stopping() -> bool:
    return _stop is not None and _stop.is_set()


def _become_worker(stop: Any) -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, however it ended."""
    import signal
    from multiprocessing import parent_process
    from multiprocessing.connection import wait as wait_for

    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def progress_bar(show: bool, what: str, total: int, done: int = 0) -> Iterator[Any]:
    """A bar with rate and remaining time; silent when not shown."""
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=what, unit=" " + what, disable=not show, smoothing=0.1) as bar:
        yield bar
