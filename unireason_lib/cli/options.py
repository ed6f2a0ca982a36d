"""What commands share: their options, read into values, and how they end."""

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
import yaml
from typer.core import TyperCommand

from unireason_lib.errors import RequestError, ScanWarning, UniReasonError

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
        def command(context: typer.Context, **words: Any) -> None:
            read = {name: _read(name, given) for name, given in words.items()}
            run(SimpleNamespace(command=context.info_name, **read))

        own = inspect.Parameter("context", keyword, annotation=typer.Context)
        command.__signature__ = inspect.Signature([own, *parameters])
        command.__doc__, command.__name__ = run.__doc__, run.__name__
        return command

    return decorate


class Command(TyperCommand):
    """A command whose errors end as a message and an exit code, never as a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run it; warnings become lines."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", ScanWarning)
                warnings.showwarning = lambda text, *_: typer.echo(f"warning: {text}", err=True)
                if ctx.params.get("quiet"):
                    quiet_libraries()
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            message, code = "interrupted; the same command resumes from what is finished", 130
        except UniReasonError as error:
            stopped = isinstance(error.__context__, KeyboardInterrupt)
            message, code = (str(error), 130) if stopped else (f"error: {error}", 2)
        except Exception as error:
            from unireason_lib.io import disk_error

            named = disk_error(getattr(error, "filename", None) or ctx.params.get("out"), error)
            if named is error and not isinstance(error, OSError):
                raise
            message, code = f"error: {named}", 2
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


def values(given: Any, names: str) -> dict[str, Any]:
    """What was given for these options, as keyword arguments."""
    return {name: getattr(given, name) for name in names.split()}


def settings_of(given: Any) -> Any:
    """The profile that a command was given, with its ``--set``."""
    from unireason_lib.config import load_profile

    return load_profile(given.profile, "\n".join(given.set or ()))


def _read(name: str, given: Any) -> Any:
    """What an option says: ``32x256x256`` or ``-150,250`` a tuple, another word as it is; of
    repeated ``name=value`` a dictionary."""
    from unireason_lib.config import parse_value

    how = OPTIONS[name].get("read")
    if how == "literal" and given is not None:
        from unireason_lib.imaging.serialize import check_size

        value = parse_value(re.sub(r"(?<=\d)x(?=\d)", ",", given))
        value = value if isinstance(value, str | tuple) else (value,)
        return check_size(value) if name == "size" else value
    if how != "pairs":
        return given
    pairs: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            flag = "--" + name.replace("_", "-")
            raise RequestError(flag, "name=value", repr(text), "correct it")
        pairs[key] = parse_value(value)
    return pairs
