"""Slices and images with boxes, and a whole reply in one static figure.

Boxes are half open and in the pixels of the images given. A pixel is drawn around its whole number,
so the edge x1 is drawn at x1 - 0.5. A cuboid lies on slices z1 .. z2 - 1, a rectangle on the first
image.
"""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from unireason_lib.answers import printable
from unireason_lib.boxes import Box, Box2D, Box3D, format_box
from unireason_lib.display.figures import (
    WIDTH,
    AltFigure,
    arrays_of,
    box_look,
    evenly,
    legend,
    need,
)
from unireason_lib.display.replies import Reply, read_reply
from unireason_lib.imaging.crops import slice_range

Boxes = Sequence[Box] | Mapping[Any, Box]
Looks = Iterable[tuple[int, Box]]  # index of the colour and number, box


def show_slices(images: Any, boxes: Boxes | None = None, *, letters: str = "") -> AltFigure:
    """The slices of a volume in a grid, with boxes (in pixels of the slices; a mapping names them)
    on the slices that they span. A :class:`unireason_lib.imaging.SliceStack` is shown in the
    proportions of the patient, with letters of the directions where they are known; PIL images and
    (Z, Y, X) uint8 as the model gets them, with the ``letters`` of :func:`show_images`. Raises
    RequestError for no images, or boxes that are none."""
    arrays, (boxes, names) = arrays_of(images), named_boxes(boxes)
    tiles = [(a, on_slice(enumerate(boxes), z, len(arrays))) for z, a in enumerate(arrays)]
    alt = f"{len(arrays)} slices with {len(boxes)} boxes {', '.join(names)}"
    figure, aspects = _grid(tiles, 8, alt, list(map(str, range(len(arrays)))), names), []
    if getattr(images, "has_affine", False):
        _, down, across = images.spacing
        letters, aspects = "RLAP", [down / across] * len(arrays)
    return _orient(figure, [letters] * len(arrays), aspects)


def show_images(
    images: Sequence[Any],
    boxes: Sequence[Boxes] | None = None,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 4,
    letters: Sequence[str] = (),
    aspects: Sequence[float] = (),
) -> AltFigure:
    """Unrelated images side by side, each with boxes in its own pixels and a title above; of a
    cuboid the rectangle is drawn. Mappings name the boxes; a name has one colour. ``letters``:
    for each image the sides of the patient at its left, right, upper and lower edge (``"RLAP"``,
    or nothing); ``aspects``: height over width of its pixels in the patient. Raises RequestError
    for no images, or boxes that are none."""
    arrays, named = arrays_of(images), [named_boxes(one) for one in boxes or [None] * len(images)]
    names = list(dict.fromkeys(name for _, own in named for name in own))
    looks = [[*map(names.index, own)] or range(len(some)) for some, own in named]
    pairs = zip(arrays, looks, named, strict=True)
    tiles = [(a, list(zip(look, some, strict=True))) for a, look, (some, _) in pairs]
    alt = f"{len(arrays)} images: {', '.join(titles or names)}"
    numbers = any(own[1:] for _, own in tiles)
    figure = _grid(tiles, max(2, columns), alt, titles, names, numbers)
    return _orient(figure, letters, aspects)


def show_trace(trace: Any, images: Any = None, *, frame: Any = None) -> AltFigure:
    """A whole reply in one figure: its image, or slices of the volume, with the boxes; the crops
    that came back; question and reply below. Arguments and errors are those of
    :func:`unireason_lib.display.replies.read_reply`, and no images are a RequestError."""
    reply = read_reply(trace, images, frame)
    arrays, boxes = arrays_of(reply.images), [(m.number - 1, m.box) for m in reply.mentions]
    hit = [z for z in range(len(arrays)) if on_slice(boxes, z, len(arrays))]
    shown = evenly(hit or range(len(arrays)), 6)
    tiles = [(arrays[z], on_slice(boxes, z, len(arrays))) for z in shown]
    titles = [f"slice {z} of {len(arrays)}" if arrays[1:] else "" for z in shown]
    crops = [(m, crop) for m in reply.mentions for crop in evenly(m.crops, 6)][:12]
    tiles += [(array, []) for array in arrays_of(crop for _, crop in crops)] if crops else []
    titles += [f"box {mention.number}: crop" for mention, _ in crops]
    text = printable(_text(reply))
    figure = _grid(tiles, 6 if arrays[1:] else 4, text, titles, numbers=True)
    lines = "\n".join(fill(line, 110) for line in text.split("\n")).split("\n")
    lines[30:] = ["…"] * (len(lines) > 30)
    style = {"family": "monospace", "fontsize": 9, "linespacing": 1.4}
    figure.text(0, -0.02, "\n".join(lines), va="top", **style)
    return figure


def show_record(record: Any, images: Sequence[Any]) -> AltFigure:
    """A :class:`unireason_lib.dataset.schema.Record` as the reply that a model should give;
    ``images`` are its images before the processor."""
    line = {name: getattr(record, name) for name in ("id", "question", "options")}
    line |= {"text": record.reply, "choice": record.answer, "truth": record.answer}
    line["pointings"], size = [], arrays_of(images)[0].shape[:2]
    for box in record.boxes:
        place = {"text": format_box(box), "box": record.frame.pixels(box, *size).as_tuple()}
        line["pointings"].append(place | {"status": "injected", "crops": []})
    return show_trace(line, images, frame=record.frame)


def named_boxes(boxes: Boxes | None) -> tuple[list[Box], list[str]]:
    """Boxes and the names that a mapping gives them; :class:`RequestError` for what is no box."""
    names = list(map(str, boxes)) if isinstance(boxes, Mapping) else []
    boxes = list(boxes.values() if isinstance(boxes, Mapping) else boxes or ())
    right = all(isinstance(box, Box2D | Box3D) for box in boxes)
    need(right, "boxes", "Box2D or Box3D", [type(box).__name__ for box in boxes])
    return boxes, names


def on_slice(boxes: Looks, z: int, count: int) -> list[tuple[int, Box]]:
    """Those boxes that lie on slice ``z`` of ``count``."""
    return [(look, box) for look, box in boxes if z in slice_range(box, count)]


def _text(reply: Reply) -> str:
    """Question, options, the reply with the number of each box before it, and the facts."""
    lines, words = [reply.question], ""
    for letter, option in reply.options.items():
        right, chosen = letter == reply.truth, letter == reply.choice
        lines.append(f"{letter}. {option}{' ✓' * right}{' ← chosen' * chosen}")
    for piece in reply.pieces:
        if not isinstance(piece, str):
            fetched = f"+{piece.fetched} crops" if piece.fetched else piece.status
            piece = f"[box {piece.number or ''}: {piece.text} {fetched}]"
        words += piece
    return "\n".join([*lines, "", words, "", reply.facts or reply.error])


def _draw_tile(axes: Axes, array: np.ndarray, boxes: Looks, title: str, numbers: bool) -> None:
    """One image with its boxes; ``numbers``: each with its own at a corner."""
    height, width = array.shape[:2]
    axes.imshow(array, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, loc="left", fontsize=8)
    for index, box in boxes:
        box, look = box.xy.clip(width, height), box_look(index)
        rim = [withStroke(linewidth=3.4, foreground="#000000b0")]
        style = {"fill": False, "linewidth": 1.8, "clip_on": False, "path_effects": rim, **look}
        axes.add_patch(Rectangle((box.x1 - 0.5, box.y1 - 0.5), box.width, box.height, **style))
        if numbers and not box.is_empty:  # boxes on one place keep their numbers apart
            x, y = (box.x1, box.x2)[index % 2], (box.y1, box.y2)[index // 2 % 2]
            tag = {"boxstyle": "square,pad=0.15", "facecolor": look["color"], "lw": 0.6}
            text = {"fontsize": 7.5, "weight": "bold", "ha": "center", "va": "center"}
            axes.text(x - 0.5, y - 0.5, str(index + 1), bbox=tag, **text)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _orient(figure: AltFigure, letters: Sequence[str], aspects: Sequence[float]) -> AltFigure:
    """Letters at the edges of the tiles, and pixels as high and wide as in the patient."""
    places = {"x": (0.05, 0.95, 0.5, 0.5), "y": (0.5, 0.5, 0.94, 0.06)}
    rim = [withStroke(linewidth=2, foreground="black")]
    style = {"color": "white", "fontsize": 8, "ha": "center", "va": "center", "path_effects": rim}
    for axes, four in zip(figure.axes, letters, strict=False):
        for letter, x, y in zip(four, *places.values(), strict=False):
            axes.text(x, y, letter, transform=axes.transAxes, **style)
    for axes, aspect in zip(figure.axes, aspects, strict=False):
        axes.set_aspect(aspect)
    if max(aspects, default=1) > 1:
        figure.set_figheight(figure.get_figheight() * max(aspects))
    if letters and any(letters):
        figure.alt += f"; letters of the patient's sides {', '.join(dict.fromkeys(letters))}"
    return figure


def _grid(
    tiles: Sequence[tuple[np.ndarray, Looks]],
    columns: int,
    alt: str,
    titles: Sequence[str] | None,
    names: Sequence[str] = (),
    numbers: bool = False,
) -> AltFigure:
    """Tiles (image, boxes) with titles above, and the names of the colours below."""
    side, columns = WIDTH / columns, min(columns, len(tiles))
    titles = ["\n".join(fill(line, int(13 * side)) for line in t.split("\n")) for t in titles or ()]
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    ratios = [len(array) / len(array[0]) for array, _ in tiles]
    rows = [max(ratios[k : k + columns]) for k in range(0, len(tiles), columns)]
    heights = [side * ratio + 0.17 * lines for ratio in rows]
    figure, titles = AltFigure(side * columns, sum(heights), alt), titles or [""] * len(tiles)
    every = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights).flat
    for axes in figure.axes:
        axes.set_axis_off()
    for (array, boxes), title, axes in zip(tiles, titles, every, strict=False):
        _draw_tile(axes, array, boxes, title, numbers)
    handles = [Line2D([], [], linewidth=3, **box_look(i)) for i in range(len(names))]
    numbered = [f"{i}  {name}" for i, name in enumerate(names, 1)] if names[1:] else names
    legend(figure, handles, numbered, "outside lower left")
    return figure
