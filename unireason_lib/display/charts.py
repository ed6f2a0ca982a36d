"""Curves, bars, intervals, and the map of the pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes

from unireason_lib.display.style import (
    ACTIVE,
    FAINT,
    INK,
    LINE_COLORS,
    MARKERS,
    MUTED,
    WIDTH,
    AltFigure,
    heading,
    need,
    printable,
)

STEPS = {
    "01": ("dataset construction", "masks, boxes,\nquestions,\nrationales"),
    "02": ("slice serialization", "volume, slices,\nimage tokens"),
    "03": ("grounded interface", "write a box,\nget the region's\ntokens back"),
    "04": ("SFT", "imitate\ngrounded\nreasoning"),
    "05": ("outcome RL", "reward for\nanswer and\nformat only"),
    "06": ("evaluation", "accuracy,\ngrounding,\nintervals"),
    "07": ("ablations", "which part\nmakes it work"),
}
"""Number of the notebook -> name and content of each step of the pipeline, in order."""

Pairs = Sequence[tuple[float, float]]
Reference = tuple[str, float] | None  # name and place of a line to compare with, such as chance


def plot_lines(
    series: Mapping[str, Pairs],
    xlabel: str,
    ylabel: str,
    band: Mapping[str, Pairs] | None = None,
    *,
    reference: Reference = None,
    log_x: bool = False,
    title: str | None = None,
) -> AltFigure:
    """Curves: name -> points (x, y) in order of x; ``band`` has (low, high) at each point.

    Raises RequestError for nothing to plot, or a band of another length than its series.
    """
    band = band or {}
    lengths = {name: len(points) for name, points in series.items()}
    fits = all(len(band[name]) == lengths.get(name) for name in band)
    right = lengths and all(lengths.values()) and fits
    need(right, "plot_lines", "points, and one interval for each point of a band", lengths)
    figure, axes = _chart(7, 3.4, title, f"{ylabel} over {xlabel}: {', '.join(series)}")
    for i, (name, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True)
        style = {"color": LINE_COLORS[i % 6], "marker": MARKERS[i % 6], "markersize": 5}
        axes.plot(x, y, label=name, markevery=max(1, len(x) // 20), linewidth=1.8, **style)
        if name in band:
            low, high = zip(*band[name], strict=True)
            axes.fill_between(x, low, high, color=LINE_COLORS[i % 6], alpha=0.18)
    if reference:
        axes.axhline(reference[1], color=INK, linestyle="--", linewidth=1.1)
        _note(axes, reference[0], (1, reference[1]), (-4, 6), ("axes fraction", "data"), ha="right")
    if log_x:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(sorted({x for points in series.values() for x, _ in points})[:8])
        axes.xaxis.set_major_formatter("{x:g}")
    elif all(float(x).is_integer() for points in series.values() for x, _ in points):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=FAINT)
    return _finish(figure, axes, xlabel, ylabel)


def plot_intervals(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]],
    xlabel: str,
    *,
    reference: Reference = None,
    title: str | None = None,
    form: str = ".3g",
    dots: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> AltFigure:
    """Intervals: a row for each thing measured, a mark for each way of measuring it.

    Args:
        series: Way -> row -> (value, low, high).
        xlabel, reference, title: Quantity with its unit, a vertical line, a heading.
        form: Format of the numbers beside the marks: ``"+.1f"`` for differences.
        dots: Way -> row -> the values (one a seed) whose mean is shown, drawn pale below it.

    Raises:
        RequestError: Nothing to plot.
    """
    rows = list(dict.fromkeys(row for values in series.values() for row in values))
    need(rows, "plot_intervals", "at least one value", series)
    inside = {row: [name for name in series if row in series[name]] for row in rows}
    step = 0.2 * max(map(len, inside.values())) + 0.16  # inches a row
    figure, axes = _chart(WIDTH, step * len(rows) + 0.7, title, f"{xlabel}: {', '.join(rows)}")
    for i, (name, values) in enumerate(series.items()):
        color, marker = LINE_COLORS[i % 6], MARKERS[i % 6]
        axes.plot([], [], color=color, marker=marker, label=name)
        for row, (value, low, high) in values.items():
            y = inside[row].index(name) + 0.5 - len(inside[row]) / 2
            y = rows.index(row) + y * 0.2 / step
            single = (dots or {}).get(name, {}).get(row, ())
            below = [y + 0.07 / step] * len(single)
            axes.plot(single, below, "o", color=color, alpha=0.4, markersize=4, markeredgewidth=0)
            axes.plot([low, high], [y, y], color=color, linewidth=1.8, marker="|", markersize=6)
            axes.plot([value], [y], color=color, marker=marker, markersize=6)
            words = f"{value:{form}}  ({low:{form}} to {high:{form}})"
            _note(axes, words, (1, y), (6, 0), ("axes fraction", "data"), color=color)
    if reference:
        axes.axvline(reference[1], color=INK, linestyle="--", linewidth=1.1)
        place = (reference[1], 1), (0, 6), ("data", "axes fraction")
        _note(axes, reference[0], *place, ha="center")
    _name_rows(axes, rows)
    return _finish(figure, axes, xlabel)


def plot_bars(
    values: Mapping[str, float],
    xlabel: str,
    *,
    targets: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    unit: str = "",
) -> AltFigure:
    """Horizontal bars with their numbers; ``targets`` are lines across them, and a bar that misses
    its target says so. ``intervals`` are (low, high). Raises RequestError for nothing to plot."""
    need(values, "plot_bars", "at least one bar", "none")
    targets, intervals = targets or {}, intervals or {}
    figure, axes = _chart(WIDTH, 0.36 * len(values) + 0.6, None, f"{xlabel}: {', '.join(values)}")
    for k, (name, value) in enumerate(values.items()):
        target, (low, high) = targets.get(name), intervals.get(name, (value, value))
        missed, words = target is not None and value < target, f"{value:.3g}{unit}"
        if name in intervals:
            axes.plot([low, high], [k, k], color=INK, linewidth=1.6, marker="|", markersize=7)
            words += f"  ({low:.3g} to {high:.3g})"
        if target is not None:
            axes.plot([target, target], [k - 0.42, k + 0.42], color=INK, linewidth=2.2)
            words += f"  ({'below' if missed else 'target'} {target:g}{unit})"
        color = MUTED if targets and target is None else LINE_COLORS[missed]
        axes.barh(k, value, height=0.62, color=color)
        _note(axes, words, (max(value, high, target or 0, 0), k), (6, 0))
    _name_rows(axes, list(values))
    return _finish(figure, axes, xlabel)


def plot_counts(panels: Mapping[str, Mapping[Any, float]], *, columns: int = 2) -> AltFigure:
    """How often each category occurs: heading -> category -> count, one small chart a heading.

    Raises RequestError for a heading without counts, or none at all.
    """
    need(panels and all(panels.values()), "plot_counts", "counts for each heading", panels)
    most = [max(len(counts) for counts in list(panels.values())[k : k + columns])
            for k in range(0, len(panels), columns)]  # fmt: skip
    heights = [0.27 * bars + 0.4 for bars in most]
    figure = AltFigure(WIDTH, sum(heights), f"counts: {', '.join(panels)}", "constrained")
    grid = figure.add_gridspec(len(most), columns, height_ratios=heights)
    for k, (title, counts) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[divmod(k, columns)])
        heading(axes, title, fontsize=10, fontweight="bold")
        axes.barh(range(len(counts)), list(counts.values()), height=0.66, color=LINE_COLORS[0])
        for y, value in enumerate(counts.values()):
            _note(axes, f"{value:,.10g}", (value, y), (6, 0))
        _name_rows(axes, list(map(str, counts)))
        axes.set(
            ylim=(most[k // columns] - 0.5, -0.5), xlim=(0, max(*counts.values(), 1)), xticks=[]
        )
        axes.spines[:].set_visible(False)
        axes.tick_params(labelsize=8.5, length=0)
    return figure


def pipeline_figure(active_step: str | None = None) -> AltFigure:
    """The map at the head of every notebook; the step with this name or number (see :data:`STEPS`)
    is filled. Raises RequestError for a step that does not exist."""
    numbers = {key.casefold(): n for n, (name, _) in STEPS.items() for key in (n, name)}
    active = numbers.get(active_step.strip().casefold()) if active_step else None
    need(
        active or active_step is None,
        "pipeline_figure",
        f"one of {', '.join(numbers)}",
        active_step,
    )
    alt = f"steps: {', '.join(name for name, _ in STEPS.values())}; here {active_step}"
    figure = AltFigure(WIDTH, 1.35, alt)
    axes = figure.add_subplot(xlim=(0.45, len(STEPS) + 0.55), ylim=(-1.05, 0.6))
    axes.set_axis_off()
    for k, (number, (name, content)) in enumerate(STEPS.items(), start=1):
        on = number == active
        text = {"ha": "center", "linespacing": 1.25, "fontweight": "bold" if on else "normal"}
        colors = (ACTIVE, ACTIVE, "white") if on else ("#eaf2f8", "#a9bccb", INK)
        axes.bar(k, 0.9, 0.84, -0.45, color=colors[0], edgecolor=colors[1])
        label = name.replace(" ", "\n")
        axes.text(k, 0, label, va="center", fontsize=8.8, color=colors[2], **text)
        axes.text(
            k, -0.54, content, va="top", fontsize=7.2, color=INK if on else MUTED, ha="center"
        )
        if k > 1:
            arrow = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (k - 0.42, 0), (k - 0.58, 0), arrowprops=arrow)
    return figure


def _chart(width: float, height: float, title: str | None, alt: str) -> tuple[AltFigure, Axes]:
    figure = AltFigure(width, height + (0.4 if title else 0), alt, "constrained")
    axes = figure.add_subplot()
    if title:  # above the name of a vertical line
        heading(axes, title, fontsize=11, fontweight="bold", pad=18)
    return figure, axes


def _finish(figure: AltFigure, axes: Axes, xlabel: str, ylabel: str = "") -> AltFigure:
    """Labels, and a legend above the axes, where no curve runs through it."""
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8.5, length=3, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if names[1:]:
        legend(figure, handles, names, "outside upper left")
    return figure


def legend(figure: AltFigure, handles: Sequence[Any], names: Sequence[str], place: str) -> None:
    """A legend outside the axes; the figure grows by its lines."""
    widest = max(map(len, names)) * 0.08 + 0.6  # inches
    columns = max(1, min(len(names), int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(names) / columns) + 0.1)
    figure.legend(
        handles, names, loc=place, ncols=columns, fontsize=9, frameon=False, handlelength=3
    )


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [fill(printable(name), 44) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)


def _note(
    axes: Axes, words: str, place: Any, offset: Any, coordinates: Any = "data", **style: Any
) -> None:
    """Words beside a place (offset in points), also where they leave the axes."""
    how = {"xycoords": coordinates, "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(words, place, offset, fontsize=8.5, va="center", **how, **style)
