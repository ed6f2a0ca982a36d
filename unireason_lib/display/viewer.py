"""A viewer for notebooks, of ipywidgets: scroll slices, change the window, see the boxes.

Python draws each slice, so it needs a running kernel; where widgets do not run, the present slice
is shown as a still image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw

from unireason_lib.boxes import Box
from unireason_lib.display.images import arrays_of, flat, named_boxes
from unireason_lib.display.style import BOX_COLORS
from unireason_lib.imaging import CT_WINDOWS, Volume, window_range
from unireason_lib.imaging.crops import slice_range


class SliceViewer(widgets.VBox):
    """Slices with a slider (arrow keys move it), and for a volume a choice of windows.

    Args:
        images: A :class:`unireason_lib.imaging.Volume`, a
            :class:`unireason_lib.imaging.SliceStack`, PIL images, or (Z, Y, X) uint8.
        boxes: In voxels of the volume or pixels of the images; a mapping names them.
        names: What they are.
        index: The slice to begin with; by default the middle of the first box, or of all slices.
        window: Of a volume, as for :func:`unireason_lib.imaging.serialize`.
        width: Of the image in pixels of the screen; the height follows the spacing.

    Raises:
        RequestError: The images or boxes are none.
    """

    def __init__(
        self,
        images: Any,
        boxes: Sequence[Box] | Mapping[Any, Box] | None = None,
        names: Sequence[str] | None = None,
        *,
        index: int | None = None,
        window: str | tuple[float, float] = "percentile",
        width: int = 420,
    ) -> None:
        self._volume = images if isinstance(images, Volume) else None
        self._slices = images.array if self._volume else arrays_of(images)
        self._boxes, self._names = named_boxes(boxes, names)
        self._oriented, self._width = getattr(images, "has_affine", False), width
        spans = [slice_range(box, len(self._slices)) for box in self._boxes]
        middle = next((s[len(s) // 2] for s in spans if s), len(self._slices) // 2)
        start = middle if index is None else min(max(int(index), 0), len(self._slices) - 1)
        wide, last = {"layout": {"width": f"{width}px"}}, len(self._slices) - 1
        self.slider = widgets.IntSlider(start, 0, last, description="slice", **wide)
        self._image, self._range = widgets.Image(format="png", **wide), None
        rows: list[Any] = [self._image, self.slider]
        if self._volume:
            low, high = float(np.nanmin(images.array)), float(np.nanmax(images.array))
            ends = {"min": low, "max": max(high, low + 1), "readout_format": ".4g"}
            shown = {"value": window_range(images.array, window), "description": "window"}
            self._range = widgets.FloatRangeSlider(**shown, **ends, **wide)
            known = {"percentile": window_range(images.array), "all": (low, high)}
            known |= CT_WINDOWS if low < -500 else {}  # named windows are for Hounsfield units
            auto = {"style": {"button_width": "auto"}, "layout": {"max_width": f"{width}px"}}
            self.preset = widgets.ToggleButtons(options=known, value=None, **auto)
            self.preset.observe(lambda change: self._set_window(change["new"]), "value")
            rows += [self._range, self.preset]
            self._range.observe(self._draw, "value")
        self.slider.observe(self._draw, "value")
        legend = " ".join(
            f'<span style="border:3px solid {color};padding:0 4px">{escape(name)}</span>'
            for color, name in zip(cycle(BOX_COLORS), self._names, strict=False)
        )
        self._draw()
        super().__init__([*rows, widgets.HTML(legend)])

    @property
    def window(self) -> tuple[float, float] | None:
        """Scan values shown as black and white; None of images that are grey levels already."""
        return self._range.value if self._range else None

    def _set_window(self, pair: tuple[float, float]) -> None:
        self._range.value = pair

    def image(self) -> Image.Image:
        """The present slice as drawn: boxes, and where directions are known their letters."""
        plane = np.asarray(self._slices[self.slider.value])
        ratio = plane.shape[0] / plane.shape[1]
        if self._volume:
            low, high = self.window
            plane = np.clip((plane.astype(float) - low) / max(high - low, 1e-9), 0, 1)
            plane = np.rint(np.nan_to_num(plane) * 255).astype(np.uint8)
            ratio *= self._volume.spacing[1] / self._volume.spacing[2]
        width, height = self._width, max(1, round(self._width * ratio))
        drawn = Image.fromarray(plane).convert("RGB").resize((width, height))
        pen, (sx, sy) = ImageDraw.Draw(drawn), (width / plane.shape[1], height / plane.shape[0])
        for i, box in enumerate(self._boxes):
            if self.slider.value in slice_range(box, len(self._slices)) and not box.is_empty:
                box = flat(box).scale(sx, sy)
                pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), None, BOX_COLORS[i % 7], 3)
        if self._oriented:
            places = {"R": (4, height / 2, "lm"), "L": (width - 4, height / 2, "rm")}
            places |= {"A": (width / 2, 4, "mt"), "P": (width / 2, height - 4, "mb")}
            for letter, (x, y, anchor) in places.items():
                pen.text(
                    (x, y), letter, "white", anchor=anchor, stroke_width=2, stroke_fill="black"
                )
        return drawn

    def _draw(self, _: Any = None) -> None:
        buffer = io.BytesIO()
        self.image().save(buffer, format="PNG")
        self._image.value = buffer.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and the present slice for pages that cannot run it."""
        shown = super()._repr_mimebundle_(**kwargs)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return data | {"image/png": base64.b64encode(self._image.value).decode()}, metadata
