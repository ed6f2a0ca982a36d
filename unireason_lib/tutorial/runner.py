"""Run the notebooks one after another, as a reader would, and end with what they found.

Each executed notebook is written whole into the output folder. One that fails does not stop the others; the
exit code tells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from unireason_lib.errors import ProfileError, UniReasonError
from unireason_lib.profiles import Profile, load_profile, match_type, near, parse_value
from unireason_lib.tutorial.project import project_root
from unireason_lib.tutorial.results import Result, aligned, collect, results_table

TRAINING = ("04", "05")
"""Numbers of the notebooks that train for longer than a tour may take: in a run of all they run as ``smoke``."""


@dataclass(frozen=True)
class TutorialRun:
    """What came out of a run.

    Args:
        profile: Name of the profile.
        executions: One for each notebook that was started, in order.
        results: What they published.
        out: Where the executed notebooks are.
    """

    profile: str
    executions: tuple[Any, ...]
    results: tuple[Result, ...]
    out: Path

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return any(execution.status == "interrupted" for execution in self.executions)

    @property
    def failed(self) -> int:
        """Notebooks that did not pass."""
        return sum(execution.status != "passed" for execution in self.executions)


def find_notebooks(folder: str | Path, only: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks of a folder, in order.

    Args:
        folder: Holds ``NN_name.ipynb``.
        only: Numbers (``"03"``) or names (``"03_grounded_interface"``); empty: all.

    Raises:
        UniReasonError: There are none, or one that was asked for is not there.
    """
    found = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        do = "run inside the repository"
        raise UniReasonError(folder, "notebooks NN_name.ipynb", "none", do)
    wanted = [word for words in only for word in words.replace(",", " ").split()]
    stems = {path.stem: path for path in found}
    for word in wanted:
        if not any(word in (stem, stem[:2]) for stem in stems):
            raise UniReasonError(
                "notebooks", "one that exists", repr(word), near(word, list(stems))
            )
    return [path for path in found if not wanted or path.stem in wanted or path.stem[:2] in wanted]


def share_parameters(
    notebooks: Sequence[Path], profile: Profile, values: Mapping[str, Any]
) -> dict[Path, dict[str, Any]]:
    """Which notebook gets which parameters: each those that it declares.

    Args:
        notebooks: Those that will run.
        profile: Goes to all as ``PROFILE``.
        values: Further parameters, name -> value (text is read as a literal).

    Raises:
        UniReasonError: A name is declared by none of them, a notebook does not declare ``PROFILE``, or a value
            has another type than the declared default. Papermill would only warn, and run the defaults.
    """
    from unireason_lib.tutorial.document import parameters_of

    declared = {path: parameters_of(path) for path in notebooks}
    for path, names in declared.items():
        if "PROFILE" not in names:
            do = 'declare PROFILE = "laptop"'
            raise UniReasonError(path.name, "a parameter PROFILE", "none", do)
    known = sorted({name for names in declared.values() for name in names})
    shared: dict[Path, dict[str, Any]] = {path: {"PROFILE": profile.name} for path in notebooks}
    for name, value in values.items():
        if name not in known or name == "PROFILE":
            hint = "use --profile" if name == "PROFILE" else near(name, known)
            expected = "one that a notebook declares"
            raise UniReasonError("parameter", expected, repr(name), hint)
        if name == "OVERRIDES":
            load_profile(
                profile.name, value
            )  # a wrong setting is found now and not in every notebook
        for path in notebooks:
            if name in declared[path]:
                shared[path][name] = _typed(f"{path.name}, {name}", value, declared[path][name])
    return shared


def run_tutorial(
    profile: str = "laptop",
    *,
    only: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    out: str | Path = "runs/tutorial",
    folder: str | Path = "notebooks",
    timeout: float | None = None,
) -> TutorialRun:
    """Execute notebooks in order, with a line of progress each, and print the status and results tables.

    Args:
        profile: Goes to every notebook as ``PROFILE``; those of :data:`TRAINING` run as ``smoke`` unless they are
            named.
        only: Numbers or names of notebooks; empty: all.
        parameters: Further papermill parameters, each for the notebooks that declare it.
        out: Folder for the executed notebooks and ``results.json``; relative to the project.
        folder: Where the notebooks are; relative to the project. Kernels work in it, as in JupyterLab.
        timeout: Seconds a cell may take; default: the profile's.

    Returns:
        What came out. After Ctrl-C: of the notebooks up to then.

    Raises:
        UniReasonError: Before anything runs: an unknown profile, notebook or parameter, or a value of the wrong type.
    """
    from rich.console import Console

    from unireason_lib.tutorial.document import write_notebook
    from unireason_lib.tutorial.execution import execute

    settings = load_profile(profile)
    root = project_root()
    out, folder = root / out, root / folder
    notebooks = find_notebooks(folder, only)
    shared = share_parameters(notebooks, settings, parameters or {})
    shortened = {
        path for path in notebooks if not only and path.stem[:2] in TRAINING and profile != "smoke"
    }
    for path in shortened:
        shared[path]["PROFILE"] = "smoke"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(notebooks)} notebooks, profile {profile}")
    executions, results = [], []
    width = max(len(path.stem) for path in notebooks)
    for path in notebooks:
        with live_bar(console, path.stem) as on_cell:
            execution = execute(
                path,
                parameters=shared[path],
                timeout=timeout or settings.notebook.cell_timeout,
                offline=settings.notebook.offline,
                on_cell=on_cell,
            )
        write_notebook(out / path.name, execution.notebook)
        executions.append(execution)
        note = "  (as smoke; name it to train in full)" if path in shortened else ""
        results += [] if note else collect(execution.notebook, execution.name)
        console.print(status_line(execution, width) + note)
        if execution.status == "interrupted":
            break
    run = TutorialRun(profile, tuple(executions), tuple(results), out)
    _write_results(run)
    console.print(_summary(run, root))
    return run


def tutorial_command(
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Numbers or names of notebooks, like 00 03; by default all, those that train long (04, 05) as smoke."
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="smoke (seconds), laptop (minutes; 04 and 05 up to 40), t4 or gpu.")
    ] = "laptop",
    only: Annotated[
        list[str] | None, typer.Option(help="The same as naming notebooks: --only 00 03.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", help="NAME=VALUE, a parameter of the notebooks that declare it."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the executed notebooks, within the project.")
    ] = Path("runs/tutorial"),
    folder: Annotated[
        Path, typer.Option(help="Folder of the notebooks, within the project.")
    ] = Path("notebooks"),
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a cell may take; by default the profile's.")
    ] = None,
) -> None:
    """Run the notebooks headlessly; show where the executed ones are and what came out."""
    try:
        values = dict(_name_and_value(text) for text in parameter or ())
        run = run_tutorial(
            profile,
            only=[*(notebooks or ()), *(only or ())],
            parameters=values,
            out=out,
            folder=folder,
            timeout=timeout,
        )
    except UniReasonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    passed = len(run.executions) - run.failed
    typer.echo(f"notebooks: {passed} passed, {run.failed} failed")
    if run.failed:
        raise typer.Exit(130 if run.interrupted else 1)


def _typed(subject: str, value: Any, default: Any) -> Any:
    """A parameter's value as the notebook expects it; text from a command line is read unless text is wanted."""
    if isinstance(value, str) and not isinstance(default, str):
        value = parse_value(value)
    return match_type(subject, value, default)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ProfileError("-p", "NAME=VALUE", repr(text), "write -p SEED=1 and the like")
    return name.strip(), value


@contextmanager
def live_bar(console: Any, name: str) -> Iterator[Any]:
    """A bar that moves with the cells and a clock that runs, on a terminal; yields the callback for it."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TextColumn("cells"),
    )
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=2
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def status_line(execution: Any, width: int) -> str:
    """One line about a notebook: cells, seconds, status, and what went wrong."""
    cells = f"{execution.cells:3d} of {execution.total:3d} cells"
    line = (
        f"  {execution.name.ljust(width)}  {cells}  {execution.seconds:7.1f} s  {execution.status}"
    )
    return f"{line}: {execution.error}" if execution.error else line


def _summary(run: TutorialRun, root: Path) -> str:
    """What the run ends with: status of each notebook, results with their profile, and where to look."""
    rows = [("notebook", "seconds", "status")]
    rows += [(entry.name, f"{entry.seconds:.1f}", entry.status) for entry in run.executions]
    parts = [f"\n{aligned(rows)}"]
    if run.profile == "smoke":
        parts.append(
            f"Results published: {len(run.results)} (not shown: smoke figures only show that the code runs)"
        )
    elif run.results:
        parts.append(
            f"Results (profile {run.profile}, this machine)\n\n{results_table(list(run.results))}"
        )
    where = run.out.relative_to(root) if run.out.is_relative_to(root) else run.out
    parts.append(
        f"Executed notebooks: {where}/   (look at them: make lab, or any viewer of notebooks)"
    )
    return "\n\n".join(parts) + "\n"


def _write_results(run: TutorialRun) -> None:
    from dataclasses import asdict

    from unireason_lib.tutorial.document import write_whole

    notebooks = [
        {
            "name": entry.name,
            "status": entry.status,
            "cells": entry.cells,
            "seconds": round(entry.seconds, 2),
            "error": entry.error,
        }
        for entry in run.executions
    ]
    content = {
        "profile": run.profile,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "notebooks": notebooks,
        "results": [asdict(result) for result in run.results],
    }
    write_whole(run.out / "results.json", json.dumps(content, indent=2) + "\n")
