"""A viewer for notebooks, of ipywidgets: scroll slices, change the window, see the boxes, and ask a
model about a region of your own.

Python draws the slices and runs the model, so a running kernel is needed (JupyterLab, Colab, VS
Code); where widgets do not run, the present slice is shown as a still image.
"""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw

from unireason_lib.answers import THINK_START
from unireason_lib.boxes import Box, Box2D, Box3D, format_box
from unireason_lib.display.figures import BOX_COLORS, arrays_of, need
from unireason_lib.display.images import Boxes, named_boxes
from unireason_lib.imaging import CT_WINDOWS, Volume, serialize, slice_range, window_range
from unireason_lib.imaging.summary import table_html

if TYPE_CHECKING:  # torch takes seconds
    from unireason_lib.grounding import GroundedRequest, Trace
    from unireason_lib.grounding.replies import GroundedInterface


class SliceViewer(widgets.VBox):
    """Slices with a slider (arrow keys move it), for a volume a choice of windows, and with a
    request a box that the user sets and from which the model continues (:meth:`ask`).

    Args:
        images: A Volume or SliceStack of :mod:`unireason_lib.imaging`, PIL images, or (Z, Y, X)
            uint8 (a :class:`RequestError` for others); None: the images of the request.
        boxes: In voxels of the volume or pixels of the images; a mapping names them. With a
            request all is shown, and boxes are written, in pixels of the processor's frame.
        window: Of a volume, as for :func:`unireason_lib.imaging.serialize`. The user sees it; the
            model always gets the images of the request.
        width: In pixels of the screen.
        request, generator: The question, and what answers it, by ``settings`` of
            :class:`unireason_lib.grounding.Settings`.
    """

    def __init__(
        self,
        images: Any = None,
        boxes: Boxes | None = None,
        *,
        window: str | tuple[float, float] = "percentile",
        width: int = 420,
        request: GroundedRequest | None = None,
        generator: GroundedInterface | None = None,
        **settings: Any,
    ) -> None:
        volume = images if isinstance(images, Volume) else None
        self.request, self.generator, self._settings = request, generator, settings
        shown = [generator.frame.aligned(image) for image in request.images] if request else []
        images = shown if images is None else images
        self._slices = volume.array if volume else arrays_of(images)
        if volume and shown:  # in scan values, on the grid in which the model writes boxes
            stack = serialize(volume, (len(shown), *shown[0].size[::-1]), "minmax")
            self._slices = np.interp(stack.values, (0, 1), stack.range)
        (self._boxes, names), last = named_boxes(boxes), len(self._slices) - 1
        rows, columns = self._slices[0].shape[:2]
        found = (columns, rows, last + 1)
        fits = not shown or found == (*shown[0].size, len(shown))
        need(fits, "images", "those of the request, in the processor's frame", found)
        sides = np.multiply(volume.shape, volume.spacing)[1:] if volume else (rows, columns)
        self._size = (width, round(width * sides[0] / sides[1]))
        self._oriented = getattr(images, "has_affine", False)
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
        limits = {"x": columns, "y": rows, "slices": last} if request else {}
        if request and request.dimension == "2d":
            del limits["slices"]
        self.sides: dict[str, widgets.IntRangeSlider] = {}  # of the user's box
        for name, n in limits.items():
            how = {"value": (n // 3, n - n // 3), "max": n, "description": name}
            self.sides[name] = widgets.IntRangeSlider(**how, **wide)
        self.button = widgets.Button(description="Ask with this box", button_style="primary")
        self.free_button = widgets.Button(description="Ask without a box")
        self.button.on_click(lambda _: self.ask(self.box))
        self.free_button.on_click(lambda _: self.ask(None))
        self.history, self.reply = widgets.HTML(), widgets.HTML()
        self.traces: list[tuple[Box | None, Trace]] = []  # boxes asked with, and the replies
        asking = [widgets.HBox([self.button, self.free_button]), self.history, self.reply]
        asking = [*self.sides.values(), *asking] if request else []
        if request and self._boxes:
            self.box = self._boxes[0]
        for control in (self.slider, self.window, *self.sides.values()):
            control.observe(self._draw, "value")
        names += ["your box"] * bool(request)
        legend = " ".join(
            f'<span style="border:3px solid {color};padding:0 4px">{escape(name)}</span>'
            for color, name in zip(cycle(BOX_COLORS), names, strict=False)
        )
        self._draw()
        super().__init__([self._image, widgets.HTML(legend), self.slider, self.window, *asking])

    @property
    def box(self) -> Box:
        """The user's box, in pixels of the processor's frame; it can be set."""
        (x1, x2), (y1, y2), *slices = (side.value for side in self.sides.values())
        for first, last in slices:
            return Box3D(x1, y1, first, x2, y2, last + 1)
        return Box2D(x1, y1, x2, y2)

    @box.setter
    def box(self, box: Box) -> None:
        low, high = np.array(box.round(outward=True).as_tuple(), int).reshape(2, -1).tolist()
        high[2:] = [z - 1 for z in high[2:]]  # the slider shows the last slice
        for side, *ends in zip(self.sides.values(), low, high, strict=True):
            side.value = ends

    def ask(self, box: Box | None) -> Trace:
        """Make the reply begin with a thought about this box; the model continues freely, with the
        region's crops in view. None: it writes its own boxes."""
        from unireason_lib.grounding import Script

        how = dict(self._settings)
        if box:
            start = f"{THINK_START}{format_box(box)}"
            how["scripts"] = [Script(self.generator.tokenizer, (start,))]
        self.button.disabled = self.free_button.disabled = True
        try:
            (trace,) = self.generator.generate([self.request], **how)
        finally:
            self.button.disabled = self.free_button.disabled = False
        self.traces.append((box, trace))
        rows = {
            f"{n}. {list(asked.as_tuple()) if asked else 'box of the model'}": one.answer or "none"
            for n, (asked, one) in enumerate(self.traces, 1)
        }
        self.history.value = table_html("Boxes and answers", rows)
        self.reply.value = trace._repr_html_()
        return trace

    def image(self) -> Image.Image:
        """The present slice as drawn: boxes, and where directions are known their letters."""
        plane, (low, high) = np.asarray(self._slices[self.slider.value]), self.window.value
        grey = np.clip((plane.astype(float) - low) / max(high - low, 1e-9), 0, 1)
        grey = np.rint(np.nan_to_num(grey) * 255).astype(np.uint8)
        drawn, (width, height) = Image.fromarray(grey).convert("RGB").resize(self._size), self._size
        pen, scale = ImageDraw.Draw(drawn), (width / plane.shape[1], height / plane.shape[0])
        for i, box in enumerate([*self._boxes, *([self.box] if self.sides else [])]):
            if self.slider.value in slice_range(box, len(self._slices)) and not box.is_empty:
                box = box.xy.scale(*scale)
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
        alt = f"slice {self.slider.value} of {len(self._slices)}, window {self.window.label}"
        still = {"image/png": base64.b64encode(self._image.value).decode()}
        return super()._repr_mimebundle_(**kwargs) | still, {"image/png": {"alt": alt}}
