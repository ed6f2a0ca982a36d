"""The one renderer of replies, traces or lines of results: a web page that needs nothing else.

The page loads nothing (its own content security policy forbids it), images are inside and kept once
however often they are shown, and everything that a model or a data set wrote is escaped by Jinja.
Lines of ``infer`` and ``evaluate`` keep no images; crops are cut again from the images given. A
line is untrusted: nonsense in it becomes a reply with an error, and never raises here.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from unireason_lib.boxes import BOX_END, BOX_START, Box
from unireason_lib.dataset.schema import box_of
from unireason_lib.display.figures import BOX_COLORS, arrays_of, clean, flat, need
from unireason_lib.errors import RequestError
from unireason_lib.imaging.crops import crop_region, slice_range
from unireason_lib.io import write_whole

FACTS = {"stop": "stop", "own_tokens": "generated tokens", "injected_tokens": "injected tokens"}
FACTS |= {"prompt_tokens": "prompt tokens", "seconds": "seconds", "iou_best": "best IoU"}


@dataclass(frozen=True)
class Mention:
    """A box in a reply."""

    text: str  # what was written between the tags
    box: Box | None  # None when malformed
    number: int  # 1, 2, ... among the well-formed boxes; 0 when malformed
    status: str  # see `unireason_lib.grounding.Pointing`
    sizes: list  # of its crops (width, height)
    crops: Sequence[Image.Image] = ()  # as far as they are known


@dataclass(frozen=True)
class Reply:
    """A reply and its question."""

    id: str = ""
    question: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    pieces: Sequence[str | Mention] = ()  # the text, with its boxes where they stand
    choice: str = ""
    truth: str = ""
    error: str = ""
    facts: str = ""  # one line
    images: Sequence[Image.Image] = ()  # on which its boxes lie; none when they are not known

    @property
    def mentions(self) -> list[Mention]:
        """The well-formed boxes."""
        return [p for p in self.pieces if isinstance(p, Mention) and p.box is not None]


def read_reply(trace: Any, images: Any = None, frame: Any = None) -> Reply:
    """A :class:`unireason_lib.grounding.Trace`, or a line of results, ready to be shown on
    ``images`` as the processor shows them to the model; with ``frame`` (the model's
    :class:`unireason_lib.imaging.ProcessorFrame`), on the original ones, by default those of the
    trace's request. A :class:`RequestError` when the crops were not cut from these."""
    line, crops = trace, []
    if not isinstance(trace, Mapping):
        line, crops = trace.to_dict(), [pointing.crops for pointing in trace.pointings]
        images = trace.request.images if images is None and frame else images
    arrays = [] if images is None else arrays_of(images)
    images = [Image.fromarray(array).convert("RGB") for array in arrays]
    images = [frame.aligned(image) for image in images] if frame else images
    line = {name: value for name, value in line.items() if value is not None and value == value}
    try:
        return _read(line, crops, images)
    except RequestError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        failed = f"this line is no result: {type(error).__name__}: {error}"
        return Reply(str(line.get("id", "")), error=failed)


def _read(line: Mapping[str, Any], crops: Sequence[Any], images: Sequence[Image.Image]) -> Reply:
    pieces, rest, number = [], line.get("text", ""), 0
    for k, pointing in enumerate(line.get("pointings", ())):
        before, _, rest = rest.partition(pointing["text"])
        words = pointing["text"].removeprefix(BOX_START).removesuffix(BOX_END)
        box = box_of(pointing["box"]) if pointing["box"] else None
        number, status = number + (box is not None), str(pointing["status"])
        kept, sizes = crops[k] if crops else (), [list(size) for size in pointing["crops"]]
        if images and box and status == "injected":
            cut = crop_region(images, box)
            same = all(map(np.array_equal, map(np.asarray, kept), map(np.asarray, cut)))
            same = same and (not sizes or sizes == [list(crop.size) for crop in cut])
            do = "the images as the processor shows them, or the original ones and frame=..."
            found = f"others, first of {len(images)}: {images[0].size}"
            need(same, f"images of {line.get('id')}", f"those its crops were cut from: {do}", found)
            kept = cut
        pieces += [before, Mention(words, box, number if box else 0, status, sizes, kept)]
    error, known = line.get("error", ""), [name for name in FACTS if name in line]
    return Reply(
        id=str(line.get("id", "")),
        question=str(line.get("question", "")),
        options={str(letter): str(text) for letter, text in line.get("options", {}).items()},
        pieces=[piece for piece in (*pieces, rest) if piece],
        choice=str(line.get("choice", line.get("prediction", ""))),
        truth=str(line.get("truth", "")),
        error=str(error["message"] if isinstance(error, Mapping) else error),
        facts=" · ".join(f"{FACTS[name]}: {line[name]}" for name in known),
        images=images,
    )


def trace_html(
    traces: Sequence[Any],
    images: Sequence[Any] | None = None,
    *,
    frame: Any = None,
    path: str | Path | None = None,
    title: str = "Grounded replies",
) -> str:
    """A page that replays replies (traces, or lines of results with the right letter in ``truth``),
    written to ``path`` as well. ``images`` of each reply and ``frame`` are those of
    :func:`read_reply`; a reply with None is shown as text.

    A :class:`RequestError` for no replies, other numbers of replies and of images, or images from
    which a reply's crops were not cut.
    """
    images = [None] * len(traces) if images is None else images
    expected = "replies, and images for each reply"
    need(traces and len(images) == len(traces), "page", expected, (len(traces), len(images)))
    replies = [read_reply(one, own, frame) for one, own in zip(traces, images, strict=True)]
    here, store = files("unireason_lib.display"), {}
    stages = [_stage(reply, store) if reply.images else None for reply in replies]
    layout = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    loader = PackageLoader("unireason_lib", "display")
    environment = Environment(loader=loader, autoescape=True, finalize=_clean, **layout)
    colors = "".join(f".b{i}{{--box:{color}}}" for i, color in enumerate(BOX_COLORS))
    page = environment.get_template("page.html.jinja").render(
        shown=list(zip(replies, stages, strict=True)),
        title=title,
        style=Markup(here.joinpath("page.css").read_text("utf-8") + colors),
        script=Markup(here.joinpath("page.js").read_text("utf-8")),
        hash=_hash,
        colors=len(BOX_COLORS),
        keep=lambda image: _keep(image, store),
        store=store,
    )
    if path is not None:
        write_whole(path, page)
    return page


def _stage(reply: Reply, store: dict[str, str]) -> dict[str, Any]:
    """The slices, and where on them the boxes lie; edges of pixels are whole numbers here."""
    (width, height), boxes = reply.images[0].size, []
    tag = max(width, height) * 0.05  # side of the square with a box's number
    for mention in reply.mentions:
        box = flat(mention.box).clip(width, height)
        span = slice_range(mention.box, len(reply.images))
        if span and not box.is_empty:
            x = box.x1 if mention.number % 2 else box.x2 - tag  # two on one place stay apart
            numbers = (box.x1, box.y1, box.width, box.height, x, box.y1, tag)
            boxes.append({"mention": mention, "span": span, "at": [f"{n:g}" for n in numbers]})
    span = boxes[0]["span"] if boxes else range(len(reply.images))
    slices = [_keep(image, store) for image in reply.images]
    first = span[(len(span) - 1) // 2]
    return {"width": width, "height": height, "slices": slices, "first": first, "boxes": boxes}


def _clean(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _keep(image: Image.Image, store: dict[str, str]) -> str:
    """Store an image once, as PNG; the key is made from its pixels."""
    key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:20]
    if key not in store:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        store[key] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return key


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
