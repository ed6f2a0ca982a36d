"""The command line: ``python -m unireason_lib COMMAND``.

Commands turn words into values and call the package that does the work, which notebooks and scripts
can call as well. Packages are imported inside commands, so ``--help`` does not wait for torch.

Exit codes: 0 all is well; 1 something in a batch failed, and the results say what; 2 nothing could
be done, with a message that says what to do; 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from unireason_lib import __version__

from .data import build
from .evaluate import evaluate
from .infer import infer
from .options import Command
from .studies import ablate, plan, trace, tutorial
from .train import base, merge, rl, sft

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Grounded reasoning over medical images and volumes. For learning and research, not for "
    "clinical use.",
)
app.add_typer(infer, name="infer")
for command in (build, sft, rl, merge, evaluate, ablate, trace, plan, base, tutorial):
    app.command(cls=Command)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
