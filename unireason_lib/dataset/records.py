"""A record: one question with its grounded answer, the unit that a model is trained and tested on.

A record keeps *text and references*, never pixels. Its reply is the text that the model shall write itself::

    <think>The lesion lies at <|box_start|>[98,107,153,154]<|box_end|>, in front of the cord ...</think>A. Anterior

and nothing else is stored about the pictures that are fetched when it points: a crop follows from the box
(see :mod:`unireason_lib.imaging.crops`). So :attr:`Record.messages`, the conversation in chat form with every
picture and crop in its place, is computed from the reply, and text and pictures cannot drift apart.
:meth:`Record.load` puts the real pictures there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from unireason_lib.answers import THINK_END, THINK_START
from unireason_lib.boxes import Box, Box2D, Box3D, format_box, parse_boxes, scan_boxes
from unireason_lib.errors import DatasetError, explain
from unireason_lib.imaging.crops import crop_region, slice_range
from unireason_lib.imaging.frame import ProcessorFrame
from unireason_lib.prompts import question_text

if TYPE_CHECKING:
    from PIL import Image

    from unireason_lib.dataset.questions import Question
    from unireason_lib.dataset.rationales import Rationale
    from unireason_lib.dataset.view import View

MAX_POINTINGS = 10
"""Rounds of pointing in one reply (released settings of UniReason-Med)."""


@dataclass(frozen=True)
class Record:
    """One question, its options, and the reply to learn.

    Attributes:
        id: Unique in a data set.
        study, patient, source, modality: Where it comes from, see
        :class:`~unireason_lib.dataset.study.Study`.
        dimension: ``"2d"``: one picture; ``"3d"``: the slices of a volume.
        family: One of the six question families.
        question: The question, without options.
        options: Letter -> text.
        answer: The right letter.
        reply: What the assistant writes, boxes included, crops not.
        image_ids: Names of the pictures: one, or the slices from foot to head.
        evidence: What the reply points at, in order: ``(name of the structure, coordinates)``.
        picture_size: (height, width) of each picture in pixels, before the processor; None when unknown.
        serialization: How a scan became these pictures and how the processor resizes them: ``size``,
            ``window``, ``frame``.
        license: Terms of the source.
        writer: Who wrote the reply.
        seed: Seed of question and template.
        split: ``"train"``, ``"val"`` or ``"test"``; empty before it is decided.
        lookup: Path of the scan under the root of its source, when its pictures are not stored with the data
            set.
        asked: The user's words, when they are somebody else's and not those of
            :func:`unireason_lib.prompts.question_text`.
    """

    id: str
    study: str
    patient: str
    source: str
    modality: str
    dimension: Literal["2d", "3d"]
    family: str
    question: str
    options: Mapping[str, str]
    answer: str
    reply: str
    image_ids: tuple[str, ...] = ()
    evidence: tuple[tuple[str, tuple[int, ...]], ...] = ()
    picture_size: tuple[int, int] | None = None
    serialization: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    writer: str = ""
    seed: int = 0
    split: str = ""
    lookup: str = ""
    asked: str = ""

    @classmethod
    def make(
        cls,
        view: View,
        question: Question,
        rationale: Rationale,
        *,
        writer: str,
        seed: int = 0,
        lookup: str = "",
        image_ids: Sequence[str] | None = None,
        serialization: Mapping[str, Any] | None = None,
    ) -> Record:
        """Put study, question and rationale together; nothing is checked here (see
        :mod:`unireason_lib.dataset.checks`).

        Args:
            view: How the study is shown.
            question: What is asked about it.
            rationale: Text and points, in order.
            writer: Name of the writer of the rationale.
            seed: Seed of the run.
            lookup: Path of the scan when its pictures shall not be stored.
            image_ids: Names of the pictures, when already at hand; see :func:`image_ids_of`.
            serialization: That of the view in plain values, when already at hand.
        """
        study = view.study
        return cls(
            id=question.id,
            study=study.id,
            patient=study.patient,
            source=study.source,
            modality=study.modality,
            dimension=question.dimension,
            family=question.family,
            question=question.text,
            options=dict(question.options),
            answer=question.answer,
            reply=reply_text(rationale, question),
            image_ids=tuple(image_ids_of(view) if image_ids is None else image_ids),
            evidence=tuple(
                (part.structure, tuple(int(n) for n in part.box.as_tuple()))
                for part in rationale.parts
                if not isinstance(part, str)
            ),
            picture_size=tuple(int(n) for n in view.picture_size),
            serialization=plain(view.serialization) if serialization is None else serialization,
            license=study.license,
            writer=writer,
            seed=seed,
            lookup=lookup,
        )

    @property
    def truth(self) -> str:
        """The right option as the reply ends: ``"B. left kidney"``."""
        return f"{self.answer}. {self.options[self.answer]}"

    @property
    def boxes(self) -> list[Box]:
        """The boxes in the reply, in order."""
        return parse_boxes(self.reply)

    @property
    def user_text(self) -> str:
        """The words of the user's turn."""
        slices = len(self.image_ids) if self.dimension == "3d" and self.image_ids else None
        return self.asked or question_text(self.question, self.options, slices)

    @property
    def frame(self) -> ProcessorFrame:
        """The processor in whose pixels the boxes are written.

        Raises:
            DatasetError: The record does not say.
        """
        if "frame" not in self.serialization:
            raise DatasetError(
                explain(
                    self.id,
                    expected="the frame of the boxes (serialization.frame)",
                    found="none",
                    do="pass the frame of the processor for which the set was made",
                )
            )
        return ProcessorFrame(**self.serialization["frame"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in chat form, pictures as references.

        The user's content lists ``{"type": "image", "image": <image id>}`` for every picture, then the text. The
        assistant's content is the reply, cut after every box; there stands one
        ``{"type": "image", "crop": {"box": [...], "slice": z}}`` for every slice that the box spans.
        """
        content: list[dict[str, Any]] = [{"type": "image", "image": name} for name in self.image_ids]
        content.append({"type": "text", "text": self.user_text})
        reply: list[dict[str, Any]] = []
        for text, box in split_reply(self.reply):
            reply.append({"type": "text", "text": text})
            if box is not None:
                reply += [
                    {"type": "image", "crop": {"box": [int(n) for n in box.as_tuple()], "slice": z}}
                    for z in slice_range(box, len(self.image_ids))
                ]
        return [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]

    def load(
        self, pictures: Sequence[Image.Image], frame: ProcessorFrame | None = None
    ) -> list[dict[str, Any]]:
        """The conversation with pictures in place of references.

        Args:
            pictures: One for every image id, in order, at any size.
            frame: The processor's frame; by default the one in which the boxes are written.

        Returns:
            As :attr:`messages`, but every picture is ``{"type": "image", "image": PIL picture}``: the user's as the
            processor shows them to the model, the assistant's cut from those.

        Raises:
            DatasetError: The number of pictures is not the number of image ids.
        """
        if len(pictures) != len(self.image_ids):
            raise DatasetError(
                explain(
                    self.id,
                    expected=f"{len(self.image_ids)} pictures",
                    found=str(len(pictures)),
                    do="load the pictures of this record's image_ids",
                )
            )
        frame = frame or self.frame
        shown = [frame.aligned(picture) for picture in pictures]
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in shown]
        content.append({"type": "text", "text": self.user_text})
        reply: list[dict[str, Any]] = []
        for text, box in split_reply(self.reply):
            reply.append({"type": "text", "text": text})
            if box is not None:
                reply += [{"type": "image", "image": crop} for crop in crop_region(shown, box)]
        return [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for one line of JSON."""
        values = {name: getattr(self, name) for name in _FIELDS}
        values["options"] = dict(self.options)
        values["image_ids"] = list(self.image_ids)
        values["evidence"] = [[name, list(box)] for name, box in self.evidence]
        values["picture_size"] = self.picture_size and list(self.picture_size)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The way back from :meth:`to_dict`; keys of later versions are ignored.

        Raises:
            DatasetError: A field without a default is missing.
        """
        known = {name: values[name] for name in _FIELDS if name in values}
        try:
            record = cls(**known)
        except TypeError as error:
            raise DatasetError(
                explain(
                    str(values.get("id", "record")),
                    expected="all fields of a record",
                    found=str(error).split("__init__() ")[-1],
                    do="check how the row was written",
                )
            ) from error
        return replace(
            record,
            image_ids=tuple(record.image_ids),
            evidence=tuple((name, tuple(box)) for name, box in record.evidence),
            picture_size=tuple(record.picture_size) if record.picture_size else None,
        )


_FIELDS = tuple(f.name for f in fields(Record))


def split_reply(reply: str) -> list[tuple[str, Box | None]]:
    """A reply cut after every well-formed box: ``(text up to and with the box, the box)``, last the rest with None."""
    found = scan_boxes(reply)
    parts, start = [], 0
    for (_, end), box in zip(found.spans, found.boxes, strict=True):
        parts.append((reply[start:end], box))
        start = end
    return [*parts, (reply[start:], None)] if start < len(reply) else parts


def reply_text(rationale: Rationale, question: Question) -> str:
    """Thought and answer as the model shall write them: ``<think>...</think>B. left kidney``."""
    thought = "".join(part if isinstance(part, str) else format_box(part.box) for part in rationale.parts)
    return f"{THINK_START}{thought}{THINK_END}{question.answer}. {question.options[question.answer]}"


def image_ids_of(view: View) -> tuple[str, ...]:
    """Neutral names of a view's pictures: 24 hexadecimal digits, and for slices their number.

    They follow from source, study and serialization, so two studies never share one and a study has the same
    names in every run; the study's own name, which may say more about a patient than it should, cannot be
    read from them.
    """
    study = view.study
    key = json.dumps([study.source, study.id, plain(view.serialization)], sort_keys=True)
    stem = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    return (stem,) if study.dimension == "2d" else tuple(f"{stem}-{z:03d}" for z in range(view.depth))


def box_of(coordinates: Sequence[float]) -> Box:
    """Four or six numbers as a box."""
    return (Box2D if len(coordinates) == 4 else Box3D)(*coordinates)


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
