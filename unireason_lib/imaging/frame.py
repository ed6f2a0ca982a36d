"""The frame in which boxes live: the picture as the processor shows it to the model.

Qwen2.5-VL's image processor resizes every picture so that both sides are multiples of ``patch_size * merge_size`` and
the area lies between two limits. Boxes are written in *those* pixels. A box that is drawn, learnt or cropped at any
other scale points at the wrong place, so this module is the only owner of that scale: training data, prompts, crops
and figures all ask a :class:`ProcessorFrame`.

The limits are read from the processor in use, under whichever name its version has for them: ``size.shortest_edge`` and
``size.longest_edge`` (which, despite their names, are areas in pixels), or the older ``min_pixels`` and ``max_pixels``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.errors import ModelError, ScanError, explain

if TYPE_CHECKING:
    from PIL import Image

MAX_ASPECT = 200
"""Longest to shortest side that Qwen's resize accepts (``smart_resize`` in transformers)."""


@dataclass(frozen=True)
class ProcessorFrame:
    """How a processor resizes pictures, and how boxes follow.

    Args:
        patch_size: Side of a vision patch in pixels (14 in Qwen2.5-VL).
        merge_size: Patches merged along each side into one token (2 in Qwen2.5-VL).
        min_pixels: Smallest area of a picture after the resize.
        max_pixels: Largest area of a picture after the resize.
        resample: Pillow's number of the interpolation (3 is bicubic, the default of Qwen's processors).

    Raises:
        ModelError: A size is not positive, or the limits contradict each other.
    """

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    resample: int = 3

    def __post_init__(self) -> None:
        sizes = (self.patch_size, self.merge_size, self.min_pixels, self.max_pixels)
        if min(sizes) < 1 or self.min_pixels > self.max_pixels:
            raise ModelError(
                explain(
                    "image processor",
                    expected="positive patch and merge sizes and min_pixels <= max_pixels",
                    found=f"patch {sizes[0]}, merge {sizes[1]}, min_pixels {sizes[2]}, max_pixels {sizes[3]}",
                    do="correct preprocessor_config.json of the checkpoint",
                )
            )

    @classmethod
    def from_processor(cls, processor: Any) -> ProcessorFrame:
        """Read the frame from a Qwen-VL processor or from its image processor, of any version.

        Raises:
            ModelError: The object has no patch size, or none of the known names of the two limits.
        """
        image_processor = getattr(processor, "image_processor", processor)
        limits = _limits(image_processor)
        patch, merge = (
            getattr(image_processor, "patch_size", None),
            getattr(image_processor, "merge_size", None),
        )
        if patch is None or merge is None or limits is None:
            raise ModelError(
                explain(
                    type(image_processor).__name__,
                    expected="patch_size, merge_size and size.shortest_edge/longest_edge (or min_pixels/max_pixels)",
                    found=f"patch_size {patch}, merge_size {merge}, size {getattr(image_processor, 'size', None)}",
                    do="use a processor of the Qwen2-VL family",
                )
            )
        resample = getattr(image_processor, "resample", None)
        return cls(int(patch), int(merge), *limits, resample=3 if resample is None else int(resample))

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.patch_size * self.merge_size

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture as the processor shows it to the model.

        Each side goes to the nearest multiple of :attr:`factor`; where the area then leaves the limits, both are
        scaled to meet them, down when it was too large and up when too small. The rule is ``smart_resize`` of
        transformers' Qwen2-VL image processor, written here because importing that takes seconds in every process;
        a test holds the two together.

        Args:
            height, width: The picture's own size in pixels.

        Raises:
            ScanError: The picture is empty, or longer than :data:`MAX_ASPECT` times its width.
        """
        if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
            raise ScanError(
                explain(
                    f"picture of {width} x {height} pixels",
                    expected=f"at least one pixel and an aspect ratio of at most {MAX_ASPECT}:1",
                    found=f"{width} x {height}",
                    do="crop or pad the picture",
                )
            )
        area, factor = height * width, self.factor
        new = [round(side / factor) * factor for side in (height, width)]
        if new[0] * new[1] > self.max_pixels:
            shrink = math.sqrt(area / self.max_pixels)
            new = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
        elif new[0] * new[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / area)
            new = [math.ceil(side * grow / factor) * factor for side in (height, width)]
        return new[0], new[1]

    def tokens(self, height: int, width: int) -> int:
        """Tokens that a picture of this size costs in the language model (delimiters not counted)."""
        new_height, new_width = self.size(height, width)
        return (new_height // self.factor) * (new_width // self.factor)

    def aligned(self, picture: Image.Image) -> Image.Image:
        """The picture as the model sees it, in RGB: crops are cut from this one."""
        height, width = self.size(picture.height, picture.width)
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        return picture if picture.size == (width, height) else picture.resize((width, height), self.resample)

    def to_frame(self, box: Box, height: int, width: int) -> Box:
        """A box in pixels of the picture, in pixels of the frame (not rounded; z is untouched)."""
        new_height, new_width = self.size(height, width)
        return box.scale(new_width / width, new_height / height)

    def from_frame(self, box: Box, height: int, width: int) -> Box:
        """The way back: a box in pixels of the frame, in pixels of the picture."""
        new_height, new_width = self.size(height, width)
        return box.scale(width / new_width, height / new_height)

    def written(self, box: Box, height: int, width: int, depth: int | None = None) -> Box:
        """The box as it is written in a text: whole pixels of the frame, never empty, inside the picture.

        Coordinates go to the nearest pixel; a side that would vanish keeps one pixel (or one slice).

        Args:
            box: A box that overlaps the picture, in pixels of the picture.
            height, width: Size of the picture.
            depth: Number of slices, for a cuboid.

        Raises:
            ScanError: The box lies outside the picture.
        """
        new_height, new_width = self.size(height, width)
        limits = (new_width, new_height) if isinstance(box, Box2D) else (new_width, new_height, depth or 0)
        inside = self.to_frame(box, height, width).clip(*limits)
        if inside.is_empty:
            raise ScanError(
                explain(
                    str(box),
                    expected=f"a box that overlaps a picture of {width} x {height} pixels and {depth or 1} slices",
                    found="a box outside of it",
                    do="check in which space the box was measured",
                )
            )
        n = len(limits)
        whole = inside.round().as_tuple()
        pairs = [_at_least_one(whole[i], whole[i + n], inside.as_tuple()[i], limits[i]) for i in range(n)]
        return (Box2D if n == 2 else Box3D)(*(low for low, _ in pairs), *(high for _, high in pairs))


QWEN_FRAME = ProcessorFrame(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
"""The frame of Qwen2.5-VL-3B and -7B-Instruct (``preprocessor_config.json`` of both)."""


def _at_least_one(low: int, high: int, true_low: float, limit: float) -> tuple[int, int]:
    if high > low:
        return low, high
    low = min(int(true_low), int(limit) - 1)
    return low, low + 1


def _limits(image_processor: Any) -> tuple[int, int] | None:
    """``(min_pixels, max_pixels)``; ``size`` wins, because newer processors resize by it and by nothing else."""
    size = getattr(image_processor, "size", None)
    if size is not None:
        get = size.get if isinstance(size, Mapping) else lambda name: getattr(size, name, None)
        for low, high in (("shortest_edge", "longest_edge"), ("min_pixels", "max_pixels")):
            if get(low) is not None and get(high) is not None:
                return int(get(low)), int(get(high))
    low, high = getattr(image_processor, "min_pixels", None), getattr(image_processor, "max_pixels", None)
    return None if low is None or high is None else (int(low), int(high))
