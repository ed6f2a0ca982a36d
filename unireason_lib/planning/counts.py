"""How many rows a data set has, read from its tables without opening a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from unireason_lib.errors import PlanError, explain
from unireason_lib.planning.machines import assumptions


def count_rows(folder: str | Path, form: str) -> dict[str, int]:
    """Rows by dimension.

    Args:
        folder: A data set that ``build`` wrote, or the authors' release.
        form: ``"sft"`` or ``"rl"``: the folder of its tables.

    Returns:
        Dimension -> rows. A row that names one picture is 2D; one with several (slices) or none (a volume that the
        user holds, as in the release) is 3D.

    Raises:
        PlanError: There are no tables, or one cannot be read.
    """
    paths = sorted((Path(folder) / form).glob("*.parquet"))
    found = {"2d": 0, "3d": 0}
    for path in paths:
        try:
            values = pq.read_table(path, columns=["image_ids"]).column(0)
            one = pc.sum(pc.equal(pc.fill_null(pc.list_value_length(values), 0), 1)).as_py() or 0
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise PlanError(
                explain(
                    path, expected="a Parquet table of records", found=str(error)[:200], do="check the file"
                )
            ) from error
        found["2d"] += one
        found["3d"] += len(values) - one
    if not sum(found.values()):
        raise PlanError(
            explain(
                Path(folder) / form,
                expected="*.parquet with rows",
                found=f"{len(paths)} files, no rows",
                do="give the folder that holds sft/ and rl/, or --records and --questions",
            )
        )
    return found


def phantom_rows(profile: Any) -> dict[str, dict[str, int]]:
    """What the notebooks of a profile learn from when they make their own phantoms: ``records`` and ``questions``, by
    dimension."""
    each, families = assumptions()["questions_a_phantom"], profile.dataset.per_family / 2
    return {
        name: {d: round(section[f"patients_{d}"] * each[d] * families) for d in each}
        for name, section in (("records", profile.sft), ("questions", profile.rl))
    }
