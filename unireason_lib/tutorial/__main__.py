"""What ``make test``, ``make sync`` and ``make notebooks`` call: gate, sync and refresh of the committed notebooks."""

from __future__ import annotations

from typing import Annotated

import typer

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial.project import project_root
from unireason_lib.tutorial.runner import find_notebooks, tutorial_command

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False
)
app.command("run")(tutorial_command)

Only = Annotated[
    list[str] | None,
    typer.Argument(help="Numbers or names of notebooks, like 00 03; all by default."),
]


@app.command()
def gate(only: Only = None) -> None:
    """Check that committed notebooks are fresh, clean and in step with their text twins."""
    from unireason_lib.tutorial.gate import problems

    bad = 0
    notebooks = find_notebooks(project_root() / "notebooks", only or ())
    for path in notebooks:
        found = problems(path)
        bad += bool(found)
        for problem in found:
            typer.echo(f"{path.name}: {problem}")
    typer.echo(
        f"notebook gate: {len(notebooks) - bad} of {len(notebooks)} notebooks may be committed"
    )
    raise typer.Exit(1 if bad else 0)


@app.command()
def sync(only: Only = None) -> None:
    """Bring notebooks and their text twins in step, from whichever was edited last."""
    from unireason_lib.tutorial.pair import sync as sync_pair

    root = project_root()
    stems = {path.with_suffix(".ipynb") for path in (root / "notebooks").glob("[0-9][0-9]_*.py")}
    stems |= set((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    wanted = [word for words in only or () for word in words.replace(",", " ").split()]
    for path in sorted(stems):
        if not wanted or path.stem in wanted or path.stem[:2] in wanted:
            typer.echo(f"{path.stem}: {_or_exit(sync_pair, path, root)}")


@app.command()
def refresh(
    only: Only = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Only notebooks whose outputs are out of date.")
    ] = False,
) -> None:
    """Execute the committed notebooks in the laptop profile and keep their outputs."""
    from rich.console import Console

    from unireason_lib.tutorial.refresh import is_stale
    from unireason_lib.tutorial.refresh import refresh as refresh_one
    from unireason_lib.tutorial.runner import live_bar, status_line

    root = project_root()
    sync(only)
    notebooks = find_notebooks(root / "notebooks", only or ())
    notebooks = [path for path in notebooks if not stale or is_stale(path)]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    failed = 0
    for path in notebooks:
        with live_bar(console, path.stem) as on_cell:
            execution = _or_exit(refresh_one, path, root, on_cell=on_cell)
        console.print(status_line(execution, max(len(path.stem) for path in notebooks)))
        failed += execution.status != "passed"
        if execution.status == "interrupted":
            break
    typer.echo(
        f"refreshed: {len(notebooks) - failed} of {len(notebooks)}; one that failed stays as it was"
    )
    raise typer.Exit(1 if failed else 0)


def _or_exit(function, *arguments, **options):  # type: ignore[no-untyped-def]
    """Call, and turn one of our errors into a message and exit code 2."""
    try:
        return function(*arguments, **options)
    except UniReasonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
