"""From a written box to the crops that it fetches: a rectangle fetches one crop of the image, a
cuboid the same rectangle from each slice it spans. Crops are cut from the image *as the processor
shows it* (``ProcessorFrame.aligned``), because boxes are written in those pixels.
"""

import math
from collections.abc import Sequence

from PIL import Image

from unireason_lib.boxes import Box, Box2D

MIN_SIDE, MAX_ASPECT = 4, 180  # pixels, and longest to shortest side (released settings)


def crop_rectangle(box: Box2D, width: int, height: int) -> Box2D | None:
    """The whole pixels that are really cut, None when the box does not overlap the image.

    The box is clamped to the image, widened around its centre to :data:`MIN_SIDE` pixels a side and
    an aspect ratio of at most :data:`MAX_ASPECT`, as far as the image is wide, and moved inside."""
    inside = box.clip(width, height).round(outward=True)
    if inside.is_empty:
        return None
    need_width = max(MIN_SIDE, math.ceil(inside.height / MAX_ASPECT))
    need_height = max(MIN_SIDE, math.ceil(inside.width / MAX_ASPECT))
    x1, x2 = _widen(int(inside.x1), int(inside.x2), need_width, width)
    y1, y2 = _widen(int(inside.y1), int(inside.y2), need_height, height)
    return Box2D(x1, y1, x2, y2)


def _widen(low: int, high: int, need: int, limit: int) -> tuple[int, int]:
    if high - low >= need:
        return low, high
    low = max(0, min(low - (need - (high - low)) // 2, limit - need))
    return low, min(low + need, limit)


def slice_range(box: Box, count: int) -> range:
    """The indices, among ``count`` images, from which a box is cut: a rectangle means the first
    image; so does a cuboid where there is only one."""
    if isinstance(box, Box2D) or count == 1:
        return range(min(1, count))
    return range(max(0, math.floor(box.z1)), min(count, math.ceil(box.z2)))


def crop_region(images: Sequence[Image.Image], box: Box) -> list[Image.Image]:
    """The crops that a box names, in slice order; none when it lies outside. The images (one, or
    the slices of a volume) are as the processor shows them, the box is in their pixels."""
    chosen = (images[index] for index in slice_range(box, len(images)))
    cuts = ((image, crop_rectangle(box.xy, *image.size)) for image in chosen)
    return [image.crop(cut.as_tuple()) for image, cut in cuts if cut is not None]
