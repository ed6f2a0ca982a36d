"""A grid: conditions x seeds, and the claims that they are held against, read from YAML.

A condition says with which parameters the notebooks run, stage by stage: ``sft`` is notebook 04, ``rl`` notebook 05,
``test`` notebook 06. A claim names two conditions and where one should do better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from unireason_lib.errors import GridError
from unireason_lib.profiles import load_profile, near

STAGES: Mapping[str, str] = {"sft": "04", "rl": "05", "test": "06"}
"""Stage -> number of its notebook, in order."""

GIVEN = ("PROFILE", "SEED", "RUN", "RESULTS", "MODEL")
"""Parameters that the plan fills in: a grid must not."""

_STEPS = re.compile(r"\b(sft|rl)\.steps=(\d+)")
_DIMENSIONS = ("2d", "3d")
_VALUES = ("correct", "iou_first", "in_format", "concluded")
_FAMILIES = ("mixture", "components", "stages", "efficiency", "other")


@dataclass(frozen=True)
class Condition:
    """What is done, stage by stage.

    Attributes:
        name: In tables and plots.
        stages: Stage -> parameters of its notebook. Every condition is fine-tuned and tested; RL only where named.
        about: What it is for.
    """

    name: str
    stages: Mapping[str, Mapping[str, Any]]
    about: str = ""


@dataclass(frozen=True)
class Claim:
    """One condition should do better than another.

    Attributes:
        name: In tables.
        better, worse: The conditions.
        dimension: Questions that count: ``"2d"``, ``"3d"``, or None for all.
        value: Column of the table that is compared.
        kind: Of :data:`unireason_lib.evaluation.tidy.COLUMNS`: only questions of this kind; None: of all.
        part: Of the study; comparisons are corrected for within all of them.
        says: The claim in words.
    """

    name: str
    better: str
    worse: str
    dimension: str | None = None
    value: str = "correct"
    kind: str | None = None
    part: str = "other"
    says: str = ""

    @property
    def where(self) -> dict[str, str]:
        """Which rows count, as :func:`unireason_lib.evaluation.tidy.runs` takes it."""
        asked = {"dimension": self.dimension, "kind": self.kind}
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class Grid:
    """A study.

    Attributes:
        name: Of its folder below ``runs/ablation``.
        about: What it asks.
        profile: Of all its runs.
        seeds: Of every condition.
        overrides: Settings for all stages (``OVERRIDES`` of the notebooks), before those of a condition; for the
            grid's own profile only.
        minutes: Stage -> what a run of it takes, where none was measured yet.
        conditions: Name -> condition, in order.
        claims: In order.
    """

    name: str
    profile: str
    seeds: tuple[int, ...]
    conditions: Mapping[str, Condition]
    claims: tuple[Claim, ...] = ()
    overrides: str = ""
    minutes: Mapping[str, float] = field(default_factory=dict)
    about: str = ""

    def first_seeds(self, count: int) -> tuple[int, ...]:
        """So many of its seeds, the first ones; where it has fewer, further numbers follow its largest."""
        further = range(max(self.seeds) + 1, max(self.seeds) + 1 + max(0, count - len(self.seeds)))
        return (*self.seeds[:count], *further)

    def at(self, profile: str, overrides: str = "") -> Grid:
        """The same study at another size, as a study of its own.

        The grid's overrides and minutes are those of the profile that it was written for, and are dropped. Where a
        condition learns for so many steps, it keeps its share of the steps of all.

        Args:
            profile: Another profile.
            overrides: Settings for all stages.

        Raises:
            GridError: A condition has steps of its own, and the other profile counts in epochs.
        """
        if profile == self.profile:
            return replace(self, overrides=joined(self.overrides, overrides))
        own, other = load_profile(self.profile, self.overrides), load_profile(profile, overrides)

        def scaled(found: re.Match[str]) -> str:
            stage, steps = found[1], int(found[2])
            of, to = own[stage].steps, other[stage].steps
            if not of or not to:
                raise GridError(
                    f"{self.name} at {profile}",
                    f"{stage}.steps, since a condition learns for {steps} of {of}",
                    f"{to} in the profile, which counts in epochs",
                    f"--set {stage}.steps=NUMBER",
                )
            return f"{stage}.steps={max(1, round(to * steps / of))}"

        conditions = {
            name: replace(
                condition,
                stages={
                    stage: {
                        k: _STEPS.sub(scaled, v) if k == "OVERRIDES" else v
                        for k, v in given.items()
                    }
                    for stage, given in condition.stages.items()
                },
            )
            for name, condition in self.conditions.items()
        }
        return replace(
            self,
            name=f"{self.name}-{profile}",
            profile=profile,
            conditions=conditions,
            overrides=overrides,
            minutes={},
        )


def load_grid(path: str | Path) -> Grid:
    """Read a grid.

    Raises:
        GridError: The file is none, names something unknown, or a claim compares conditions that are not there.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise GridError(path, "a grid in YAML", str(error), "correct the file") from error
    if not isinstance(content, dict):
        raise GridError(path, "names and values", type(content).__name__, "see data/ablations")
    known = {"name", "about", "profile", "seeds", "overrides", "minutes", "conditions", "claims"}
    _check_names(path, "a grid", content, known)
    profile = str(content.get("profile", "laptop"))
    overrides = _overrides(path, profile, content.get("overrides"))
    conditions = {
        str(name): _condition(path, profile, str(name), given)
        for name, given in _mapping(path, "conditions", content.get("conditions")).items()
    }
    claims = tuple(
        _claim(path, str(name), given, conditions)
        for name, given in _mapping(path, "claims", content.get("claims", {})).items()
    )
    minutes = _mapping(path, "minutes", content.get("minutes", {}))
    _check_names(path, "minutes", minutes, set(STAGES))
    if not conditions:
        raise GridError(path, "conditions", "none", "name at least one")
    name = str(content.get("name", path.stem))
    if not name.replace("-", "").replace("_", "").isalnum():
        raise GridError(path, "a name that can be a folder", repr(name), "shorten it")
    return Grid(
        name,
        profile,
        _seeds(path, content.get("seeds", 5)),
        conditions,
        claims,
        overrides,
        {stage: float(value) for stage, value in minutes.items()},
        str(content.get("about", "")),
    )


def _seeds(path: Path, given: Any) -> tuple[int, ...]:
    seeds = list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given
    whole = (
        isinstance(seeds, list)
        and seeds
        and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    )
    if not whole or len(set(seeds)) < len(seeds):
        raise GridError(
            path, "seeds: a number of them, or a list of different ones", repr(given), "correct it"
        )
    return tuple(seeds)


def _condition(path: Path, profile: str, name: str, given: Any) -> Condition:
    given = dict(_mapping(path, name, given))
    about = str(given.pop("about", ""))
    _check_names(path, f"condition {name!r}", given, set(STAGES))
    stages: dict[str, Mapping[str, Any]] = {}
    for stage in STAGES:
        if stage == "rl" and "rl" not in given:
            continue
        parameters = dict(_mapping(path, f"{name}, {stage}", given.get(stage) or {}))
        for parameter in parameters:
            if parameter in GIVEN:
                raise GridError(
                    f"{path}, {name}, {stage}",
                    "parameters that the plan does not fill in itself",
                    parameter,
                    "leave it out",
                )
        if "OVERRIDES" in parameters:
            parameters["OVERRIDES"] = _overrides(path, profile, parameters["OVERRIDES"])
        stages[stage] = parameters
    return Condition(name, stages, about)


def _claim(path: Path, name: str, given: Any, conditions: Mapping[str, Condition]) -> Claim:
    given = _mapping(path, f"claim {name!r}", given)
    allowed = {"better", "worse", "dimension", "value", "kind", "part", "says"}
    _check_names(path, f"claim {name!r}", given, allowed)
    for role in ("better", "worse"):
        if given.get(role) not in conditions:
            raise GridError(
                f"{path}, claim {name!r}",
                f"{role}: one of its conditions",
                repr(given.get(role)),
                near(str(given.get(role)), list(conditions)),
            )
    for key, choices in (("dimension", _DIMENSIONS), ("value", _VALUES), ("part", _FAMILIES)):
        if given.get(key) is not None and given[key] not in choices:
            raise GridError(
                f"{path}, claim {name!r}",
                f"{key}: {', '.join(choices)}",
                repr(given[key]),
                "choose one of them",
            )
    return Claim(name, **{key: value for key, value in given.items() if value is not None})


def _overrides(path: Path, profile: str, given: Any) -> str:
    """``a.b=1,c=2``, from a text or a mapping; tried on the profile, so that a wrong setting is found now."""
    if isinstance(given, Mapping):
        given = ",".join(
            f"{key}={'null' if value is None else value}" for key, value in given.items()
        )
    text = str(given or "")
    load_profile(profile, text)
    return text


def _mapping(path: Path, what: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise GridError(f"{path}, {what}", "names and values", repr(given)[:80], "write them out")
    return given


def _check_names(path: Path, what: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise GridError(
                f"{path}, {what}",
                f"one of {', '.join(sorted(known))}",
                repr(name),
                near(str(name), sorted(known)),
            )


def joined(*overrides: str | Sequence[str]) -> str:
    """Several overrides as one; later ones win."""
    return ",".join(part for part in overrides if part)
