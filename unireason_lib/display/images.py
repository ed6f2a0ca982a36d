"""Slices and images with boxes, masks, questions and names.

Boxes are half open and in the pixels of the images given. A pixel is drawn around its whole number,
so the edge x1 is drawn at x1 - 0.5. A cuboid lies on slices z1 .. z2 - 1, a rectangle on the first
image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.display.charts import legend
from unireason_lib.display.style import WIDTH, AltFigure, box_look, evenly, heading, need
from unireason_lib.imaging.crops import slice_range

Boxes = Sequence[Box] | Mapping[Any, Box]
Looks = Iterable[tuple[int, Box]]  # index of the colour and number, box
TRUE, WRITTEN = 2, 8  # looks of true boxes (green), and of those that a model wrote (dashed orange)


def show_slices(
    images: Any,
    boxes: Boxes | None = None,
    names: Sequence[str] | None = None,
    *,
    columns: int = 8,
    only: Sequence[int] | None = None,
    orientation: bool | None = None,
) -> AltFigure:
    """The slices of a volume in a grid, with boxes on the slices that they span.

    Args:
        images: A :class:`unireason_lib.imaging.SliceStack`, PIL images, or (Z, Y, X) uint8.
        boxes, names: In pixels of these images, with names for the legend; or a mapping with both.
        columns, only: Slices a row; indices of the slices to show, by default all.
        orientation: Whether to write R, L, A, P on the first slice; None: where it is known.

    Raises:
        RequestError: No images, a slice that does not exist, or boxes that are none.
    """
    arrays, (boxes, names) = arrays_of(images), named_boxes(boxes, names)
    shown = list(range(len(arrays)) if only is None else only)
    inside = shown and min(shown) >= 0 and max(shown) < len(arrays)
    need(inside, "show_slices", f"slices between 0 and {len(arrays) - 1}", shown)
    tiles = [(arrays[z], on_slice(enumerate(boxes), z, len(arrays)), z) for z in shown]
    alt = f"{len(shown)} of {len(arrays)} slices with {len(boxes)} boxes {', '.join(names)}"
    figure = _grid(tiles, max(4, columns), alt, names=names)
    if getattr(images, "has_affine", False) if orientation is None else orientation:
        write_directions(figure.axes[0])
    return figure


def show_images(
    images: Sequence[Any],
    boxes: Sequence[Boxes] | None = None,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 4,
    foot: Mapping[int, str] | None = None,
) -> AltFigure:
    """Unrelated images side by side, each with boxes in its own pixels and a title above.

    ``foot`` is the legend: what the colours stand for, in order. Raises RequestError as
    :func:`show_slices`.
    """
    arrays = arrays_of(images)
    own = [list(enumerate(named_boxes(b, None)[0])) for b in boxes or [None] * len(arrays)]
    tiles = [(array, looks, "") for array, looks in zip(arrays, own, strict=True)]
    alt = f"{len(arrays)} images: {', '.join(titles or ())}"
    return _grid(tiles, columns, alt, titles, list((foot or {}).values()), numbers=True)


def show_box(
    image: Any,
    boxes: Boxes | Box | None = None,
    names: Sequence[str] | None = None,
    *,
    orientation: bool = False,
) -> AltFigure:
    """One image with its boxes, numbered when there are several; of a cuboid the rectangle."""
    boxes, names = named_boxes([boxes] if isinstance(boxes, Box2D | Box3D) else boxes, names)
    numbered = dict(enumerate(f"{i}  {n}" if boxes[1:] else n for i, n in enumerate(names, 1)))
    figure = show_images([image], [[flat(box) for box in boxes]], columns=2, foot=numbered)
    figure.alt = f"an image with {len(boxes)} boxes {', '.join(names)}"
    if orientation:
        write_directions(figure.axes[0])
    return figure


def show_masks(
    images: Sequence[Any],
    labels: Sequence[np.ndarray],
    names: Mapping[int, str],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 3,
) -> AltFigure:
    """Images with what was outlined in them: a label map (H, W) for each, and value -> name.

    Values without a name are not drawn. Raises RequestError for a map of another size.
    """
    arrays = arrays_of(images)
    sizes = [np.shape(map_) for map_ in labels], [array.shape[:2] for array in arrays]
    need(sizes[0] == sizes[1], "show_masks", "one label map an image, of its size", sizes)
    figure = show_images(arrays, titles=titles, columns=columns, foot=names)
    for axes, map_ in zip(figure.axes, labels, strict=True):
        for i, value in enumerate(names):
            mask = np.asarray(map_) == value
            look, (rows, columns_) = box_look(i), np.indices(np.add(mask.shape, 2)) - 1
            if mask.any():
                axes.imshow(mask[..., None] * np.array(to_rgba(look["color"], 0.45)))
                edge = {"colors": [look["color"]], "linestyles": [look["linestyle"]]}
                axes.contour(columns_, rows, np.pad(mask, 1), [0.5], linewidths=1.4, **edge)
        axes.set(xlim=(-0.5, map_.shape[1] - 0.5), ylim=(map_.shape[0] - 0.5, -0.5))
    return figure


def show_questions(
    questions: Sequence[Any], views: Sequence[Any], *, columns: int = 3
) -> AltFigure:
    """Questions over the slice with their evidence in boxes; ✓ is the right option.

    ``questions`` are of :class:`unireason_lib.dataset.questions.Question`, ``views`` for each the
    :class:`unireason_lib.dataset.view.View`. Raises RequestError for none, or unequal numbers.
    """
    need(questions and len(questions) == len(views), "show_questions", "a view each", len(views))
    tiles, titles = [], []
    for question, view in zip(questions, views, strict=True):
        boxes = list(enumerate(map(view.box, question.evidence)))
        tiles.append(_main_tile([view.frame.aligned(image) for image in view.images()], boxes))
        names = [structure.name for structure in question.evidence]
        numbered = [f"{i} {name}" for i, name in enumerate(names, 1)] if names[1:] else names
        lines = [
            question.family.upper(),
            question.text,
            *_options(question.options, question.answer),
        ]
        titles.append("\n".join([*lines, f"[{', '.join(numbered) or 'no box'}]"]))
    alt = f"{len(tiles)} questions with their evidence"
    return _grid(tiles, columns, alt, titles, numbers=True)


def show_replies(
    lines: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Any]], *, columns: int = 3
) -> AltFigure:
    """Replies of an evaluation over the slice with most boxes: true ones green, written dashed.

    ``lines`` are results with ``prediction`` and ``boxes``, ``images`` for each those of its
    question, as the processor shows them. Raises RequestError for none, or a line without a reply.
    """
    whole = all({"prediction", "boxes"} <= set(line) for line in lines)
    right = lines and whole and len(lines) == len(images)
    need(right, "show_replies", "lines with a reply, and images for each", len(images))
    tiles, titles = [], []
    for line, shown in zip(lines, images, strict=True):
        boxes = [(TRUE, box_of(values)) for _, values in line.get("truth_boxes") or ()]
        boxes += [(WRITTEN, box_of(values)) for values in line["boxes"][:30]]
        tiles.append(_main_tile(shown, boxes))
        answer, chosen, iou = line.get("truth"), line["prediction"], line.get("iou_best")
        text = [str(line.get("family", "")).upper(), line["question"]]
        text += _options(line["options"], answer, chosen) or [f"✓ {answer}", f"reply: {chosen}"]
        fit = "" if iou is None or math.isnan(iou) else f", best IoU {iou:.2f}"
        titles.append("\n".join([*text, f"[boxes written: {len(line['boxes'])}{fit}]"]))
    alt = f"{len(tiles)} replies with true and written boxes"
    names = {TRUE: "true box", WRITTEN: "box written by the model"}
    return _grid(tiles, columns, alt, titles, names)


# -- parts of figures ------------------------------------------------------------------------------


def arrays_of(images: Any) -> list[np.ndarray]:
    """Images of any form as (H, W) or (H, W, 3) uint8 arrays; :class:`RequestError` for others."""
    arrays = []
    for image in getattr(images, "pixels", images):
        array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
        right = array.dtype == np.uint8 and array.size and array.shape[2:] in ((), (3,), (4,))
        expected = "PIL images or uint8 arrays (H, W) or (H, W, 3): serialize a volume first"
        need(right and array.ndim > 1, "image", expected, f"{array.dtype} {array.shape}")
        arrays.append(array[..., :3] if array.ndim == 3 else array)
    need(arrays, "images", "at least one", "none")
    return arrays


def named_boxes(boxes: Boxes | None, names: Sequence[str] | None) -> tuple[list[Box], list[str]]:
    """Boxes and their names, none when they are not known; :class:`RequestError` for no boxes."""
    if isinstance(boxes, Mapping):
        boxes, names = boxes.values(), boxes if names is None else names
    boxes, names = list(boxes or ()), [str(name) for name in names or ()]
    right = all(isinstance(box, Box2D | Box3D) for box in boxes)
    found = f"{[type(box).__name__ for box in boxes]} with {len(names)} names"
    need(right and len(names) in (0, len(boxes)), "boxes", "Box2D or Box3D, a name each", found)
    return boxes, names


def box_of(values: Sequence[float]) -> Box:
    """Four or six numbers as a box."""
    return (Box2D if len(values) == 4 else Box3D)(*values)


def flat(box: Box) -> Box2D:
    """A box seen along z."""
    return box.xy if isinstance(box, Box3D) else box


def on_slice(boxes: Looks, z: int, count: int) -> list[tuple[int, Box]]:
    """Those boxes that lie on slice ``z`` of ``count``."""
    return [(look, box) for look, box in boxes if z in slice_range(box, count)]


def busiest(boxes: Sequence[tuple[int, Box]], count: int) -> int:
    """The slice with most boxes, nearest to the middle of the first; without boxes the middle."""
    first = slice_range(boxes[0][1], count) if boxes else ()
    middle = first[len(first) // 2] if first else count // 2
    return max(range(count), key=lambda z: (len(on_slice(boxes, z, count)), -abs(z - middle)))


def chosen_slices(boxes: Sequence[tuple[int, Box]], count: int, limit: int) -> list[int]:
    """At most ``limit`` slices: where there are more, those with boxes, or evenly from all."""
    hit = [z for z in range(count) if on_slice(boxes, z, count)]
    return evenly(hit if len(hit) >= limit < count else range(count), limit)


def draw_tile(axes: Axes, array: np.ndarray, boxes: Looks, label: Any, numbers: bool) -> None:
    """One image with boxes, each with its number at a corner where no other number stands."""
    height, width = array.shape[:2]
    smooth = "auto" if max(height, width) > 96 else "nearest"
    axes.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_axis_off()
    axes.set_anchor("NW")
    _on_image(axes, 0.03, 0.97, str(label), va="top")
    taken = [(0.06 * width, 0.06 * height)] if label != "" else []
    for index, box in boxes:
        box, look = flat(box).clip(width, height), box_look(index)
        place, rim = (
            (box.x1 - 0.5, box.y1 - 0.5),
            [withStroke(linewidth=3.4, foreground="#000000b0")],
        )
        style = {"fill": False, "linewidth": 1.8, "clip_on": False, "path_effects": rim}
        axes.add_patch(Rectangle(place, box.width, box.height, **style, **look))
        if numbers and not box.is_empty:
            corners = [(x, y) for y in (box.y1, box.y2) for x in (box.x1, box.x2)]
            low, high = (0.05 * width, 0.05 * height), (0.95 * width, 0.95 * height)
            inside = [tuple(np.clip(corner, low, high)) for corner in corners]
            far = [min([0.12 * width] + [math.dist(c, t) for t in taken]) for c in inside]
            x, y = inside[far.index(max(far))]
            taken.append((x, y))
            tag = {"boxstyle": "square,pad=0.15", "facecolor": look["color"], "lw": 0.6}
            text = {"fontsize": 7.5, "weight": "bold", "ha": "center", "va": "center_baseline"}
            axes.text(x - 0.5, y - 0.5, str(index + 1), bbox=tag, **text)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def write_directions(axes: Axes) -> None:
    """Radiological view: the patient's right is on the left of the image, the front on top."""
    _on_image(axes, 0.03, 0.5, "R", va="center")
    _on_image(axes, 0.97, 0.5, "L", va="center", ha="right")
    _on_image(axes, 0.5, 0.96, "A", va="top", ha="center")
    _on_image(axes, 0.5, 0.04, "P", va="bottom", ha="center")


def _on_image(axes: Axes, x: float, y: float, text: str, **place: str) -> None:
    rim = [withStroke(linewidth=2.2, foreground="black")]
    style = {"fontsize": 8, "color": "white", "path_effects": rim}
    axes.text(x, y, text, transform=axes.transAxes, **style, **place)


def _main_tile(images: Sequence[Any], boxes: list[tuple[int, Box]]) -> tuple[np.ndarray, Any, Any]:
    arrays = arrays_of(images)
    z = busiest(boxes, len(arrays))
    return arrays[z], on_slice(boxes, z, len(arrays)), f"slice {z}" if arrays[1:] else ""


def _options(options: Mapping[str, str], answer: Any, chosen: Any = None) -> list[str]:
    return [
        f"{'✓' if letter == answer else '  '} {letter}. {option}{' ← chosen' * (letter == chosen)}"
        for letter, option in options.items()
    ]


def _wrapped(line: str, side: float) -> str:
    """A line of a title above an image of so many inches; the rest of an option is indented."""
    indent = "      " if line[:1] in ("✓", " ") else ""
    return fill(line, int(side / 0.068), subsequent_indent=indent)


def _grid(
    tiles: Sequence[tuple[np.ndarray, Any, Any]],
    columns: int,
    alt: str,
    titles: Sequence[str] | None = None,
    names: Sequence[str] | Mapping[int, str] = (),
    numbers: bool = False,
) -> AltFigure:
    """Tiles (image, boxes, label) with titles above, and the names of the colours below."""
    side = WIDTH / max(columns, 2)
    columns, rows = min(columns, len(tiles)), math.ceil(len(tiles) / columns)
    titles = ["\n".join(_wrapped(line, side) for line in t.split("\n")) for t in titles or ()]
    ratio = min(max(array.shape[0] / array.shape[1] for array, _, _ in tiles), 1.3)
    above = max((title.count("\n") + 1 for title in titles), default=0) * 0.17  # inches
    figure = AltFigure(side * columns, rows * (side * ratio + above), alt, "constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.add_gridspec(rows, columns)
    for k, (array, boxes, label) in enumerate(tiles):
        axes = figure.add_subplot(grid[divmod(k, columns)])
        draw_tile(axes, array, boxes, label, numbers and len(boxes) > 1)
        if titles:
            heading(axes, titles[k], fontsize=8)
    if names:
        names = names if isinstance(names, Mapping) else dict(enumerate(names))
        rim = [withStroke(linewidth=4.4, foreground="#000000b0")]
        lines = [Line2D([], [], linewidth=3, path_effects=rim, **box_look(i)) for i in names]
        legend(figure, lines, list(names.values()), "outside lower left")
    return figure
