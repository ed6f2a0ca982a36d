"""A viewer for notebooks, of ipywidgets: scroll slices, change the window, see the boxes.

Python draws each slice, so it needs a running kernel; where widgets do not run, the present slice
is shown as a still image.
"""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import cycle
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw

from unireason_lib.display.figures import BOX_COLORS, arrays_of, flat
from unireason_lib.display.images import Boxes, named_boxes
from unireason_lib.imaging import CT_WINDOWS, Volume, window_range
from unireason_lib.imaging.crops import slice_range


class SliceViewer(widgets.VBox):
    """Slices with a slider (arrow keys move it), and for a volume a choice of windows.

    ``images`` are a Volume or SliceStack of :mod:`unireason_lib.imaging`, PIL images, or (Z, Y, X)
    uint8 (a :class:`RequestError` for others), ``boxes`` in voxels of the volume or pixels of the
    images (a mapping names them), ``window`` that of a volume, as for
    :func:`unireason_lib.imaging.serialize`, ``width`` in pixels of the screen.
    """

    def __init__(
        self,
        images: Any,
        boxes: Boxes | None = None,
        *,
        window: str | tuple[float, float] = "percentile",
        width: int = 420,
    ) -> None:
        volume = images if isinstance(images, Volume) else None
        self._slices = volume.array if volume else arrays_of(images)
        (self._boxes, names), last = named_boxes(boxes), len(self._slices) - 1
        rows, columns = self._slices[0].shape[:2]
        height = width * rows / columns * (volume.spacing[1] / volume.spacing[2] if volume else 1)
        self._size, self._oriented = (width, round(height)), getattr(images, "has_affine", False)
        spans = [span for box in self._boxes if (span := slice_range(box, last + 1))]
        start = spans[0][len(spans[0]) // 2] if spans else (last + 1) // 2
        windows = {"grey levels": (0, 255)}
        if volume:
            known = dict.fromkeys((window, "percentile", "minmax"))
            windows = {str(name): window_range(volume.array, name) for name in known}
            windows |= CT_WINDOWS if windows["minmax"][0] < -500 else {}  # of Hounsfield units
        wide = {"layout": {"width": f"{width}px"}}
        self.slider = widgets.IntSlider(start, 0, last, description="slice", **wide)
        self.window = widgets.Dropdown(options=windows, description="window", **wide)
        self._image = widgets.Image(format="png", **wide)
        for control in (self.slider, self.window):
            control.observe(self._draw, "value")
        legend = " ".join(
            f'<span style="border:3px solid {color};padding:0 4px">{escape(name)}</span>'
            for color, name in zip(cycle(BOX_COLORS), names, strict=False)
        )
        self._draw()
        super().__init__([self._image, self.slider, self.window, widgets.HTML(legend)])

    def image(self) -> Image.Image:
        """The present slice as drawn: boxes, and where directions are known their letters."""
        plane, (low, high) = np.asarray(self._slices[self.slider.value]), self.window.value
        grey = np.clip((plane.astype(float) - low) / max(high - low, 1e-9), 0, 1)
        grey = np.rint(np.nan_to_num(grey) * 255).astype(np.uint8)
        drawn, (width, height) = Image.fromarray(grey).convert("RGB").resize(self._size), self._size
        pen, scale = ImageDraw.Draw(drawn), (width / plane.shape[1], height / plane.shape[0])
        for i, box in enumerate(self._boxes):
            if self.slider.value in slice_range(box, len(self._slices)) and not box.is_empty:
                box = flat(box).scale(*scale)
                pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), None, BOX_COLORS[i % 7], 3)
        places = ((9, height / 2), (width - 9, height / 2), (width / 2, 9), (width / 2, height - 9))
        for letter, place in zip("RLAP", places, strict=True) if self._oriented else ():
            pen.text(place, letter, "white", anchor="mm", stroke_width=2, stroke_fill="black")
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
