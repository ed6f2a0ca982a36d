"""How many rows a data set has, read from its tables without opening a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unireason_lib.dataset.build import held_out_fraction
from unireason_lib.dataset.schema import PLACEHOLDER
from unireason_lib.errors import PlanError
from unireason_lib.planning.machines import assumptions
from unireason_lib.training.data import data_folder


def count_rows(where: str | Path, form: str) -> dict[str, int]:
    """Rows to learn from, by dimension.

    Args:
        where: A data set that ``build`` wrote, of which the split ``train`` is counted, or the authors' release, a
            folder or hub id.
        form: ``"sft"`` or ``"rl"``: the folder of its tables.

    Returns:
        Dimension -> rows. A row whose question shows one picture is 2D; one with several (slices) or none (a volume
        that the user holds, as in the release) is 3D.

    Raises:
        PlanError: There are no tables, or one cannot be read.
    """
    folder = data_folder(where)
    paths = sorted((folder / form).glob("train-*.parquet")) or sorted(
        (folder / form).glob("*.parquet")
    )
    turns = "messages" if form == "sft" else "prompt"
    found = {"2d": 0, "3d": 0}
    for path in paths:
        try:
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches(columns=[turns]):
                    for said in batch.column(0).to_pylist():
                        shown = next(
                            turn["content"].count(PLACEHOLDER)
                            for turn in said
                            if turn["role"] == "user"
                        )
                        found["2d" if shown == 1 else "3d"] += 1
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise PlanError(
                path, "a Parquet table of records", str(error)[:200], "check the file"
            ) from error
    if not sum(found.values()):
        raise PlanError(
            folder / form,
            "*.parquet with rows",
            f"{len(paths)} files, no rows",
            "give the folder that holds sft/ and rl/, or --records and --questions",
        )
    return found


def phantom_rows(profile: Any) -> dict[str, dict[str, int]]:
    """What the notebooks of a profile learn from when they make their own phantoms: ``records`` and ``questions``, by
    dimension."""
    each, families = assumptions()["questions_a_phantom"], profile.dataset.per_family / 2
    found = {}
    for name, section in (("records", profile.sft), ("questions", profile.rl)):
        patients = {d: section[f"patients_{d}"] for d in each}
        learnt = 1 - 2 * held_out_fraction(
            *patients.values()
        )  # as many again are kept for validation, and for a test
        found[name] = {
            d: round(count * learnt * each[d] * families) for d, count in patients.items()
        }
        for d in each:
            if section[f"counts_{d}"] is not None:
                found[name][d] = section[f"counts_{d}"]
    return found
