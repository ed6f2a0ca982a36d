"""Curves, bars and the map of the pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from unireason_lib.display.colors import ACTIVE, INK, LINE_COLORS, MUTED, tint
from unireason_lib.display.sheet import SANS, WIDTH, Sheet, printable, text_width
from unireason_lib.errors import RequestError

Points = Sequence[tuple[float, float]]

MARKERS = "osD^vP"

STEPS: tuple[tuple[str, str, str], ...] = (
    ("01", "dataset construction", "masks, boxes,\nquestions, reasoning"),
    ("02", "slice serialization", "scan, slices,\nimage tokens"),
    ("03", "grounded interface", "write a box, get the\nregion's tokens back"),
    ("04", "SFT", "imitate grounded\nreasoning"),
    ("05", "outcome RL", "reward for answer\nand format only"),
    ("06", "evaluation", "accuracy, grounding,\nintervals"),
    ("07", "ablations", "which part\nmakes it work"),
)
"""Notebook, name and content of every step of the pipeline, in order."""


def plot_lines(
    series: Mapping[str, Points],
    xlabel: str,
    ylabel: str,
    band: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    *,
    target: float | None = None,
    reference: tuple[str, float] | None = None,
    log: bool = False,
    log_x: bool = False,
    title: str | None = None,
) -> Sheet:
    """Curves, one a series, with intervals where they are known.

    Args:
        series: Name -> points ``(x, y)`` in order of x.
        xlabel, ylabel: Quantity and unit.
        band: Name -> ``(low, high)`` at each of its points.
        target: A horizontal line to reach.
        reference: Name and place of a horizontal line to compare with, what chance would reach for instance.
        log: Logarithmic y axis; otherwise it starts at 0 unless there are negative values.
        log_x: Logarithmic x axis, with a tick at every x where there are few.
        title: A heading.

    Returns:
        A matplotlib figure.

    Raises:
        RequestError: Nothing to plot, or a band of another length than its series.
    """
    band = band or {}
    _check_series(series, band)
    sheet, axes = _chart(6.6, 3.0, title, list(series) if len(series) > 1 else [])
    for i, (name, points) in enumerate(series.items()):
        color = LINE_COLORS[i % len(LINE_COLORS)]
        x, y = zip(*points, strict=True)
        marker = MARKERS[i % len(MARKERS)]
        apart = max(1, len(x) // 20)  # many points would be a band of markers
        axes.plot(
            x,
            y,
            color=color,
            marker=marker,
            markevery=apart,
            markersize=5,
            linewidth=1.8,
            label=name,
        )
        if name in band:
            low, high = zip(*band[name], strict=True)
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    levels = [] if target is None else [(f"target {target:g}", target)]
    for name, level in [*levels, *([reference] if reference else [])]:
        axes.axhline(level, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            printable(name),
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=INK,
        )
    ticks = sorted({x for points in series.values() for x, _ in points})
    if log_x:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")
    if len(ticks) <= 8 and all(float(x).is_integer() for x in ticks):
        axes.set_xticks(ticks if log_x else _apart(ticks))
    lowest = min(
        [y for points in series.values() for _, y in points]
        + [low for b in band.values() for low, _ in b]
    )
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if _decades(series) < 1.5 else "")
    elif lowest >= 0:
        axes.set_ylim(bottom=0)
        axes.margins(y=0.08)
    axes.grid(axis="y", color="#e4e8ec", linewidth=0.8)
    _label(axes, xlabel, ylabel)
    return sheet


def plot_stages(
    panels: Mapping[str, Mapping[str, Points]],
    stages: Sequence[tuple[str, float, float]],
    xlabel: str,
    *,
    bands: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    levels: Mapping[str, Sequence[float]] | None = None,
) -> Sheet:
    """Curves over a training that has stages, one chart a quantity, all over the same x.

    Args:
        panels: Quantity and unit -> name of a series -> points ``(x, y)`` in order of x. A series keeps its colour in
            all charts.
        stages: ``(name, from, to)`` in order of x; they are shaded in turns, numbered, and named above.
        xlabel: Quantity and unit of x.
        bands: Name of a series -> ``(low, high)`` at each of its points, in every chart that has the series.
        levels: Quantity -> horizontal lines to compare with.

    Raises:
        RequestError: Nothing to plot, or a band of another length than its series.
    """
    bands, levels = bands or {}, levels or {}
    for series in panels.values():
        _check_series(series, {name: band for name, band in bands.items() if name in series})
    _check_series(
        {name: points for series in panels.values() for name, points in series.items()}, {}
    )
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    legend = names if len(names) > 1 else []
    rows = _in_rows(
        [f"{k}  {name}" for k, (name, _, _) in enumerate(stages, start=1)], WIDTH - 0.95
    )
    height, head = 1.75, 0.12 + 0.22 * len(rows) + (0.3 if legend else 0) + 0.22
    sheet = Sheet(WIDTH, head + (height + 0.18) * len(panels) + 0.4)
    for k, row in enumerate(rows):
        sheet.write(0.75, 0.1 + 0.22 * k, row, 9, color=MUTED)
    _draw_names(sheet, 0.75, 0.12 + 0.22 * len(rows), legend)
    every = [x for series in panels.values() for points in series.values() for x, _ in points]
    low, high = min(every), max(every)
    room = 0.01 * (high - low) or 1.0
    for at, (quantity, series) in enumerate(panels.items()):
        axes = sheet.place(0.75, head + at * (height + 0.18), WIDTH - 0.95, height, bare=False)
        for k, (_, start, end) in enumerate(stages):
            axes.axvspan(
                start, end, color="#eef1f4" if k % 2 == 0 else "white", linewidth=0, zorder=0
            )
            middle = (max(start, low) + min(end, high)) / 2
            if at == 0 and start < high and end > low:
                place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                look = {"ha": "center", "fontsize": 8.5, "color": MUTED, "annotation_clip": False}
                axes.annotate(str(k + 1), (middle, 1), xytext=(0, 3), **place, **look)
        for level in levels.get(quantity, ()):
            axes.axhline(level, color=INK, linestyle=(0, (4, 3)), linewidth=0.9)
        for name, points in series.items():
            i = names.index(name)
            color, (x, y) = LINE_COLORS[i % len(LINE_COLORS)], zip(*points, strict=True)
            marks = {
                "marker": MARKERS[i % len(MARKERS)],
                "markevery": max(1, len(x) // 20),
                "markersize": 4,
            }
            axes.plot(x, y, color=color, linewidth=1.6, label=name, **marks)
            if name in bands:
                axes.fill_between(
                    x, *zip(*bands[name], strict=True), color=color, alpha=0.16, linewidth=0
                )
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e4e8ec", linewidth=0.8)
        _label(axes, xlabel if at + 1 == len(panels) else "", quantity)
        if at + 1 < len(panels):
            axes.set_xticklabels([])
    return sheet


def plot_bars(
    values: Mapping[str, float],
    xlabel: str,
    *,
    targets: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    unit: str = "",
    title: str | None = None,
) -> Sheet:
    """Horizontal bars with their numbers, and what they should reach.

    Args:
        values: Name -> value.
        xlabel: Quantity and unit.
        targets: Name -> value to reach, drawn as a line across the bar. A bar that misses it is drawn in the colour of
            warning, and says so.
        intervals: Name -> ``(low, high)``.
        unit: Written after each number.
        title: A heading.

    Raises:
        RequestError: Nothing to plot.
    """
    targets, intervals = targets or {}, intervals or {}
    if not values:
        raise RequestError("plot_bars", "at least one bar", "none", "give values")
    names = [printable(name) for name in values]
    left = min(4.2, max(text_width(name, 9) for name in names) + 0.3)
    head, row, foot = 0.12 + (0.32 if title else 0), 0.36, 0.55
    sheet = Sheet(WIDTH, head + row * len(values) + foot)
    if title:
        sheet.write(0.12, 0.1, title, 11, fontweight="bold")
    beside = {
        name: _bar_words(value, targets.get(name), intervals.get(name), unit)
        for name, value in values.items()
    }
    right = max(1.7, *(text_width(words, 9) + 0.25 for words in beside.values()))
    axes = sheet.place(left, head, WIDTH - left - right, row * len(values), bare=False)
    for k, (name, value) in enumerate(values.items()):
        target = targets.get(name)
        missed = target is not None and value < target
        color = LINE_COLORS[1] if missed else LINE_COLORS[0]
        axes.barh(
            k, value, height=0.62, color=color if target is not None or not targets else MUTED
        )
        low, high = intervals.get(name, (value, value))
        if name in intervals:
            axes.plot([low, high], [k, k], color=INK, linewidth=1.6, marker="|", markersize=7)
        if target is not None:
            axes.plot(
                [target, target],
                [k - 0.42, k + 0.42],
                color=INK,
                linewidth=2.2,
                solid_capstyle="butt",
            )
        _write_beside(axes, beside[name], max(value, high, target or 0, 0), k, 9)
    axes.set_yticks(range(len(values)), names)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    _label(axes, xlabel, "")
    return sheet


def _bar_words(
    value: float, target: float | None, interval: tuple[float, float] | None, unit: str
) -> str:
    words = f"{value:.3g}{unit}"
    if interval is not None:
        words += f"  ({interval[0]:.3g} to {interval[1]:.3g})"
    if target is not None:
        words += f"  ({'below' if value < target else 'target'} {target:g}{unit})"
    return words


def plot_intervals(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]],
    xlabel: str,
    *,
    reference: tuple[str, float] | None = None,
    title: str | None = None,
    form: str = ".3g",
    dots: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Sheet:
    """Values with their intervals, a row for each thing measured and a mark for each way of measuring it.

    Args:
        series: Name -> row -> ``(value, low, high)``. A row has room for the series that have it.
        xlabel: Quantity and unit.
        reference: Name and place of a vertical line, what chance would reach for instance.
        title: A heading.
        form: Of the numbers beside it, as in a format string: ``"+.1f"`` for differences.
        dots: Name -> row -> single values that the value is the mean of (one a seed), drawn pale below it.

    Raises:
        RequestError: Nothing to plot.
    """
    rows = list(dict.fromkeys(row for values in series.values() for row in values))
    if not rows:
        raise RequestError("plot_intervals", "at least one value", "none", "give values")
    names = [printable(row) for row in rows]
    left = min(4.2, max(text_width(name, 9) for name in names) + 0.3)
    inside = {row: [name for name, values in series.items() if row in values] for row in rows}
    step = 0.2 * max(map(len, inside.values())) + 0.16
    top = 0.24 if reference else 0.06
    legend = list(series) if len(series) > 1 else []
    head = 0.12 + (0.32 if title else 0) + (0.3 if legend else 0) + top
    sheet = Sheet(WIDTH, head + step * len(rows) + 0.55)
    if title:
        sheet.write(0.12, 0.1, title, 11, fontweight="bold")
    _draw_names(sheet, left, head - top - 0.26, legend)
    axes = sheet.place(left, head, WIDTH - left - 1.7, step * len(rows), bare=False)
    for i, (one, values) in enumerate(series.items()):
        color, marker = LINE_COLORS[i % len(LINE_COLORS)], MARKERS[i % len(MARKERS)]
        for row, (value, low, high) in values.items():
            y = rows.index(row) + (inside[row].index(one) + 0.5 - len(inside[row]) / 2) * 0.2 / step
            single = (dots or {}).get(one, {}).get(row, ())
            below = [y + 0.07 / step] * len(single)
            axes.plot(single, below, "o", color=color, alpha=0.4, markersize=4, markeredgewidth=0)
            axes.plot([low, high], [y, y], color=color, linewidth=1.8, marker="|", markersize=6)
            axes.plot([value], [y], color=color, marker=marker, markersize=6)
            words = f"{value:{form}}  ({low:{form}} to {high:{form}})"
            _write_beside(axes, words, 1, y, 8.5, xycoords=("axes fraction", "data"), color=color)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    if reference:
        name, place = reference
        axes.axvline(place, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            printable(name),
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
            annotation_clip=False,
        )
    _label(axes, xlabel, "")
    return sheet


def plot_counts(panels: Mapping[str, Mapping[str, float]], *, columns: int = 2) -> Sheet:
    """How often each of some categories occurs, a small chart for each question that one may ask so.

    Args:
        panels: Heading -> category -> count, in the order in which they are to be shown.
        columns: Charts a row.

    Raises:
        RequestError: Nothing to plot.
    """
    if not panels or not all(panels.values()):
        raise RequestError("plot_counts", "at least one category a chart", str(panels), "count")
    row, width = 0.27, WIDTH / columns
    items = list(panels.items())
    lines = [items[k : k + columns] for k in range(0, len(items), columns)]
    heights = [max(len(counts) for _, counts in line) * row + 0.55 for line in lines]
    sheet = Sheet(WIDTH, sum(heights))
    top = 0.0
    for line, height in zip(lines, heights, strict=True):
        for k, (heading, counts) in enumerate(line):
            names = [printable(str(name)) for name in counts]
            sheet.write(k * width + 0.12, top + 0.1, heading, 10, fontweight="bold")
            left = k * width + min(0.5 * width, max(text_width(name, 9) for name in names) + 0.25)
            room = (k + 1) * width - left - 0.75
            axes = sheet.place(left, top + 0.38, room, row * len(counts), bare=False)
            axes.barh(range(len(counts)), list(counts.values()), height=0.66, color=LINE_COLORS[0])
            for y, value in enumerate(counts.values()):
                _write_beside(axes, f"{value:,.10g}", value, y, 8.5)
            axes.set_yticks(range(len(counts)), names)
            axes.set(ylim=(len(counts) - 0.5, -0.5), xlim=(0, max(*counts.values(), 1)))
            _label(axes, "", "")
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)
        top += height
    return sheet


def pipeline_figure(active_step: str | None = None) -> Sheet:
    """The map at the head of every notebook: all steps in their order, the present one filled.

    Args:
        active_step: Name or notebook number of a step (see :data:`STEPS`), or None.

    Raises:
        RequestError: There is no such step.
    """
    wanted = None if active_step is None else active_step.strip().casefold()
    if wanted is not None and wanted not in {
        key for n, name, _ in STEPS for key in (n, name.casefold())
    }:
        raise RequestError(
            "pipeline_figure",
            f"one of {', '.join(name for _, name, _ in STEPS)}",
            repr(active_step),
            "name a step",
        )
    height, gap = 1.25, 0.2
    width = (WIDTH - 2 * 0.06 - gap * (len(STEPS) - 1)) / len(STEPS)
    sheet = Sheet(WIDTH, height)
    axes = sheet.place(0, 0, WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    for k, (number, name, content) in enumerate(STEPS):
        left = 0.06 + k * (width + gap)
        active = wanted in (number, name.casefold())
        axes.add_patch(
            FancyBboxPatch(
                (left, 0.1),
                width,
                0.6,
                boxstyle="round,pad=0,rounding_size=0.09",
                facecolor=ACTIVE if active else tint(ACTIVE, 0.09),
                edgecolor=ACTIVE if active else "#a9bccb",
                linewidth=1.2,
            )
        )
        look = {"ha": "center", "family": SANS, "parse_math": False}
        label = name.replace(" ", "\n")
        axes.text(
            left + width / 2,
            0.4,
            label,
            fontsize=8.8,
            va="center",
            linespacing=1.25,
            color="white" if active else INK,
            fontweight="bold" if active else "normal",
            **look,
        )
        for row, line in enumerate(content.split("\n")):
            axes.text(
                left + width / 2,
                0.88 + 0.15 * row,
                line,
                fontsize=7,
                color=INK if active else MUTED,
                **look,
            )
        if k + 1 < len(STEPS):
            axes.add_patch(
                FancyArrowPatch(
                    (left + width + 0.01, 0.4),
                    (left + width + gap - 0.01, 0.4),
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color=MUTED,
                    linewidth=1.2,
                    shrinkA=0,
                    shrinkB=0,
                )
            )
    return sheet


def _check_series(series: Mapping[str, Points], band: Mapping[str, Any]) -> None:
    lengths = {name: len(points) for name, points in series.items()}
    wrong = [name for name in band if len(band[name]) != lengths.get(name)]
    if not lengths or not all(lengths.values()) or wrong:
        raise RequestError(
            "plot_lines",
            "at least one point a series, and one interval a point",
            f"points {lengths}, bands that do not fit {wrong}",
            "give the measured points",
        )


def _chart(
    width: float, height: float, title: str | None, legend: Sequence[str]
) -> tuple[Sheet, Axes]:
    """A sheet with one pair of axes; heading and legend stand above, where no curve can run through them."""
    head = 0.15 + (0.32 if title else 0) + (0.3 if legend else 0)
    sheet = Sheet(width, height + head + 0.6)
    axes = sheet.place(0.75, head, width - 0.95, height, bare=False)
    top = 0.1
    if title:
        sheet.write(0.12, top, title, 11, fontweight="bold")
        top += 0.32
    _draw_names(sheet, 0.75, top, legend)
    return sheet, axes


def _in_rows(words: Sequence[str], width: float) -> list[str]:
    """The words in as few lines as have room for them."""
    rows: list[str] = []
    for word in words:
        longer = f"{rows[-1]}      {word}" if rows else word
        if rows and text_width(longer) <= width:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows


def _write_beside(axes: Axes, words: str, x: float, y: float, size: float, **how: Any) -> None:
    """Words to the right of a place, also where they leave the axes."""
    style = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate(words, (x, y), xytext=(6, 0), fontsize=size, **style, **how)


def _draw_names(sheet: Sheet, x: float, top: float, names: Sequence[str]) -> None:
    """A line of legend: the colour and mark of each series, and its name."""
    for i, name in enumerate(names):
        color = LINE_COLORS[i % len(LINE_COLORS)]
        line = sheet.place(x, top + 0.02, 0.32, 0.14)
        line.plot(
            [0, 0.5, 1],
            [0, 0, 0],
            color=color,
            marker=MARKERS[i % len(MARKERS)],
            markevery=[1],
            lw=1.8,
            ms=5,
        )
        sheet.write(x + 0.38, top + 0.01, name, 9)
        x += 0.38 + text_width(name) + 0.3


def _decades(series: Mapping[str, Points]) -> float:
    values = [y for points in series.values() for _, y in points if y > 0]
    return math.log10(max(values) / min(values)) if values else 0.0


def _label(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(printable(xlabel), fontsize=9, parse_math=False)
    axes.set_ylabel(printable(ylabel), fontsize=9, parse_math=False)
    axes.tick_params(which="both", labelsize=8.5, length=3, color=MUTED)
    for name, spine in axes.spines.items():
        spine.set(color="#c3cad2", visible=name in ("left", "bottom"))


def _apart(ticks: Sequence[float]) -> list[float]:
    """Those ticks that have room: at least a twelfth of the range apart."""
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if tick - kept[-1] >= (ticks[-1] - ticks[0]) / 12:
            kept.append(tick)
    return kept
