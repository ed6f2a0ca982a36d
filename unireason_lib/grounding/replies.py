"""Replies in the making: what a written token does, whoever computes it.

A token may end the reply, open a box or close one. A closed box fetches crops, whose image tokens are put into the same
reply as if they had been written. All of that is bookkeeping on token ids, and the same for a model in this process
(:mod:`unireason_lib.grounding.generate`) and for one behind a server (:mod:`unireason_lib.grounding.served`).
"""

from __future__ import annotations

import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from unireason_lib.boxes import BOX_END, BOX_START, Box, Box2D, scan_boxes
from unireason_lib.errors import RequestError, explain
from unireason_lib.grounding.trace import (
    INJECTED,
    MALFORMED,
    NO_SLICE,
    OUTSIDE,
    ROUNDS_USED_UP,
    TOKENS_USED_UP,
    GroundedRequest,
    Pointing,
    Trace,
)
from unireason_lib.imaging.crops import crop_region
from unireason_lib.imaging.frame import ProcessorFrame


@dataclass(frozen=True)
class Settings:
    """How a reply is generated.

    Args:
        max_new_tokens: Most tokens that the model itself writes.
        max_rounds: Most stretches between which crops are injected (10 in the paper). Later boxes are kept in the text
            but fetch nothing.
        tokens_per_round: Most tokens of one stretch without a box. Reaching it opens the next round; it never cuts the
            reply. In a batch it is also how long a row may wait for the others before its crops are injected.
        max_injected_tokens: Budget of injected tokens; a box whose crops would exceed it fetches nothing.
        temperature: 0 is greedy.
        top_p: Nucleus of sampling.
        seed: Seed of sampling. Each request draws from a stream of its own, so its reply does not depend on what else
            is in the batch.
    """

    max_new_tokens: int = 1024
    max_rounds: int = 10
    tokens_per_round: int | None = None
    max_injected_tokens: int = 16_384
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = self.max_new_tokens >= 1 and self.max_rounds >= 0 and self.max_injected_tokens >= 0
        stretch = self.tokens_per_round is None or self.tokens_per_round >= 1
        if not (positive and stretch and self.temperature >= 0 and 0 < self.top_p <= 1):
            raise RequestError(
                explain(
                    "generation settings",
                    expected="positive token budgets, temperature >= 0 and 0 < top_p <= 1",
                    found=str(self),
                    do="correct the value",
                )
            )


@dataclass(frozen=True)
class Script:
    """What a model is made to write, for demonstrations of the mechanism and for benchmarks.

    Args:
        tokenizer: Turns the words into tokens.
        parts: A text is written as it stands, and so are the tokens of a tuple; a number leaves the model that many
            tokens of its own choice (neither an end nor a box). After the last part the model is free.
    """

    tokenizer: Any
    parts: tuple[str | int | tuple[int, ...], ...]
    _plan: tuple[int | None, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plan: list[int | None] = []
        for part in self.parts:
            if isinstance(part, int):
                plan += [None] * part
            else:
                plan += part if isinstance(part, tuple) else self.tokenizer(part).input_ids
        object.__setattr__(self, "_plan", tuple(plan))

    def __len__(self) -> int:
        return len(self._plan)

    def token(self, step: int) -> int | None:
        """The token to write at this step of the model's own tokens, or None where the model chooses."""
        return self._plan[step] if step < len(self._plan) else None


PictureInputs = tuple[torch.Tensor, list[list[int]]]
"""Pixel values ``(patches, patch_dim)`` of some pictures, and their grids (time, height, width in patches)."""


class Row:
    """One reply in the making."""

    def __init__(self, request: GroundedRequest, prompt_ids: list[int], seed: int) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.own: list[int] = []
        self.logprobs: list[float] = []
        self.pointings: list[Pointing] = []
        self.pending: list[int] = []  # tokens that the cache does not hold yet
        self.pictures: list[PictureInputs] = []  # pictures of the pending tokens
        self.waiting = False  # has crops to inject
        self.box_at: int | None = None  # index in ids of the last opened box
        self.round_tokens = 0
        self.rounds = 1
        self.injected = 0
        self.written = 0
        self.stop: str | None = None
        self.finished_at = 0.0
        self.draw = np.random.default_rng(seed)

    def clone(self, seed: int) -> Row:
        """The same, before anything was written."""
        return Row(self.request, self.prompt_ids, seed)

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self.stop is None


class GroundedInterface(ABC):
    """What all generators share: the processor, the tokens that matter, prompts, crops, and checked arguments.

    Args:
        processor: A ``Qwen2_5_VLProcessor``.
        image_token: Id of the token that stands for a picture's tokens.
        ends: Ids of the tokens that end a turn.
    """

    def __init__(self, processor: Any, image_token: int, ends: frozenset[int]) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.frame = ProcessorFrame.from_processor(processor)
        ids = self.tokenizer.convert_tokens_to_ids
        self.box_start, self.box_end = ids(BOX_START), ids(BOX_END)
        self.vision_start, self.vision_end = ids("<|vision_start|>"), ids("<|vision_end|>")
        self.image_token, self.ends = image_token, ends
        self.pad = self.tokenizer.pad_token_id
        never = [
            "<|im_start|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ]
        self.never_written = [i for i in ids(never) if i is not None and i != self.tokenizer.unk_token_id]

    def generate(
        self,
        requests: Iterable[GroundedRequest | Mapping[str, Any]],
        *,
        max_new_tokens: int = 1024,
        max_rounds: int = 10,
        tokens_per_round: int | None = None,
        max_injected_tokens: int = 16_384,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int | None = None,
        samples: int = 1,
        scripts: Sequence[Script | None] | None = None,
    ) -> list[Trace]:
        """Answer requests.

        Args:
            requests: The questions, or dictionaries of their fields; 2D and 3D may be mixed.
            max_new_tokens, max_rounds, tokens_per_round, max_injected_tokens, temperature, top_p, seed: See
                :class:`Settings`.
            batch_size: Requests generated together; None takes all at once.
            samples: Replies to each request; they share the encoding of the prompt.
            scripts: For each request what the model is made to write, or None.

        Returns:
            One trace a request and sample, in order (all samples of the first request, then of the second, ...).

        Raises:
            RequestError: A setting is out of range, or a request is unusable.
        """
        settings = Settings(
            max_new_tokens, max_rounds, tokens_per_round, max_injected_tokens, temperature, top_p, seed
        )
        requests = [r if isinstance(r, GroundedRequest) else GroundedRequest(**r) for r in requests]
        scripts = list(scripts) if scripts is not None else [None] * len(requests)
        if len(scripts) != len(requests) or samples < 1 or (batch_size is not None and batch_size < 1):
            raise RequestError(
                explain(
                    "generate",
                    expected="one script a request, samples >= 1 and batch_size >= 1",
                    found=f"{len(scripts)} scripts for {len(requests)} requests, samples {samples}, "
                    f"batch_size {batch_size}",
                    do="correct the arguments",
                )
            )
        size = batch_size or max(1, len(requests))
        traces: list[Trace] = []
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            told = [script for script in scripts[first : first + size] for _ in range(samples)]
            traces += self._replies(batch, first, settings, samples, told)
        return traces

    @abstractmethod
    def _replies(
        self,
        requests: Sequence[GroundedRequest],
        first: int,
        settings: Settings,
        samples: int,
        scripts: Sequence[Script | None],
    ) -> list[Trace]:
        """The replies of one batch, whose first request is number ``first``."""

    def encode(self, request: GroundedRequest) -> tuple[list[int], torch.Tensor, list[list[int]]]:
        """The prompt of a request: token ids, pixel values and grids of its pictures."""
        text = self.processor.apply_chat_template(
            request.conversation(), tokenize=False, add_generation_prompt=True
        )
        pictures = [image if image.mode == "RGB" else image.convert("RGB") for image in request.images]
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt")
        return inputs["input_ids"][0].tolist(), inputs["pixel_values"], inputs["image_grid_thw"].tolist()

    def encode_crops(self, crops: Sequence[Image.Image]) -> tuple[torch.Tensor, list[list[int]]]:
        """Pixel values and grids of crops, as the processor makes them."""
        inputs = self.processor.image_processor(images=list(crops), return_tensors="pt")
        return inputs["pixel_values"], inputs["image_grid_thw"].tolist()

    def crops_for(self, request: GroundedRequest, box: Box) -> list[Image.Image]:
        """The crops that a box fetches, cut from the pictures as the model sees them."""
        if request.dimension == "2d":
            return crop_region([self.frame.aligned(request.images[0])], box)
        return crop_region(_Aligned(request.images, self.frame), box)


class _Aligned(Sequence):
    """The slices of a volume as the model sees them, resized only when looked at."""

    def __init__(self, images: Sequence[Image.Image], frame: ProcessorFrame) -> None:
        self.images, self.frame = images, frame

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.frame.aligned(self.images[index])


class Replies:
    """The replies of one batch, and what a written token does to one.

    Args:
        gen: The generator.
        requests: What is asked.
        first: Number of the first request, for the seeds of those without a name.
        settings: How.
        samples: Replies to each request.
    """

    def __init__(
        self,
        gen: GroundedInterface,
        requests: Sequence[GroundedRequest],
        first: int,
        settings: Settings,
        samples: int,
    ) -> None:
        self.started = time.perf_counter()
        self.gen, self.settings, self.samples, self.first = gen, settings, samples, first
        self.rows: list[Row] = []
        for i, request in enumerate(requests):
            ids, pixels, grids = gen.encode(request)
            row = Row(request, ids, self._seed(request, first + i, 0))
            row.pending, row.pictures = list(ids), [(pixels, grids)]
            self.rows.append(row)

    def _sampled(self) -> list[Row]:
        """Every row once a sample, each with a stream of random numbers of its own."""
        return [
            row.clone(self._seed(row.request, self.first + i, sample))
            for i, row in enumerate(self.rows)
            for sample in range(self.samples)
        ]

    def _seed(self, request: GroundedRequest, index: int, sample: int) -> int:
        name = zlib.crc32(request.id.encode()) if request.id else index
        return int(np.random.SeedSequence([self.settings.seed, name, sample]).generate_state(1)[0])

    def _accept(self, row: Row, token: int, logprob: float) -> None:
        """Note a written token: it may end the reply, open a box, or close one and fetch its crops."""
        row.ids.append(token)
        row.own.append(1)
        row.logprobs.append(logprob)
        row.pending = [token]
        row.written += 1
        row.round_tokens += 1
        if token in self.gen.ends:
            self._finish(row, "end")
            return
        if token == self.gen.box_start:
            if row.box_at is not None:
                self._note_malformed(row, row.box_at, len(row.ids) - 1)
            row.box_at = len(row.ids) - 1
        elif token == self.gen.box_end and row.box_at is not None:
            self._point(row)
        if row.written >= self.settings.max_new_tokens:
            self._finish(row, "length")
        elif self.settings.tokens_per_round and row.round_tokens >= self.settings.tokens_per_round:
            self._next_round(row)

    def _finish(self, row: Row, stop: str) -> None:
        if row.box_at is not None:
            self._note_malformed(row, row.box_at, len(row.ids))
        row.stop = stop
        row.finished_at = time.perf_counter()

    def _next_round(self, row: Row) -> None:
        row.rounds += 1
        row.round_tokens = 0

    def _note_malformed(self, row: Row, start: int, end: int) -> None:
        text = self.gen.tokenizer.decode(row.ids[start:end], skip_special_tokens=False)
        row.pointings.append(Pointing(text, None, MALFORMED, (), len(row.ids)))

    def _point(self, row: Row) -> None:
        """A box was closed: read it, and queue its crops behind it."""
        text = self.gen.tokenizer.decode(row.ids[row.box_at :], skip_special_tokens=False)
        row.box_at = None
        box = next(iter(scan_boxes(text).boxes), None)
        status, crops = self._fetch(row, box)
        row.pointings.append(Pointing(text, box, status, tuple(crops), len(row.ids)))
        if not crops:
            return
        pixels, grids = self.gen.encode_crops(crops)
        tokens = [token for grid in grids for token in self._picture_tokens(grid)]
        row.ids += tokens
        row.own += [0] * len(tokens)
        row.logprobs += [0.0] * len(tokens)
        row.pending += tokens
        row.injected += len(tokens)
        row.pictures = [(pixels, grids)]
        row.waiting = True
        self._next_round(row)

    def _fetch(self, row: Row, box: Box | None) -> tuple[str, list[Image.Image]]:
        if box is None:
            return MALFORMED, []
        if isinstance(box, Box2D) and row.request.dimension == "3d":
            return NO_SLICE, []
        if row.rounds > self.settings.max_rounds:
            return ROUNDS_USED_UP, []
        crops = self.gen.crops_for(row.request, box)
        if not crops:
            return OUTSIDE, []
        cost = sum(2 + self.gen.frame.tokens(crop.height, crop.width) for crop in crops)
        if (
            row.injected + cost > self.settings.max_injected_tokens
            or row.written >= self.settings.max_new_tokens
        ):
            return TOKENS_USED_UP, []
        return INJECTED, crops

    def _picture_tokens(self, grid: Sequence[int]) -> list[int]:
        count = grid[0] * grid[1] * grid[2] // self.gen.frame.merge_size**2
        return [self.gen.vision_start, *[self.gen.image_token] * count, self.gen.vision_end]

    def _trace(self, row: Row) -> Trace:
        own = [
            token for token, mine in zip(row.ids, row.own, strict=True) if mine and token not in self.gen.ends
        ]
        return Trace(
            request=row.request,
            text=self.gen.tokenizer.decode(own, skip_special_tokens=False),
            token_ids=tuple(row.ids),
            own_mask=tuple(row.own),
            logprobs=tuple(row.logprobs),
            prompt_ids=tuple(row.prompt_ids),
            pointings=tuple(row.pointings),
            stop=row.stop or "length",
            rounds=row.rounds,
            seconds=row.finished_at - self.started,
        )
