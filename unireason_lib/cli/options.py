"""What commands share: their options, how they end, and how values are read."""

from __future__ import annotations

import errno
import inspect
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
import yaml
from typer.core import TyperCommand

from unireason_lib.errors import RequestError, ScanError, ScanWarning, UniReasonError

OPTIONS = yaml.safe_load((Path(__file__).parents[1] / "configs/options.yaml").read_text("utf-8"))
TYPES = {"str": str, "path": Path, "int": int, "float": float, "bool": bool}


def with_options(names: str, **defaults: Any) -> Callable[..., Callable[..., None]]:
    """A decorator: a command with the options of these names (``name!``: required), which calls the
    function with their values, and ``command``, the command's own name, as attributes."""
    parameters = []
    for name, required in re.findall(r"(\w+)(!?)", names):
        about = OPTIONS[name]
        kind: Any = TYPES[about.get("type", "str")]
        kind = list[kind] if about.get("list") else kind
        default = ... if required else defaults.get(name, about.get("default"))
        how = {"help": about["help"], "min": about.get("min")}
        if about.get("argument"):
            default = typer.Argument(default, **how)
        else:
            flags = about.get("flags", "--" + name.replace("_", "-")).split()
            default = typer.Option(default, *flags, **how)
        kind = kind if required else kind | None
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=kind))

    def decorate(run: Callable[[SimpleNamespace], None]) -> Callable[..., None]:
        def command(context: typer.Context, **values: Any) -> None:
            run(SimpleNamespace(command=context.info_name, **values))

        own = inspect.Parameter("context", keyword, annotation=typer.Context)
        command.__signature__ = inspect.Signature([own, *parameters])
        command.__doc__, command.__name__ = run.__doc__, run.__name__
        return command

    return decorate


class Command(TyperCommand):
    """A command whose errors end as a message and an exit code, never as a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run it; warnings about scans become lines."""
        plain = warnings.showwarning

        def show(message: Any, category: type, *where: Any) -> None:
            if issubclass(category, ScanWarning):
                typer.echo(f"warning: {message}", err=True)
            else:
                plain(message, category, *where)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", ScanWarning)
                warnings.showwarning = show
                if ctx.params.get("quiet"):
                    quiet_libraries()
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
            from unireason_lib.io import disk_error

            if full:  # in words that name the file, or the output
                place = getattr(error, "filename", None) or ctx.params.get("out")
                error = disk_error(place, OSError(errno.ENOSPC, "No space left on device"))
            message, code = f"error: {error}", 2
        typer.echo(message, err=True)
        raise typer.Exit(code)


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


def printable(text: str) -> str:
    """The text without control characters but line breaks and tabs: what a model writes must not
    reach the terminal as escape codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def size_of(text: str | None) -> tuple[int, ...] | None:
    """``"32,256,256"`` or ``"32x256x256"`` as numbers."""
    if text is not None and not re.fullmatch(r"\d+([,x])\d+\1\d+", text):
        raise ScanError("size", "slices, rows, columns", repr(text), "write it as 32,256,256")
    return text and tuple(map(int, re.findall(r"\d+", text)))


def window_of(text: str | None) -> Any:
    """``"-150,250"`` as a pair, any other word as it is."""
    try:
        return tuple(map(float, text.split(","))) if text and "," in text else text
    except ValueError:
        do = "write it as --window=-150,250"
        raise ScanError("window", "a name or LOW,HIGH", repr(text), do) from None


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
