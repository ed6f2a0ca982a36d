"""How objects show themselves in a notebook: a table and thumbnails in HTML, all text escaped."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image


def table_html(title: str, rows: Mapping[str, Any]) -> str:
    """A titled table of two columns; :class:`Markup` stays as it is, other values are escaped."""
    left = Markup('style="text-align:left;vertical-align:top;white-space:pre-wrap"')
    line = "<tr><th {0}>{1}</th><td {0}>{2}</td></tr>"
    body = Markup("").join(Markup(line).format(left, *row) for row in rows.items())
    return str(Markup("<b>{}</b><table>{}</table>").format(title, body))


def image_html(image: Image.Image, alt: str) -> Markup:
    """An image as a data URI, at its size."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    line = '<img src="data:image/png;base64,{}" alt="{}" style="display:inline-block;margin:2px"/>'
    return Markup(line).format(data, alt)


def thumbnails(array: np.ndarray, spacing: tuple[float, float, float] | None) -> Markup:
    """The middle axial, coronal and sagittal planes of (Z, Y, X), in one scale, head up."""
    (z, y, x), (dz, dy, dx) = (side // 2 for side in array.shape), spacing or (1.0, 1.0, 1.0)
    planes = {"axial": (array[z], dy, dx)}
    planes |= {"coronal": (array[::-1, y], dz, dx), "sagittal": (array[::-1, :, x], dz, dy)}
    low, high = np.nanpercentile(array[z].astype(float), (1, 99))
    scale = 160 / max(np.multiply(array.shape, (dz, dy, dx)))  # screen pixels a mm
    shown = Markup("")
    for name, (plane, down, across) in planes.items():
        grey = np.nan_to_num((plane.astype(float) - low) / max(high - low, 1e-9))
        size = (plane.shape[1] * across * scale, plane.shape[0] * down * scale)
        image = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8))
        image = image.resize([max(1, round(side)) for side in size])
        shown += image_html(image, f"middle {name} plane")
    return shown
