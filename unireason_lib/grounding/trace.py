"""What is asked of the model, and what comes back: the whole reply, token by token, as the model
wrote it, with what was put in between, and what each box fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from unireason_lib.answers import THINK_END, THINK_START, extract_choice, final_answer
from unireason_lib.boxes import BOX_END, BOX_START, Box, scan_boxes
from unireason_lib.errors import RequestError
from unireason_lib.imaging.summary import image_html, table_html
from unireason_lib.prompts import LETTERS, chat


@dataclass(frozen=True)
class GroundedRequest:
    """One question about one image, or about the slices of one volume. A :class:`RequestError` for
    no image, something else than images, or an unknown dimension."""

    question: str
    images: Sequence[Image.Image]  # one, or the slices; also uint8 arrays, or a SliceStack
    options: Mapping[str, str] = field(default_factory=dict)  # letter -> text; or texts in order
    dimension: str = "2d"  # "3d": slices of a volume. A 2D box means the first image.
    id: str = ""  # for logs, results and the seed of sampling
    messages: Sequence[Mapping[str, Any]] | None = None  # in place of unireason_lib.prompts.chat

    def __post_init__(self) -> None:
        images = list(self.images.images() if hasattr(self.images, "images") else self.images)
        for i, image in enumerate(images):
            if getattr(image, "dtype", None) == np.uint8:
                images[i] = Image.fromarray(image)
        usable = [image for image in images if isinstance(image, Image.Image)]
        if self.dimension not in ("2d", "3d") or not usable or len(usable) < len(images):
            expected = "dimension 2d or 3d and at least one image: PIL, uint8 array or SliceStack"
            found = f"dimension {self.dimension!r} and {len(usable)} of {len(images)} images"
            do = "read files with load_image, or load_volume and serialize(...).images()"
            raise RequestError(f"request {self.id!r}", expected, found, do)
        vars(self)["images"] = tuple(i if i.mode == "RGB" else i.convert("RGB") for i in images)
        if not isinstance(self.options, Mapping):
            if len(self.options) > len(LETTERS):
                expected, found = f"at most {len(LETTERS)} options", len(self.options)
                raise RequestError(f"request {self.id!r}", expected, found, "ask about fewer")
            vars(self)["options"] = dict(zip(LETTERS, self.options, strict=False))

    def conversation(self) -> list[Mapping[str, Any]]:
        """The messages up to the model's turn."""
        volume = self.dimension == "3d"
        return [*(self.messages or chat(self.question, self.images, self.options, volume))]


@dataclass(frozen=True)
class Pointing:
    """One box that the model opened. With the status ``"injected"`` crops were put into the reply.
    Otherwise nothing was, and it went on: ``"malformed"``; ``"outside"`` (no overlap with image or
    volume); ``"no slice"`` (four numbers do not name a slice of a volume); ``"rounds used up"``;
    ``"tokens used up"``."""

    text: str  # as written, tags included
    box: Box | None  # in pixels of the processor's frame; None when malformed
    status: str
    crops: tuple[Image.Image, ...]  # the images that were put in, in slice order
    position: int  # index in Trace.token_ids of the token after the box

    def to_dict(self) -> dict[str, Any]:
        """The pointing with sizes ``(width, height)`` in place of its crops, ready for JSON."""
        box = None if self.box is None else list(self.box.as_tuple())
        return vars(self) | {"box": box, "crops": [list(crop.size) for crop in self.crops]}


@dataclass(frozen=True)
class Trace:
    """One reply. ``logprobs`` are those with which the model samples: at the temperature of the
    sampling (1 when greedy), forbidden tokens left out; 0 for injected tokens."""

    request: GroundedRequest
    text: str  # what the model wrote, control tokens included, injected images not
    token_ids: tuple[int, ...]  # the reply as the model saw it
    own_mask: tuple[int, ...]  # mask of model-generated tokens: 1 written, 0 injected
    logprobs: tuple[float, ...]  # one a token
    prompt_ids: tuple[int, ...]  # the tokens before the reply
    pointings: tuple[Pointing, ...]  # every box that was opened
    stop: str  # "end": the model ended its turn; "length": the token budget did
    rounds: int  # stretches of writing: one more than injections
    seconds: float  # from the start of its batch until it was complete
    scale: int | None = None  # in which its boxes are written: None, pixels; 1000, thousandths

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
        """The well-formed boxes in order, in pixels of the processor's frame."""
        return [pointing.box for pointing in self.pointings if pointing.box is not None]

    @property
    def crops(self) -> list[list[Image.Image]]:
        """For each of :attr:`boxes` the images that it fetched."""
        return [list(pointing.crops) for pointing in self.pointings if pointing.box is not None]

    @property
    def in_format(self) -> bool:
        """Format compliance: one thought, closed, an answer after it, only well-formed boxes."""
        count = self.text.count
        thought = count(THINK_START) == count(THINK_END) == 1 and bool(self.answer)
        boxes = count(BOX_START) == count(BOX_END) == len(self.boxes)
        return thought and boxes and self.text.index(THINK_START) < self.text.index(THINK_END)

    def to_dict(self) -> dict[str, Any]:
        """The trace without images, ready for JSON: the one form of a reply in all results.
        ``other_syntax`` are boxes in stock Qwen's JSON, which fetch nothing."""
        other = [list(box.as_tuple()) for box in scan_boxes(self.text).other_syntax]
        request, names = self.request, ("text", "answer", "choice", "in_format", "stop", "rounds")
        return {
            **{name: getattr(request, name) for name in ("id", "dimension", "question")},
            "options": dict(request.options),
            **{name: getattr(self, name) for name in names},
            "boxes": [list(box.as_tuple()) for box in self.boxes],
            "pointings": [pointing.to_dict() for pointing in self.pointings],
            "own_tokens": sum(self.own_mask),
            "injected_tokens": self.own_mask.count(0),
            "prompt_tokens": len(self.prompt_ids),
            "seconds": round(self.seconds, 4),
            **({"other_syntax": other} if other else {}),
            **({"scale": self.scale} if self.scale else {}),
        }

    def _repr_html_(self) -> str:
        """A notebook shows the question, and the reply with the crops where they were put in."""
        reply, at = Markup(""), 0
        for pointing in self.pointings:
            end = self.text.index(pointing.text, at) + len(pointing.text)
            reply += escape(self.text[at:end])
            crops = (image_html(crop, f"crop of {pointing.text}") for crop in pointing.crops)
            reply += Markup("").join(crops) if pointing.crops else f" ({pointing.status})"
            at = end
        written, injected = sum(self.own_mask), self.own_mask.count(0)
        rows = {
            "options": "\n".join(f"{k}. {text}" for k, text in self.request.options.items()),
            "reply": reply + escape(self.text[at:]),
            "choice": self.choice or "none",
            "tokens": f"{len(self.prompt_ids)} prompt, {written} generated, {injected} injected",
        }
        return table_html(self.request.question, rows)
