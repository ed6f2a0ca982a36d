"""What a study found, in tables: means of its conditions with intervals, and the verdicts on its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unireason_lib.ablation.claims import Verdict
from unireason_lib.evaluation.statistics import Interval, mean_over_runs
from unireason_lib.evaluation.tidy import Rows, conditions, runs

MEASURES: tuple[tuple[str, str, str | None], ...] = (
    ("2D, %", "correct", "2d"),
    ("3D, %", "correct", "3d"),
    ("IoU 2D", "iou_first", "2d"),
    ("IoU 3D", "iou_first", "3d"),
    ("form 2D, %", "in_format", "2d"),
    ("form 3D, %", "in_format", "3d"),
)
"""Columns of the table of conditions: heading, value, dimension."""


def means(rows: Rows, name: str, *, samples: int = 2000) -> dict[str, Interval]:
    """Heading -> mean of a condition with its interval over seeds and questions; measures that it lacks are left
    out."""
    found = {}
    for heading, value, dimension in MEASURES:
        where = {"dimension": dimension} if dimension else {}
        if any(
            row["condition"] == name
            and row[value] is not None
            and (not dimension or row["dimension"] == dimension)
            for row in rows
        ):
            found[heading] = mean_over_runs(*runs(rows, name, value, **where), samples=samples)
    return found


def table_of_conditions(
    rows: Rows,
    names: Sequence[str] | None = None,
    known: Mapping[str, Mapping[str, Interval]] | None = None,
) -> list[tuple[str, ...]]:
    """Lines of text for :func:`unireason_lib.tutorial.results.aligned`.

    Args:
        rows: The tidy table.
        names: Its conditions that are shown; None: all.
        known: :func:`means` of some, computed before.
    """
    there = conditions(rows)
    lines = [("condition", "seeds", *(heading for heading, *_ in MEASURES))]
    for name in names or there:
        if name not in there:
            continue
        found, cells = (known or {}).get(name) or means(rows, name), []
        for heading, *_ in MEASURES:
            one = found.get(heading)
            scale, digits = (100, 1) if "%" in heading else (1, 3)
            cells.append(
                ""
                if one is None
                else f"{scale * one.value:.{digits}f} ({scale * one.low:.{digits}f}-{scale * one.high:.{digits}f})"
            )
        lines.append((name, str(len(there[name])), *cells))
    return lines


def table_of_claims(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """The same for claims."""
    lines = [
        ("claim", "better", "worse", "on", "difference (95 %)", "p, Holm", "effect", "verdict")
    ]
    for one in verdicts:
        claim, found = one.claim, one.comparison
        scale, digits = (100, 1) if claim.value != "iou_first" else (1, 3)
        difference, size = "", ""
        if found is not None:
            d = found.difference
            difference = f"{scale * d.value:+.{digits}f} ({scale * d.low:+.{digits}f} to {scale * d.high:+.{digits}f})"
            name, size_of = ("d", found.d) if found.h is None else ("h", found.h)
            size = f"{name} {round(size_of, 2) + 0.0:+.2f}"  # never -0.00
        on = ", ".join(
            filter(
                None, (claim.dimension, claim.kind, claim.value if claim.value != "correct" else "")
            )
        )
        p = "" if one.p is None else "<0.001" if one.p < 0.001 else f"{one.p:.3g}"
        lines.append((claim.name, claim.better, claim.worse, on, difference, p, size, one.verdict))
    return lines
