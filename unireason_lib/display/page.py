"""Replies as one web page that needs nothing else: images, boxes, crops and text, step by step.

The page is a single file. It loads nothing (its own content security policy forbids it), images
are inside and kept once however often they are shown, and everything that a model or a data set
wrote is escaped by Jinja. It works with the keyboard alone, on a phone, in light and dark.
"""

from __future__ import annotations

import base64
import hashlib
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image, ImageChops

from unireason_lib.display.images import flat
from unireason_lib.display.replies import Mention, Reply, read_reply, with_images
from unireason_lib.display.style import BOX_COLORS, need
from unireason_lib.imaging.crops import slice_range
from unireason_lib.io import write_whole


def trace_html(
    traces: Any,
    images: Any = None,
    *,
    path: str | Path | None = None,
    frame: Any = None,
    truths: Mapping[str, str] | Sequence[str] | None = None,
    title: str = "Grounded replies",
) -> str:
    """A page that replays replies.

    Args:
        traces: One or several :class:`unireason_lib.grounding.Trace`, or lines of results.
        images: The images of each, as the processor shows them: by the reply's id, or in order (for
            a single reply simply its images). A reply without is shown as text, with its crops.
        path: Where to write the page as well.
        frame: The :class:`unireason_lib.imaging.ProcessorFrame` of the model. Then ``images`` are
            the original ones, by default those of the requests.
        truths: The right letters, by id or in order; a line may carry its own in ``truth``.
        title: Heading of the page.

    Raises:
        RequestError: No replies, lists of different lengths, or images from which a reply's crops
            were not cut.
    """
    if isinstance(traces, Mapping) or hasattr(traces, "own_mask"):
        traces, images = [traces], None if images is None else [images]
        truths = [truths] if isinstance(truths, str) else truths
    traces = list(traces)
    replies = [read_reply(trace) for trace in traces]
    rows = [*zip(traces, replies, _each(replies, images), _each(replies, truths), strict=True)]
    store: dict[str, str] = {}
    shown = []
    for trace, reply, own, truth in rows:
        reply = reply if truth is None else replace(reply, truth=str(truth))
        if own is None and frame is not None:
            own = getattr(getattr(trace, "request", None), "images", None)
        stage = None
        if own is not None:
            reply, aligned = with_images(reply, own, frame)
            stage = _stage(reply, aligned, store)
        shown.append({"reply": reply, "steps": _steps(reply), "stage": stage})
    page = _render(shown, title, store)
    if path is not None:
        write_whole(path, page)
    return page


def _each(replies: Sequence[Reply], values: Any) -> list[Any]:
    """What belongs to each reply, given by id or in order."""
    if isinstance(values, Mapping):
        values = [values.get(reply.id) for reply in replies]
    values = [None] * len(replies) if values is None else list(values)
    expected = "replies; images and truths by id, or one for each reply"
    need(
        replies and len(values) == len(replies), "trace page", expected, (len(replies), len(values))
    )
    return values


def _stage(reply: Reply, images: Sequence[Image.Image], store: dict[str, str]) -> dict[str, Any]:
    """The slices, and where on them the boxes lie; edges of pixels are whole numbers here."""
    width, height = images[0].size
    boxes, tag = [], max(width, height) * 0.05
    for mention in reply.mentions:
        box = flat(mention.box).clip(width, height)
        span = slice_range(mention.box, len(images))
        if span and not box.is_empty:
            right = mention.number % 2 == 0  # two boxes on one place keep their numbers apart
            x = max(0, box.x2 - tag) if right else min(box.x1, width - tag)
            y = box.y1 - tag if box.y1 >= tag else min(box.y1, height - tag)
            numbers = [f"{value:g}" for value in (box.x1, box.y1, box.width, box.height, x, y, tag)]
            boxes.append({"mention": mention, "span": span, "at": numbers})
    span = boxes[0]["span"] if boxes else range(len(images))
    return {
        "width": width,
        "height": height,
        "slices": " ".join(_keep(image, store) for image in images),
        "count": len(images),
        "first": span[(len(span) - 1) // 2],
        "boxes": boxes,
        "noun": "slice" if reply.dimension == "3d" else "image",
    }


def _steps(reply: Reply) -> list[list[Any]]:
    """The text in steps: each ends with a box and what it fetched."""
    steps: list[list[Any]] = [[]]
    for piece in reply.pieces:
        steps[-1].append(piece)
        if isinstance(piece, Mention):
            steps.append([])
    return [step for step in steps if step]


def _render(shown: Sequence[Mapping[str, Any]], title: str, store: dict[str, str]) -> str:
    here = files("unireason_lib.display")
    colors = "".join(f".b{i}{{--box:{color}}}" for i, color in enumerate(BOX_COLORS))
    return _template().render(
        shown=shown,
        title=title,
        style=Markup(here.joinpath("page.css").read_text("utf-8") + colors),
        script=Markup(here.joinpath("page.js").read_text("utf-8")),
        hash=_hash,
        colors=len(BOX_COLORS),
        keep=partial(_keep, store=store),
        store=store,
    )


@cache
def _template() -> Template:
    loader = PackageLoader("unireason_lib", "display")
    layout = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=loader, autoescape=True, finalize=_clean, **layout)
    return environment.get_template("page.html.jinja")


def _clean(value: Any) -> Any:
    """Text without broken Unicode, control and direction characters; Jinja then escapes it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    value = value.encode("utf-8", "replace").decode("utf-8")
    kept = "\n\t\u200d"
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cf") and c not in kept else c for c in value
    )


def _keep(image: Image.Image, store: dict[str, str]) -> str:
    """Store an image once, as PNG; the key is made from its pixels."""
    key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:20]
    if key not in store:
        bands = image.convert("RGB").split()
        grey = all(ImageChops.difference(bands[0], band).getbbox() is None for band in bands[1:])
        buffer = io.BytesIO()
        (bands[0] if grey else image).save(buffer, format="PNG", optimize=True)
        store[key] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return key


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
