"""Replies in the making: what a written token does, whoever computes it.

A token may end the reply, open a box or close one, whose crops are put into the same reply as image
tokens. That is bookkeeping on token ids, the same for a model in this process (:mod:`~.generate`)
and for one behind a server (:mod:`~.served`).
"""

from __future__ import annotations

import math
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from unireason_lib.boxes import BOX_END, BOX_START, Box, Box2D, scan_boxes
from unireason_lib.errors import RequestError
from unireason_lib.grounding.trace import GroundedRequest, Pointing, Trace
from unireason_lib.imaging import ProcessorFrame, crop_region, slice_range

NEVER_WRITTEN = "im_start vision_start vision_end vision_pad image_pad video_pad"
"""Control tokens that a model may never write: they would forge an image or another turn."""


@dataclass(frozen=True)
class Settings:
    """How a reply is generated; a ``RequestError`` when a value is out of range."""

    max_new_tokens: int = 1024  # most tokens that the model itself writes
    max_rounds: int = 10  # most stretches between injections (paper: 10); later boxes fetch nothing
    max_injected_tokens: int = 16_384  # a box that would exceed it fetches nothing
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # nucleus of sampling
    seed: int = 0  # each request draws from a stream of its own, whatever is in the batch

    def __post_init__(self) -> None:
        budgets = self.max_new_tokens >= 1 and min(self.max_rounds, self.max_injected_tokens) >= 0
        if not (budgets and self.temperature >= 0 and 0 < self.top_p <= 1):
            expected = "positive token budgets, temperature >= 0 and 0 < top_p <= 1"
            raise RequestError("generation settings", expected, str(self), "correct the value")


class Script:
    """What a model is made to write, to show the mechanism or measure it: a text or a tuple of
    tokens as it stands; a number leaves the model that many tokens of its choice (neither an end
    nor a box). After all parts it is free."""

    def __init__(self, tokenizer: Any, parts: Iterable[str | int | tuple[int, ...]]) -> None:
        self.plan: list[int | None] = []  # None where the model chooses
        for part in parts:
            tokens = tokenizer(part).input_ids if isinstance(part, str) else part
            self.plan += [None] * tokens if isinstance(tokens, int) else tokens

    def __len__(self) -> int:
        return len(self.plan)


class GroundedInterface(ABC):
    """What all generators share: processor, ids of special tokens (``image_token`` stands for a
    piece of an image, ``ends`` end a turn), prompts and crops."""

    def __init__(self, processor: Any, image_token: int, ends: frozenset[int]) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.frame = ProcessorFrame.from_processor(processor)
        ids = self.tokenizer.convert_tokens_to_ids
        self.box_start, self.box_end = ids([BOX_START, BOX_END])
        self.vision_start, self.vision_end = ids(["<|vision_start|>", "<|vision_end|>"])
        self.image_token, self.ends = image_token, ends
        self.pad = self.tokenizer.pad_token_id
        control = ids([f"<|{name}|>" for name in NEVER_WRITTEN.split()])
        self.never_written = [i for i in control if i not in (None, self.tokenizer.unk_token_id)]

    def generate(
        self,
        requests: Sequence[GroundedRequest],
        *,
        batch_size: int | None = None,
        samples: int = 1,
        scripts: Sequence[Script | None] | None = None,
        **settings: Any,
    ) -> list[Trace]:
        """Answer requests, ``batch_size`` together (None: all); 2D and 3D may mix.

        One trace a request and sample: all ``samples`` of the first request, which share the
        encoding of its prompt, then of the second. ``scripts``: for each request what the model is
        made to write, or None. ``settings``: those of :class:`Settings`."""
        how = Settings(**settings)
        scripts = [None] * len(requests) if scripts is None else scripts
        size = max(1, len(requests)) if batch_size is None else batch_size
        if len(scripts) != len(requests) or samples < 1 or size < 1:
            expected = "one script a request, samples >= 1 and batch_size >= 1"
            found = f"{len(scripts)} scripts for {len(requests)} requests, {samples} and {size}"
            raise RequestError("generate", expected, found, "correct the arguments")
        traces: list[Trace] = []
        for first in range(0, len(requests), size):
            started, last = time.perf_counter(), min(first + size, len(requests))
            rows = [Row(self, requests[i], how, scripts[i], i) for i in range(first, last)]
            traces += [row.trace(started) for row in self._complete(rows, samples)]
        return traces

    @abstractmethod
    def _complete(self, rows: list[Row], samples: int) -> list[Row]:
        """Write the replies of one batch to their ends, each once a sample."""

    def encode(self, request: GroundedRequest) -> tuple[list[int], torch.Tensor, list[list[int]]]:
        """The prompt of a request: token ids, pixel values ``(patches, patch_dim)`` of its images,
        and their grids (time, height, width in patches)."""
        text = self.processor.apply_chat_template(
            request.conversation(), tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(text=[text], images=list(request.images), return_tensors="pt")
        grids = inputs["image_grid_thw"].tolist()
        return inputs["input_ids"][0].tolist(), inputs["pixel_values"], grids

    def encode_crops(self, crops: Sequence[Image.Image]) -> tuple[torch.Tensor, list[list[int]]]:
        """Pixel values and grids of crops, as the processor makes them."""
        inputs = self.processor.image_processor(images=list(crops), return_tensors="pt")
        return inputs["pixel_values"], inputs["image_grid_thw"].tolist()

    def crops_for(self, request: GroundedRequest, box: Box) -> list[Image.Image]:
        """The crops that a box (in pixels of the frame) fetches from the images as the model sees
        them."""
        images = request.images[:1] if request.dimension == "2d" else request.images
        aligned = (self.frame.aligned(images[k]) for k in slice_range(box, len(images)))
        return [crop for image in aligned for crop in crop_region([image], box)]


@dataclass(eq=False)
class Row:
    """One reply in the making: the row of a batch."""

    gen: GroundedInterface
    request: GroundedRequest
    settings: Settings
    script: Script | None
    index: int  # among all requests: the stream of random numbers of one without an id
    sample: int = 0
    prompt_ids: list[int] = field(default_factory=list)
    position: int = 0  # rotary position of the next token
    ids: list[int] = field(init=False, default_factory=list)
    own: list[int] = field(init=False, default_factory=list)  # 1 written by the model, 0 injected
    logprobs: list[float] = field(init=False, default_factory=list)
    pointings: list[Pointing] = field(init=False, default_factory=list)
    pending: list[int] = field(init=False, default_factory=list)  # tokens not yet in the cache
    images: list[tuple[torch.Tensor, list]] = field(init=False, default_factory=list)  # of those
    waiting: bool = field(init=False, default=False)  # has crops to inject
    box_at: int | None = field(init=False, default=None)  # index in ids of the last opened box
    rounds: int = field(init=False, default=1)
    written: int = field(init=False, default=0)
    stop: str | None = field(init=False, default=None)
    finished_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        stream = zlib.crc32(self.request.id.encode()) if self.request.id else self.index
        self.draw = np.random.default_rng([self.settings.seed, stream, self.sample])
        if not self.prompt_ids:
            self.prompt_ids, *images = self.gen.encode(self.request)
            self.pending, self.images = list(self.prompt_ids), [tuple(images)]

    def sampled(self, samples: int) -> list[Row]:
        """The row once a sample, each with a stream of its own, behind the prompt in the cache."""
        return [replace(self, sample=sample) for sample in range(samples)]

    def accept(self, token: int, logprob: float) -> None:
        """Note a written token: it may end the reply, open a box, or close one and fetch crops."""
        self.ids.append(token)
        self.own.append(1)
        self.logprobs.append(logprob)
        self.pending, self.written = [token], self.written + 1
        if token in self.gen.ends:
            self._finish("end")
            return
        if token == self.gen.box_start:
            self._note_malformed(len(self.ids) - 1)
            self.box_at = len(self.ids) - 1
        elif token == self.gen.box_end and self.box_at is not None:
            self._point()
        if self.written >= self.settings.max_new_tokens:
            self._finish("length")

    def _finish(self, stop: str) -> None:
        self._note_malformed(len(self.ids))
        self.stop, self.finished_at = stop, time.perf_counter()

    def _opened_box(self, end: int | None = None) -> str:
        written = [token for token in self.ids[self.box_at : end] if token not in self.gen.ends]
        return self.gen.tokenizer.decode(written, skip_special_tokens=False)

    def _note_malformed(self, end: int) -> None:
        """A box that is still open was never closed."""
        if self.box_at is not None:
            text = self._opened_box(end)
            self.pointings.append(Pointing(text, None, "malformed", (), end))

    def _point(self) -> None:
        """A box was closed: read it, and queue its crops behind it."""
        text, self.box_at = self._opened_box(), None
        box, image = next(iter(scan_boxes(text).boxes), None), self.request.images[0]
        box = box and self.gen.frame.pixels(box, image.height, image.width)
        status, crops = self._fetch(box)
        self.pointings.append(Pointing(text, box, status, tuple(crops), len(self.ids)))
        if crops:
            gen, tokens, (pixels, grids) = self.gen, [], self.gen.encode_crops(crops)
            for grid in grids:
                count = math.prod(grid) // gen.frame.merge_size**2
                tokens += [gen.vision_start, *[gen.image_token] * count, gen.vision_end]
            self.ids += tokens
            self.own += [0] * len(tokens)
            self.logprobs += [0.0] * len(tokens)
            self.pending += tokens
            self.images, self.waiting, self.rounds = [(pixels, grids)], True, self.rounds + 1

    def _fetch(self, box: Box | None) -> tuple[str, list[Image.Image]]:
        """The status of a box (None: not well formed) and its crops; see :class:`Pointing`."""
        if box is None:
            return "malformed", []
        if isinstance(box, Box2D) and self.request.dimension == "3d":
            return "no slice", []
        if self.rounds > self.settings.max_rounds:
            return "rounds used up", []
        crops = self.gen.crops_for(self.request, box)
        if not crops:
            return "outside", []
        cost = sum(2 + self.gen.frame.tokens(crop.height, crop.width) for crop in crops)
        over = len(self.ids) - self.written + cost > self.settings.max_injected_tokens
        if over or self.written >= self.settings.max_new_tokens:
            return "tokens used up", []
        return "injected", crops

    def trace(self, started: float) -> Trace:
        """The complete reply, of a batch that was started then."""
        words = zip(self.ids, self.own, strict=True)
        words = [token for token, own in words if own and token not in self.gen.ends]
        return Trace(
            request=self.request,
            text=self.gen.tokenizer.decode(words, skip_special_tokens=False),
            token_ids=tuple(self.ids),
            own_mask=tuple(self.own),
            logprobs=tuple(self.logprobs),
            prompt_ids=tuple(self.prompt_ids),
            pointings=tuple(self.pointings),
            stop=self.stop or "length",
            rounds=self.rounds,
            seconds=self.finished_at - started,
            scale=self.gen.frame.scale,
        )
