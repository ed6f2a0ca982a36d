"""The frame in which boxes live: the image as the processor shows it to the model.

Qwen's image processor resizes every image so that both sides are multiples of ``patch_size *
merge_size`` and the area lies between two limits. Qwen2.5-VL writes boxes in *those* pixels,
Qwen3-VL in thousandths of width and height; at any other scale they lie on the wrong place. This
module is the only owner of that scale: training data, prompts, crops and figures all ask a
:class:`ProcessorFrame`. A box is *written* in a text, and in pixels of the frame everywhere else.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from PIL import Image

from unireason_lib.backbones import BACKBONES, Backbone, scale_of
from unireason_lib.boxes import Box
from unireason_lib.errors import ModelError, ScanError, raising

MAX_ASPECT = 200  # longest to shortest side that `smart_resize` in transformers accepts


@dataclass(frozen=True)
class ProcessorFrame:
    """How a processor resizes images, and how boxes follow."""

    patch_size: int  # side of a vision patch in pixels (14 in Qwen2.5-VL)
    merge_size: int  # patches merged along each side into one token (2 in Qwen2.5-VL)
    min_pixels: int  # smallest and largest area of an image after the resize
    max_pixels: int
    resample: int = 3  # Pillow's number of the interpolation (bicubic)
    scale: int | None = None  # of written boxes: None, pixels; 1000, thousandths of the sides

    @classmethod
    def published(cls, backbone: Backbone) -> Self:
        """The frame of the published models of a family."""
        return cls(backbone.patch_size, 2, *backbone.areas, scale=backbone.scale)

    @classmethod
    def from_processor(cls, processor: Any) -> Self:
        """Read the frame from a Qwen-VL processor or image processor of transformers 5."""
        owner = getattr(processor, "image_processor", processor)
        expected = "patch_size, merge_size, resample and size (shortest_edge, longest_edge)"
        do = "use a processor of the Qwen2-VL family"
        with raising(ModelError, type(owner).__name__, expected, do):
            limits = (int(owner.size[name]) for name in ("shortest_edge", "longest_edge"))
            resample = 3 if owner.resample is None else int(owner.resample)
            sides = int(owner.patch_size), int(owner.merge_size)
            return cls(*sides, *limits, resample, scale_of(processor))

    def to_dict(self) -> dict[str, int]:
        """Its fields, the scale only where boxes are not written in pixels."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.patch_size * self.merge_size

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image as the processor shows it to the model: each side goes to
        the nearest multiple of that of a token; where the area then leaves the limits, both are
        scaled to meet them. This is ``smart_resize`` of transformers, written here because
        importing that takes seconds in every process; a test holds the two together."""
        if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
            expected = f"at least one pixel and an aspect ratio of at most {MAX_ASPECT}:1"
            raise ScanError("image", expected, f"{width} x {height}", "crop or pad the image")
        factor, sides = self.factor, (height, width)
        new = [round(side / factor) * factor for side in sides]
        if new[0] * new[1] > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            new = [max(factor, math.floor(side / shrink / factor) * factor) for side in sides]
        elif new[0] * new[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new = [math.ceil(side * grow / factor) * factor for side in sides]
        return new[0], new[1]

    def tokens(self, height: int, width: int) -> int:
        """Tokens that an image of this size costs in the language model, without delimiters."""
        return math.prod(self.size(height, width)) // self.factor**2

    def aligned(self, image: Image.Image) -> Image.Image:
        """The image as the model sees it, in RGB: crops are cut from this one."""
        height, width = self.size(image.height, image.width)
        image = image if image.mode == "RGB" else image.convert("RGB")
        same = image.size == (width, height)
        return image if same else image.resize((width, height), self.resample)

    def from_frame(self, box: Box, height: int, width: int) -> Box:
        """A box in pixels of the frame, in pixels of the image (not rounded; z is untouched)."""
        new_height, new_width = self.size(height, width)
        return box.scale(width / new_width, height / new_height)

    @property
    def unit(self) -> str:
        """Of written coordinates, in words."""
        return "pixels" if self.scale is None else "thousandths"

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image in the unit of written coordinates."""
        return self.size(height, width) if self.scale is None else (self.scale, self.scale)

    def pixels(self, box: Box, height: int, width: int) -> Box:
        """A box as it is written about an image of this size, in whole pixels of the frame."""
        return in_pixels(box, *self.size(height, width)[::-1], self.scale)

    def written(self, box: Box, height: int, width: int, depth: int | None = None) -> Box:
        """The box (in pixels of an image) as a text has it: in whole units, never empty, inside the
        image; of a cuboid inside ``depth`` slices. A :class:`ScanError` outside."""
        limits = (*self.extent(height, width)[::-1], depth or 0)
        inside = box.scale(limits[0] / width, limits[1] / height).clip(*limits)
        if inside.is_empty:
            expected = f"a box that overlaps {depth or 1} images of {width} x {height} pixels"
            raise ScanError(box, expected, "a box outside", "check in which space it was measured")
        return _whole(inside, limits)


def in_pixels(box: Box, width: int, height: int, scale: int | None) -> Box:
    """A written box in whole pixels of an image that has this width and height in the frame; the
    ``scale`` is that of the frame."""
    return box if scale is None else _whole(box.scale(width / scale, height / scale))


def _whole(box: Box, limits: Sequence[float] = (math.inf,) * 3) -> Box:
    """The nearest whole box; a side that would vanish keeps one unit, within the limits."""
    whole = list(box.round().as_tuple())
    axes = len(whole) // 2
    for axis, (low, limit) in enumerate(zip(box.as_tuple()[:axes], limits, strict=False)):
        if whole[axis] == whole[axis + axes]:
            whole[axis] = min(math.floor(low), limit - 1)
            whole[axis + axes] = whole[axis] + 1
    return type(box)(*whole)


QWEN_FRAME = ProcessorFrame.published(BACKBONES["qwen2_5_vl"])
