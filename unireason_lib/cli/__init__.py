"""The command line: ``python -m unireason_lib COMMAND``.

Commands are thin. They turn words into values and call the room that does the work, which notebooks and scripts can
call as well. Rooms are imported inside commands, so ``--help`` does not wait for torch.

Exit codes: 0 all is well; 1 something in a batch failed, and the results say what; 2 nothing could be done (wrong
arguments, unusable files), with a message that says what to do; 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from unireason_lib import __version__
from unireason_lib.cli.ablate import ablate
from unireason_lib.cli.base import base
from unireason_lib.cli.bench import bench
from unireason_lib.cli.build import build
from unireason_lib.cli.evaluate import evaluate
from unireason_lib.cli.infer import infer
from unireason_lib.cli.merge import merge
from unireason_lib.cli.plan import plan
from unireason_lib.cli.rl import rl
from unireason_lib.cli.sft import sft
from unireason_lib.cli.tiny import tiny
from unireason_lib.cli.trace import trace
from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial.runner import tutorial_command


class Commands(TyperGroup):
    """Commands whose own errors end as a message and an exit code, never as a traceback."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Groups of commands first."""
        return sorted(
            super().list_commands(ctx),
            key=lambda name: not isinstance(self.commands[name], TyperGroup),
        )

    def invoke(self, ctx: typer.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (UniReasonError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Grounded reasoning over medical images and volumes. For learning and research, not for clinical use.",
)
app.add_typer(infer, name="infer")
app.command("base")(base)
app.command("build")(build)
app.command("sft")(sft)
app.command("rl")(rl)
app.command("merge")(merge)
app.command("evaluate")(evaluate)
app.command("trace")(trace)
app.command("tiny")(tiny)
app.command("ablate")(ablate)
app.command("plan")(plan)
app.command("tutorial")(tutorial_command)
app.command("bench")(bench)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
