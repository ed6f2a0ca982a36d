"""Options that several commands share, in groups: a group is a dataclass, its fields are the options.

A command takes groups as parameters, and :func:`grouped` unfolds them for typer::

    @app.command()
    @grouped
    def evaluate(model: ModelOptions, reply: ReplyOptions, benchmark: str) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from unireason_lib.errors import ModelError, RequestError, ScanError, ScanWarning

if TYPE_CHECKING:
    from unireason_lib.grounding import Settings
    from unireason_lib.imaging.window import Window
    from unireason_lib.inference import Checkpoint, Reading

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Make every parameter that is annotated with a dataclass into one option for each of its fields."""
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    unfolded: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            found = [
                (field.name, field.default, types[field.name]) for field in fields(groups[name])
            ]
        else:
            found = [(name, parameter.default, hints[name])]
        for option, default, hint in found:
            empty = default is MISSING or default is inspect.Parameter.empty
            unfolded.append(
                inspect.Parameter(
                    option,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if empty else default,
                    annotation=hint,
                )
            )

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(unfolded)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in unfolded}
    return run


def _option(*names: str, panel: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


_model = functools.partial(_option, panel="Model")
_scan = functools.partial(_option, panel="Scan")
_reply = functools.partial(_option, panel="Reply")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model_path: Annotated[str | None, _model(help="Checkpoint folder or hub id (Qwen2.5-VL).")] = (
        None
    )
    adapter: Annotated[str | None, _model(help="PEFT adapter to put on top.")] = None
    device: Annotated[
        str | None, _model(help="cpu, cuda, cuda:1; default: a GPU if there is one.")
    ] = None
    device_map: Annotated[
        str | None, _model(help="Spread the model over devices, as 'auto'; excludes --device.")
    ] = None
    torch_dtype: Annotated[
        str, _model(help="auto (the checkpoint's own), float32, bfloat16 or float16.")
    ] = "auto"

    def checkpoint(self) -> Checkpoint:
        """The choice as a value.

        Raises:
            ModelError: No model was named.
        """
        if not self.model_path:
            raise ModelError(
                "--model-path",
                "a checkpoint folder, or a hub id like Qwen/Qwen2.5-VL-7B-Instruct",
                "nothing",
                "name one; `python -m unireason_lib tiny runs/tiny` makes one with random weights in seconds",
            )
        from unireason_lib.inference import Checkpoint

        dtype = self.torch_dtype.removeprefix("torch.")
        return Checkpoint(
            self.model_path, self.adapter, _DTYPES.get(dtype, dtype), self.device, self.device_map
        )


@dataclass(frozen=True)
class ImageOptions:
    """How a 2D image is read."""

    normalize: Annotated[
        str | None,
        _scan(
            help="Window of an image with more than 8 bits: minmax (default), percentile, LOW,HIGH, or a CT window."
        ),
    ] = None

    def reading(self, checkpoint: Checkpoint) -> Reading:
        """The choice as a value; what is not given is as the checkpoint was trained."""
        from unireason_lib.inference import Reading

        window = window_of(self.normalize)
        return Reading.like(checkpoint.serialization, dimension="2d", window=window)


@dataclass(frozen=True)
class VolumeOptions:
    """How a volume becomes slices."""

    target_size: Annotated[
        str | None,
        _scan(
            help="Slices, rows and columns, as 32,256,256 or 32x256x256; default: as the checkpoint was trained, "
            "else 32,256,256."
        ),
    ] = None
    normalize: Annotated[
        str | None,
        _scan(
            help="Window: percentile (1st to 99th), minmax, LOW,HIGH in scan units, or for CT lung, mediastinum, "
            "abdomen, liver, bone, brain, stroke; default: as the checkpoint was trained, else percentile."
        ),
    ] = None
    key: Annotated[str | None, _scan(help="Which array of an .npz with several.")] = None
    frame: Annotated[int | None, _scan(help="Which volume of a 4D file, from 0.")] = None
    fill_nonfinite: Annotated[
        float | None,
        _scan(help="Scan value in place of NaN and infinities, which are refused without it."),
    ] = None

    def reading(self, checkpoint: Checkpoint) -> Reading:
        """The choice as a value; what is not given is as the checkpoint was trained."""
        from unireason_lib.inference import Reading

        return Reading.like(
            checkpoint.serialization,
            size=None if self.target_size is None else size_of(self.target_size),
            window=window_of(self.normalize),
            key=self.key,
            volume=self.frame,
            fill=self.fill_nonfinite,
        )


@dataclass(frozen=True)
class ReplyOptions:
    """How a reply is generated."""

    max_new_tokens: Annotated[int, _reply(help="Most tokens that the model writes.")] = 1024
    max_rounds: Annotated[int, _reply(help="Most rounds: boxes after the last fetch nothing.")] = 10
    tokens_per_round: Annotated[
        int | None,
        _reply(help="Most tokens of one round; it opens the next and never cuts the reply."),
    ] = None
    temperature: Annotated[float, _reply(help="0 is greedy.")] = 0.0
    top_p: Annotated[float, _reply(help="Nucleus of sampling.")] = 1.0
    seed: Annotated[int, _reply(help="Seed of sampling.")] = 0

    def settings(self) -> Settings:
        """The choice as a value."""
        from unireason_lib.grounding import Settings

        return Settings(
            max_new_tokens=self.max_new_tokens,
            max_rounds=self.max_rounds,
            tokens_per_round=self.tokens_per_round,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show what is warned of in the block as a line each on the error stream."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScanWarning)
        yield
    for one in caught:
        typer.echo(f"warning: {one.message}", err=True)


def printable(text: str) -> str:
    """The text without control characters but line breaks and tabs: no escape codes for the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def size_of(text: str, flag: str = "--target-size") -> tuple[int, ...]:
    """``"32,256,256"`` or ``"32x256x256"`` as numbers; ``flag`` is named in the message.

    Raises:
        ScanError: It is not three whole numbers.
    """
    parts = re.split(r"\s*[,x×]\s*|\s+", text.strip().strip("()[]"))
    if len(parts) != 3 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        do = "write it as 32,256,256"
        raise ScanError(flag, "slices, rows, columns", repr(text), do)
    return tuple(int(part) for part in parts)


def window_of(text: str | None, flag: str = "--normalize") -> Window | None:
    """``"-150,250"`` as a pair, any other word as it is; ``flag`` is named in the message.

    Raises:
        ScanError: A pair that is not two numbers. (Whether a name is known is for the reader of scans to say.)
    """
    if text is None or "," not in text:
        return text
    try:
        low, high = (float(part) for part in text.strip().strip("()[]").split(","))
    except ValueError:
        do = f"write it as {flag}=-150,250"
        raise ScanError(flag, "a name or LOW,HIGH", repr(text), do) from None
    return low, high


def named_value(text: str, flag: str) -> tuple[str, Any]:
    """``"budget=20"`` as a name and a value: what JSON or Python would read it as, else text.

    Raises:
        RequestError: There is no ``=``, or no name before it.
    """
    from unireason_lib.profiles import parse_value

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise RequestError(flag, "name=value", repr(text), "correct it")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, parse_value(value)
