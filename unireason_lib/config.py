"""One dial for every size in the project: the profile.

A profile is a YAML file in ``configs/``. ``laptop`` holds every value there is; ``smoke`` (seconds,
for tests), ``gpu`` (the paper's scale) and ``t4`` (one GPU of 16 GB) name the profile that they
extend and change some values::

    >>> profile = load_profile("laptop", "generation.max_rounds=3")
    >>> profile.generation.max_rounds
    3

The sections ``sft`` and ``grpo`` are keyword arguments of TRL's ``SFTConfig`` and ``GRPOConfig``;
any other of their arguments may be set too. A name that does not exist and a value of the wrong
type are errors that say what was perhaps meant.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from unireason_lib.errors import ProfileError

CONFIGS = Path(__file__).parent / "configs"
NAMES = ("smoke", "laptop", "t4", "gpu")
Sizes = Annotated[
    tuple[int, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
]
"""Whole numbers in a fixed order; YAML has them as a list."""


class Section(BaseModel):
    """Settings that belong together: read-only, of exactly the declared names and types. What each
    means stands in ``configs/laptop.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class Model(Section):
    """Which model runs where."""

    path: str
    base: str
    adapter: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    quantization: Literal["4bit"] | None
    device: str
    gpus: float
    attention: str
    hidden: int
    layers: int
    vision_hidden: int
    vision_layers: int
    patch_size: int


class SerializationSettings(Section):
    """How volumes become slices."""

    size: Sizes
    window: str


class DatasetSettings(Section):
    """The phantoms that the notebooks build."""

    patients_2d: int
    patients_3d: int
    shape: Sizes
    per_family: int
    prior_studies: int


class StageData(Section):
    """Phantoms made for a training stage, and records taken of them (null: all, 0: none)."""

    patients_2d: int
    patients_3d: int
    records_2d: int | None
    records_3d: int | None


class TRLSection(Section):
    """Keyword arguments of a configuration class of TRL. Those that the profiles set are declared;
    others are looked up in the class when one is set, because importing TRL takes seconds."""

    model_config = ConfigDict(extra="allow")
    config_class: ClassVar[str]

    num_train_epochs: float
    max_steps: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    weight_decay: float
    max_grad_norm: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    bf16: bool | None
    fp16: bool
    gradient_checkpointing: bool
    deepspeed: str | None
    dataloader_num_workers: int
    save_steps: int
    save_total_limit: int
    logging_steps: int
    report_to: str
    seed: int

    @model_validator(mode="after")
    def _known_to_trl(self) -> TRLSection:
        for name, value in (self.model_extra or {}).items():
            types = _trl_fields(self.config_class)
            if name not in types:
                hint = near(name, [*Grounding.model_fields, *types])
                raise ValueError(f"{name}: no argument of {self.config_class}; {hint}")
            try:
                TypeAdapter(types[name]).validate_python(value, strict=True)
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors()[0]['msg']}, not {value!r}") from None
        return self


class SFTSection(TRLSection):
    """Keyword arguments of TRL's ``SFTConfig``."""

    config_class = "SFTConfig"

    max_length: int


class GRPOSection(TRLSection):
    """Keyword arguments of TRL's ``GRPOConfig``."""

    config_class = "GRPOConfig"

    generation_batch_size: int | None
    num_generations: int
    max_completion_length: int
    temperature: float
    beta: float
    epsilon: float
    num_iterations: int
    loss_type: str
    use_vllm: bool
    vllm_server_base_url: str | None


class Grounding(Section):
    """What the grounded interface adds to both training stages."""

    components: Literal["full", "no regions", "no boxes", "answer"]
    freeze_vision: bool
    feature_cache: bool
    muon_learning_rate: float
    sft_lora_r: int | None
    grpo_lora_r: int | None
    lora_alpha: int
    lora_dropout: float
    free_running_steps: int
    free_running_questions: int
    reward_mode: Literal["strict", "paper"]
    iou_weight: float
    area_weight: float
    rollout_max_rounds: int
    rollout_batch_size: int | None
    max_prompt_length: int
    grpo_start_epochs: float | None
    grpo_test_questions: int

    @model_validator(mode="after")
    def _cache_needs_frozen_vision(self) -> Grounding:
        if self.feature_cache and not self.freeze_vision:
            raise ValueError("feature_cache: features stay valid only if freeze_vision is true")
        return self


class Generation(Section):
    """How replies are generated in evaluations."""

    max_new_tokens: int
    max_rounds: int
    temperature: float
    top_p: float


class Evaluation(Section):
    """How much is asked of the held-out benchmark."""

    questions: int
    control_questions: int
    batch_size: int
    samples: int


class Notebook(Section):
    """How much the notebooks do."""

    questions: int
    repeats: int
    box_counts: Sizes
    slice_counts: Sizes
    cell_timeout: int
    offline: bool


class Profile(Section):
    """All settings of one run; ``name`` is that of its file."""

    name: str
    model: Model
    serialization: SerializationSettings
    dataset: DatasetSettings
    sft_data: StageData
    sft: SFTSection
    grpo_data: StageData
    grpo: GRPOSection
    grounding: Grounding
    generation: Generation
    evaluation: Evaluation
    notebook: Notebook


def profile_names() -> list[str]:
    """The profiles that ship, smallest first."""
    return list(NAMES)


def load_profile(
    name: str = "laptop", overrides: str | Mapping[str, Any] = "", **more: Any
) -> Profile:
    """Read a profile and change single values of it.

    Args:
        name: ``"smoke"``, ``"laptop"``, ``"t4"`` or ``"gpu"``.
        overrides: ``{"sft.max_steps": 3}``, or the same as text, as a papermill parameter has it:
            ``"sft.max_steps=3, serialization.size=[8,64,64]"``.
        more: The same by keyword; the section may be left out where only one has the name
            (``max_rounds=3``).

    Returns:
        The profile, frozen; ``profile.sft.model_dump()`` gives the arguments of ``SFTConfig``.

    Raises:
        ProfileError: There is no such profile or setting (the message names similar ones), a value
            has another type than the setting, or the text cannot be read.
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
    """``"a.b=3, c=[1,2]"`` -> ``{"a.b": 3, "c": [1, 2]}``; semicolons and newlines separate too.

    Raises:
        ProfileError: A part has no ``=``.
    """
    changes = {}
    for part in re.split(r"[,;\n](?![^\[({]*[\])}])", text):
        key, equals, value = part.partition("=")
        if equals:
            changes[key.strip()] = parse_value(value)
        elif part.strip():
            raise ProfileError("overrides", "setting=value", repr(part.strip()), "write the '='")
    return changes


def parse_value(text: str) -> Any:
    """A literal as typed (``3``, ``1e-5``, ``true``, ``none``, ``[8, 64]``), else a string."""
    text = text.strip()
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def near(name: str, known: Iterable[str]) -> str:
    """What was perhaps meant, for messages: ``"perhaps 'max_rounds'"``, else all that is known."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "perhaps " + " or ".join(repr(match) for match in close)
    return "there are " + ", ".join(known) if known else "there are none"


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


def _find(values: Mapping[str, Mapping[str, Any]], key: str, name: str) -> tuple[str, str]:
    """Section and name of a setting that is given with or without its section."""
    section, _, leaf = key.rpartition(".")
    fits = [s for s, settings in values.items() if leaf in settings and section in (s, "")]
    if section in ("sft", "grpo"):  # another argument of TRL; the section knows which there are
        fits = [section]
    if len(fits) == 1:
        return fits[0], leaf
    subject, full = f"profile {name!r}", [f"{s}.{n}" for s in values for n in values[s]]
    if fits:
        ways = " or ".join(f"{s}.{leaf}" for s in fits)
        found = f"{key!r}, which {len(fits)} sections have"
        raise ProfileError(subject, "one setting", found, f"write {ways}")
    leaves = {one.split(".")[1]: one for one in full}
    close = difflib.get_close_matches(leaf, leaves, n=3, cutoff=0.5)
    hint = "perhaps " + " or ".join(leaves[one] for one in close) if close else near(key, full)
    raise ProfileError(subject, "a known setting", repr(key), hint)


@cache
def _trl_fields(config_class: str) -> dict[str, Any]:
    """Arguments of a configuration class of TRL and their types."""
    from typing import get_type_hints

    import trl

    return {n: t for n, t in get_type_hints(getattr(trl, config_class)).items() if n[0] != "_"}


def _as_profile_error(name: str, error: ValidationError) -> ProfileError:
    """The first thing that pydantic found, in the form of this project's errors."""
    first = error.errors()[0]
    # a union adds the branch that was tried behind section and setting
    key, value = ".".join(str(part) for part in first["loc"][:2]), first["input"]
    if first["type"] == "value_error":
        setting, _, found = str(first["ctx"]["error"]).partition(": ")
        return ProfileError(
            f"profile {name!r}, {key}.{setting}", "a valid value", found, "correct it"
        )
    expected = " or ".join(
        e["msg"].removeprefix("Input should be ")
        for e in error.errors()
        if e["loc"][:2] == first["loc"][:2]
    )
    return ProfileError(
        f"profile {name!r}, {key}", expected, f"{value!r} ({type(value).__name__})", "correct it"
    )
