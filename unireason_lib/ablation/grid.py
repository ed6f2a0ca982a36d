"""A grid: conditions x seeds, the claims they are held against, and the notebook runs that follow.

A condition holds the parameters of its notebooks, stage by stage: ``sft`` is notebook 04, ``rl``
notebook 05, ``test`` notebook 06. A run is named after everything that decides its outcome (stage,
parameters, seed, and the run it builds on), so two conditions with the same fine-tuning name the
same run, and :func:`plan` lists it once.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from unireason_lib.config import load_profile, near, parse_value
from unireason_lib.errors import GridError, UniReasonError

STAGES = {"sft": "04", "rl": "05", "test": "06"}
"""Stage -> number of its notebook, in order."""

PLANNED = ("PROFILE", "SEED", "RUN", "RESULTS", "MODEL")
"""Parameters that the plan sets; a grid must not."""


def joined(*overrides: str) -> str:
    """Several overrides as one text; later ones win."""
    return ", ".join(filter(None, overrides))


def _overrides(given: Any) -> Any:
    """``a.b=1, c=2`` from a mapping; a text as it is."""
    if isinstance(given, Mapping):
        return joined(*(f"{name}={'null' if v is None else v}" for name, v in given.items()))
    return given


def _parameters(given: Any) -> Any:
    """Parameters of a notebook: literals from the text of the YAML file; a stage without any is ''."""
    if not isinstance(given or {}, Mapping):
        raise GridError("parameters", "NAME: VALUE", repr(given), "correct the file")
    values = {k: parse_value(v) if isinstance(v, str) else v for k, v in (given or {}).items()}
    for name in set(values) & set(PLANNED):
        raise GridError("parameters", "those that the study does not set", name, "leave it out")
    if "OVERRIDES" in values:
        values["OVERRIDES"] = _overrides(given["OVERRIDES"])
    return values


def _seeds(given: Any) -> Any:
    """A number of seeds, or the list of them."""
    return range(int(given)) if isinstance(given, int | str) and str(given).isdigit() else given


class _Strict(BaseModel):
    """Read-only; a name that it does not have is refused with the nearest one it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, given: Any) -> Any:
        for name in given if isinstance(given, Mapping) else ():
            if name not in cls.model_fields:
                expected, hint = f"names of a {cls.__name__.lower()}", near(name, cls.model_fields)
                raise GridError("names", expected, repr(name), hint)
        return given


Parameters = Annotated[dict[str, Any], BeforeValidator(_parameters)]


class Condition(_Strict):
    """Parameters of each stage; every condition is fine-tuned and tested, RL only where named."""

    about: str = ""
    sft: Parameters = {}
    rl: Parameters | None = None
    test: Parameters = {}

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage -> parameters, in order."""
        return {s: p for s in STAGES if (p := getattr(self, s)) is not None}


class Claim(_Strict):
    """One condition should do better than another.

    Attributes:
        better, worse: Names of the conditions.
        dimension, kind: Questions that count; None: all.
        value: Column of the table of replies that is compared.
        part: Of the study, for figures; p-values are corrected over all parts together.
        says: The claim in words.
    """

    better: str
    worse: str
    dimension: Literal["2d", "3d"] | None = None
    kind: str | None = None
    value: Literal["correct", "iou_first", "iou_all", "format", "concluded", "followed"] = "correct"
    part: Literal["mixture", "components", "stages", "efficiency", "other"] = "other"
    says: str = ""

    @property
    def where(self) -> dict[str, str]:
        """Columns and their values that choose the questions."""
        return self.model_dump(include={"dimension", "kind"}, exclude_none=True)


class Grid(_Strict):
    """A study.

    Attributes:
        name: Of its folder in ``runs/ablation``.
        overrides: Settings of all stages (OVERRIDES of the notebooks), before those of a condition.
        minutes: Stage -> minutes of a run, for the estimate before any was measured.
        smoke: Conditions that the profile ``smoke`` keeps; none: all.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    about: str = ""
    profile: str = "laptop"
    seeds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_seeds), Field(min_length=1)] = (
        tuple(range(5))
    )
    overrides: Annotated[str, BeforeValidator(_overrides)] = ""
    minutes: dict[Literal["sft", "rl", "test"], float] = {}
    smoke: tuple[str, ...] = ()
    conditions: Annotated[dict[str, Condition], Field(min_length=1)]
    claims: dict[str, Claim] = {}

    @model_validator(mode="after")
    def _agrees(self) -> Grid:
        """Names are those of conditions, seeds differ, and the profile has every setting."""
        named = {side: name for name, c in self.claims.items() for side in (c.better, c.worse)}
        for name, where in {**named, **dict.fromkeys(self.smoke, "smoke")}.items():
            if name not in self.conditions:
                hint = near(name, self.conditions)
                raise GridError(where, "one of the conditions", repr(name), hint)
        if len(set(self.seeds)) < len(self.seeds):
            raise GridError("seeds", "different numbers", self.seeds, "correct the file")
        for condition in self.conditions.values():
            for given in condition.stages.values():
                load_profile(self.profile, joined(self.overrides, given.get("OVERRIDES", "")))
        return self

    def first_seeds(self, count: int) -> tuple[int, ...]:
        """So many of the seeds; where the grid has fewer, numbers above its largest follow."""
        return (*self.seeds, *range(max(self.seeds) + 1, max(self.seeds) + 1 + count))[:count]

    def at(self, profile: str | None = None, overrides: str = "") -> Grid:
        """The same study at another size, under a name of its own.

        What fits the grid's own profile only is dropped: its overrides, its minutes, and conditions
        that set ``max_steps``. ``smoke`` keeps the conditions listed for it.

        Args:
            profile: Another profile; None or the grid's own only adds the overrides.
            overrides: Settings of all stages.
        """
        if profile in (None, self.profile):
            return self.model_copy(update={"overrides": joined(self.overrides, overrides)})
        names = self.smoke if profile == "smoke" and self.smoke else self.conditions
        kept = {n: self.conditions[n] for n in names if "max_steps" not in repr(self.conditions[n])}
        claims = {n: c for n, c in self.claims.items() if {c.better, c.worse} <= {*kept}}
        changed = {"name": f"{self.name}-{profile}", "profile": profile, "overrides": overrides}
        return self.model_copy(
            update={**changed, "minutes": {}, "conditions": kept, "claims": claims}
        )


def load_grid(path: str | Path) -> Grid:
    """Read a grid from YAML. Every scalar is read as text and typed by the schema, so conditions may
    be called ``no``, ``off`` or ``1``.

    Raises:
        GridError: The file cannot be read, or a name, type or setting in it is wrong.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        return Grid.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        first, do = error.errors()[0], "correct the file"
        where = ": ".join([str(path), *map(str, first["loc"])])
        if isinstance(reason := first.get("ctx", {}).get("error"), UniReasonError):
            raise GridError(
                f"{where}: {reason.subject}", reason.expected, reason.found, reason.do
            ) from None
        expected = first["msg"].removeprefix("Input should be ")
        raise GridError(where, expected, repr(first["input"])[:200], do) from None
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise GridError(path, "a grid in YAML", error, "see data/ablations") from error


@dataclass(frozen=True)
class Job:
    """One run of one notebook.

    Attributes:
        key: Ten digits that follow from everything that decides the outcome.
        stage: ``"sft"``, ``"rl"`` or ``"test"``.
        parameters: Of the notebook.
        makes: What is there when it is done, relative to the project.
        needs: Key of the run that it builds on, or None.
        seed: Of the run.
        conditions: Names of those that share it.
    """

    key: str
    stage: str
    parameters: Mapping[str, Any]
    makes: str
    needs: str | None
    seed: int
    conditions: tuple[str, ...] = field(compare=False)

    @property
    def name(self) -> str:
        """Of the executed notebook: ``sft-joint-seed0-1a2b3c4d5e``."""
        condition = re.sub(r"\W+", "-", self.conditions[0]).strip("-")
        return f"{self.stage}-{condition}-seed{self.seed}-{self.key}"

    def command(self) -> str:
        """What makes just this run by hand."""
        given = {name: value for name, value in self.parameters.items() if name != "PROFILE"}
        words = ["tutorial", STAGES[self.stage], "--profile", self.parameters["PROFILE"]]
        words += [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
        return f"python -m unireason_lib {shlex.join(words)}"


def plan(
    grid: Grid, *, seeds: Iterable[int] | None = None, only: Collection[str] = ()
) -> list[Job]:
    """The runs of a grid, seed by seed, each behind the run it builds on.

    Args:
        grid: The study.
        seeds: In place of the grid's.
        only: Conditions; empty: all.

    Raises:
        GridError: There is no such condition.
    """
    for name in only:
        if name not in grid.conditions:
            do = near(name, grid.conditions)
            raise GridError("--only", "a condition of the grid", repr(name), do)
    jobs: dict[str, Job] = {}
    for seed in grid.seeds if seeds is None else seeds:
        for name in [name for name in grid.conditions if not only or name in only]:
            before: Job | None = None
            for stage, given in grid.conditions[name].stages.items():
                parameters = {
                    **given,
                    "PROFILE": grid.profile,
                    "OVERRIDES": joined(grid.overrides, given.get("OVERRIDES", "")),
                    "SEED": 0 if stage == "test" else seed,  # all are asked the same questions
                }
                needs = before.key if before else None
                decides = json.dumps([grid.name, stage, sorted(parameters.items()), needs])
                key = hashlib.blake2b(decides.encode(), digest_size=5).hexdigest()
                run = f"{grid.name}-{key}"
                if before:
                    parameters["MODEL"] = before.makes
                if stage == "test":
                    makes = f"runs/evaluation/{run}/replies.jsonl"
                    parameters["RESULTS"] = f"runs/evaluation/{run}"
                else:
                    makes, parameters["RUN"] = f"runs/{stage}/{run}/model", run
                sharing = (*(jobs[key].conditions if key in jobs else ()), name)
                before = jobs[key] = Job(key, stage, parameters, makes, needs, seed, sharing)
    return list(jobs.values())


def estimate(jobs: Iterable[Job], minutes: Mapping[str, float]) -> float | None:
    """Minutes of some runs, one after another; None where a stage was never measured."""
    stages = [job.stage for job in jobs]
    return sum(map(minutes.get, stages)) if set(stages) <= set(minutes) else None  # type: ignore[arg-type]
