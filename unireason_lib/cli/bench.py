"""``bench``: speed and memory, as ratios measured side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file for the numbers.")] = Path("runs/bench.json"),
) -> None:
    """Measure speed and memory against the plain way, a target or a forecast; print a table, write JSON."""
    from unireason_lib.bench import run_bench

    run_bench(names or (), out)
