"""The figure on which everything of this package is drawn, its colours, curves and intervals.

The colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers
tell apart; boxes also have numbers and line styles, curves have markers.
"""

import io
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from unireason_lib.errors import RequestError

INK, MUTED, FAINT, ACTIVE = "#1f2328", "#656d76", "#e4e8ec", "#0072b2"
BOX_COLORS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
BOX_STYLES = ("solid", (0, (4, 2)), (0, (1, 1.5)))  # the next one when the colours are used up
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # on white
MARKERS = "osD^vP"
WIDTH = 9.0  # inches of a full figure

STEPS = {  # of the pipeline: name and content
    "dataset construction": "masks, boxes,\nquestions,\nrationales",
    "slice serialization": "volume, slices,\nimage tokens",
    "grounded interface": "write a box,\nget the region's\ntokens back",
    "SFT": "imitate\ngrounded\nreasoning",
    "outcome RL": "reward for\nanswer and\nformat only",
    "evaluation": "accuracy,\ngrounding,\nintervals",
    "ablations": "which part\nmakes it work",
}

Pairs = Sequence[tuple[float, float]]
Reference = tuple[str, float] | None  # name and place of a line to compare with


class AltFigure(Figure):
    """A matplotlib figure that a notebook shows by itself, with ``alt``, a text for screen readers.

    It never passes through pyplot: nothing is shown twice, nothing must be closed. A dollar sign is
    plain text.
    """

    def __init__(self, width: float, height: float, alt: str) -> None:
        super().__init__((width, height), dpi=120, facecolor="white", layout="constrained")
        self.alt = alt

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        super().draw(renderer)

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        super().savefig(*args, **{"bbox_inches": "tight", "pad_inches": 0.08} | kwargs)

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", metadata={"Software": None})  # equal bytes every time
        return buffer.getvalue(), {"alt": self.alt}


def plot_lines(
    series: Mapping[str, Pairs],
    xlabel: str,
    ylabel: str,
    *,
    reference: Reference = None,
) -> AltFigure:
    """Curves: name -> points (x, y) in order of x. Raises RequestError for nothing to plot."""
    need(series and all(series.values()), "plot_lines", "points of each curve", series)
    figure = AltFigure(7, 3.6, f"{ylabel} over {xlabel}: {', '.join(series)}")
    axes = figure.subplots()
    for (name, points), color, marker in zip(series.items(), LINE_COLORS, MARKERS, strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker, ls="-", color=color, ms=5, markevery=len(x) // 20 + 1, label=name)
    if reference:
        axes.axhline(reference[1], color=INK, linestyle="--", linewidth=1.1, label=reference[0])
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=FAINT)
    return _finish(figure, axes, xlabel, ylabel)


def plot_intervals(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]],
    xlabel: str,
    *,
    reference: Reference = None,
    form: str = ".3g",
    dots: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> AltFigure:
    """Intervals: a row for each thing measured, a mark for each way of measuring it.

    ``series``: way -> row -> (value, low, high); ``reference``: a vertical line; ``form``: format
    of the numbers beside the marks, ``"+.1f"`` for differences; ``dots``: way -> row -> the values
    (one a seed) whose mean is shown, drawn pale below it.
    """
    rows = list(dict.fromkeys(row for values in series.values() for row in values))
    need(rows, "plot_intervals", "at least one value", series)
    ways = {row: [name for name in series if row in series[name]] for row in rows}
    pitch = 1 / (max(map(len, ways.values())) + 0.8)  # between the marks of a row
    figure = AltFigure(WIDTH, 0.2 * len(rows) / pitch + 0.8, f"{xlabel}: {', '.join(rows)}")
    axes = figure.subplots()
    for (name, values), color, marker in zip(series.items(), LINE_COLORS, MARKERS, strict=False):
        axes.plot([], [], marker, ls="-", color=color, label=name)
        for row, (value, low, high) in values.items():
            shift = ways[row].index(name) + 0.5 - len(ways[row]) / 2
            y = rows.index(row) + shift * pitch
            for seed in (dots or {}).get(name, {}).get(row, ()):
                axes.plot(seed, y + pitch / 3, "o", color=color, alpha=0.4, ms=4, mew=0)
            axes.plot([low, high], [y, y], "|", ls="-", color=color)
            axes.plot(value, y, marker, color=color)
            words = f"  {value:{form}}  ({low:{form}} to {high:{form}})"
            place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
            axes.text(1, y, words, color=color, **place)
    if reference:
        axes.axvline(reference[1], color=INK, linestyle="--", linewidth=1.1, label=reference[0])
    axes.set_yticks(range(len(rows)), [fill(row, 44) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT)
    return _finish(figure, axes, xlabel, "")


def pipeline_figure(active_step: str | None = None) -> AltFigure:
    """The map at the head of every notebook; this one of :data:`STEPS` is filled. Raises
    RequestError for a step that does not exist."""
    need(active_step in (None, *STEPS), "step", f"one of {', '.join(STEPS)}", active_step)
    alt = f"steps: {', '.join(STEPS)}" + f"; here {active_step}" * bool(active_step)
    figure = AltFigure(WIDTH, 1.35, alt)
    axes = figure.subplots()
    axes.set(xlim=(0.45, len(STEPS) + 0.55), ylim=(-1.05, 0.6))
    axes.set_axis_off()
    for k, (name, content) in enumerate(STEPS.items(), start=1):
        active = name == active_step
        fill_color, edge, ink = (ACTIVE, ACTIVE, "white") if active else ("#eaf2f8", "#a9bccb", INK)
        axes.bar(k, 0.9, 0.84, -0.45, color=fill_color, edgecolor=edge)
        text = {"ha": "center", "fontweight": "bold" if active else "normal"}
        axes.text(k, 0, name.replace(" ", "\n"), va="center", fontsize=8.8, color=ink, **text)
        axes.text(k, -0.54, content, va="top", ha="center", fontsize=7.2, color=MUTED)
        if k > 1:
            arrow = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (k - 0.42, 0), (k - 0.58, 0), arrowprops=arrow)
    return figure


def _finish(figure: AltFigure, axes: Axes, xlabel: str, ylabel: str) -> AltFigure:
    """Labels, and a legend above the axes when there is more than one thing to tell apart."""
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8.5, length=3, color=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    legend(figure, handles if names[1:] else [], names, "outside upper left")
    return figure


def legend(figure: AltFigure, handles: Sequence[Any], names: Sequence[str], place: str) -> None:
    """A legend outside the axes; the figure grows by its lines."""
    if handles:
        columns = max(1, 100 // (max(map(len, names)) + 8))
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))
        figure.legend(handles, names, loc=place, ncols=columns, fontsize=9, frameon=False)


def box_look(index: int) -> dict[str, Any]:
    """Colour and line style of the box with this index, as arguments of a matplotlib line."""
    return {"color": BOX_COLORS[index % 7], "linestyle": BOX_STYLES[index // 7 % 3]}


def need(right: Any, subject: object, expected: str, found: object) -> None:
    """Raise :class:`RequestError` unless something is right."""
    if not right:
        raise RequestError(subject, expected, found, "correct the arguments")


def evenly(items: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` of the items, evenly from the first to the last."""
    step = max(1, len(items) / limit)
    return [items[int((k + 0.5) * step)] for k in range(min(limit, len(items)))]


def arrays_of(images: Any) -> list[np.ndarray]:
    """Images of any form as (H, W) or (H, W, 3) uint8 arrays; :class:`RequestError` for others."""
    arrays = []
    for image in getattr(images, "pixels", images):
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        right = array.dtype == np.uint8 and array.size and array.shape[2:] in ((), (3,))
        expected = "PIL images or uint8 arrays (H, W) or (H, W, 3): serialize a volume first"
        need(right and array.ndim > 1, "image", expected, f"{array.dtype} {array.shape}")
        arrays.append(array)
    need(arrays, "images", "at least one", "none")
    return arrays
