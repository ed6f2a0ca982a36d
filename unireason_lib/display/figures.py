"""Pictures of scans with boxes.

Boxes are half open. A box from x1 to x2 covers the pixels x1 .. x2 - 1, and a pixel is drawn around its whole number,
so the edge x1 is drawn at x1 - 0.5. A cuboid is drawn on the slices z1 .. z2 - 1 and on no other. Boxes must be in the
pixels of the pictures that are given.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.display.colors import ACTIVE, box_color, box_style
from unireason_lib.display.sheet import (
    WIDTH,
    Sheet,
    text_width,
)
from unireason_lib.errors import RequestError

Boxes = Sequence[Box] | Mapping[Any, Box]
Picture = Any
"""A PIL image, or an array ``(H, W)`` or ``(H, W, 3)`` of uint8."""

MARGIN = 0.12
GAP = 0.08


def show_slices(
    images: Any,
    boxes: Boxes | None = None,
    names: Sequence[str] | None = None,
    *,
    columns: int = 8,
    every: int = 1,
    only: Sequence[int] | None = None,
    highlight: Sequence[int] = (),
    orientation: bool | None = None,
    title: str | None = None,
) -> Sheet:
    """The slices of a volume in a grid, with boxes on the slices that they span.

    Args:
        images: A :class:`unireason_lib.imaging.SliceStack`, PIL pictures, or a ``(Z, Y, X)`` uint8 array.
        boxes: In pixels of these pictures; with names as a mapping. A :class:`Box2D` is drawn on the first picture.
        names: What the boxes are, for the legend.
        columns: Slices a row.
        every: Show every n-th slice.
        only: Show these slices (their indices) instead.
        highlight: Indices of slices to frame.
        orientation: Whether to write R, L, A, P at the sides of the first slice shown. None: for a serialized volume of
            known geometry, whose slices lie in radiological view.
        title: A heading.

    Returns:
        A matplotlib figure.

    Raises:
        RequestError: No pictures, a slice that does not exist, or boxes that are none.
    """
    pictures = pictures_of(images)
    boxes, names = named_boxes(boxes, names)
    shown = list(range(0, len(pictures), every)) if only is None else [int(i) for i in only]
    if not shown or min(shown) < 0 or max(shown) >= len(pictures) or columns < 1:
        raise RequestError(
            "show_slices",
            f"slices between 0 and {len(pictures) - 1}, and at least one column",
            f"{shown} in {columns} columns",
            "choose others",
        )
    if orientation is None:
        orientation = hasattr(images, "volume_shape") and getattr(images, "has_affine", False)
    columns = min(columns, len(shown))
    tile = (WIDTH - 2 * MARGIN + GAP) / max(columns, 4) - GAP
    height = tile * max(p.shape[0] / p.shape[1] for p in (pictures[i] for i in shown))
    rows = math.ceil(len(shown) / columns)
    width = 2 * MARGIN + columns * (tile + GAP) - GAP
    legend = _legend_rows(dict(enumerate(names)), width - 2 * MARGIN)
    head = MARGIN + (0.32 if title else 0)
    sheet = Sheet(
        width, head + rows * (height + GAP) + len(legend) * LEGEND_ROW + MARGIN - GAP * (not legend)
    )
    if title:
        sheet.write(MARGIN, MARGIN - 0.02, title, 11, fontweight="bold")
    for k, index in enumerate(shown):
        left, top = MARGIN + k % columns * (tile + GAP), head + k // columns * (height + GAP)
        axes = draw_picture(sheet, left, top, tile, height, pictures[index])
        for i, box in enumerate(boxes):
            if box is not None and lies_on(box, index):
                draw_box(axes, box, i, 1.2 if tile < 1.4 else 1.6)
        if len(pictures) > 1:
            write_corner(axes, str(index), 8)
        if orientation and k == 0:
            _letters(axes)
        if index in highlight:
            _frame(axes)
    _draw_legend(sheet, head + rows * (height + GAP), legend)
    return sheet


def show_box(
    image: Picture,
    boxes: Boxes | Box | None = None,
    names: Sequence[str] | None = None,
    *,
    orientation: bool = False,
    title: str | None = None,
    size: float = 4.2,
) -> Sheet:
    """One picture with its boxes, numbered when there are several.

    Args:
        image: The picture.
        boxes: In its pixels (of a cuboid the rectangle is drawn).
        names: What they are, for the legend.
        orientation: Whether to write R, L, A, P at the sides (for a slice in radiological view).
        title: A heading.
        size: Longer side of the picture in inches.
    """
    (picture,) = pictures_of([image])
    boxes, names = named_boxes([boxes] if isinstance(boxes, Box2D | Box3D) else boxes, names)
    return boxed(picture, dict(enumerate(boxes)), dict(enumerate(names)), orientation, title, size)


def boxed(
    picture: np.ndarray,
    boxes: Mapping[int, Box],
    names: Mapping[int, str],
    orientation: bool = False,
    title: str | None = None,
    size: float = 4.2,
) -> Sheet:
    """What :func:`show_box` draws, with boxes and names by the index that gives their colour and number."""
    scale = size / max(picture.shape[:2])
    height, width = picture.shape[0] * scale, picture.shape[1] * scale
    if len(boxes) > 1:
        names = {i: f"{i + 1}  {name}" for i, name in names.items()}
    room = max([width, *(text_width(name) + 0.5 for name in names.values())])
    legend = _legend_rows(names, room)
    head = MARGIN + (0.32 if title else 0)
    sheet = Sheet(
        2 * MARGIN + max(room, text_width(title or "", 11, weight="bold")),
        head + height + MARGIN + len(legend) * LEGEND_ROW,
    )
    if title:
        sheet.write(MARGIN, MARGIN - 0.02, title, 11, fontweight="bold")
    axes = draw_picture(sheet, MARGIN, head, width, height, picture)
    draw_boxes(axes, boxes, picture.shape, scale, numbers=len(boxes) > 1)
    if orientation:
        _letters(axes)
    _draw_legend(sheet, head + height + GAP, legend)
    return sheet


def show_pictures(
    images: Sequence[Picture],
    boxes: Sequence[Boxes] | None = None,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 4,
    foot: Mapping[int, str] | None = None,
) -> Sheet:
    """Pictures that have nothing to do with each other, side by side, each with boxes of its own.

    Args:
        images: The pictures, of any sizes.
        boxes: For each picture its boxes, in its pixels.
        titles: A line above each.
        columns: Pictures a row.
        foot: A legend below: what the colours stand for, in their order.
    """
    pictures = pictures_of(images)
    columns = min(columns, len(pictures))
    tile = (WIDTH - 2 * MARGIN + GAP) / max(columns, 2) - GAP
    height = min(tile * max(p.shape[0] / p.shape[1] for p in pictures), 1.3 * tile)
    caption = 0.24 if titles else 0.0
    rows = math.ceil(len(pictures) / columns)
    width = 2 * MARGIN + columns * (tile + GAP) - GAP
    legend = _legend_rows(dict(enumerate((foot or {}).values())), width - 2 * MARGIN)
    below = MARGIN + rows * (height + caption + GAP)
    sheet = Sheet(width, below - GAP + len(legend) * LEGEND_ROW + MARGIN + (0.04 if legend else 0))
    for k, picture in enumerate(pictures):
        left = MARGIN + k % columns * (tile + GAP)
        top = MARGIN + k // columns * (height + caption + GAP)
        if titles:
            sheet.write(left, top + 0.02, _fit(titles[k], tile, 9), 9)
        axes = draw_picture(sheet, left, top + caption, tile, height, picture)
        own, _ = named_boxes(boxes[k] if boxes else None, None)
        scale = min(tile / picture.shape[1], height / picture.shape[0])
        draw_boxes(axes, dict(enumerate(own)), picture.shape, scale, numbers=len(own) > 1)
    _draw_legend(sheet, below - GAP + 0.04, legend)
    return sheet


def show_masks(
    images: Sequence[Picture],
    labels: Sequence[np.ndarray],
    names: Mapping[int, str],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 3,
) -> Sheet:
    """Pictures with what was outlined in them, every structure in a colour of its own.

    Args:
        images: The pictures.
        labels: For each picture its label map, ``(H, W)`` whole numbers of the picture's size.
        names: Value of the label maps -> what it is; values that are not named are not drawn.
        titles: A line above each.
        columns: Pictures a row.

    Raises:
        RequestError: A label map has another size than its picture.
    """
    pictures = pictures_of(images)
    maps = [np.asarray(map_) for map_ in labels]
    sizes = [(map_.shape, picture.shape[:2]) for map_, picture in zip(maps, pictures, strict=False)]
    if len(maps) != len(pictures) or any(one != other for one, other in sizes):
        raise RequestError(
            "show_masks",
            "one label map a picture, of its size",
            f"{len(maps)} maps for {len(pictures)} pictures, (map, picture): {sizes}",
            "bring both to one grid",
        )
    sheet = show_pictures(pictures, titles=titles, columns=columns, foot=names)
    for axes, map_ in zip(
        sheet.axes, maps, strict=False
    ):  # the legend's axes come after those of the pictures
        for i, value in enumerate(names):
            mask = map_ == value
            if not mask.any():
                continue
            fill = np.zeros((*mask.shape, 4))
            fill[mask] = to_rgba(box_color(i), 0.45)
            axes.imshow(fill, interpolation="nearest")
            padded = np.pad(mask, 1).astype(float)
            edge = np.arange(-1, max(mask.shape) + 1)
            axes.contour(
                edge[: padded.shape[1]],
                edge[: padded.shape[0]],
                padded,
                [0.5],
                colors=[box_color(i)],
                linestyles=[box_style(i)],
                linewidths=1.4,
            )
        axes.set(xlim=(-0.5, map_.shape[1] - 0.5), ylim=(map_.shape[0] - 0.5, -0.5))
    return sheet


# -- pictures and boxes ---------------------------------------------------------------------------------------------


def pictures_of(images: Any) -> list[np.ndarray]:
    """Any form of pictures as ``(H, W)`` or ``(H, W, 3)`` uint8 arrays.

    Raises:
        RequestError: There are none, or an array is no picture.
    """
    pixels = getattr(images, "pixels", images)
    pictures = []
    for image in pixels:
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        colour = array.ndim == 3 and array.shape[2] in (3, 4)
        if not (array.ndim == 2 or colour) or array.dtype != np.uint8 or not array.size:
            raise RequestError(
                "picture",
                "a PIL image or a uint8 array (H, W) or (H, W, 3)",
                f"{array.dtype} {array.shape}",
                "serialize the volume first, or scale the values to 0..255",
            )
        pictures.append(array[..., :3] if colour else array)
    if not pictures:
        raise RequestError("pictures", "at least one", "none", "give the slices")
    return pictures


def named_boxes(boxes: Boxes | None, names: Sequence[str] | None) -> tuple[list[Box], list[str]]:
    """Boxes and their names, from a sequence or a mapping; no names when none are known.

    Raises:
        RequestError: Something is no box, or there are more or fewer names than boxes.
    """
    if isinstance(boxes, Mapping):
        names = [str(name) for name in boxes] if names is None else names
        boxes = list(boxes.values())
    boxes = list(boxes or ())
    names = [str(name) for name in names or ()]
    if not all(isinstance(box, Box2D | Box3D) for box in boxes) or (
        names and len(names) != len(boxes)
    ):
        raise RequestError(
            "boxes to draw",
            "Box2D or Box3D, and one name a box",
            f"{[type(box).__name__ for box in boxes]} with {len(names)} names",
            "parse the boxes first",
        )
    return boxes, names


def draw_picture(
    sheet: Sheet, left: float, top: float, width: float, height: float, picture: np.ndarray
) -> Axes:
    axes = sheet.place(left, top, width, height)
    smooth = "auto" if max(picture.shape[:2]) > 96 else "nearest"
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_anchor("NW")
    return axes


def lies_on(box: Box, index: int) -> bool:
    if isinstance(box, Box2D):
        return index == 0
    return math.floor(box.z1) <= index < math.ceil(box.z2)


def draw_box(axes: Axes, box: Box, index: int, width: float = 1.6) -> None:
    """The half-open box, with a dark rim that keeps it visible on bright tissue; cut where it leaves the picture."""
    picture = axes.images[0].get_size()
    inside = min(box.x1, box.y1) >= 0 and box.y2 <= picture[0] and box.x2 <= picture[1]
    axes.add_patch(
        Rectangle(
            (box.x1 - 0.5, box.y1 - 0.5),
            box.width,
            box.height,
            fill=False,
            edgecolor=box_color(index),
            linestyle=box_style(index),
            linewidth=width,
            joinstyle="miter",
            clip_on=not inside,
            path_effects=[withStroke(linewidth=width + 1.6, foreground="#000000b0")],
        )
    )


def draw_boxes(
    axes: Axes,
    boxes: Mapping[int, Box],
    shape: Sequence[int],
    scale: float,
    numbers: bool = True,
    label: tuple[float, float] = (0, 0),
) -> None:
    """Boxes by their index, each with its number at a corner where nothing else stands.

    Args:
        axes: The picture.
        boxes: Index -> box, in pixels of the picture.
        shape: Of the picture.
        scale: Inches a pixel.
        numbers: Whether to write them.
        label: Width and height, in inches, of what stands in the top left corner of the picture.
    """
    for index, box in boxes.items():
        draw_box(axes, box, index, 2.0)
    if not numbers:
        return
    taken = [(0.0, 0.0, label[0] / scale, label[1] / scale)]
    height, width = shape[:2]
    side = 0.17 if width * scale > 2 else 0.14  # of a tag, in inches
    w = h = side / scale
    for index, box in boxes.items():
        seen = box.xy if isinstance(box, Box3D) else box
        seen = seen.clip(width, height)
        corners = [
            (x, y)
            for y in (seen.y1 - h, seen.y2, seen.y1, seen.y2 - h)
            for x in (seen.x1, seen.x2 - w, seen.x1 - w, seen.x2)
        ]
        inside = [
            (x, y) for x, y in corners if 0 <= x <= width - w and 0 <= y <= height - h
        ] or corners
        free = [
            (x, y)
            for x, y in inside
            if all(x + w <= a or x >= a + c or y + h <= b or y >= b + d for a, b, c, d in taken)
        ]
        x, y = (free or inside)[0]
        taken.append((x, y, w, h))
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5), w, h, facecolor=box_color(index), edgecolor="black", lw=0.6
            )
        )
        axes.text(
            x - 0.5 + w / 2,
            y - 0.5 + h / 2,
            str(index + 1),
            fontsize=47 * side,
            fontweight="bold",
            color="black",
            ha="center",
            va="center_baseline",
        )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def write_corner(axes: Axes, words: str, size: float) -> None:
    axes.text(
        0.035,
        0.965,
        words,
        transform=axes.transAxes,
        fontsize=size,
        va="top",
        color="white",
        **_HALO,
    )


def _letters(axes: Axes) -> None:
    """Radiological view: the patient's right is on the left of the picture, the front on top."""
    for x, y, letter, place in (
        (0.03, 0.5, "R", {"ha": "left", "va": "center"}),
        (0.97, 0.5, "L", {"ha": "right", "va": "center"}),
        (0.5, 0.97, "A", {"ha": "center", "va": "top"}),
        (0.5, 0.03, "P", {"ha": "center", "va": "bottom"}),
    ):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            fontsize=8,
            fontweight="bold",
            color="white",
            **place,
            **_HALO,
        )


_HALO = {"path_effects": [withStroke(linewidth=2.2, foreground="black")]}


def _frame(axes: Axes) -> None:
    axes.add_patch(
        Rectangle(
            (0, 0),
            1,
            1,
            transform=axes.transAxes,
            fill=False,
            ec=ACTIVE,
            lw=3,
            clip_on=False,
            zorder=5,
        )
    )


LEGEND_ROW = 0.24


def _legend_rows(names: Mapping[int, str], width: float) -> list[list[tuple[float, int, str]]]:
    """``(left, index, words)`` of the entries of each row of a legend that is ``width`` inches wide."""
    rows: list[list[tuple[float, int, str]]] = []
    x = width
    for index, name in names.items():
        words = _fit(name, width - 0.4, 9)
        room = 0.3 + text_width(words) + 0.25
        if x + room > width + 0.25:
            rows.append([])
            x = 0.0
        rows[-1].append((x, index, words))
        x += room
    return rows


def _draw_legend(
    sheet: Sheet, top: float, rows: Sequence[Sequence[tuple[float, int, str]]]
) -> None:
    for k, row in enumerate(rows):
        for x, index, words in row:
            line = sheet.place(MARGIN + x, top + k * LEGEND_ROW + 0.06, 0.24, 0.12)
            line.set(xlim=(0, 1), ylim=(0, 1))
            line.plot(
                [0.04, 0.96],
                [0.5, 0.5],
                color=box_color(index),
                linestyle=box_style(index),
                linewidth=3,
                solid_capstyle="butt",
                path_effects=[withStroke(linewidth=4.4, foreground="#000000b0")],
            )
            sheet.write(MARGIN + x + 0.3, top + k * LEGEND_ROW + 0.04, words, 9)


def _fit(words: str, width: float, size: float) -> str:
    """The words, cut at their end to fit into ``width`` inches."""
    if text_width(words, size) <= width:
        return words
    kept = bisect_left(
        range(len(words)), width, key=lambda n: text_width(words[: n + 1] + "…", size)
    )
    return words[:kept] + "…"
