"""An item: one question with everything that is needed to ask it and to judge the reply, whether it
was generated or comes from Parquet or a public table. It knows how to get its images, so a scan
that cannot be read fails when its question is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from unireason_lib.boxes import Box, states_boxes
from unireason_lib.dataset.schema import check_same_extent
from unireason_lib.errors import DatasetError, UniReasonError

if TYPE_CHECKING:
    from PIL import Image

    from unireason_lib.grounding import GroundedRequest
    from unireason_lib.imaging import ProcessorFrame


@dataclass(frozen=True, eq=False)
class Item:
    """One question."""

    id: str  # unique in its benchmark
    patient: str  # who was scanned: questions about one patient are not independent
    dimension: str  # "2d" or "3d"
    family: str  # row of the tables of results
    question: str
    options: Mapping[str, str]  # letter -> text; empty for an open question
    answer: str | None  # the right letter, or right words; None: unknown, so it is not scored
    load: Callable[[], Sequence[Image.Image]]  # one image, or the slices from foot to head
    kind: str = ""  # what is asked in the family ("texture"), when known
    source: str = ""  # name of the data set
    truth_boxes: tuple[tuple[str, Box], ...] = ()  # (name, box as written) of its evidence
    frame: ProcessorFrame | None = None  # for which boxes are written; None: the model's
    guess: str | None = None  # option that was most often right in training; None: unknown
    asked: str = ""  # the user's words, where they are not those of prompts.question_text
    about: Mapping[str, Any] = field(default_factory=dict)  # more for the line of results

    def request(self, images: Sequence[Image.Image]) -> GroundedRequest:
        """The question as it is put to a model."""
        from unireason_lib.grounding import GroundedRequest

        content = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": self.asked})
        messages = [{"role": "user", "content": content}] if self.asked else None
        options = dict(self.options)
        return GroundedRequest(self.question, images, options, self.dimension, self.id, messages)

    @property
    def states_boxes(self) -> bool:
        """Whether the question or an option has a box in its words."""
        return states_boxes(" ".join([self.question, *self.options.values()]))

    def boxes_in(
        self, frame: ProcessorFrame, height: int, width: int
    ) -> tuple[tuple[str, Box], ...]:
        """The truth boxes in pixels of the frame of the model that is asked. A ``DatasetError``
        when the question has boxes in its words that are written for another."""
        own, size = self.frame or frame, (height, width)
        if self.states_boxes:
            check_same_extent(self.id, own, frame, size)
        (rows, columns), (own_rows, own_columns) = frame.size(*size), own.size(*size)
        factors = columns / own_columns, rows / own_rows
        boxes = ((name, own.pixels(box, *size)) for name, box in self.truth_boxes)
        return tuple((name, box.scale(*factors)) for name, box in boxes)

    def to_dict(self) -> dict[str, Any]:
        """The item without images and boxes, ready for JSON; the answer is its ``truth``."""
        names = ("id", "patient", "source", "dimension", "family", "kind", "question")
        record = {name: getattr(self, name) for name in names}
        record |= {"options": dict(self.options), "truth": self.answer}
        record |= {} if self.guess is None else {"guess": self.guess}
        return record | ({"about": dict(self.about)} if self.about else {})


class Skipped(NamedTuple):
    """A row of a benchmark that cannot be a question, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """A list of questions; a ``DatasetError`` when none is left or two have the same id."""

    name: str
    items: tuple[Item, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)  # what decides the questions, but not
    # how many: results of two runs go into one file only if it is equal. Plain values.
    skipped: tuple[Skipped, ...] = ()
    opened: Mapping[str, Any] = field(default_factory=dict)  # arguments of open_benchmark

    def __post_init__(self) -> None:
        twice = [repr(name) for name, n in Counter(i.id for i in self).items() if n > 1]
        if not self.items or twice:
            found = f"{twice[0]} twice" if twice else f"none in {self.identity.get('split')!r}"
            if self.skipped and not twice:
                found += f" ({len(self.skipped)} rows skipped: {self.skipped[0].reason})"
            expected, do = "questions with different ids", "check path, split, limit"
            raise DatasetError(f"benchmark {self.name}", expected, found, do)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def items_of(
    rows: Iterable[tuple[str, Callable[[], Iterable[Item]]]], skipped: list[Skipped]
) -> Iterator[Item]:
    """The items of rows, each a name and what makes its items; those that cannot be are noted."""
    for name, make in rows:
        try:
            yield from list(make())
        except UniReasonError as error:
            skipped.append(Skipped(name, str(error)))


def most_likely_answers(items: Iterable[Item], training: Iterable[Item]) -> Iterator[Item]:
    """Give every item its guess, the question-only baseline: of its options, the one that was right
    most often in training, by dimension and kind of question (the family where none is known)."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for item in training:
        text = item.options.get(item.answer, "")
        counts[item.dimension, item.kind or item.family, text.casefold()] += 1
    for item in items:
        of_kind = item.dimension, item.kind or item.family
        right = {name: counts[*of_kind, text.casefold()] for name, text in item.options.items()}
        yield replace(item, guess=max(right, key=right.get) if any(right.values()) else None)
