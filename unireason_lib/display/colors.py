"""The colours of every picture, page and widget, told apart by colour-blind readers as well.

They are those of Okabe and Ito (Color Universal Design, 2008), in an order whose first ones stand out on grey slices.
Colour never stands alone: boxes also carry a number, and their line style changes when the colours start again;
what the model wrote and what was put in have a legend and different edges.
"""

from __future__ import annotations

from dataclasses import dataclass

INK = "#1f2328"
"""Text."""

MUTED = "#656d76"
"""Text of less weight: captions, counts."""

BOX_COLORS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
"""One colour a box, in the order in which boxes are given."""

BOX_STYLES = ("solid", (0, (4, 2)), (0, (1, 1.5)))
"""Line styles: the next one each time the colours are used up."""

LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Curves and bars on white, where the light colours of boxes would be faint."""

ACTIVE = "#0072b2"
"""What the reader should look at."""


@dataclass(frozen=True)
class Owner:
    """How tokens of one owner look: fill and edge of their chips, and the words of the legend."""

    label: str
    fill: str
    edge: str


OWNERS = {
    "prompt": Owner("prompt", "#eceff2", "#c3cad2"),
    "own": Owner("written by the model", "#cfe6f7", "#0072b2"),
    "injected": Owner("put in: the region's image tokens", "#fbdfa6", "#b26b00"),
}
"""Who wrote a token: the prompt is given, the model writes its own, and a box fetches injected ones."""

LOSS_OWNERS = {
    "prompt": Owner("question (no loss)", OWNERS["prompt"].fill, OWNERS["prompt"].edge),
    "picture": Owner("its pictures (no loss)", "#d3ebe3", "#00805d"),
    "own": Owner("own words of the reply (loss)", OWNERS["own"].fill, OWNERS["own"].edge),
    "injected": Owner("regions put in (no loss)", OWNERS["injected"].fill, OWNERS["injected"].edge),
}
"""The same of an example to learn from: what carries loss, and what does not."""


def box_color(index: int) -> str:
    """The colour of the box with this index (0 for the first)."""
    return BOX_COLORS[index % len(BOX_COLORS)]


def box_style(index: int) -> str | tuple:
    """The line style (matplotlib) of the box with this index."""
    return BOX_STYLES[index // len(BOX_COLORS) % len(BOX_STYLES)]


def tint(color: str, share: float = 0.35) -> str:
    """A colour mixed with white, to lie behind dark text.

    Args:
        color: ``#rrggbb``.
        share: Share of the colour, 0 is white.
    """
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (channel - 255) * share):02x}" for channel in channels)
