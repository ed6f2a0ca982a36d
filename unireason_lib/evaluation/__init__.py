"""Asking a model a benchmark, and saying what its replies are worth.

    benchmark (items) -> run (one JSON line an item) -> metrics (numbers with intervals) -> report (tables)

Each arrow can be gone alone: lines that somebody else wrote can be measured, and a benchmark of one's own asked.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "items": ("Benchmark", "Item", "Skipped"),
    "benchmarks": ("BENCHMARKS", "open_benchmark"),
    "studies": ("most_likely_answers", "study_benchmark"),
    "run": ("CONTROLS", "evaluate", "line_of"),
    "metrics": (
        "cells",
        "crop_share",
        "guess_accuracy",
        "measure",
        "reliability",
        "volume_consistency",
    ),
    "consistency": ("read_consistency", "slice_benchmark"),
    "statistics": (
        "Comparison",
        "Interval",
        "bootstrap_mean",
        "cohens_h",
        "compare",
        "holm",
        "mcnemar",
        "mean_over_runs",
        "wilson",
    ),
    "report": ("Report",),
}

__all__ = sorted(name for names in _HOME.values() for name in names)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
