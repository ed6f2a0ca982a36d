"""Speed and memory, measured side by side: ``make bench`` prints a table and writes JSON.

Absolute seconds say more about a machine than about a program, so most rows are ratios of two ways of doing the same,
taken in turns in one run, medians over the repeats. Others hold a rate against a target that was set (``phantoms``,
``records``), another size (``memory``), or a forecast (``scale``, ``feeding``, ``plan``). A row with a target says
whether it was met.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unireason_lib.errors import RequestError


def _cache() -> list[dict]:
    from unireason_lib.bench.generation import bench_cache

    return bench_cache()


def _cost_of_a_box() -> list[dict]:
    from unireason_lib.bench.generation import bench_cost_of_a_box

    return bench_cost_of_a_box()


def _batching() -> list[dict]:
    from unireason_lib.bench.generation import bench_batching

    return bench_batching()


def _rollouts() -> list[dict]:
    from unireason_lib.bench.generation import bench_rollouts

    return bench_rollouts()


def _serialize() -> list[dict]:
    from unireason_lib.bench.imaging import bench_serialize

    return bench_serialize()


def _boxes() -> list[dict]:
    from unireason_lib.bench.imaging import bench_boxes

    return bench_boxes()


def _sft() -> list[dict]:
    from unireason_lib.bench.training import bench_sft

    return bench_sft()


def _processes() -> list[dict]:
    from unireason_lib.bench.training import bench_processes

    return bench_processes()


def _feeding() -> list[dict]:
    from unireason_lib.bench.imaging import bench_feeding

    return bench_feeding()


def _plan() -> list[dict]:
    from unireason_lib.bench.planning import bench_plan

    return bench_plan()


def _dataset(name: str) -> Callable[[], list[dict]]:
    def run() -> list[dict]:
        from unireason_lib.bench import dataset

        return getattr(dataset, f"bench_{name}")()

    return run


BENCHES: dict[str, Callable[[], list[dict]]] = {
    "cache": _cache,
    "cost-of-a-box": _cost_of_a_box,
    "batching": _batching,
    "rollouts": _rollouts,
    "serialize": _serialize,
    "boxes": _boxes,
    "phantoms": _dataset("phantoms"),
    "records": _dataset("records"),
    "workers": _dataset("workers"),
    "memory": _dataset("memory"),
    "scale": _dataset("scale"),
    "sft": _sft,
    "processes": _processes,
    "feeding": _feeding,
    "plan": _plan,
}
"""Name -> function that returns rows (``name``, ``baseline_s``, ``ours_s``, ``ratio``, perhaps ``target`` and
``ok``)."""


def run_bench(
    names: Sequence[str] = (), out: Path | None = None, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Run benchmarks, print each row as it comes, and write all of them as JSON.

    Args:
        names: Which of :data:`BENCHES`; empty for all.
        out: JSON file, written whole; None writes none.
        say: Where lines go.

    Returns:
        The rows.

    Raises:
        RequestError: An unknown name.
    """
    unknown = sorted(set(names) - set(BENCHES))
    if unknown:
        raise RequestError("bench", ", ".join(BENCHES), ", ".join(unknown), "choose from the list")
    say(_line("", "baseline", "ours", "ratio", "target"))
    rows: list[dict[str, Any]] = []
    for name in names or BENCHES:
        for row in BENCHES[name]():
            rows.append({"bench": name, **row})
            say(_row_line(row))
    missed = [row["name"] for row in rows if row.get("ok") is False]
    say("all targets met" if not missed else "targets missed: " + "; ".join(missed))
    if out is not None:
        _write(out, {"machine": machine(), "rows": rows})
        say(f"written to {out}")
    return rows


def machine() -> dict[str, Any]:
    """What a ratio may depend on: cores, versions, date. No host names and no paths."""
    packages = ("torch", "transformers", "numpy", "scipy", "nibabel")
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _row_line(row: dict[str, Any]) -> str:
    target = row.get("target")
    verdict = "" if "ok" not in row else "met" if row["ok"] else "MISSED"
    verdict = verdict if target is None else f"{target:g}x {verdict}"
    unit = "MiB" if "ours_mib" in row else "s"
    baseline, ours = (
        _amount(row.get(f"{side}_{unit.lower()}"), unit) for side in ("baseline", "ours")
    )
    return _line(
        row["name"], baseline, ours, f"{row['ratio']:.2f}x" if "ratio" in row else "", verdict
    )


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3f} s" if unit == "s" else f"{value:.0f} MiB"


def _line(*cells: str) -> str:
    name, *numbers = cells
    return f"{name:<84}" + "".join(f"{number:>13}" for number in numbers)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=1, default=float) + "\n", encoding="utf-8")
    temporary.replace(path)
