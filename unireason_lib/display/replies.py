"""What figures and pages need of a reply, whether it comes as a trace or as a line of results.

Lines of ``infer`` and ``evaluate`` keep no images; crops are cut again from the images that are
given, by the rule by which they were cut at first. A line is untrusted: fields may be missing or
nonsense, which never raises here.
"""

from __future__ import annotations

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
    scan_boxes,
)
from unireason_lib.display.style import need
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
    """A reply and its question."""

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


def read_reply(trace: Any) -> Reply:
    """A :class:`unireason_lib.grounding.Trace`, or a line of results, ready to be shown.

    A line that no reply can be read from becomes a reply with an error.
    """
    crops = [] if isinstance(trace, Mapping) else [tuple(p.crops) for p in trace.pointings]
    line = trace if isinstance(trace, Mapping) else trace.to_dict()
    try:
        return _read(line, crops)
    except (BoxError, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        failed = f"this line is no result: {type(error).__name__}: {error}"
        return _read({"id": str(line.get("id", "")), "error": failed}, [])


def _read(line: Mapping[str, Any], crops: Sequence[tuple[Image.Image, ...]]) -> Reply:
    line = {name: value for name, value in line.items() if value is not None and value == value}
    text, options = line.get("text", ""), line.get("options", {})
    if "pointings" in line:
        listed = [dict(pointing) for pointing in line["pointings"]]
    else:
        scan = scan_boxes(text)
        places = zip(scan.boxes, scan.spans, strict=True)
        listed = [{"box": box.as_tuple(), "text": text[a:b]} for box, (a, b) in places]
    pieces, at, number = [], 0, 0
    for k, pointing in enumerate(listed):
        written, values = str(pointing["text"]), pointing.get("box")
        box = (Box2D if len(values) == 4 else Box3D)(*values) if values else None
        start = text.index(written, at)
        number += box is not None
        sizes = tuple((int(w), int(h)) for w, h in pointing.get("crops") or ())
        mention = Mention(
            written.removeprefix(BOX_START).removesuffix(BOX_END),
            box,
            number if box else 0,
            str(pointing.get("status") or ""),
            crops[k] if crops else (),
            sizes,
        )
        pieces += [text[at:start], mention]
        at = start + len(written)
    error, choice = line.get("error", ""), line.get("choice", line.get("prediction", ""))
    flat = not any(isinstance(p, Mention) and isinstance(p.box, Box3D) for p in pieces)
    return Reply(
        id=str(line.get("id", "")),
        dimension="2d" if line.get("dimension", "2d") == "2d" and flat else "3d",
        question=str(line.get("question", "")),
        options={str(letter): str(option) for letter, option in options.items()},
        pieces=tuple(piece for piece in (*pieces, text[at:]) if piece),
        choice=str(choice) if options else "",
        truth=str(line.get("truth", "")),
        error=str(error["message"] if isinstance(error, Mapping) else error),
        facts=_facts(line),
    )


def _facts(line: Mapping[str, Any]) -> str:
    """One line: how the reply ended, tokens, seconds, how well its boxes fit."""
    stops = {"end": "ended by itself", "length": "cut off by the token budget"}
    stop = str(line.get("stop", ""))
    forms = {
        "own_tokens": "{:,} tokens written",
        "injected_tokens": "{:,} tokens injected",
        "prompt_tokens": "{:,} tokens in the prompt",
        "seconds": "{:.1f} s",
        "iou_best": "best IoU {:.2f}",
    }
    numbers = [form.format(line[name]) for name, form in forms.items() if name in line]
    return " · ".join(filter(None, [stops.get(stop, stop), *numbers]))


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
    need(images is not None, f"reply {reply.id!r}", frames, "no images")
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
                expected = f"those its crops were cut from: {frames}"
                raise RequestError(
                    f"images of {reply.id!r}", expected, found, "pass the right ones"
                )
            piece = replace(piece, crops=piece.crops or cut)
        pieces.append(piece)
    return replace(reply, pieces=tuple(pieces)), images
