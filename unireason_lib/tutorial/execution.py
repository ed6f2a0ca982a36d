"""One notebook, executed by papermill in a kernel of its own.

The kernel is always this interpreter, whatever kernels the user has registered, works in the notebook's folder
(as it does in JupyterLab) and sees an environment that shows figures and, unless the profile says otherwise,
asks no hub. The first Ctrl-C is passed on to the cell that runs, which may save what it has; the second one
ends everything at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unireason_lib.tutorial.document import code_cells, read_notebook

START_TIMEOUT = 180
"""Seconds a kernel may take to come up; generous, since a cold disk is slow to import from."""


@dataclass(frozen=True)
class Execution:
    """What became of one notebook.

    Args:
        name: File name without ending.
        status: ``"passed"``, ``"failed"`` or ``"interrupted"``.
        cells: Code cells that were executed to their end.
        total: Code cells.
        seconds: Wall-clock time, starting the kernel included.
        error: One line about what went wrong; empty when it passed.
        notebook: The notebook node with its outputs, as far as it came.
    """

    name: str
    status: str
    cells: int
    total: int
    seconds: float
    error: str
    notebook: Any


def execute(
    path: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    offline: bool = True,
    on_cell: Callable[[int, int], None] = lambda done, total: None,
) -> Execution:
    """Run a notebook from top to bottom.

    Args:
        path: The notebook; not changed. The kernel works in its folder.
        parameters: Values to inject after its parameters cell.
        timeout: Seconds a single cell may take; None: no limit.
        offline: Keep Hugging Face libraries from asking their hub.
        on_cell: Called with (code cells done, code cells) as it goes.

    Returns:
        The outcome. Errors in the notebook do not raise.
    """
    import papermill
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import CellTimeoutError

    path = Path(path).resolve()
    total = len(code_cells(read_notebook(path))) + bool(parameters)
    done = 0
    status, error = "passed", ""
    start = time.monotonic()

    def count(execute_reply: Any, **_: Any) -> None:
        nonlocal done
        done += execute_reply["content"]["status"] == "ok"
        on_cell(done, total)
        if interrupted:  # the cell saved what it had and ended well; the next one should not begin
            raise KeyboardInterrupt

    interrupted: list[int] = []
    mine = object()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / path.name
        manager = _start_kernel(path.parent, Path(scratch), offline)
        try:
            on_cell(0, total)
            _running[mine] = (manager, interrupted)
            with _interrupts_go_to(manager, interrupted):
                papermill.execute_notebook(
                    str(path),
                    str(output),
                    parameters=dict(parameters or {}),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    start_timeout=START_TIMEOUT,
                    execution_timeout=timeout,
                    km=manager,
                    on_cell_executed=count,
                )
        except papermill.PapermillExecutionError as failure:
            status, error = (
                "failed",
                f"cell {failure.exec_count}: {failure.ename}: {_what_failed(failure)}",
            )
        except CellTimeoutError:
            status, error = "failed", f"cell {done + 1}: no end within {timeout:g} s"
        except RuntimeError as failure:  # the kernel did not come up, or died
            status, error = (
                "failed",
                f"cell {done + 1}: {_first_line(str(failure))} (often: out of memory)",
            )
        except KeyboardInterrupt:
            interrupted.append(signal.SIGINT)
        finally:
            _running.pop(mine, None)
            run_sync(manager.shutdown_kernel)(now=True)
        if interrupted:
            status, error = "interrupted", f"after {done} of {total} cells"
        seconds = time.monotonic() - start
        notebook = read_notebook(output) if output.is_file() else read_notebook(path)
    _name_files_only(notebook, path.name)
    return Execution(path.stem, status, done, total, seconds, error, notebook)


def _start_kernel(folder: Path, scratch: Path, offline: bool) -> Any:
    """A kernel of this interpreter, working in ``folder``."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    specs = KernelSpecManager(
        kernel_dirs=[]
    )  # no registered kernel, so the native one: sys.executable
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    environment = kernel_environment(offline) | {"IPYTHONDIR": str(scratch / "ipython")}
    start = run_sync(manager.start_kernel)
    start(
        cwd=str(folder),
        env=environment,
        extra_arguments=["--HistoryManager.hist_file=:memory:", "--IPKernelApp.log_level=40"],
    )
    return manager


def kernel_environment(offline: bool) -> dict[str, str]:
    """Environment of a kernel: figures inline, no telemetry, this very copy of the package, and perhaps no hub."""
    environment = dict(os.environ)
    environment.pop("MPLBACKEND", None)  # Agg would leave notebooks without figures
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment |= {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if offline:
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        }
    return environment


_running: dict[
    object, tuple[Any, list[int]]
] = {}  # notebooks under way in this process, in whatever thread


def interrupt_running() -> int:
    """Interrupt the cells that run now in other threads, which no Ctrl-C reaches; what they make is saved as they do.

    Returns:
        How many notebooks that were.
    """
    stopped = list(_running.values())
    for manager, interrupted in stopped:
        process = getattr(manager.provisioner, "process", None)
        interrupted.append(signal.SIGINT)
        if process is not None and os.name != "nt":
            process.send_signal(signal.SIGINT)
    return len(stopped)


@contextmanager
def _interrupts_go_to(manager: Any, interrupted: list[int]) -> Iterator[None]:
    """Pass the first Ctrl-C on to the kernel and note it in ``interrupted``; the second one raises here."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive in the main thread only
        return

    def pass_on(number: int, frame: Any) -> None:
        process = getattr(manager.provisioner, "process", None)
        if interrupted or process is None or os.name == "nt":
            raise KeyboardInterrupt
        interrupted.append(number)
        print("\nStopping the running cell; once more stops at once.", file=sys.stderr)
        process.send_signal(number)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _name_files_only(notebook: Any, name: str) -> None:
    """Papermill notes whole paths in the metadata; names are enough."""
    entry = notebook.metadata.get("papermill", {})
    for key in ("input_path", "output_path"):
        if key in entry:
            entry[key] = name


def _what_failed(failure: Any) -> str:
    """The message of an error, or for a bare assertion the line of code it stands in."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(failure.traceback))
    marked = re.findall(r"^-+> *\d+ *(.*)", plain, re.MULTILINE)
    return _first_line(failure.evalue or (marked[0] if marked else ""))


def _first_line(text: str) -> str:
    line = (text or "").strip().split("\n")[0]
    return line if len(line) <= 300 else f"{line[:297]}..."
