"""One dial for every size in the project: the profile, a YAML file in ``configs/``.

``laptop`` holds every setting there is, with its type and what it means; ``smoke`` (seconds, for
tests), ``gpu`` (the paper's scale) and ``t4`` (one GPU of 16 GB) extend it and change some values::

    >>> profile = load_profile("laptop", "generation.max_rounds=3")
    >>> profile.generation.max_rounds
    3

The sections ``sft`` and ``grpo`` are keyword arguments of TRL's ``SFTConfig`` and ``GRPOConfig``;
any other of their arguments may be set too. A name that does not exist and a value of the wrong
type are errors that say what was perhaps meant.
"""

import ast
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError, create_model
from pydantic import model_validator as validated

from unireason_lib.errors import ProfileError

CONFIGS = Path(__file__).parent / "configs"
NAMES = ("smoke", "laptop", "t4", "gpu")
_Sizes = Annotated[tuple[int, ...], BeforeValidator(lambda v: tuple(v) if type(v) is list else v)]
_TYPES: dict[str, Any] = {  # of settings whose value in laptop.yaml does not tell
    **dict.fromkeys("adapter tower deepspeed vllm_server_base_url".split(), str | None),
    **dict.fromkeys("records_2d records_3d sft_lora_r grpo_lora_r".split(), int | None),
    **dict.fromkeys("rollout_batch_size generation_batch_size".split(), int | None),
    "bf16": bool | None,
    "quantization": Literal["4bit"] | None,
    "dtype": Literal["auto", "float32", "bfloat16", "float16"],
    "components": Literal["full", "no regions", "no boxes", "answer"],
    "components_2d": Literal["full", "no regions", "no boxes", "answer"] | None,
    "keep_best": Literal["2d", "3d"] | None,
    "reward_mode": Literal["strict", "paper"],
}


class Section(BaseModel, frozen=True, extra="forbid", strict=True, protected_namespaces=()):
    """Settings that belong together: read-only, of exactly the names and types of laptop.yaml."""


class _TRLSection(Section, extra="allow"):
    """Keyword arguments of a configuration class of TRL. Those beyond laptop.yaml are looked up in
    the class when one is set, because importing TRL takes seconds. Some would change nothing here,
    or break a run: ``configs/refused.yaml`` lists them."""

    @validated(mode="after")
    def _known_to_trl(self) -> Self:
        config_class = f"{type(self).__name__.upper()}Config"
        for name, value in (self.model_extra or {}).items():
            types = _trl_types(config_class)
            if name not in types:
                hint = near(name, [*Grounding.model_fields, *types])
                raise ValueError(f"{name}: no argument of {config_class}; {hint}")
            if do := _refused(config_class).get(name):
                raise ValueError(f"{name}: {value!r}, which has no effect here; {do}")
            try:
                TypeAdapter(types[name]).validate_python(value, strict=True)
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors()[0]['msg']}, not {value!r}") from None
        return self


@cache
def _trl_types(config_class: str) -> dict[str, Any]:
    import trl

    return {n: t for n, t in get_type_hints(getattr(trl, config_class)).items() if n[0] != "_"}


@cache
def _refused(config_class: str) -> dict[str, str]:
    """Argument -> what to do instead."""
    table = yaml.safe_load((CONFIGS / "refused.yaml").read_text(encoding="utf-8"))
    reasons = [*table["both"].items(), *table[config_class].items()]
    return {name: do for do, names in reasons for name in names.split()}


def _read(name: str) -> dict[str, dict[str, Any]]:
    """The sections of a profile's file, over those of the profile that it extends."""
    if name not in NAMES:
        raise ProfileError("PROFILE", "a known profile", repr(name), f"use {', '.join(NAMES)}")
    own = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    base = own.pop("extends", None)
    values = _read(base) if base else {}
    for section, settings in own.items():
        values[section] = {**values.get(section, {}), **settings}
    return values


def _section(name: str, settings: Mapping[str, Any]) -> type[Section]:
    kinds = {n: _Sizes if type(v) is list else type(v) for n, v in settings.items()}
    fields: Any = {n: (_TYPES.get(n, kind), ...) for n, kind in kinds.items()}
    return create_model(
        name, __base__=_TRLSection if name in ("sft", "grpo") else Section, **fields
    )


class _Named(Section):
    """All settings of one run; ``name`` is that of the profile's file."""

    name: str

    def __reduce__(self) -> tuple[Any, ...]:  # its sections are classes that no module holds
        return Profile.model_validate, (self.model_dump(),)


Profile: type[_Named] = create_model(
    "Profile", __base__=_Named, **{n: (_section(n, s), ...) for n, s in _read("laptop").items()}
)
"""All settings of one run: ``profile.sft.max_steps``; ``profile.sft.model_dump()`` is a dict."""

Grounding: type[Section] = Profile.model_fields["grounding"].annotation


def load_profile(
    name: str = "laptop", overrides: str | Mapping[str, Any] = "", **more: Any
) -> Profile:
    """Read a profile and change single values of it.

    ``overrides`` are ``{"sft.max_steps": 3}``, or text as a papermill parameter has it:
    ``"sft.max_steps=3, serialization.size=[8,64,64]"``; ``more`` are the same by keyword. The
    section may be left out where only one has the name (``max_rounds=3``). A :class:`ProfileError`
    when there is no such profile or setting (it names similar ones), a value has another type than
    the setting, or the text cannot be read.
    """
    values = _read(name)
    changes = parse_overrides(overrides) if isinstance(overrides, str) else dict(overrides)
    for key, value in {**changes, **more}.items():
        section, setting = _find(values, key, name)
        values[section][setting] = value
    try:
        return Profile.model_validate({"name": name, **values})
    except ValidationError as error:
        raise _as_profile_error(name, error) from None


def parse_overrides(text: str) -> dict[str, Any]:
    """``"a.b=3, c=[1,2]"`` -> ``{"a.b": 3, "c": [1, 2]}``; semicolons and newlines separate too. A
    :class:`ProfileError` when a part has no ``=``."""
    changes, parts, depth = {}, [""], 0
    for sign in text:
        depth += (sign in "[({") - (sign in "])}")
        parts[-1] += sign
        if sign in ",;\n" and not depth:
            parts[-1:] = [parts[-1][:-1], ""]
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            changes[key.strip()] = parse_value(value)
        elif part.strip():
            raise ProfileError("overrides", "setting=value", repr(part.strip()), "write the '='")
    return changes


def parse_value(text: str) -> Any:
    """A literal as typed (``3``, ``1e-5``, ``true``, ``none``, ``[8, 64]``), else a string."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if (word := text.strip()).lower() in words:
        return words[word.lower()]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def near(name: str, known: Iterable[str]) -> str:
    """What was perhaps meant, for messages: ``"perhaps 'max_rounds'"``, else all that is known."""
    known = list(dict.fromkeys(known))
    if close := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return "perhaps " + " or ".join(map(repr, close))
    return "there are " + ", ".join(known) if known else "there are none"


def _find(values: Mapping[str, Mapping[str, Any]], key: str, name: str) -> tuple[str, str]:
    """Section and name of a setting that is given with or without its section."""
    section, _, leaf = key.rpartition(".")
    fits = [s for s, settings in values.items() if leaf in settings and section in (s, "")]
    if section in ("sft", "grpo"):  # perhaps another argument of TRL; the section knows
        return section, leaf
    if len(fits) == 1:
        return fits[0], leaf
    if fits:
        ways, found = " or ".join(f"{s}.{leaf}" for s in fits), f"{key!r}, which {len(fits)} have"
        raise ProfileError(f"profile {name!r}", "one setting", found, f"write {ways}")
    full = {n: f"{s}.{n}" for s in values for n in values[s]}
    close = [full[one] for one in difflib.get_close_matches(leaf, full, n=3, cutoff=0.5)]
    hint = "perhaps " + " or ".join(close) if close else near(key, full.values())
    raise ProfileError(f"profile {name!r}", "a known setting", repr(key), hint)


def _as_profile_error(name: str, error: ValidationError) -> ProfileError:
    """The first thing that pydantic found, as an error of this project."""
    first = error.errors()[0]
    # behind section and setting stands the branch of a union that was tried
    place, value = first["loc"][:2], first["input"]
    key, found = ".".join(map(str, place)), f"{value!r} ({type(value).__name__})"
    branches = [e["msg"] for e in error.errors() if e["loc"][:2] == place]
    expected = " or ".join(message.removeprefix("Input should be ") for message in branches)
    if first["type"] == "value_error":
        setting, _, found = str(first["ctx"]["error"]).partition(": ")
        key, expected = f"{key}.{setting}", "a valid value"
    return ProfileError(f"profile {name!r}, {key}", expected, found, "correct it")
