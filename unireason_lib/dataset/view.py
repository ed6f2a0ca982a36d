"""How a study is laid out for the model: which pictures, and where its structures lie in them.

A :class:`Study` lives in voxels. The model sees pictures: a 2D picture as it is, a volume as slices of a
chosen number and size, both resized once more by the processor. A :class:`View` is one choice of all that,
and the only place where a structure's box becomes the box that is *written*:

    voxels of the study  --serialization-->  pixels of the slices  --processor-->  pixels of the frame

Making a view costs nothing, because boxes need sizes and no pixels; pictures are made when
:meth:`View.images` is called.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from unireason_lib.boxes import Box
from unireason_lib.dataset.study import Structure, Study
from unireason_lib.imaging import PAPER_SIZE, QWEN_FRAME, ProcessorFrame, Volume, serialize, window_range

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class View:
    """One study as it is shown to the model.

    Args:
        study: What is shown.
        size: Slices, rows and columns of a volume; None is the paper's 32 x 256 x 256. Pictures keep their own
            size.
        window: As for :func:`unireason_lib.imaging.serialize`; None is the study's own. A picture of 8 bits or
            in colour is shown as it is, unless a window is asked for here.
        frame: How the processor resizes pictures; the default is that of the full-size model.
    """

    study: Study
    size: tuple[int, int, int] | None = None
    window: str | tuple[float, float] | None = None
    frame: ProcessorFrame = QWEN_FRAME

    @property
    def depth(self) -> int | None:
        """Number of slices; None for a picture."""
        return None if self.study.dimension == "2d" else (self.size or PAPER_SIZE)[0]

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of a picture or slice, before the processor."""
        return tuple(self.study.shape if self.study.dimension == "2d" else (self.size or PAPER_SIZE)[1:])

    @property
    def serialization(self) -> dict[str, Any]:
        """Everything that decides how scan becomes pictures, in plain values: it travels with the data."""
        window = self.window or self.study.window
        return {
            "size": None if self.depth is None else list(self.size or PAPER_SIZE),
            "window": window if isinstance(window, str) else [float(value) for value in window],
            "frame": asdict(self.frame),
        }

    @cached_property
    def _factors(self) -> tuple[float, ...]:
        """Pixels of a picture per voxel along x, y (and z): what :meth:`SliceStack.from_voxel` multiplies with."""
        new = self.picture_size if self.depth is None else (self.depth, *self.picture_size)
        return tuple(n / old for n, old in zip(new[::-1], self.study.shape[::-1], strict=True))

    @cached_property
    def _written(self) -> dict[int, Box]:
        return {}

    def box(self, region: Structure | Box) -> Box:
        """Where a structure (or any box in voxels of the study) lies in the frame, as it is written.

        Returns:
            Whole pixels, at least one along each axis.

        Raises:
            ScanError: The box lies outside the scan.
        """
        if not isinstance(region, Structure):
            return self._write(region)
        if region.label not in self._written:
            self._written[region.label] = self._write(region.box)
        return self._written[region.label]

    def _write(self, box: Box) -> Box:
        return self.frame.written(box.scale(*self._factors), *self.picture_size, depth=self.depth)

    def images(self) -> list[Image.Image]:
        """The pictures before the processor, RGB: one, or the slices from foot to head.

        Raises:
            ScanError: The scan cannot be read, or has no contrast.
        """
        scan = self.study.scan
        if self.study.dimension == "2d":
            return [_picture(scan, self.window, self.study.window, self.study.id)]
        if not isinstance(scan, Volume):
            scan = Volume(scan, np.eye(4), source=self.study.id, has_affine=False)
        return serialize(scan, self.size or PAPER_SIZE, self.window or self.study.window).images()


def _picture(array: np.ndarray, asked: Any, usual: Any, source: str) -> Image.Image:
    """(Y, X) of any type or (Y, X, 3) bytes as an RGB picture."""
    from PIL import Image

    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8 or (asked and array.ndim == 2):
        low, high = window_range(array, asked or usual, source)
        scaled = (array.astype(np.float32) - low) / (high - low)
        array = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")
