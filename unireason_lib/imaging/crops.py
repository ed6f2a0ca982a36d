"""From a written box to the pictures that it fetches.

A rectangle fetches one crop of the picture. A cuboid fetches the same rectangle from each slice that it spans, in
order. Crops are cut from the picture *as the processor shows it to the model* (see
:class:`unireason_lib.imaging.frame.ProcessorFrame`), because those are the pixels in which boxes are written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unireason_lib.boxes import Box, Box2D, Box3D, BoxError

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE = 4
"""Smallest side of a crop in pixels (released settings of UniReason-Med)."""

MAX_ASPECT = 180
"""Longest to shortest side of a crop; the processor refuses more than 200 (released settings of UniReason-Med)."""


def crop_rectangle(box: Box2D, width: int, height: int) -> Box2D | None:
    """The rectangle that is really cut: inside the picture, large enough and not too long.

    The box is clamped to the picture, then widened around its centre to :data:`MIN_SIDE` pixels a side and to an aspect
    ratio of at most :data:`MAX_ASPECT`, and moved back inside where that made it stick out. Where the picture itself is
    too narrow for that, the long side is shortened.

    Args:
        box: A rectangle in pixels of the picture.
        width, height: Size of the picture in pixels.

    Returns:
        A rectangle of whole pixels, or None when the box does not overlap the picture at all.
    """
    inside = box.clip(width, height).round(outward=True)
    if inside.is_empty:
        return None
    need_width = max(MIN_SIDE, math.ceil(inside.height / MAX_ASPECT))
    need_height = max(MIN_SIDE, math.ceil(inside.width / MAX_ASPECT))
    x1, x2 = _widen(int(inside.x1), int(inside.x2), need_width, width)
    y1, y2 = _widen(int(inside.y1), int(inside.y2), need_height, height)
    x1, x2 = _shorten(x1, x2, MAX_ASPECT * (y2 - y1))
    y1, y2 = _shorten(y1, y2, MAX_ASPECT * (x2 - x1))
    return Box2D(x1, y1, x2, y2)


def _shorten(low: int, high: int, most: int) -> tuple[int, int]:
    """Only a picture that is too narrow itself leaves something to cut off."""
    surplus = max(0, high - low - most)
    return low + surplus // 2, high - (surplus - surplus // 2)


def _widen(low: int, high: int, need: int, limit: int) -> tuple[int, int]:
    missing = need - (high - low)
    if missing <= 0:
        return low, high
    low = max(0, min(low - missing // 2, limit - need))
    return low, min(low + need, limit)


def slice_range(box: Box, count: int) -> range:
    """The indices of the pictures from which a box is cut, among ``count`` pictures.

    A cuboid names its slices; on a single picture its depth has no meaning and it is read as its rectangle. A rectangle
    means the first picture.
    """
    if isinstance(box, Box2D) or count == 1:
        return range(min(1, count))
    return range(max(0, math.floor(box.z1)), min(count, math.ceil(box.z2)))


def crop_region(images: Sequence[Image.Image], box: Box) -> list[Image.Image]:
    """Cut the region that a box names.

    Args:
        images: The pictures as the processor shows them to the model: one image, or the slices of a volume.
        box: In pixels of those pictures. A :class:`Box2D` is cut from the first picture; a :class:`Box3D` from each
            slice ``z1 .. z2 - 1`` that exists, or as its rectangle when there is only one picture.

    Returns:
        The crops in slice order; empty when the box lies outside the picture or the volume.

    Raises:
        BoxError: ``box`` is no box.
    """
    if not isinstance(box, Box2D | Box3D):
        raise BoxError(
            f"expected a Box2D or Box3D, found {type(box).__name__}. What to do: parse the text first."
        )
    rectangle = box if isinstance(box, Box2D) else box.xy
    crops = []
    for index in slice_range(box, len(images)):
        cut = crop_rectangle(rectangle, *images[index].size)
        if cut is not None:
            crops.append(images[index].crop(cut.as_tuple()))
    return crops
