"""A reply as it is shown: its text with the boxes where they stand, their crops, its answer.

A reply is read from a trace or from a line of results. Lines of ``infer`` and ``evaluate`` keep no
images; crops are cut again from the images given. A line is untrusted: nonsense in it becomes a
reply with an error, and never raises here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np
from PIL import Image

from unireason_lib.boxes import BOX_END, BOX_START, Box
from unireason_lib.dataset.schema import box_of
from unireason_lib.display.figures import arrays_of, need
from unireason_lib.errors import RequestError
from unireason_lib.imaging.crops import crop_region

FACTS = {"stop": "stop", "own_tokens": "generated tokens", "injected_tokens": "injected tokens"}
FACTS |= {"prompt_tokens": "prompt tokens", "seconds": "seconds"}
FACTS |= {"iou_first": "IoU of the first box", "iou_best": "best IoU"}


@dataclass(frozen=True)
class Mention:
    """A box in a reply."""

    text: str  # what was written between the tags
    box: Box | None  # None when malformed
    number: int  # 1, 2, ... among the well-formed boxes; 0 when malformed
    status: str  # see `unireason_lib.grounding.Pointing`
    fetched: int  # number of its crops
    crops: Sequence[Image.Image] = ()  # as far as they are known


@dataclass(frozen=True)
class Reply:
    """A reply and its question."""

    id: str = ""
    question: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    dimension: str = ""
    family: str = ""
    pieces: Sequence[str | Mention] = ()  # the text, with its boxes where they stand
    choice: str = ""  # letter, or the words of an open answer
    truth: str = ""
    right: bool | None = None  # None: the truth is unknown
    iou: float | None = None  # of the first box
    truth_boxes: Sequence[tuple[str, Box]] = ()  # (name, box) of what the right answer rests on
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
        pieces += [
            before,
            Mention(words, box, number if box else 0, status, len(sizes or kept), kept),
        ]
    error, known = line.get("error", ""), [name for name in FACTS if name in line]
    options = {str(letter): str(text) for letter, text in line.get("options", {}).items()}
    answers = ("choice", "prediction", *(() if options else ("answer",)))
    choice = str(next((line[name] for name in answers if name in line), ""))
    truth, first = str(line.get("truth", "")), line.get("iou_first")
    return Reply(
        **{name: str(line.get(name, "")) for name in ("id", "question", "dimension", "family")},
        options=options,
        pieces=[piece for piece in (*pieces, rest) if piece],
        choice=choice,
        truth=truth,
        right=bool(line.get("correct", choice == truth)) if truth else None,
        iou=None if first is None or isnan(float(first)) else min(max(float(first), 0.0), 1.0),
        truth_boxes=[(str(name), box_of(box)) for name, box in line.get("truth_boxes", ())],
        error=str(error["message"] if isinstance(error, Mapping) else error),
        facts=" · ".join(f"{FACTS[name]}: {_short(line[name])}" for name in known),
        images=images,
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
