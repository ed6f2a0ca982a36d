"""The data set of the laptop experiment: phantoms, built once for a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unireason_lib.dataset.build import BuildConfig, BuildReport, SourceSpec, build
from unireason_lib.imaging import ProcessorFrame

FIRST_3D = 500_000
"""First patient who is shown as a volume: nobody is both a slice and a volume."""

HELD_OUT = 6
"""Patients of either kind whom a small set holds out for validation, about, and as many for a test; a large set holds
out 2 % each."""


def phantom_set(
    folder: str | Path,
    patients_2d: int,
    patients_3d: int,
    frame: ProcessorFrame,
    settings: Any,
    *,
    first: int = 0,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> BuildReport:
    """Build the data set, or take it as it is when it is there. Runs that want the same one at once build it once.

    Args:
        folder: Of the data set.
        patients_2d: Patients of whom one slice is shown.
        patients_3d: Patients of whom the volume is shown.
        frame: Of the processor that will read it.
        settings: The section ``dataset`` of a profile: ``shape``, ``per_family``, ``census``.
        first: First patient shown as a slice; volumes are of patients 500,000 further on. Sets of other patients begin
            where those of this one end.
        seed: Of the questions; the patients do not depend on it.
        workers: Processes.
        progress: Whether to show a bar.

    Returns:
        What :func:`unireason_lib.dataset.build.build` returns.
    """
    start = {"start": first} if first else {}
    phantoms = (
        SourceSpec("phantom", None, {"dimension": "2d", **start, "count": patients_2d}),
        SourceSpec("phantom", None, {"dimension": "3d", "start": FIRST_3D + first, "count": patients_3d}),
    )
    share = held_out_share(patients_2d, patients_3d)
    config = BuildConfig(
        sources=phantoms,
        size=tuple(settings.shape),
        frame=frame,
        per_family=settings.per_family,
        census=settings.census,
        seed=seed,
        pictures="all",
        fractions={"train": 1 - 2 * share, "val": share, "test": share},
    )
    return build(config, folder, workers=workers, progress=progress, wait=True)


def held_out_share(patients_2d: int, patients_3d: int) -> float:
    """Of the patients of a set, the share that is kept for validation; as large a one is kept for a test."""
    fewest = min((count for count in (patients_2d, patients_3d) if count), default=1)
    return max(0.02, min(1 / 3, HELD_OUT / fewest))
