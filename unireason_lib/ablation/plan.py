"""From a grid to notebook runs: each stage once, whoever shares it, in an order in which nothing waits for nothing.

A run is named after all that decides its outcome: notebook, parameters, seed, and the run that it builds on. Two
conditions with the same fine-tuning therefore name the same run, and it is made once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unireason_lib.ablation.grid import STAGES, Grid, joined
from unireason_lib.errors import GridError
from unireason_lib.inference.fingerprint import model_identity
from unireason_lib.profiles import load_profile, near
from unireason_lib.tutorial.document import read_notebook, source_hash


@dataclass(frozen=True)
class Job:
    """One run of one notebook.

    Attributes:
        key: Ten digits that follow from all that decides its outcome.
        stage: ``"sft"``, ``"rl"`` or ``"test"``.
        notebook: Number of the notebook.
        parameters: Of papermill.
        makes: Folder, relative to the project, whose existence shows that it is done.
        needs: Key of the run that it builds on, or None.
        seed: Of the run.
        conditions: Names of those that share it.
    """

    key: str
    stage: str
    notebook: str
    parameters: Mapping[str, Any]
    makes: str
    needs: str | None
    seed: int
    conditions: tuple[str, ...] = field(compare=False)

    @property
    def name(self) -> str:
        """Of the executed notebook: ``sft-joint-seed0-1a2b3c4d5e``."""
        first = "".join(c if c.isalnum() else "-" for c in self.conditions[0]).strip("-")
        return f"{self.stage}-{first}-seed{self.seed}-{self.key}"

    def command(self) -> str:
        """What runs just this one by hand."""
        given = [f"{name}={value}" for name, value in self.parameters.items() if name != "PROFILE"]
        parts = ["tutorial", self.notebook, "--profile", self.parameters["PROFILE"]]
        for one in given:
            parts += ["-p", one]
        return f"python -m unireason_lib {shlex.join(parts)}"


def plan(
    grid: Grid, *, seeds: Iterable[int] | None = None, only: Collection[str] = ()
) -> list[Job]:
    """The runs of a grid, those that others need first, seed by seed: what is broken off is whole seeds.

    Args:
        grid: The study.
        seeds: In place of the grid's.
        only: Conditions; empty takes all.

    Raises:
        GridError: A condition that is not there.
    """
    for name in only:
        if name not in grid.conditions:
            raise GridError(
                "--only", "a condition of the grid", repr(name), near(name, list(grid.conditions))
            )
    jobs: dict[str, Job] = {}
    for seed in grid.seeds if seeds is None else seeds:
        for condition in grid.conditions.values():
            if only and condition.name not in only:
                continue
            before: Job | None = None
            for stage, given in condition.stages.items():
                parameters = {
                    **given,
                    "PROFILE": grid.profile,
                    "OVERRIDES": joined(grid.overrides, given.get("OVERRIDES", "")),
                    "SEED": 0 if stage == "test" else seed,  # the same questions for all
                }
                key = _key(grid.name, stage, parameters, before)
                if before is not None:
                    parameters["MODEL"] = f"{before.makes}"
                name = f"{grid.name}-{key}"
                if stage == "test":
                    parameters["RESULTS"] = f"runs/evaluation/{name}"
                    makes = f"runs/evaluation/{name}/replies.jsonl"
                else:
                    parameters["RUN"] = name
                    makes = f"runs/{stage}/{name}/model"
                known = jobs.get(key)
                shared = (*(known.conditions if known else ()), condition.name)
                jobs[key] = Job(
                    key,
                    stage,
                    STAGES[stage],
                    parameters,
                    makes,
                    before.key if before else None,
                    seed,
                    shared,
                )
                before = jobs[key]
    return list(jobs.values())


def _key(name: str, stage: str, parameters: Mapping[str, Any], before: Job | None) -> str:
    content = [name, stage, sorted(parameters.items()), before.key if before else None]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=5).hexdigest()


READERS = ("ablation", "bench", "cli", "display", "planning", "tutorial")
"""Rooms of the package that decide nothing of what a model writes: they order runs, and show what came out."""

READING = ("evaluation/report.py", "evaluation/statistics.py", "evaluation/tidy.py")
"""Modules of other rooms that do the same."""


DATA = "data "
"""What the digest of a data set is named by, before the value of the parameter ``DATA``."""

_TABLES, _BEGINNING = (".parquet", ".json", ".jsonl"), 8 * 2**20


def code_hash(root: Path) -> str:
    """Of all that decides the outcome of a run: the package without :data:`READERS` and :data:`READING`, the profiles,
    and the code of the notebooks that runs execute (not their words, nor what they last put out)."""
    package, digest = root / "unireason_lib", hashlib.blake2b(digest_size=8)
    files = [
        path
        for path in sorted([*package.rglob("*.py"), *(package / "profiles").glob("*.yaml")])
        if path.relative_to(package).parts[0] not in READERS
        and path.relative_to(package).as_posix() not in READING
    ]
    contents = {path: path.read_bytes() for path in files}
    for number in sorted(STAGES.values()):
        for path in sorted((root / "notebooks").glob(f"{number}_*.ipynb")):
            contents[path] = source_hash(read_notebook(path)).encode()
    for path, content in contents.items():
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def made_by(grid: Grid, root: Path) -> dict[str, str]:
    """What runs are made by besides their parameters: digests of the code, of the model that all start from, and of the
    data sets that conditions name (``"data FOLDER"``; phantoms follow from the code)."""
    base = load_profile(grid.profile, grid.overrides).model.base
    base = str(root / base) if (root / base).is_dir() else base
    known = model_identity(base)
    found = {
        "code": code_hash(root),
        "base": known.get("sha256") or f"{known['name']}@{known['commit']}",
    }
    stages = [
        given for condition in grid.conditions.values() for given in condition.stages.values()
    ]
    for where in sorted({str(given["DATA"]) for given in stages if given.get("DATA")}):
        found[DATA + where] = data_hash(root / "notebooks" / where, where)
    return found


def data_hash(folder: Path, hub: str = "") -> str:
    """Of the tables of a data set: names, sizes, and what they begin with; pictures are named in them.

    Args:
        folder: Of the data set, as a notebook sees it.
        hub: Id of a data set in the local cache, where there is no such folder.
    """
    from unireason_lib.training.data import data_folder

    folder, digest = folder if folder.is_dir() else data_folder(hub), hashlib.blake2b(digest_size=8)
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in _TABLES and path.is_file()
    ):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_BEGINNING))
    return digest.hexdigest()


def check_made_by(lines: Iterable[Mapping[str, Any]], here: Mapping[str, str], where: Path) -> None:
    """Refuse to mix runs of two versions of the code, from two bases, or on changed data.

    Args:
        lines: Of runs that belong to the plan.
        here: From :func:`made_by`.
        where: They are written down, for the error.

    Raises:
        GridError: Some were made by something else.
    """
    lines = list(lines)
    for what, found in here.items():
        about = [
            line for line in lines if not what.startswith(DATA) or DATA + _data_of(line) == what
        ]
        other = [line for line in about if line.get(what) != found]
        if other:
            run = f"{other[0]['stage']} of {other[0]['conditions'][0]}, seed {other[0]['seed']}"
            raise GridError(
                where,
                f"runs of the {what} as it is now ({found[:16]})",
                f"{len(other)} of another {what} ({str(other[0].get(what))[:16]}), {run} for one",
                f"go back to that {what}, begin anew (rename the grid), or keep them all the same with --mixed",
            )


def _data_of(line: Mapping[str, Any]) -> str:
    return str(line["parameters"].get("DATA", ""))


def last_jobs(jobs: Iterable[Job]) -> dict[tuple[str, int], Job]:
    """(Condition, seed) -> the run that tested it."""
    return {(name, job.seed): job for job in jobs if job.stage == "test" for name in job.conditions}
