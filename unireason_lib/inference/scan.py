"""What the model looks at, and the way back: from a box in a reply, in pixels of the *frame*, to
the image, voxels and mm.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from PIL import Image

from unireason_lib.boxes import Box, Box2D
from unireason_lib.errors import RequestError, ScanWarning
from unireason_lib.imaging import PAPER_SIZE, ProcessorFrame, Serialization, Volume, Window
from unireason_lib.imaging.order import slice_order_report
from unireason_lib.imaging.read import load_image, load_volume
from unireason_lib.imaging.serialize import serialize
from unireason_lib.io import safe_path


@dataclass(frozen=True)
class Reading:
    """How scans are read; an impossible size or unknown window is a ``ScanError``."""

    size: tuple[int, int, int] = PAPER_SIZE  # slices, rows, columns of a volume
    window: Window | None = None  # None: percentile for volumes, as load_image for images
    image_size: tuple[int, int] | None = None  # rows, columns to which an image is shrunk at most
    key: str | None = None  # which array of an .npz with several
    volume: int | None = None  # which volume of a 4D file
    fill: float | None = None  # in place of NaN and infinities; None refuses them

    def __post_init__(self) -> None:
        Serialization(self.size, self.window or "percentile", self.image_size)  # checks them

    @classmethod
    def like(cls, trained: Serialization | None, *, dimension: str = "3d", **given: Any) -> Self:
        """What is given by hand (and not None), else what a checkpoint was trained with, else the
        paper's. A ``ScanWarning`` when something else is given than it was trained with."""
        given = {name: value for name, value in given.items() if value is not None}
        names = ("image_size",) if dimension == "2d" else ("size", "window")
        usual = {name: getattr(trained, name) for name in names} if trained else {}
        for name in sorted(usual.keys() & given.keys()):
            if given[name] != usual[name]:
                text = f"{name} {given[name]}, but this checkpoint was trained with {usual[name]}"
                warnings.warn(f"{text}: expect worse answers", ScanWarning, stacklevel=2)
        return cls(**usual | given)


@dataclass(frozen=True, eq=False)
class Scan:
    """The images of one question."""

    images: tuple[Image.Image, ...]  # one RGB image, or the slices of a volume from foot to head
    reading: Reading  # how they were read, with the window that was taken
    shape: tuple[int, ...]  # rows, columns, or (Z, Y, X) of the volume, before any resize
    volume: Volume | None = None  # the volume's geometry, without its voxels; None in 2D
    range: tuple[float, float] | None = None  # scan values of a volume that became black and white
    warnings: tuple[str, ...] = ()

    def record(self, boxes: Sequence[Box], frame: ProcessorFrame) -> dict[str, Any]:
        """What a line of results says of the scan: ``frame``, rows and columns of the images as the
        model sees them, and how many; ``serialization``, the fields of :class:`Reading`, ``shape``,
        and of a volume ``range``, ``spacing`` and ``affine``; the ``boxes`` of a reply clipped to
        the scan (None outside), ``boxes_image`` in pixels of the file, or ``boxes_voxel`` (L-P-S)
        and ``boxes_mm``, two opposite corners in world mm (R-A-S)."""
        width, height = self.images[0].size
        layout = {name: value for name, value in vars(self.reading).items() if value is not None}
        layout["shape"] = self.shape
        placed = [self._placed(box, frame) for box in boxes]
        corners = [box and _rounded(box.as_tuple()) for box in placed]
        if (volume := self.volume) is None:
            del layout["size"]
            places = {"boxes_image": corners}
        else:
            known = volume.has_affine
            layout["range"] = _rounded(self.range, 9)
            layout["spacing"] = _rounded(volume.spacing) if known else None
            layout["affine"] = volume.affine.tolist() if known else None
            mm = [[*map(_rounded, volume.to_mm(b))] if b and known else None for b in placed]
            places = {"boxes_voxel": corners, "boxes_mm": mm}
        seen = [*frame.size(height, width), len(self.images)]
        notes = {"warnings": list(self.warnings)} if self.warnings else {}
        return {"frame": seen, "serialization": layout, **places, **notes}

    def _placed(self, box: Box, frame: ProcessorFrame) -> Box | None:
        if self.volume is not None and isinstance(box, Box2D):
            return None  # four numbers name no slice of a volume
        box = box.xy if self.volume is None else box
        (width, height), sides = self.images[0].size, self.shape[::-1]
        shown = (width, height, len(self.images))
        factors = (old / new for old, new in zip(sides, shown, strict=False))
        box = frame.from_frame(box, height, width).scale(*factors).clip(*sides)
        return None if box.is_empty else box


def read_scan(path: str | Path, dimension: str, reading: Reading) -> Scan:
    """Read an image (``"2d"``) or volume (``"3d"``) for a question, or raise a ``ScanError``."""
    with warnings.catch_warnings(record=True, action="always", category=ScanWarning) as caught:
        if dimension == "2d":
            image = load_image(path, reading.window)
            shape = image.height, image.width
            if reading.image_size:
                image.thumbnail(reading.image_size[::-1], reducing_gap=None)
            scan, messages = Scan((image,), reading, shape), []
        else:
            reading = replace(reading, window=reading.window or "percentile")
            volume = load_volume(path, key=reading.key, frame=reading.volume)
            stack = serialize(volume, reading.size, reading.window, reading.fill)
            images, messages = tuple(stack.images()), slice_order_report(volume).messages
            scan = Scan(images, reading, volume.shape, stack.geometry, stack.range)
    notes = [str(one.message) for one in caught if issubclass(one.category, ScanWarning)]
    return replace(scan, warnings=tuple(dict.fromkeys([*notes, *messages])))


def scan_below(root: str | Path, name: str, absolute: bool = False) -> Path:
    """The scan that a data file names below ``root`` (:func:`~unireason_lib.io.safe_path`). A
    ``RequestError`` also when it is a device, or a series has a link that leads out."""
    root = Path(root).resolve()
    path = safe_path(root, name, "the scan's path", RequestError, absolute)
    for part in path.iterdir() if path.is_dir() else [path]:
        plain = part.is_file() or part.is_dir() or not part.exists()
        if not (plain and part.resolve().is_relative_to(root)):
            do, found = "put a copy there", "a link out of it, a device or a pipe"
            raise RequestError(part, f"regular files inside {root.name}/", found, do)
    return path


def _rounded(values: Any, digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]
