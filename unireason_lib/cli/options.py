"""What commands share: how they end, options, and how values are read."""

from __future__ import annotations

import errno
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from unireason_lib.errors import RequestError, ScanError, ScanWarning, UniReasonError

if TYPE_CHECKING:
    from unireason_lib.imaging.window import Window


def option(help: str, *names: str) -> Any:
    """An option, for ``Annotated``; without names it is called like the parameter."""
    return typer.Option(*names, help=help)


ProfileName = Annotated[str, option("smoke, laptop, t4 or gpu.", "--profile")]
Change = Annotated[list[str] | None, option("A setting: sft.max_steps=5; repeatable.", "--set")]
Quiet = Annotated[bool, option("No progress bars and no advice.", "--quiet")]
OUT, MODEL, ROOT = (
    ("--out", "--output"),
    ("--model", "--model-path"),
    ("--image-root", "--data-root"),
)
"""Options have one name in all commands; the other is that of the authors' script."""


class Command(TyperCommand):
    """A command whose errors end as a message and an exit code, never as a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run it."""
        if ctx.params.get("quiet"):
            quiet_libraries()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            message, code = "interrupted; the same command goes on from what is finished", 130
        except UniReasonError as error:
            stopped = isinstance(error.__context__, KeyboardInterrupt)
            message, code = (str(error), 130) if stopped else (f"error: {error}", 2)
        except Exception as error:
            full = "No space left on device" in str(error)  # also by PyTorch, safetensors, Arrow
            if not full and not isinstance(error, OSError):
                raise
            message, code = f"error: {_of_system(error, full, ctx)}", 2
        typer.echo(message, err=True)
        raise typer.Exit(code)


def _of_system(error: Exception, full: bool, ctx: typer.Context) -> Exception:
    """An error of the system; of a full disk in words that name the file, or the output."""
    from unireason_lib.io import disk_error

    place = getattr(error, "filename", None) or ctx.params.get("out")
    return disk_error(place, OSError(errno.ENOSPC, "No space left on device")) if full else error


def quiet_libraries() -> None:
    """No loading bars, no advice and no deprecation warnings of the libraries below."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    disable_progress_bars()


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show each warning about a scan in the block as a line on the error stream."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScanWarning)
        yield
    for one in caught:
        typer.echo(f"warning: {one.message}", err=True)


def printable(text: str) -> str:
    """The text without control characters but line breaks and tabs: what a model writes must not
    reach the terminal as escape codes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def size_of(text: str | None, flag: str) -> tuple[int, ...] | None:
    """``"32,256,256"`` or ``"32x256x256"`` as numbers; ``flag`` is named in the error."""
    if text is None:
        return None
    parts = re.split(r"\s*[,x×]\s*|\s+", text.strip().strip("()[]"))
    if len(parts) != 3 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise ScanError(flag, "slices, rows, columns", repr(text), "write it as 32,256,256")
    return tuple(int(part) for part in parts)


def window_of(text: str | None, flag: str) -> Window | None:
    """``"-150,250"`` as a pair, any other word as it is; ``flag`` is named in the error."""
    if text is None or "," not in text:
        return text
    try:
        low, high = (float(part) for part in text.strip().strip("()[]").split(","))
    except ValueError:
        do = f"write it as {flag}=-150,250"
        raise ScanError(flag, "a name or LOW,HIGH", repr(text), do) from None
    return low, high


def named_values(texts: list[str] | None, flag: str) -> dict[str, Any]:
    """``["budget=20"]`` as names and values: what JSON or Python would read them as, else text."""
    from unireason_lib.config import parse_value

    values: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(flag, "name=value", repr(text), "correct it")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = parse_value(value)
    return values
