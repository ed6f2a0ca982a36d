"""What figures and pages need of a reply, whether it comes as a trace or as a line of a results file.

A results file, of ``infer`` or of an evaluation, keeps no pictures. Crops are then cut again from the pictures that
are given, by the rule by which they were cut in the first place. Everything in a results file is untrusted: fields may
be missing or nonsense, and never raise here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
MALFORMED = "malformed"


@dataclass(frozen=True)
class Mark:
    """A box in a reply.

    Attributes:
        start, end: Where it stands in the text, tags included.
        box: None when malformed.
        number: 1, 2, ... among the well-formed boxes; 0 when malformed.
        status: What became of it (see :class:`unireason_lib.grounding.Pointing`), empty when that is not known.
        crops: The pictures that it fetched.
        short: What was written between the tags.
        crop_sizes: Their ``(width, height)``, from a results file.
    """

    start: int
    end: int
    box: Box | None
    number: int
    status: str
    crops: tuple[Any, ...]
    short: str
    crop_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def fate(self) -> str:
        """Words for a box that fetched nothing; empty when it fetched crops or nothing is known."""
        return "" if self.crops or self.status in ("", INJECTED) else f"  {self.status}"


@dataclass(frozen=True)
class Reply:
    """A reply and what was asked; ``counts`` are tokens by owner."""

    id: str
    dimension: str
    question: str
    options: Mapping[str, str]
    text: str
    answer: str
    choice: str | None
    truth: str | None
    marks: tuple[Mark, ...]
    stop: str
    error: str
    rounds: int | None = None
    seconds: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def pieces(self) -> Iterator[str | Mark]:
        """The text and, in their places, the boxes."""
        at = 0
        for mark in self.marks:
            if mark.start > at:
                yield self.text[at : mark.start]
            yield mark
            at = mark.end
        if at < len(self.text):
            yield self.text[at:]

    def summary(self) -> str:
        """One line of facts."""
        stops = {"end": "ended by itself", "length": "cut off by the token budget"}
        facts = [f"answer {self.choice}" if self.choice else "no choice"] if self.options else []
        facts += [f"truth {self.truth}"] if self.truth else []
        facts += [stops.get(self.stop, self.stop)] if self.stop else []
        facts += (
            [f"{self.rounds} round{'s' * (self.rounds != 1)}"] if self.rounds is not None else []
        )
        if self.counts:
            facts.append(
                ", ".join(f"{count:,} {owner}" for owner, count in self.counts.items()) + " tokens"
            )
        facts += [f"{self.seconds:.1f} s"] if self.seconds is not None else []
        return "  ·  ".join(facts)


def from_trace(trace: Any, truth: str | None = None) -> Reply:
    """A :class:`unireason_lib.grounding.Trace`, or a mapping with its fields, ready to be shown."""
    if isinstance(trace, Mapping):
        return _from_mapping(trace, truth)
    request = trace.request
    own = sum(1 for mine in trace.own_mask if mine)
    return Reply(
        id=str(request.id),
        dimension=request.dimension,
        question=request.question,
        options=dict(request.options),
        text=trace.text,
        answer=trace.answer,
        choice=trace.choice,
        truth=truth,
        marks=_marks(
            trace.text, [(p.text, p.box, p.status, tuple(p.crops)) for p in trace.pointings]
        ),
        stop=trace.stop,
        error="",
        rounds=trace.rounds,
        seconds=trace.seconds,
        counts={"prompt": len(trace.prompt_ids), "own": own, "injected": len(trace.own_mask) - own},
    )


def aligned_pictures(trace: Any, told: Reply, images: Any, frame: Any) -> list[Image.Image]:
    """The pictures on which the boxes of a reply are to be drawn.

    Args:
        trace: The trace, whose request has the original pictures.
        told: The same, ready to be shown.
        images: Pictures as the processor shows them; or, with ``frame``, the original ones.
        frame: A :class:`unireason_lib.imaging.ProcessorFrame`, or None.

    Raises:
        RequestError: There are no pictures, or the reply's crops are not cut from these.
    """
    if images is None and frame is not None:
        images = getattr(getattr(trace, "request", None), "images", None)
    if images is None:
        raise RequestError(
            f"trace {told.id!r}",
            "its pictures as the processor shows them, or the processor's frame",
            "neither",
            "pass [frame.aligned(image) for image in images], or frame=ProcessorFrame.from_processor(processor)",
        )
    pictures = pil_pictures(images)
    if frame is not None:
        pictures = [frame.aligned(picture) for picture in pictures]
    for mark in told.marks:
        if not _fits(mark, pictures):
            raise RequestError(
                f"pictures of trace {told.id!r}",
                "those from which its crops were cut, as the processor shows them",
                f"others (first of {len(pictures)}: {pictures[0].width} x {pictures[0].height} pixels)",
                "pass [frame.aligned(image) for image in images], or the images and frame=...",
            )
    return pictures


def pil_pictures(images: Any) -> list[Image.Image]:
    """A stack of slices, arrays, PIL pictures or a single one, as RGB pictures."""
    pixels = [images] if isinstance(images, Image.Image) else getattr(images, "pixels", images)
    pictures = [
        image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        for image in pixels
    ]
    return [picture if picture.mode == "RGB" else picture.convert("RGB") for picture in pictures]


def with_crops(told: Reply, pictures: Sequence[Image.Image]) -> Reply:
    """The reply with the crops that its boxes fetched, cut again where they are not there."""
    marks = [
        replace(mark, crops=tuple(crop_region(pictures, mark.box)))
        if mark.box is not None and not mark.crops and mark.status == INJECTED
        else mark
        for mark in told.marks
    ]
    return replace(told, marks=tuple(marks))


def _fits(mark: Mark, pictures: Sequence[Image.Image]) -> bool:
    """Whether what a box fetched is cut from these pictures (of a line of results, only the sizes are known)."""
    if mark.box is None or not (mark.crops or mark.crop_sizes):
        return True
    crops = crop_region(pictures, mark.box)
    if mark.crop_sizes and [crop.size for crop in crops] != list(mark.crop_sizes):
        return False
    return not mark.crops or (
        len(crops) == len(mark.crops)
        and all(
            np.array_equal(np.asarray(a), np.asarray(b))
            for a, b in zip(crops, mark.crops, strict=True)
        )
    )


def _marks(text: str, pointings: Sequence[tuple]) -> tuple[Mark, ...]:
    """The boxes with their places: each stands after the one before it."""
    marks: list[Mark] = []
    at = number = 0
    for written, box, status, crops, *sizes in pointings:
        start = text.find(written, at) if written else -1
        start, end = (start, start + len(written)) if start >= 0 else (len(text), len(text))
        number += box is not None
        short = written.removeprefix(BOX_START).removesuffix(BOX_END)
        marks.append(
            Mark(start, end, box, number if box is not None else 0, status, crops, short, *sizes)
        )
        at = end
    return tuple(marks)


def _from_mapping(record: Mapping[str, Any], truth: str | None) -> Reply:
    text = _words(record.get("text"))
    options = record.get("options")
    pointings = record.get("pointings")
    if isinstance(pointings, list) and all(isinstance(p, Mapping) for p in pointings):
        found = [
            (_words(p.get("text")), _box(p), _words(p.get("status")), (), _sizes(p))
            for p in pointings
        ]
    else:
        scan = scan_boxes(text)
        fates = _fates(record.get("statuses"), len(scan.boxes))
        places = zip(scan.boxes, scan.spans, fates, strict=True)
        found = [(text[a:b], box, fate, ()) for box, (a, b), fate in places]
    three = any(isinstance(box, Box3D) for _, box, *_ in found)
    counts = {name: _number(record.get(f"{name}_tokens")) for name in ("prompt", "own", "injected")}
    rounds = _number(record.get("rounds"))
    truth, error = truth if truth is not None else record.get("truth"), record.get("error")
    return Reply(
        id=_words(record.get("id")),
        dimension=record["dimension"]
        if record.get("dimension") in ("2d", "3d")
        else "3d"
        if three
        else "2d",
        question=_words(record.get("question")),
        options={str(k): _words(v) for k, v in options.items()}
        if isinstance(options, Mapping)
        else {},
        text=text,
        answer=_words(record.get("answer")),
        choice=_words(record.get("choice") or (record.get("prediction") if options else None))
        or None,
        truth=_words(truth) or None,
        marks=_marks(text, found),
        stop=_words(record.get("stop")),
        error=_words(error.get("message") if isinstance(error, Mapping) else error),
        rounds=None if rounds is None else int(rounds),
        seconds=_number(record.get("seconds")),
        counts={name: int(count) for name, count in counts.items() if count is not None},
    )


def _fates(statuses: Any, boxes: int) -> list[str]:
    """What became of each well-formed box, from a line of an evaluation, which also counts the malformed ones."""
    said = statuses if isinstance(statuses, list) else []
    fates = [_words(status) for status in said if status != MALFORMED]
    return fates if len(fates) == boxes else [""] * boxes


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


def _sizes(pointing: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    sizes = pointing.get("crops")
    pairs = isinstance(sizes, list) and all(
        isinstance(size, list | tuple) and len(size) == 2 for size in sizes
    )
    return tuple(tuple(size) for size in sizes) if pairs else ()


def _words(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None
