"""What the model looks at, and the way back: from a box in a reply to the picture, the voxels and the millimetres.

A box is written in pixels of the *frame*, the picture as the processor shows it to the model. A reader of results wants
it on the scan. A :class:`Scene` knows both, so each line of results says how the scan was laid out and where every box
lies in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.imaging import (
    PAPER_SIZE,
    ProcessorFrame,
    SliceStack,
    load_image,
    load_volume,
    serialize,
    slice_order_report,
    window_range,
)
from unireason_lib.imaging.serialize import check_size
from unireason_lib.imaging.window import Window

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Reading:
    """How scans are read.

    Args:
        size: Slices, rows and columns that a volume is resampled to. A 2D picture keeps its size.
        window: Which scan values become black and white, see :func:`unireason_lib.imaging.window_range`; None is the
            1st to 99th percentile for volumes, and for pictures with more than 8 bits all of their range.
        key: Which array of an ``.npz`` with several.
        volume: Which volume of a 4D file.
        fill: Scan value to put in place of NaN and infinities; None refuses them.

    Raises:
        ScanError: Impossible size or unknown window.
    """

    size: tuple[int, int, int] = PAPER_SIZE
    window: Window | None = None
    key: str | None = None
    volume: int | None = None
    fill: float | None = None

    def __post_init__(self) -> None:
        check_size(self.size)
        if self.window not in (None, "percentile", "minmax"):
            window_range(np.zeros(2), self.window)


@dataclass(frozen=True, eq=False)
class Scene:
    """The pictures of one question.

    Attributes:
        images: One RGB picture, or the slices of a volume from foot to head.
        stack: The serialized volume with its geometry (its values are not kept), None in 2D.
        reading: How it was read, with the window that was taken.
        warnings: What is suspicious about the scan.
    """

    images: tuple[Image.Image, ...]
    stack: SliceStack | None = None
    reading: Reading = field(default_factory=Reading)
    warnings: tuple[str, ...] = ()

    @property
    def dimension(self) -> str:
        """``"2d"`` or ``"3d"``."""
        return "2d" if self.stack is None else "3d"

    def describe(self, frame: ProcessorFrame) -> dict[str, Any]:
        """How the scan was laid out, ready for JSON.

        Returns:
            ``frame``: size of the pictures as the model sees them, and how many. 2D: ``picture``, its size and
            window. 3D: ``serialization``: ``size`` (slices, rows, columns), ``window`` and the ``range`` of scan
            values that it became, ``volume_shape`` (Z, Y, X) in L-P-S directions, ``spacing`` in mm in that order (None
            when the file has no geometry) and ``affine``; ``key``, ``frame`` and ``fill`` when they were chosen.
            Perhaps ``warnings``.
        """
        width, height = self.images[0].size
        rows, columns = frame.size(height, width)
        told: dict[str, Any] = {"frame": {"width": columns, "height": rows, "pictures": len(self.images)}}
        if self.stack is None:
            told["picture"] = {"width": width, "height": height, "window": _plain(self.reading.window)}
        else:
            stack, known = self.stack, self.stack.has_affine
            told["serialization"] = {
                "size": list(stack.values.shape),
                "window": _plain(self.reading.window),
                "range": [float(value) for value in stack.range],
                "volume_shape": list(stack.volume_shape),
                "spacing": _rounded(np.linalg.norm(stack.affine[:3, :3], axis=0)[::-1]) if known else None,
                "affine": stack.affine.tolist() if known else None,
            }
            chosen = {"key": self.reading.key, "frame": self.reading.volume, "fill": self.reading.fill}
            told["serialization"] |= {name: value for name, value in chosen.items() if value is not None}
        if self.warnings:
            told["warnings"] = list(self.warnings)
        return told

    def locate(self, boxes: Sequence[Box], frame: ProcessorFrame) -> dict[str, list[Any]]:
        """Where boxes of a reply lie on the scan.

        Args:
            boxes: In pixels of the frame, as the model wrote them.
            frame: The processor's frame.

        Returns:
            Lists as long as ``boxes``, clipped to the scan; None where a box does not overlap it. 2D:
            ``boxes_picture`` (x1, y1, x2, y2) in pixels of the picture. 3D: ``boxes_voxel`` (x1, y1, z1, x2, y2, z2)
            in voxels of the volume in L-P-S directions, and ``boxes_mm``, two opposite corners in world mm (R-A-S),
            None for files without geometry. Four numbers do not say which slice of a volume is meant: they lie nowhere.
        """
        if self.stack is None:
            return {"boxes_picture": [self._on_picture(box, frame) for box in boxes]}
        stack, serialized = self.stack, [self._on_slices(box, frame) for box in boxes]
        return {
            "boxes_voxel": [box and _rounded(stack.to_voxel(box).as_tuple()) for box in serialized],
            "boxes_mm": [
                [_rounded(corner) for corner in stack.to_mm(box)] if box and stack.has_affine else None
                for box in serialized
            ],
        }

    def _on_picture(self, box: Box, frame: ProcessorFrame) -> list[float] | None:
        width, height = self.images[0].size
        flat = box if isinstance(box, Box2D) else box.xy
        flat = frame.from_frame(flat, height, width).clip(width, height)
        return None if flat.is_empty else _rounded(flat.as_tuple())

    def _on_slices(self, box: Box, frame: ProcessorFrame) -> Box3D | None:
        """A box in pixels of the slices as they were before the processor, and inside the volume."""
        if isinstance(box, Box2D):
            return None
        depth, height, width = self.stack.values.shape
        box = frame.from_frame(box, height, width).clip(width, height, depth)
        return None if box.is_empty else box


def read_scene(path: str | Path, dimension: str, reading: Reading | None = None) -> Scene:
    """Read a picture or volume for a question.

    Args:
        path: The scan.
        dimension: ``"2d"`` or ``"3d"``.
        reading: How; None takes the defaults of :class:`Reading`.

    Raises:
        ScanError: It cannot be read or serialized.
    """
    reading = reading or Reading()
    if reading.window is None:
        reading = replace(reading, window="minmax" if dimension == "2d" else "percentile")
    if dimension == "2d":
        return Scene((load_image(path, reading.window),), reading=reading)
    volume = load_volume(path, key=reading.key, frame=reading.volume)
    stack = serialize(volume, reading.size, reading.window, reading.fill)
    images = tuple(stack.images())
    return Scene(images, _without_values(stack), reading, tuple(_suspicions(volume.array)))


def _without_values(stack: SliceStack) -> SliceStack:
    """The geometry alone: the pictures have the values already, and many scenes may wait at a time."""
    empty = np.broadcast_to(np.float32(0), stack.values.shape)
    return SliceStack(empty, stack.range, stack.volume_shape, stack.affine, stack.has_affine, stack.source)


def _suspicions(array: np.ndarray) -> list[str]:
    report = slice_order_report(array)
    found = []
    if report.looks_shuffled:
        found.append("the slices look shuffled: neighbours resemble each other no more than others do")
    elif report.breaks:
        found.append(f"slices may be missing or misplaced after slice {_listed(report.breaks)} (from 0)")
    if report.duplicates:
        found.append(f"slices that repeat the one before: {_listed(report.duplicates)} (from 0)")
    return found


def _plain(window: Window) -> str | list[float]:
    return window if isinstance(window, str) else list(window)


def _listed(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:5])) + (" ..." if len(indices) > 5 else "")


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
