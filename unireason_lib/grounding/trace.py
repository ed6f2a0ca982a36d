"""What is asked of the model, and what comes back.

A :class:`GroundedRequest` is one question about one image or one volume. A :class:`Trace` is the whole reply, token by
token: what the model wrote, what was put in between, and what each box fetched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from unireason_lib.answers import extract_choice, final_answer
from unireason_lib.boxes import Box
from unireason_lib.errors import RequestError, explain
from unireason_lib.prompts import LETTERS, chat

if TYPE_CHECKING:
    from PIL import Image

DIMENSIONS = ("2d", "3d")

INJECTED = "injected"
MALFORMED = "malformed"
OUTSIDE = "outside"
NO_SLICE = "no slice"
ROUNDS_USED_UP = "rounds used up"
TOKENS_USED_UP = "tokens used up"
STATUSES = (INJECTED, MALFORMED, OUTSIDE, NO_SLICE, ROUNDS_USED_UP, TOKENS_USED_UP)
"""What can become of a box; see :class:`Pointing`."""


@dataclass(frozen=True)
class GroundedRequest:
    """One question.

    Args:
        question: The question in words.
        images: One picture, or the slices of a volume from foot to head: PIL pictures, uint8 arrays ``(H, W)`` or
            ``(H, W, 3)``, or a :class:`unireason_lib.imaging.SliceStack`. Kept as PIL pictures.
        options: Letter -> text, or the texts in order; empty for a free answer.
        dimension: ``"2d"`` or ``"3d"``: whether the pictures are slices of one volume. Boxes have 4 or 6 numbers
            accordingly. With several pictures in 2D, a box means the first one.
        id: A name for logs, results and the seed of sampling.
        messages: A conversation in chat form to use instead of the house wording (its pictures are ``images``).

    Raises:
        RequestError: No picture, something else than pictures, or an unknown dimension.
    """

    question: str
    images: Sequence[Image.Image]
    options: Mapping[str, str] = field(default_factory=dict)
    dimension: str = "2d"
    id: str = ""
    messages: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        images = self.images.images() if hasattr(self.images, "images") else self.images
        object.__setattr__(self, "images", tuple(_picture(image, self.id) for image in images))
        if not isinstance(self.options, Mapping):
            object.__setattr__(self, "options", dict(zip(LETTERS, self.options, strict=False)))
        if self.dimension not in DIMENSIONS or not len(self.images):
            raise RequestError(
                explain(
                    f"request {self.id!r}",
                    expected="dimension 2d or 3d and at least one picture",
                    found=f"dimension {self.dimension!r} and {len(self.images)} pictures",
                    do="give the image, or all slices of the volume",
                )
            )

    def conversation(self) -> list[Mapping[str, Any]]:
        """The messages up to the model's turn."""
        if self.messages is not None:
            return list(self.messages)
        return chat(self.question, self.images, self.options, volume=self.dimension == "3d")


def _picture(image: Any, name: str) -> Image.Image:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        return Image.fromarray(array)
    raise RequestError(
        explain(
            f"request {name!r}",
            expected="PIL pictures or uint8 arrays (H, W) or (H, W, 3)",
            found=f"{type(image).__name__} of type {array.dtype} and shape {array.shape}",
            do="read files with load_image, or load_volume and serialize",
        )
    )


@dataclass(frozen=True)
class Pointing:
    """One box that the model opened, and what became of it.

    Attributes:
        text: What was written, tags included.
        box: The box as written, in pixels of the processor's frame; None when malformed.
        status: ``"injected"``: crops were put into the reply. Otherwise nothing was, and the reply went on:
            ``"malformed"``; ``"outside"`` (no overlap with picture or volume); ``"no slice"`` (four numbers for a
            volume do not say which slice is meant); ``"rounds used up"``; ``"tokens used up"`` (the crops would not
            fit into the budget of injected tokens).
        crops: The pictures that were put in, in slice order.
        position: Index in ``Trace.token_ids`` of the token after the box.
    """

    text: str
    box: Box | None
    status: str
    crops: tuple[Image.Image, ...]
    position: int


@dataclass(frozen=True)
class Trace:
    """One reply.

    Attributes:
        request: What was asked.
        text: What the model wrote, with its control tokens (boxes, thought) and without the injected pictures.
        token_ids: The reply as the model saw it: its own tokens and the injected ones.
        own_mask: One number a token: 1 the model's own, 0 injected.
        logprobs: One number a token: the logarithm of the probability that the model gave it, at the temperature of the
            sampling (1 when greedy) and before any token was forbidden; 0 for injected ones.
        prompt_ids: The tokens before the reply.
        pointings: Every box that was opened.
        stop: ``"end"``: the model ended its turn; ``"length"``: the token budget did.
        rounds: Stretches of writing: one more than the injections and round budgets spent in between.
        seconds: Time from the start of its batch until the reply was complete.
    """

    request: GroundedRequest
    text: str
    token_ids: tuple[int, ...]
    own_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_ids: tuple[int, ...]
    pointings: tuple[Pointing, ...]
    stop: str
    rounds: int
    seconds: float

    @property
    def answer(self) -> str:
        """What stands after the thought, without control tokens."""
        return final_answer(self.text)

    @property
    def choice(self) -> str | None:
        """The letter chosen, or None (see :func:`unireason_lib.answers.extract_choice`)."""
        return extract_choice(self.text, self.request.options or None)

    @property
    def boxes(self) -> list[Box]:
        """The well-formed boxes as written, in order."""
        return [pointing.box for pointing in self.pointings if pointing.box is not None]

    @property
    def crops(self) -> list[list[Image.Image]]:
        """For each of :attr:`boxes` the pictures that it fetched (an empty list when nothing was injected)."""
        return [list(pointing.crops) for pointing in self.pointings if pointing.box is not None]

    @property
    def malformed(self) -> int:
        """How many boxes could not be read."""
        return sum(pointing.status == MALFORMED for pointing in self.pointings)

    def to_dict(self) -> dict[str, Any]:
        """The trace without pictures, ready for JSON."""
        return {
            "id": self.request.id,
            "dimension": self.request.dimension,
            "question": self.request.question,
            "options": dict(self.request.options),
            "text": self.text,
            "answer": self.answer,
            "choice": self.choice,
            "boxes": [box.as_tuple() for box in self.boxes],
            "pointings": [
                {
                    **{
                        f.name: getattr(p, f.name)
                        for f in dataclasses.fields(p)
                        if f.name not in ("box", "crops")
                    },
                    "box": None if p.box is None else p.box.as_tuple(),
                    "crops": [crop.size for crop in p.crops],
                }
                for p in self.pointings
            ],
            "stop": self.stop,
            "rounds": self.rounds,
            "own_tokens": sum(self.own_mask),
            "injected_tokens": len(self.own_mask) - sum(self.own_mask),
            "prompt_tokens": len(self.prompt_ids),
            "seconds": round(self.seconds, 4),
        }
