"""A viewer for notebooks: scroll through the slices of a volume, with its boxes, and read off where a pixel lies.

The pixels go to the browser once; scrolling and windowing happen there. Under the pointer it shows the
serialized pixel, the voxel of the scan that lies there, and the place in the patient in millimetres. It needs
a running kernel only to tell Python what was clicked. Where widgets do not run (a page that only shows the
saved notebook), the slice is shown as a picture.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.display.colors import box_color
from unireason_lib.errors import RequestError

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError(
        "slice viewer",
        "the package anywidget",
        f"no {error.name}",
        "pip install anywidget, or use show_slices(), which draws a figure",
    ) from error

_HERE = files("unireason_lib.display")


class SliceViewer(anywidget.AnyWidget):
    """Scroll through slices: slider, arrow keys, or the wheel after a click.

    Args:
        images: A :class:`unireason_lib.imaging.SliceStack`; or pictures of one size (PIL, or a ``(Z, Y, X)`` uint8
            array), about whose place in a patient nothing is then said. Colour is shown as grey.
        boxes: In serialized pixels; a mapping names them. A rectangle lies on the first slice.
        names: What they are.
        index: The slice to begin with; by default the middle of the first box, or of the volume.
        width: Largest width in CSS pixels.

    Attributes:
        index: The slice shown; can be set.
        window: Scan values shown as black and white; can be set.
        chosen: Index of the box chosen in the legend, or -1.
        picked: ``[x, y, slice]`` of the pixel that was clicked last, empty before.

    Raises:
        RequestError: The pictures or boxes are none, or the pictures differ in size.
    """

    _esm = _HERE.joinpath("viewer.js").read_text("utf-8")
    _css = _HERE.joinpath("viewer.css").read_text("utf-8")

    pixels = traitlets.Bytes().tag(sync=True)
    shape = traitlets.List(traitlets.Int()).tag(sync=True)
    range = traitlets.List(traitlets.Float()).tag(sync=True)
    to_voxel = traitlets.List().tag(sync=True)
    to_mm = traitlets.List().tag(sync=True)
    oriented = traitlets.Bool(False).tag(sync=True)
    boxes = traitlets.List().tag(sync=True)
    width = traitlets.Int(420).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)
    window = traitlets.List(traitlets.Float()).tag(sync=True)
    chosen = traitlets.Int(-1).tag(sync=True)
    picked = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        images: Any,
        boxes: Sequence[Box] | Mapping[Any, Box] | None = None,
        names: Sequence[str] | None = None,
        *,
        index: int | None = None,
        width: int = 420,
    ) -> None:
        from unireason_lib.display.figures import named_boxes

        pixels = _grey(images)
        boxes, names = named_boxes(boxes, names)
        cuboids = [Box3D.from_xy(box, 0, 1) if isinstance(box, Box2D) else box for box in boxes]
        names = names or [f"box {i}" for i, _ in enumerate(cuboids, start=1)]
        middle = (cuboids[0].z1 + cuboids[0].z2 - 1) // 2 if cuboids else (len(pixels) - 1) // 2
        low, high = getattr(images, "range", (0.0, 255.0))
        located = hasattr(images, "to_voxel")
        oriented = located and getattr(images, "has_affine", True)
        super().__init__(
            pixels=pixels.tobytes(),
            shape=list(pixels.shape),
            range=[float(low), float(high)],
            window=[float(low), float(high)],
            to_voxel=edge_matrix(lambda box: np.reshape(images.to_voxel(box).as_tuple(), (2, 3)))
            if located
            else [],
            to_mm=edge_matrix(images.to_mm) if oriented else [],
            oriented=oriented,
            boxes=[
                {"box": [float(v) for v in box.as_tuple()], "name": name, "color": box_color(i)}
                for i, (box, name) in enumerate(zip(cuboids, names, strict=True))
            ],
            index=min(max(int(middle if index is None else index), 0), len(pixels) - 1),
            width=width,
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and a picture of the present slice for pages that cannot run it."""
        shown = super()._repr_mimebundle_(**kwargs)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return {
            **data,
            "image/png": base64.b64encode(self.figure()._repr_png_()).decode(),
        }, metadata

    def figure(self) -> Any:
        """The present slice with its boxes as a matplotlib figure, in the present window."""
        from unireason_lib.display.figures import boxed, lies_on

        plane = np.frombuffer(self.pixels, np.uint8).reshape(self.shape)[self.index]
        low, high = self.range
        values = low + plane * ((high - low) / 255)
        grey = np.clip(
            (values - self.window[0]) / max(self.window[1] - self.window[0], 1e-12), 0, 1
        )
        boxes = {i: Box3D(*shown["box"]) for i, shown in enumerate(self.boxes)}
        here = {i: box for i, box in boxes.items() if lies_on(box, self.index)}
        names = {i: self.boxes[i]["name"] for i in here}
        picture = np.rint(grey * 255).astype(np.uint8)
        return boxed(picture, here, names, orientation=self.oriented, title=f"slice {self.index}")


def edge_matrix(corners_of: Any) -> list[list[float]]:
    """The affine map of box corners as a 3 x 4 matrix, found by mapping the corner of four boxes.

    Args:
        corners_of: Box -> ``(2, 3)`` corners elsewhere, affine in the box's corners.
    """
    origin = np.asarray(corners_of(Box3D(0, 0, 0, 1, 1, 1)), float)[0]
    starts = [Box3D(1, 0, 0, 2, 1, 1), Box3D(0, 1, 0, 1, 2, 1), Box3D(0, 0, 1, 1, 1, 2)]
    columns = [np.asarray(corners_of(box), float)[0] - origin for box in starts]
    return np.column_stack([*columns, origin]).tolist()


def _grey(images: Any) -> np.ndarray:
    """``(Z, Y, X)`` uint8."""
    from unireason_lib.display.figures import pictures_of

    pictures = pictures_of(images)
    if len({picture.shape[:2] for picture in pictures}) > 1:
        raise RequestError(
            "slice viewer", "slices of one size", "several sizes", "show_pictures() draws them"
        )
    weights = np.array([0.299, 0.587, 0.114])
    return np.stack([p if p.ndim == 2 else np.rint(p @ weights).astype(np.uint8) for p in pictures])
