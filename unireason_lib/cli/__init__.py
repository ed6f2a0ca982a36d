"""The command line: ``python -m unireason_lib COMMAND``.

Commands turn words into values and call the package that does the work, which notebooks and scripts
can call as well. Packages are imported inside commands, so ``--help`` does not wait for torch.

Exit codes: 0 all is well; 1 something in a batch failed, and the results say what; 2 nothing could
be done, with a message that says what to do; 130 interrupted.
"""

import typer

from .ask import batch, evaluate, one, trace
from .make import ablate, base, build, merge, plan, rl, sft, tutorial
from .options import Command

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Grounded reasoning over medical images and volumes. For learning and research, not for "
    "clinical use.",
)
infer = typer.Typer(no_args_is_help=True, help="Ask a model about an image, a volume, or a file.")
app.add_typer(infer, name="infer")
for name, command in (("2d", one), ("3d", one), ("2d-batch", batch), ("3d-batch", batch)):
    infer.command(name, cls=Command)(command)
for command in (build, sft, rl, merge, evaluate, ablate, trace, plan, base, tutorial):
    app.command(cls=Command)(command)
