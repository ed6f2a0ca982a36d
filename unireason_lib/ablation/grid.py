"""A grid: conditions x seeds, the claims they are held against, and the notebook runs that follow.

A condition holds the parameters of its notebooks, stage by stage: ``sft`` is notebook 04, ``rl``
notebook 05, ``test`` notebook 06. A run is named after everything that decides its outcome (stage,
parameters, seed, and the run it builds on), so two conditions with the same fine-tuning name the
same run, and :func:`plan` lists it once.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, ValidationError
from pydantic import model_validator as validated

from unireason_lib.config import load_profile, near, parse_value
from unireason_lib.errors import GridError, UniReasonError

STAGES = {"sft": "04", "rl": "05", "test": "06"}  # -> number of its notebook, in order
PLANNED = ("PROFILE", "SEED", "RUN", "RESULTS", "MODEL")  # parameters that the study sets


def joined(*overrides: str) -> str:
    """Several overrides as one text; later ones win."""
    return ", ".join(filter(None, overrides))


def _overrides(given: Any) -> Any:
    """``a.b=1, c=2`` from a mapping; a text as it is."""
    return joined(*(f"{k}={v}" for k, v in given.items())) if isinstance(given, Mapping) else given


def _parameters(given: Any) -> dict[str, Any]:
    """Parameters of a notebook, from text to literals; a stage without any is an empty text."""
    given = given or {}
    if not isinstance(given, Mapping) or set(given) & set(PLANNED):
        do = f"leave out {', '.join(PLANNED)}, which the study sets"
        raise GridError("parameters", "NAME: VALUE", repr(given), do)
    literal = {k: parse_value(v) if isinstance(v, str) else v for k, v in given.items()}
    return {k: _overrides(given[k]) if k == "OVERRIDES" else v for k, v in literal.items()}


def _seeds(given: Any) -> Any:
    """A list of seeds, or how many."""
    return range(int(given)) if str(given).isdigit() else given


class _Strict(BaseModel, frozen=True, extra="forbid"):
    """Read-only, of exactly these names."""


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
    """One condition should do better than another."""

    better: str
    worse: str
    dimension: Literal["2d", "3d"] | None = None  # of the questions that count; None: all
    kind: str | None = None  # likewise
    value: Literal["correct", "iou_first", "iou_all", "format", "concluded", "followed"] = "correct"
    part: str = "other"  # of the study, for figures; p-values are corrected over all parts
    says: str = ""  # in words

    @property
    def where(self) -> dict[str, str]:
        """Columns of the table and their values that choose the questions."""
        return self.model_dump(include={"dimension", "kind"}, exclude_none=True)


class Grid(_Strict):
    """A study; ``smoke`` lists the conditions that the profile of that name keeps (none: all)."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]  # of its folder in runs/ablation
    about: str = ""
    profile: str = "laptop"
    seeds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_seeds), Field(min_length=1)]
    overrides: Annotated[str, BeforeValidator(_overrides)] = ""  # of all stages
    minutes: dict[Literal["sft", "rl", "test"], float] = {}  # of a run, before any was measured
    smoke: tuple[str, ...] = ()
    conditions: Annotated[dict[str, Condition], Field(min_length=1)]
    claims: dict[str, Claim] = {}

    @validated(mode="after")
    def _agrees(self) -> Self:
        """Seeds differ, conditions that are named exist, and the profile has all settings."""
        if len(set(self.seeds)) < len(self.seeds):
            raise GridError("seeds", "different numbers", self.seeds, "correct the file")
        self.refuse_unknown(self.smoke, "smoke")
        for claim in self.claims.values():
            self.refuse_unknown((claim.better, claim.worse), "a claim")
        for given in (g for one in self.conditions.values() for g in one.stages.values()):
            load_profile(self.profile, joined(self.overrides, given.get("OVERRIDES", "")))
        return self

    def refuse_unknown(self, names: Iterable[str], where: str) -> None:
        """A ``GridError`` for a name that no condition has."""
        for name in set(names) - set(self.conditions):
            raise GridError(where, "a condition", repr(name), near(name, self.conditions))

    def at(self, profile: str | None = None, overrides: str = "") -> Self:
        """The same study with more overrides or, with another profile, under a name of its own and
        without what fits its own profile only: overrides, minutes, and conditions that set
        ``max_steps``; ``smoke`` keeps the conditions that the grid lists for it."""
        if profile in (None, self.profile):
            return self.model_copy(update={"overrides": joined(self.overrides, overrides)})
        names = self.smoke if profile == "smoke" and self.smoke else self.conditions
        kept = {n: self.conditions[n] for n in names if "max_steps" not in repr(self.conditions[n])}
        claims = {n: c for n, c in self.claims.items() if {c.better, c.worse} <= {*kept}}
        own = {"name": f"{self.name}-{profile}", "profile": profile, "overrides": overrides}
        return self.model_copy(update={**own, "minutes": {}, "conditions": kept, "claims": claims})


def load_grid(path: str | Path) -> Grid:
    """Read a grid from YAML; a ``GridError`` names what is wrong in it. Every scalar is read as
    text and gets its type from the schema, so a condition may be called ``no``, ``off`` or ``1``.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        return Grid.model_validate({"name": path.stem, "seeds": 5, **content})
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where, ours = ": ".join(map(str, (path, *first["loc"]))), first.get("ctx", {}).get("error")
        if isinstance(ours, UniReasonError):
            raise GridError(f"{where}: {ours}") from None
        known = {**Grid.model_fields, **Condition.model_fields, **Claim.model_fields}
        unknown = first["type"] == "extra_forbidden"
        do = near(str(first["loc"][-1]), known) if unknown else "correct it"
        raise GridError(where, first["msg"], repr(first["input"])[:200], do) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise GridError(path, "a grid in YAML", error, "see data/ablations") from error


@dataclass(frozen=True)
class Job:
    """One run of one notebook."""

    key: str  # ten digits that follow from everything that decides the outcome
    stage: str  # "sft", "rl" or "test"
    parameters: Mapping[str, Any]  # of the notebook
    makes: str  # what is there when it is done, relative to the project
    needs: str | None  # key of the run that it builds on
    seed: int
    conditions: tuple[str, ...] = field(compare=False)  # those that share it

    @property
    def name(self) -> str:
        """Of the executed notebook: ``sft-joint-seed0-1a2b3c4d5e``."""
        condition = re.sub(r"\W+", "-", self.conditions[0]).strip("-")
        return f"{self.stage}-{condition}-seed{self.seed}-{self.key}"

    def command(self) -> str:
        """What makes just this run by hand."""
        given = [("-p", f"{k}={v}") for k, v in self.parameters.items() if k != "PROFILE"]
        words = ["tutorial", STAGES[self.stage], "--profile", self.parameters["PROFILE"]]
        return f"python -m unireason_lib {shlex.join([*words, *sum(given, ())])}"


def plan(grid: Grid, *, seeds: int | None = None, only: Collection[str] = ()) -> list[Job]:
    """The runs of a grid, seed by seed, each behind the run it builds on; of the first so many
    ``seeds``, or ``only`` of some conditions. A ``GridError`` for more seeds than the grid has."""
    grid.refuse_unknown(only, "--only")
    if seeds is not None and not 1 <= seeds <= len(grid.seeds):
        expected, do = f"1 to {len(grid.seeds)}, as the grid has", "name more seeds in the grid"
        raise GridError("--seeds", expected, seeds, do)
    jobs: dict[str, Job] = {}
    names = [name for name in grid.conditions if not only or name in only]
    for seed, name in product(grid.seeds[:seeds], names):
        before: Job | None = None
        for stage, given in grid.conditions[name].stages.items():
            overrides = joined(grid.overrides, given.get("OVERRIDES", ""))
            given = {**given, "PROFILE": grid.profile, "OVERRIDES": overrides}
            given["SEED"] = 0 if stage == "test" else seed  # all are asked the same questions
            needs = before.key if before else None
            decides = json.dumps([grid.name, stage, sorted(given.items()), needs])
            key = hashlib.blake2b(decides.encode(), digest_size=5).hexdigest()
            given |= {"MODEL": before.makes} if before else {}
            if stage == "test":
                given["RESULTS"] = f"runs/evaluation/{grid.name}-{key}"
                makes = f"{given['RESULTS']}/replies.jsonl"
            else:
                given["RUN"] = f"{grid.name}-{key}"
                makes = f"runs/{stage}/{given['RUN']}/model"
            sharing = *(jobs[key].conditions if key in jobs else ()), name
            before = jobs[key] = Job(key, stage, given, makes, needs, seed, sharing)
    return list(jobs.values())
