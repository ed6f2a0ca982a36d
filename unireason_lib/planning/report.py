"""A bill in words."""

from __future__ import annotations

from unireason_lib.planning.bill import Bill
from unireason_lib.planning.machines import Range
from unireason_lib.tutorial.results import aligned

NAMES = {"sft": "fine-tuning", "rl": "outcome RL", "test": "evaluation"}


def number(value: float) -> str:
    """Two significant digits, or whole: ``0.035``, ``7.4``, ``182``."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def hours(value: Range) -> str:
    """``1.2-3.4 h``, or minutes for what is short."""
    if value.high < 1:
        return f"{value.times(60).text(number)} min"
    return f"{value.text(number)} h"


def table(made: Bill) -> str:
    """The whole bill: what a sample is, what a GPU holds, and what the stages take."""
    shape = made.shape
    ways = [f"{NAMES[stage]}: {way}" for stage, way in made.strategies.items()]
    parts = [
        f"{shape.total / 1e9:.2f} B parameters ({shape.vision / 1e9:.2f} B of the vision tower, frozen) on "
        f"{made.cluster.text}; {', '.join(ways)}\n"
    ]
    lines = [("a sample", "prompt", "injected", "written", "tokens")]
    lines += [
        (d.upper(), f"{s.prompt:,}", f"{s.injected:,}", f"{s.written:,}", f"{s.tokens:,}")
        for d, s in made.samples.items()
    ]
    parts.append(aligned(lines))
    lines = [("memory a GPU", "GB", "of", "largest parts")]
    for stage, one in made.memory.items():
        largest = sorted(one.parts.items(), key=lambda part: -part[1])[:3]
        words = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in largest)
        lines.append((NAMES[stage], f"{one.total / 1e9:.1f}", f"{one.limit / 1e9:.1f}", words))
    parts.append(aligned(lines))
    lines = [("stage", "what", "PFLOP", "time", "USD")]
    for line in made.lines:
        cost = f"{line.cost.text(number)}"
        lines.append(
            (NAMES[line.stage], line.what, number(line.flops / 1e15), hours(line.hours), cost)
        )
    total = Range(sum(x.hours.low for x in made.lines), sum(x.hours.high for x in made.lines))
    paid = Range(sum(x.cost.low for x in made.lines), sum(x.cost.high for x in made.lines))
    lines.append(
        (
            "in all",
            "",
            number(sum(x.flops for x in made.lines) / 1e15),
            hours(total),
            paid.text(number),
        )
    )
    parts.append(aligned(lines))
    return "\n\n".join(part.rstrip("\n") for part in parts)
