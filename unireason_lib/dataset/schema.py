"""What a record is, and the typed columns in which a data set stores it.

A record is one question with its grounded answer: *text and references*, never pixels. Its reply is
what the model shall write itself; the crops follow from the boxes. A row has the columns of the
released UniMed-CoT (``messages`` or ``prompt``, ``image_ids``, ``reward_model``, ...), so that
scripts made for it run on our sets, and typed columns with all that makes up a :class:`Record`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import Features, List, Value

from unireason_lib.answers import THINK_END, THINK_START
from unireason_lib.boxes import BOX_START, Box, Box2D, Box3D, format_box, scan_boxes, states_boxes
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame, crop_region
from unireason_lib.prompts import question_text

if TYPE_CHECKING:
    from PIL import Image

    from unireason_lib.dataset.questions import Question
    from unireason_lib.dataset.rationales import Rationale
    from unireason_lib.dataset.view import View

PLACEHOLDER = "<image>"
"""Stands in a text for each image of the user's turn (released form)."""

_COLUMNS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_bytes())


def _typed(written: Any) -> Any:
    """Types of columns as ``datasets`` has them: names of types, lists of one item, structures."""
    if isinstance(written, list):
        return List(_typed(written[0]))
    if isinstance(written, dict):
        return {name: _typed(part) for name, part in written.items()}
    return Value(written)


SFT_FEATURES, RL_FEATURES = (
    Features(_typed(_COLUMNS[table] | _COLUMNS["typed"])) for table in ("sft", "rl")
)
IMAGE_FEATURES, REFUSED_FEATURES, STUDY_FEATURES = (
    Features(_typed(_COLUMNS[table])) for table in ("images", "refused", "studies")
)
"""Columns of the configurations of a set, and of the studies of a shard: see ``schema.yaml``."""
_OF_THE_STUDY = ("patient", "source", "modality", "license")
_OF_THE_QUESTION = ("id", "study", "dimension", "family", "kind", "answer")
_PLAIN = [name for name, kind in _COLUMNS["typed"].items() if isinstance(kind, str)]


@dataclass(frozen=True)
class ScanReference:
    """Where a scan is: its source (a ``SourceSpec`` without the folder) and its key there."""

    spec: str
    key: str


@dataclass(frozen=True)
class Record:
    """One question, its options, and the reply to learn; the first fields are as of the study."""

    id: str  # unique in a data set
    study: str
    patient: str
    source: str
    modality: str
    dimension: Literal["2d", "3d"]  # one image, or the slices of a volume
    family: str
    question: str
    options: Mapping[str, str]  # letter -> text
    answer: str  # letter
    reply: str  # what the assistant writes, boxes included, crops not
    image_ids: tuple[str, ...] = ()  # one, or the slices from foot to head
    evidence: tuple[tuple[str, tuple[int, ...]], ...] = ()  # structure, box, as in the reply
    image_size: tuple[int, int] | None = None  # rows, columns, before the processor
    serialization: Mapping[str, Any] = field(default_factory=dict)  # size, window, frame
    scan: ScanReference | None = None
    stored: bool = True  # whether the data set has the images; else the scan is read again
    license: str = ""
    writer: str = ""  # who wrote the reply
    seed: int = 0
    split: str = ""  # "train", "val" or "test"; empty before it is decided
    kind: str = ""
    names: tuple[str, ...] = ()  # what the question is about
    asked: str = ""  # the user's words when they are not those of `prompts.question_text`

    @classmethod
    def make(
        cls, view: View, question: Question, rationale: Rationale, *, spec: str = "", **more: Any
    ) -> Record:
        """Put a question about a study and its rationale together; nothing is checked here.
        ``spec`` is that of the source, ``more`` are other fields: writer, seed, stored ..."""
        shared = {name: getattr(view.study, name) for name in _OF_THE_STUDY}
        shared |= {name: getattr(question, name) for name in _OF_THE_QUESTION}
        ending = f"{THINK_END}{question.answer}. {question.truth}"
        evidence = ((p.structure, tuple(map(int, p.box.as_tuple()))) for p in rationale.points)
        values = {
            "image_ids": view.image_ids,
            "question": question.text,
            "options": dict(question.options),
            "names": tuple(question.names),
            "reply": f"{THINK_START}{rationale.text}{ending}",
            "evidence": tuple(evidence),
            "image_size": tuple(map(int, view.image_size)),
            "serialization": view.serialization,
            "scan": ScanReference(spec, view.study.key) if spec else None,
        }
        return cls(**{**shared, **values, **more})

    @property
    def truth(self) -> str:
        """The right option as the reply ends: ``"B. left kidney"``."""
        return f"{self.answer}. {self.options[self.answer]}"

    @property
    def boxes(self) -> list[Box]:
        """The boxes in the reply, in order and as written."""
        return list(scan_boxes(self.reply).boxes)

    @cached_property
    def user_text(self) -> str:
        """The words of the user's turn."""
        slices = len(self.image_ids) if self.dimension == "3d" and self.image_ids else None
        return self.asked or question_text(self.question, self.options, slices)

    @property
    def frame(self) -> ProcessorFrame:
        """The processor for which the boxes are written; of a released row Qwen2.5-VL's own."""
        known = self.serialization.get("frame")
        return ProcessorFrame(**known) if known else QWEN_FRAME

    def written_for(self, frame: ProcessorFrame, height: int, width: int) -> Record:
        """The record with the boxes of its reply as they are written for the processor of another
        model, about images of this size; lengths and centres in its words stay. Boxes of a released
        row, which names no processor, count as the model's own if that writes pixels. A
        :class:`DatasetError` if there are boxes in its question or options."""
        own = self.frame if self.serialization.get("frame") or frame.scale else frame
        size = (height, width)
        if own.extent(*size) == frame.extent(*size):
            return self
        if states_boxes(self.user_text):
            check_same_extent(self.id, own, frame, size)
        depth, reply, moved = max(1, len(self.image_ids)), "", []
        for text, box in split_reply(self.reply):
            if box is not None:
                box = own.from_frame(own.pixels(box, *size), *size)
                moved.append(frame.written(box, *size, depth=depth))
                text = text[: text.rindex(BOX_START)] + format_box(moved[-1])
            reply += text
        names = (name for name, _ in self.evidence)
        evidence = tuple((n, b.as_tuple()) for n, b in zip(names, moved, strict=False))
        layout = {**self.serialization, "frame": frame.to_dict()}
        return replace(self, reply=reply, evidence=evidence, serialization=layout)

    def load(
        self, images: Sequence[Image.Image], frame: ProcessorFrame | None = None
    ) -> list[dict[str, Any]]:
        """The conversation in chat form with images, one an image id, and behind every box of the
        reply its crops. They are as the model is shown them: aligned to the processor's ``frame``;
        None takes the one for which the boxes are written. For another they are written anew
        (:meth:`written_for`)."""
        if not images or len(images) != len(self.image_ids):
            do, expected = "load those of its image_ids", f"{len(self.image_ids) or 'some'} images"
            raise DatasetError(self.id, expected, len(images), do)
        frame, size = frame or self.frame, (images[0].height, images[0].width)
        aligned = [frame.aligned(image) for image in images]
        user = [{"type": "image", "image": image} for image in aligned]
        reply: list[dict[str, Any]] = []
        for text, box in split_reply(self.written_for(frame, *size).reply):
            reply.append({"type": "text", "text": text})
            crops = crop_region(aligned, frame.pixels(box, *size)) if box else ()
            reply += [{"type": "image", "image": crop} for crop in crops]
        turns = {"user": [*user, {"type": "text", "text": self.user_text}], "assistant": reply}
        return [{"role": role, "content": content} for role, content in turns.items()]

    def to_row(self) -> dict[str, Any]:
        """The record as a row of ``sft``, which :func:`rl_table` makes one of ``rl``; the ids of
        images that are not stored are left out of it."""
        image_ids = list(self.image_ids) if self.stored else []
        turns = {"user": PLACEHOLDER * len(image_ids) + self.user_text, "assistant": self.reply}
        window = self.serialization.get("window")
        low, high = (None, None) if window is None or isinstance(window, str) else window
        return {
            "messages": [{"role": role, "content": text} for role, text in turns.items()],
            "image_ids": image_ids,
            **{name: getattr(self, name) for name in _PLAIN},
            "options": [{"letter": k, "text": text} for k, text in self.options.items()],
            "names": list(self.names),
            "boxes": [{"name": name, "box": list(box)} for name, box in self.evidence],
            "image_size": self.image_size and list(self.image_size),
            "serialization": {
                **{"size": None, "frame": None, **self.serialization},
                **{"window": window if low is None else None, "low": low, "high": high},
            },
            "scan": self.scan and dict(vars(self.scan)),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Record:
        """A row of ``sft`` or ``rl`` as a record; the reply of an ``rl`` row is empty."""
        if missing := [name for name in _COLUMNS["typed"] if name not in row]:
            do = "read the authors' release with unireason_lib.dataset.release"
            raise DatasetError("row", "typed columns", f"no {', '.join(missing)}", do)
        turns = row.get("messages") or row["prompt"]
        layout = dict(row["serialization"])
        low, high = layout.pop("low"), layout.pop("high")
        layout["window"] = layout["window"] if low is None else [low, high]
        layout = {} if layout["window"] is None else layout
        if layout.get("frame"):
            layout["frame"] = ProcessorFrame(**layout["frame"]).to_dict()
        image_ids = tuple(row["image_ids"])
        if layout and not image_ids:
            image_ids = image_names(row["source"], row["study"], layout)
        return cls(
            **{name: row[name] for name in _PLAIN},
            options={option["letter"]: option["text"] for option in row["options"]},
            names=tuple(row["names"]),
            reply=turns[1]["content"] if len(turns) > 1 else "",
            image_ids=image_ids,
            stored=bool(row["image_ids"]),
            evidence=tuple((box["name"], tuple(box["box"])) for box in row["boxes"]),
            image_size=tuple(row["image_size"]) if row["image_size"] else None,
            serialization=layout,
            scan=ScanReference(**row["scan"]) if row["scan"] and row["scan"]["key"] else None,
        )


def rl_table(sft: pa.Table) -> pa.Table:
    """Rows of ``sft`` as rows of ``rl``."""
    columns = {name: sft[name].combine_chunks() for name in sft.column_names}
    words = ("rule", "urm_single_assistant", "medical_vqa")  # as the authors' fork of verl has them
    rule, agent, ability = (pa.repeat(text, len(sft)) for text in words)
    struct = pa.StructArray.from_arrays
    columns |= {
        "prompt": pc.list_slice(columns["messages"], 0, 1),
        **{"data_source": columns["source"], "agent_name": agent, "ability": ability},
        "reward_model": struct([rule, columns["answer"]], ["style", "ground_truth"]),
        "extra_info": struct([columns["id"], columns["split"]], ["id", "split"]),
    }
    return pa.table({name: columns[name] for name in RL_FEATURES}).cast(RL_FEATURES.arrow_schema)


def split_reply(reply: str) -> list[tuple[str, Box | None]]:
    """A reply cut behind every box: ``(text up to and with the box, box)``; last the rest, None."""
    boxes = scan_boxes(reply)
    parts, start = [], 0
    for (_, end), box in zip(boxes.spans, boxes.boxes, strict=True):
        parts.append((reply[start:end], box))
        start = end
    return [*parts, (reply[start:], None)] if start < len(reply) else parts


def check_same_extent(
    name: str, own: ProcessorFrame, frame: ProcessorFrame, size: tuple[int, int]
) -> None:
    """A :class:`DatasetError` about a question with boxes in its words if they are not written for
    the processor of the model. ``size``: height and width of its images."""
    found, expected = (f"boxes in {one.unit} of {one.extent(*size)}" for one in (own, frame))
    if found != expected:
        do = "build the data set for this model (build --model)"
        raise DatasetError(name, expected, found, do)


def image_names(source: str, study: str, serialization: Mapping[str, Any]) -> tuple[str, ...]:
    """Neutral names of a study's images: a hash of source, study and serialization, so that every
    run gives the same and nothing about a patient can be read there; slices have their number."""
    key = json.dumps([source, study, serialization], sort_keys=True)
    stem = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    size = serialization["size"]
    return (stem,) if size is None else tuple(f"{stem}-{z:03d}" for z in range(size[0]))


def box_of(coordinates: Sequence[float]) -> Box:
    """Four or six numbers as a box."""
    return (Box2D if len(coordinates) == 4 else Box3D)(*coordinates)
