"""What figures and pages need of a reply, whether it comes as a trace or as a line of results.

Lines of ``infer`` and ``evaluate`` keep no images; crops are cut again from the images that are
given, by the rule by which they were cut at first. A line is untrusted: fields may be missing or
nonsense, and never raise here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from unireason_lib.boxes import (
    BOX_END,
    BOX_START,
    Box,
    Box2D,
    Box3D,
    BoxError,
    read_box,
    scan_boxes,
)
from unireason_lib.errors import RequestError
from unireason_lib.imaging.crops import crop_region

INJECTED = "injected"


@dataclass(frozen=True)
class Mention:
    """A box in a reply."""

    text: str  # what was written between the tags
    box: Box | None  # None when malformed
    number: int  # 1, 2, ... among the well-formed boxes; 0 when malformed
    status: str = ""  # see `unireason_lib.grounding.Pointing`; empty when nobody knows
    crops: tuple[Image.Image, ...] = ()
    sizes: tuple = ()  # of the crops (width, height), from a line


@dataclass(frozen=True)
class Reply:
    """A reply and what was asked."""

    id: str
    dimension: str
    question: str
    options: Mapping[str, str]
    pieces: tuple[str | Mention, ...]  # the text, with its boxes where they stand
    choice: str
    truth: str
    error: str
    facts: str  # one line: tokens, seconds, how it ended

    @property
    def mentions(self) -> list[Mention]:
        """The well-formed boxes."""
        return [p for p in self.pieces if isinstance(p, Mention) and p.box is not None]

    @property
    def verdict(self) -> str:
        """``"error"``, ``"right"``, ``"wrong"``, or empty when the truth is not known."""
        if self.error or not self.truth:
            return "error" if self.error else ""
        return "right" if self.choice == self.truth else "wrong"


def read_reply(trace: Any, truth: str | None = None) -> Reply:
    """A :class:`unireason_lib.grounding.Trace`, or a line of results, ready to be shown."""
    line = trace if isinstance(trace, Mapping) else trace.to_dict()
    text, listed, error = _words(line.get("text")), line.get("pointings"), line.get("error")
    if isinstance(listed, list) and all(isinstance(p, Mapping) for p in listed):
        boxes = [(_words(p.get("text")), _box(p), _words(p.get("status")), p) for p in listed]
    else:
        scan = scan_boxes(text)
        boxes = [
            (text[a:b], box, "", {}) for box, (a, b) in zip(scan.boxes, scan.spans, strict=True)
        ]
    crops = [] if isinstance(trace, Mapping) else [tuple(p.crops) for p in trace.pointings]
    pieces, at, number = [], 0, 0
    for k, (written, box, status, pointing) in enumerate(boxes):
        start = text.find(written, at) if written else -1
        start, end = (start, start + len(written)) if start >= 0 else (len(text), len(text))
        number += box is not None
        short = written.removeprefix(BOX_START).removesuffix(BOX_END)
        known = {"status": status, "crops": crops[k] if crops else (), "sizes": _sizes(pointing)}
        pieces += [text[at:start], Mention(short, box, number if box else 0, **known)]
        at = end
    options = line.get("options") if isinstance(line.get("options"), Mapping) else {}
    flat = not any(isinstance(box, Box3D) for _, box, *_ in boxes)
    dimension, choice = line.get("dimension"), line.get("choice") or line.get("prediction")
    return Reply(
        id=_words(line.get("id")),
        dimension=dimension if dimension in ("2d", "3d") else "2d" if flat else "3d",
        question=_words(line.get("question")),
        options={str(letter): _words(option) for letter, option in options.items()},
        pieces=tuple(piece for piece in (*pieces, text[at:]) if piece),
        choice=_words(choice) if options else "",
        truth=_words(line.get("truth") if truth is None else truth),
        error=_words(error.get("message") if isinstance(error, Mapping) else error),
        facts=_facts(line),
    )


def with_images(reply: Reply, images: Any, frame: Any = None) -> tuple[Reply, list[Image.Image]]:
    """The reply with its crops, and the images on which its boxes lie.

    Args:
        reply: What was read.
        images: As the processor shows them; or, with ``frame``, the original ones.
        frame: The :class:`unireason_lib.imaging.ProcessorFrame` of the model, or None.

    Raises:
        RequestError: No images, or the crops of the reply are not cut from these.
    """
    frames = "its images as the processor shows them, or the original ones and frame=..."
    if images is None:
        raise RequestError(f"reply {reply.id!r}", frames, "no images", "pass both")
    given = [images] if isinstance(images, Image.Image) else getattr(images, "pixels", images)
    images = [i if isinstance(i, Image.Image) else Image.fromarray(np.asarray(i)) for i in given]
    images = [frame.aligned(i) if frame else i.convert("RGB") for i in images]
    pieces = []
    for piece in reply.pieces:
        if isinstance(piece, Mention) and piece.box and (piece.crops or piece.status == INJECTED):
            cut = tuple(crop_region(images, piece.box))
            sizes = piece.sizes or [crop.size for crop in cut]
            same = all(map(np.array_equal, map(np.asarray, cut), map(np.asarray, piece.crops)))
            if [crop.size for crop in cut] != list(sizes) or not same:
                found = f"others (first of {len(images)}: {images[0].width} x {images[0].height})"
                subject = f"images of reply {reply.id!r}"
                raise RequestError(
                    subject, "those its crops were cut from", found, f"pass {frames}"
                )
            piece = replace(piece, crops=piece.crops or cut)
        pieces.append(piece)
    return replace(reply, pieces=tuple(pieces)), images


def _facts(line: Mapping[str, Any]) -> str:
    """One line about a reply."""
    stops = {"end": "ended by itself", "length": "cut off by the token budget"}
    facts = [stops.get(_words(line.get("stop")), _words(line.get("stop")))]
    for name, words in (("own", "written"), ("injected", "injected"), ("prompt", "in the prompt")):
        count = _number(line.get(f"{name}_tokens"))
        facts += [] if count is None else [f"{count:,.0f} tokens {words}"]
    for name, form in (("seconds", "{:.1f} s"), ("iou_best", "best IoU {:.2f}")):
        value = _number(line.get(name))
        facts += [] if value is None else [form.format(value)]
    return " · ".join(filter(None, facts))


def _box(pointing: Mapping[str, Any]) -> Box | None:
    """The box of a pointing: its numbers, or what its text says."""
    values = pointing.get("box")
    try:
        if isinstance(values, list | tuple) and len(values) in (4, 6):
            box = (Box2D if len(values) == 4 else Box3D)(*values)
            return None if box.is_empty else box
    except (BoxError, TypeError, OverflowError):
        return None
    written = _words(pointing.get("text"))
    return read_box(written.removeprefix(BOX_START).removesuffix(BOX_END))


def _sizes(pointing: Mapping[str, Any]) -> tuple[tuple, ...]:
    sizes = pointing.get("crops")
    sizes = sizes if isinstance(sizes, list) else []
    return tuple(tuple(size) for size in sizes if isinstance(size, Sequence))


def _words(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value)


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None
