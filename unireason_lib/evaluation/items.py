"""An item: one question with everything that is needed to ask it and to judge the reply.

Benchmarks come from generators, from Parquet and from a dozen kinds of tables; behind this type they are all the same.
Pictures are not part of an item. It knows how to get them, so a benchmark of many thousand questions costs no memory
and a scan that cannot be read fails when its question is asked, as one line of the results.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unireason_lib.boxes import Box
from unireason_lib.errors import DatasetError
from unireason_lib.prompts import question_text

if TYPE_CHECKING:
    from PIL import Image

    from unireason_lib.grounding import GroundedRequest
    from unireason_lib.imaging import ProcessorFrame

_WRITTEN_BOX = re.compile(r"[\[(]\s*\d+\s*(?:,\s*\d+\s*){3}(?:,\s*\d+\s*,\s*\d+\s*)?[\])]")


@dataclass(frozen=True, eq=False)
class Item:
    """One question.

    Args:
        id: Unique in its benchmark.
        patient: Who was scanned. Questions about one patient are not independent, so intervals resample patients.
        dimension: ``"2d"`` or ``"3d"``.
        family: Family of questions; the rows of the tables of results.
        question: The question in words.
        options: Letter -> text; empty for an open question.
        answer: The right letter, or the right words of an open question; None when unknown (then it is not scored).
        load: Gives the pictures: one, or the slices of a volume from foot to head.
        kind: What is asked in the family (``"texture"``), when known.
        source: Name of the data set.
        truth_boxes: ``(name, box)`` of what the answer rests on; empty when unknown.
        frame: Processor in whose pixels the truth boxes (and boxes in the question) are written; None: that of the
            model which is asked.
        guess: Option that is most often right by what the training questions say, without looking; None when unknown.
        asked: The user's words when they are somebody else's, and not those of
            :func:`unireason_lib.prompts.question_text`.
        about: Anything more for the line of results, in plain values.
    """

    id: str
    patient: str
    dimension: str
    family: str
    question: str
    options: Mapping[str, str]
    answer: str | None
    load: Callable[[], Sequence[Image.Image]]
    kind: str = ""
    source: str = ""
    truth_boxes: tuple[tuple[str, Box], ...] = ()
    frame: ProcessorFrame | None = None
    guess: str | None = None
    asked: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def request(self, pictures: Sequence[Image.Image]) -> GroundedRequest:
        """The question as it is put to a model."""
        from unireason_lib.grounding import GroundedRequest

        messages = None
        if self.asked:
            shown = [{"type": "image", "image": picture} for picture in pictures]
            messages = [{"role": "user", "content": [*shown, {"type": "text", "text": self.asked}]}]
        return GroundedRequest(
            self.question, pictures, dict(self.options), self.dimension, self.id, messages=messages
        )

    def boxes_in(
        self, frame: ProcessorFrame, height: int, width: int
    ) -> tuple[tuple[str, Box], ...]:
        """The truth boxes in the pixels of another processor's frame.

        Args:
            frame: Of the model that is asked.
            height, width: Of the pictures before any processor.

        Raises:
            DatasetError: The words of the question hold boxes, and they are written for another frame.
        """
        if self.frame is None or self.frame.size(height, width) == frame.size(height, width):
            return self.truth_boxes
        words = " ".join([self.question, *self.options.values()])
        if _WRITTEN_BOX.search(words):
            raise DatasetError(
                self.id,
                f"boxes in the question for pictures of {frame.size(height, width)}",
                f"boxes for pictures of {self.frame.size(height, width)}",
                "build the data set for this model's processor (build --model)",
            )
        return tuple(
            (name, frame.to_frame(self.frame.from_frame(box, height, width), height, width))
            for name, box in self.truth_boxes
        )

    def to_dict(self) -> dict[str, Any]:
        """The item without pictures and boxes, ready for JSON."""
        return {
            "id": self.id,
            "patient": self.patient,
            "source": self.source,
            "dimension": self.dimension,
            "family": self.family,
            "kind": self.kind,
            "question": self.question,
            "options": dict(self.options),
            "truth": self.answer,
            **({"guess": self.guess} if self.guess is not None else {}),
            **({"about": dict(self.about)} if self.about else {}),
        }


@dataclass(frozen=True)
class Skipped:
    """A row of a benchmark that cannot be a question.

    Attributes:
        name: File and row.
        reason: What is wrong with it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """A list of questions.

    Args:
        name: As in the report.
        items: The questions.
        identity: Everything that decides what is asked, in plain values: results of two runs may be put into one file
            only if it is equal. The number of questions is not part of it, so a run can be made longer.
        skipped: Rows that could not be used.
        opened: Arguments of :func:`unireason_lib.evaluation.open_benchmark` in plain values, by which the pictures of
            results are found again; empty for a benchmark that was made otherwise.

    Raises:
        DatasetError: No item is left, two have the same id, or the words of one cannot be asked.
    """

    name: str
    items: tuple[Item, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    opened: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        twice = [
            name for name, count in Counter(item.id for item in self.items).items() if count > 1
        ]
        if twice or not self.items:
            lost = (
                f"none ({len(self.skipped)} rows skipped: {self.skipped[0].reason})"
                if self.skipped
                else "none"
            )
            raise DatasetError(
                f"benchmark {self.name}",
                "questions with different ids",
                f"{twice[0]!r} twice" if twice else lost,
                "correct the file" if twice or self.skipped else "check path, split and limit",
            )

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def check_words(question: str, options: Mapping[str, str]) -> None:
    """Whether a question can be asked at all.

    Raises:
        RequestError: It is empty, holds control tokens, or its options are not A, B, C, ...
    """
    question_text(question, options)
