"""How a study is laid out for the model: which images, and where its structures lie in them.

A :class:`View` is one choice of slices and size, and the only place where a structure's box in
voxels becomes the box that is *written*: voxels -> pixels of the slices -> pixels of the processor.
With 300 slices laid out as 32, most planes are left out: what no image shows must not be asked
about (:meth:`View.visible`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from typing import Any, Self

import numpy as np
from PIL import Image

from unireason_lib import imaging
from unireason_lib.boxes import Box
from unireason_lib.dataset.schema import image_names
from unireason_lib.dataset.study import Structure, Study, slices_of
from unireason_lib.errors import DatasetError, ScanError
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame, Volume, Window

MIN_PIXELS = 12
"""Pixels that a structure must have on one shown plane to be asked about: a disc of four across."""
PADDED = 0.05
"""Proportion of the scan, outside of all structures, at which a single value counts as padding."""


@dataclass(frozen=True)
class View:
    """One study as it is shown to the model. It keeps the scan once its pixels were needed."""

    study: Study
    size: tuple[int, int, int] | None = None  # slices, rows, columns of a volume; None: the paper's
    window: Window | None = None  # as for `scan_images`; None: the study's own
    frame: ProcessorFrame = QWEN_FRAME  # how the processor resizes images

    @cached_property
    def _grid(self) -> tuple[int, ...]:
        flat = self.study.dimension == "2d"
        return tuple(self.study.shape if flat else self.size or imaging.PAPER_SIZE)

    @property
    def depth(self) -> int | None:
        """Number of slices; None for an image."""
        return None if len(self._grid) == 2 else self._grid[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(rows, columns) of an image or slice, before the processor."""
        return self._grid[-2:]

    @cached_property
    def serialization(self) -> dict[str, Any]:
        """Everything that decides how a scan becomes images, in plain values for the records."""
        window = self.window or self.study.window
        return {
            "size": None if self.depth is None else list(self._grid),
            "window": window if isinstance(window, str) else [float(value) for value in window],
            "frame": self.frame.to_dict(),
        }

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """The names of its images."""
        return image_names(self.study.source, self.study.id, self.serialization)

    def box(self, region: Structure | Box) -> Box:
        """Where a structure, or a box in voxels of the study, lies in the frame as it is written.

        In whole pixels, at least one along each axis; :class:`ScanError` for a box outside.
        """
        box = region.box if isinstance(region, Structure) else region
        if box not in self._written:  # questions ask for the same boxes again and again
            pairs = zip(self._grid[::-1], self.study.shape[::-1], strict=True)
            scaled = box.scale(*(new / old for new, old in pairs))  # in pixels of the slices
            self._written[box] = self.frame.written(scaled, *self.image_size, depth=self.depth)
        return self._written[box]

    @cached_property
    def _written(self) -> dict[Box, Box]:
        return {}

    def without_scan(self) -> Self:
        """The view without scan and labels, and with all that its records need of them."""
        view = replace(self, study=replace(self.study, scan_source=None, labels=None))
        known = {name: getattr(self, name) for name in ("serialization", "image_ids", "_written")}
        vars(view).update(known)
        return view

    @cached_property
    def _scan(self) -> Volume | np.ndarray:
        return self.study.scan

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (Z, Y, X), or (Y, X) or (Y, X, 3) of an image; or :class:`ScanError`."""
        shown = self.serialization
        return scan_images(self._scan, shown["size"], shown["window"], self.study.id)

    def images(self) -> list[Image.Image]:
        """The images before the processor, RGB: one, or the slices from foot to head."""
        planes = self.pixels if self.depth else [self.pixels]
        return [Image.fromarray(plane).convert("RGB") for plane in planes]

    def visible(self, structure: Structure) -> bool:
        """Whether at least :data:`MIN_PIXELS` pixels of a structure are shown on one plane. Labels
        and scan are sampled at the middle of each pixel, as :func:`serialize_labels` does. Pixels
        on padding do not count: the lowest value of the scan, or a single value all over them that
        also fills :data:`PADDED` of the scan. A :class:`DatasetError` without a label map."""
        labels, scan, lowest = self._sampled
        axes = zip(slices_of(structure.box), self._grid, self.study.shape, strict=True)
        part = tuple(slice(s.start * new // old, -(-s.stop * new // old)) for s, new, old in axes)
        labels, scan = labels[part], scan[part]
        planes = list(zip(labels, scan, strict=True)) if self.depth else [(labels, scan)]
        middle = len(planes) // 2  # where a structure is large as a rule, so one look is enough
        for plane, values in planes[middle:] + planes[:middle]:
            inside = reduce(or_, (plane == value for value in structure.values))
            shown = inside & (values > lowest)
            if np.count_nonzero(shown) >= MIN_PIXELS and not self._is_padding(values[shown]):
                return True
        return False

    def _is_padding(self, values: np.ndarray) -> bool:
        labels, scan, _ = self._sampled
        if (values != values[0]).any():
            return False
        return np.count_nonzero((scan == values[0]) & (labels == 0)) >= PADDED * scan.size

    @cached_property
    def _sampled(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Labels and scan at the middle of each pixel, and the lowest value of the scan."""
        if (labels := self.study.labels) is None:
            raise DatasetError(self.study.id, "a label map", "boxes only", "keep its labels")
        scan = self._scan.array if isinstance(self._scan, Volume) else self._scan
        if self.depth is None:
            scan = scan if scan.ndim == 2 else scan.max(axis=2)
        elif self._grid != labels.shape:
            labels, scan = (imaging.serialize_labels(array, self._grid) for array in (labels, scan))
        if np.isnan(lowest := scan.min()):
            do = "fill them, and save the scan again"
            raise ScanError(self.study.id, "finite values", "NaN", do)
        return labels, scan, lowest

    @cached_property
    def visible_labels(self) -> frozenset[int]:
        """The labels of all structures that are visible."""
        return frozenset(s.label for s in self.study.structures if self.visible(s))


def scan_images(
    scan: Volume | np.ndarray, size: Sequence[int] | None, window: Window, name: str
) -> np.ndarray:
    """The one way from a scan to uint8 pixels, when a set is built and when scans are read again.

    Args:
        scan: A Volume or bare (Z, Y, X); or an image, (Y, X) of any real type or (Y, X, 3).
        size: Slices, rows and columns of a volume; None for an image, which keeps its size.
        window: As for :func:`unireason_lib.imaging.serialize`. 8-bit images are shown as they are
            under ``"percentile"``, the default everywhere, and in colour under any window.
        name: For messages (:class:`ScanError`: not finite, an unknown window)."""
    window = window if isinstance(window, str) else tuple(window)
    if size is not None:
        if not isinstance(scan, Volume):
            scan = Volume(scan, imaging.UNKNOWN_AFFINE, name, False)
        return imaging.serialize(scan, tuple(size), window).pixels
    if scan.dtype == bool:
        return scan.astype(np.uint8) * 255
    if scan.dtype == np.uint8 and (scan.ndim == 3 or window == "percentile"):
        return scan
    return imaging.to_grey(scan, window, name)
