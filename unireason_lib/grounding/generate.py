"""Grounded generation: write, point, look, write on.

The model writes until it closes a box. The region is cropped from the pictures, the crop's image tokens are put into
the same reply, and the model goes on with them in view. Nothing is encoded twice: the key-value cache of the prompt
(for a volume, thousands of slice tokens) and of the reply so far is kept, and only the new crop is run through the
vision tower and appended. Two things have to be right for that to equal encoding everything again:

- positions: Qwen2.5-VL gives every token three rotary positions (time, height, width). Those of injected tokens come
  from the model's own ``get_rope_index``, counted on from the last position of the reply so far (which is not its
  number of tokens: a picture takes fewer positions than tokens);
- masks: requests of one batch inject at different times. Shorter rows are padded inside the cache, and the padding is
  hidden by the attention mask and carries no position.

``reuse_cache=False`` encodes everything again after every box. It is the slow reference that tests and the benchmark
compare with.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from unireason_lib.boxes import BOX_END, BOX_START, Box, Box2D, scan_boxes
from unireason_lib.errors import RequestError, explain
from unireason_lib.grounding.cache import growing_cache
from unireason_lib.grounding.model import base_model
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

VISION_BATCH = 64
"""Pictures that go through the vision tower at a time (bounds its memory; the result does not depend on it)."""


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
        parts: A text is written as it stands; a number leaves the model that many tokens of its own choice (neither an
            end nor a box). After the last part the model is free.
    """

    tokenizer: Any
    parts: tuple[str | int, ...]
    _plan: tuple[int | None, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plan: list[int | None] = []
        for part in self.parts:
            plan += [None] * part if isinstance(part, int) else self.tokenizer(part).input_ids
        object.__setattr__(self, "_plan", tuple(plan))

    def __len__(self) -> int:
        return len(self._plan)

    def token(self, step: int) -> int | None:
        """The token to write at this step of the model's own tokens, or None where the model chooses."""
        return self._plan[step] if step < len(self._plan) else None


_Pictures = tuple[torch.Tensor, list[list[int]]]
"""Pixel values ``(patches, patch_dim)`` of some pictures, and their grids (time, height, width in patches)."""


class _Row:
    """One reply in the making."""

    def __init__(self, request: GroundedRequest, prompt_ids: list[int], seed: int) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []
        self.own: list[int] = []
        self.logprobs: list[float] = []
        self.pointings: list[Pointing] = []
        self.pending: list[int] = []  # tokens that the cache does not hold yet
        self.pictures: list[_Pictures] = []  # pictures of the pending tokens
        self.waiting = False  # has crops to inject
        self.box_at: int | None = None  # index in ids of the last opened box
        self.round_tokens = 0
        self.rounds = 1
        self.injected = 0
        self.written = 0
        self.stop: str | None = None
        self.finished_at = 0.0
        self.draw = np.random.default_rng(seed)

    def clone(self, seed: int) -> _Row:
        return _Row(self.request, self.prompt_ids, seed)

    @property
    def running(self) -> bool:
        return self.stop is None


class GroundedGenerator:
    """Generates grounded replies for batches of requests.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``, possibly with a PEFT adapter.
        processor: Its ``Qwen2_5_VLProcessor``.
        reuse_cache: False encodes the whole sequence again after every box (the slow reference).
    """

    def __init__(self, model: Any, processor: Any, reuse_cache: bool = True) -> None:
        self.model = base_model(model)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.reuse_cache = reuse_cache
        self.frame = ProcessorFrame.from_processor(processor)
        ids = self.tokenizer.convert_tokens_to_ids
        self.box_start, self.box_end = ids(BOX_START), ids(BOX_END)
        self.vision_start, self.vision_end = ids("<|vision_start|>"), ids("<|vision_end|>")
        self.image_token = self.model.config.image_token_id
        self.ends = _end_tokens(self.model, self.tokenizer)
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
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for first in range(0, len(requests), size):
                    batch = _Batch(self, requests[first : first + size], first, settings, samples)
                    traces += batch.run([s for s in scripts[first : first + size] for _ in range(samples)])
        finally:
            self.model.train(was_training)
        return traces

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

    def features(self, pixel_values: torch.Tensor, grids: Sequence[Sequence[int]]) -> torch.Tensor:
        """The vision tower's tokens of all pictures, ``(tokens, hidden)``.

        Args:
            pixel_values: ``(patches, patch_dim)`` of all pictures.
            grids: Time, height and width of each in patches.
        """
        patches = torch.split(pixel_values, [t * h * w for t, h, w in grids])
        found: list[torch.Tensor] = []
        for first in range(0, len(grids), VISION_BATCH):
            part = slice(first, first + VISION_BATCH)
            pixels = torch.cat(patches[part]).to(self.model.device)
            grid = torch.tensor(grids[part], device=self.model.device)
            found += self.model.model.get_image_features(pixels, grid, return_dict=True).pooler_output
        return torch.cat(found)

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


class _Batch:
    """Requests generated together, over one cache."""

    def __init__(
        self,
        generator: GroundedGenerator,
        requests: Sequence[GroundedRequest],
        first: int,
        settings: Settings,
        samples: int,
    ) -> None:
        self.started = time.perf_counter()
        self.gen, self.settings, self.samples = generator, settings, samples
        self.model, self.device = generator.model, generator.model.device
        self.rows: list[_Row] = []
        for i, request in enumerate(requests):
            ids, pixels, grids = generator.encode(request)
            row = _Row(request, ids, self._seed(request, first + i, 0))
            row.pending, row.pictures = list(ids), [(pixels, grids)]
            self.rows.append(row)
        self.first = first
        self.cache = growing_cache(self.model.config)
        self.mask = torch.ones(len(self.rows), 0, dtype=torch.long, device=self.device)
        self.padded = False
        self.logits: torch.Tensor | None = None
        self.next_position = [0] * len(self.rows)
        warpers = [TemperatureLogitsWarper(settings.temperature)] if settings.temperature > 0 else []
        self.warpers = [*warpers, TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else warpers

    def _seed(self, request: GroundedRequest, index: int, sample: int) -> int:
        name = zlib.crc32(request.id.encode()) if request.id else index
        return int(np.random.SeedSequence([self.settings.seed, name, sample]).generate_state(1)[0])

    def run(self, scripts: Sequence[Script | None]) -> list[Trace]:
        """Generate until every reply is complete."""
        self._feed(range(len(self.rows)))
        self._spread()
        alive = list(range(len(self.rows)))  # row number of each line of the cache
        while alive:
            self._write(alive, scripts)
            alive = self._drop_finished(alive)
            ready = self._ready(alive)
            if ready:
                if not self.gen.reuse_cache and any(self.rows[r].waiting for r in ready):
                    self._start_over(alive)
                    ready = alive
                self._feed(ready, alive)
        return [self._trace(row) for row in self.rows]

    # -- one step -----------------------------------------------------------------------------------------------

    def _write(self, alive: Sequence[int], scripts: Sequence[Script | None]) -> None:
        """Every row that is not waiting for its crops writes one token."""
        writing = [line for line, r in enumerate(alive) if not self.rows[r].pending]
        if not writing:
            return
        logits = self.logits[writing].float()
        chosen = self._choose([alive[line] for line in writing], logits.clone(), scripts)
        told = (logits / (self.settings.temperature or 1.0)).log_softmax(-1)
        told = told.gather(1, torch.tensor(chosen, device=told.device)[:, None])[:, 0].tolist()
        for line, token, logprob in zip(writing, chosen, told, strict=True):
            self._accept(self.rows[alive[line]], token, logprob)

    def _choose(
        self, rows: Sequence[int], scores: torch.Tensor, scripts: Sequence[Script | None]
    ) -> list[int]:
        scores[:, self.gen.never_written] = -torch.inf
        forced: dict[int, int] = {}
        for line, r in enumerate(rows):
            script, step = scripts[r], self.rows[r].written
            if script is not None and step < len(script):
                token = script.token(step)
                if token is None:
                    scores[line, [*self.gen.ends, self.gen.box_start, self.gen.box_end]] = -torch.inf
                else:
                    forced[line] = token
        if self.settings.temperature == 0:
            chosen = scores.argmax(-1).tolist()
        else:
            for warp in self.warpers:
                scores = warp(None, scores)
            shares = scores.softmax(-1).double().cumsum(-1).cpu()
            draws = torch.tensor([[self.rows[r].draw.random()] for r in rows], dtype=torch.float64)
            chosen = torch.searchsorted(shares, draws * shares[:, -1:]).squeeze(-1).tolist()
        return [forced.get(line, token) for line, token in enumerate(chosen)]

    def _accept(self, row: _Row, token: int, logprob: float) -> None:
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

    def _finish(self, row: _Row, stop: str) -> None:
        if row.box_at is not None:
            self._note_malformed(row, row.box_at, len(row.ids))
        row.stop = stop
        row.finished_at = time.perf_counter()

    def _next_round(self, row: _Row) -> None:
        row.rounds += 1
        row.round_tokens = 0

    def _note_malformed(self, row: _Row, start: int, end: int) -> None:
        text = self.gen.tokenizer.decode(row.ids[start:end], skip_special_tokens=False)
        row.pointings.append(Pointing(text, None, MALFORMED, (), len(row.ids)))

    def _point(self, row: _Row) -> None:
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

    def _fetch(self, row: _Row, box: Box | None) -> tuple[str, list[Image.Image]]:
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

    # -- the cache ----------------------------------------------------------------------------------------------

    def _ready(self, alive: Sequence[int]) -> list[int]:
        """Rows whose pending tokens go into the cache now.

        Rows that go on writing are fed at once. Rows with crops wait until all others have crops too, or until one of
        them has waited for ``tokens_per_round`` steps: one wide step is cheaper than many.
        """
        if not alive:
            return []
        waiting = [r for r in alive if self.rows[r].waiting]
        writing = [r for r in alive if not self.rows[r].waiting]
        for r in waiting:
            self.rows[r].round_tokens += 1
        patience = self.settings.tokens_per_round or self.settings.max_new_tokens
        if not writing or any(self.rows[r].round_tokens > patience for r in waiting):
            return list(alive)
        return writing

    def _feed(self, ready: Sequence[int], alive: Sequence[int] | None = None) -> None:
        """Run the pending tokens of the ready rows through the model, behind what the cache holds."""
        alive = range(len(self.rows)) if alive is None else alive
        lines = {r: line for line, r in enumerate(alive)}
        length = max(len(self.rows[r].pending) for r in ready)
        ids = torch.full((len(alive), length), self.gen.pad, dtype=torch.long)
        mask = torch.zeros(len(alive), length, dtype=torch.long)
        positions = torch.zeros(3, len(alive), length, dtype=torch.long)
        for r in ready:
            row, count = self.rows[r], len(self.rows[r].pending)
            ids[lines[r], length - count :] = torch.tensor(row.pending)
            mask[lines[r], length - count :] = 1
            positions[:, lines[r], length - count :] = self._positions(r)
        ids, positions = ids.to(self.device), positions.to(self.device)
        self.mask = torch.cat([self.mask, mask.to(self.device)], dim=1)
        self.padded |= not bool(mask.all())
        embeds = self.model.get_input_embeddings()(ids)
        pictures = [
            part for line in sorted(lines[r] for r in ready) for part in self.rows[alive[line]].pictures
        ]
        if pictures:
            pixels, grids = (
                torch.cat([part[0] for part in pictures]),
                [grid for part in pictures for grid in part[1]],
            )
            embeds[ids == self.gen.image_token] = self.gen.features(pixels, grids).to(embeds.dtype)
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=self.mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last = output.logits[:, -1]
        if self.logits is None or len(ready) == len(alive):
            self.logits = last
        else:
            fed = torch.tensor([lines[r] for r in ready], device=self.device)
            self.logits[fed] = last[fed]
        for r in ready:
            self.rows[r].pending, self.rows[r].pictures, self.rows[r].waiting = [], [], False

    def _positions(self, r: int) -> torch.Tensor:
        """Rotary positions ``(3, pending)`` of a row's pending tokens."""
        row = self.rows[r]
        if len(row.pending) == 1:
            position = self.next_position[r]
            self.next_position[r] += 1
            return torch.full((3, 1), position)
        ids = torch.tensor([row.pending])
        positions, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.gen.image_token).int(),
            image_grid_thw=torch.tensor([grid for _, grids in row.pictures for grid in grids]),
        )
        positions = (
            positions[:, 0] + self.next_position[r]
        )  # the rule only counts on from where the text stands
        self.next_position[r] = int(positions.max()) + 1
        return positions

    def _spread(self) -> None:
        """Copy every row once a sample; the encoded prompt is shared by copying the cache, not by encoding again."""
        if self.samples == 1:
            return
        self.cache.batch_repeat_interleave(self.samples)
        self.logits = self.logits.repeat_interleave(self.samples, dim=0)
        self.mask = self.mask.repeat_interleave(self.samples, dim=0)
        self.next_position = [position for position in self.next_position for _ in range(self.samples)]
        self.rows = [
            row.clone(self._seed(row.request, self.first + i, sample))
            for i, row in enumerate(self.rows)
            for sample in range(self.samples)
        ]

    def _drop_finished(self, alive: list[int]) -> list[int]:
        """Take complete replies out of the cache, so that nothing is computed for them."""
        keep = [line for line, r in enumerate(alive) if self.rows[r].running]
        if len(keep) == len(alive) or not keep:
            return [alive[line] for line in keep]
        index = torch.tensor(keep, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.logits = self.mask[index], self.logits[index]
        return [alive[line] for line in keep]

    def _start_over(self, alive: Sequence[int]) -> None:
        """The reference without reuse: forget everything and queue each row's whole sequence and pictures again."""
        self.cache = growing_cache(self.model.config)
        self.mask, self.padded = self.mask[:, :0], False
        self.logits = None
        for r in alive:
            row = self.rows[r]
            self.next_position[r] = 0
            _, *pictures = self.gen.encode(row.request)
            crops = [pointing.crops for pointing in row.pointings if pointing.crops]
            row.pending = row.prompt_ids + row.ids
            row.pictures = [tuple(pictures), *(self.gen.encode_crops(fetched) for fetched in crops)]

    def _trace(self, row: _Row) -> Trace:
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


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end the turn: those of the generation settings, and ``<|im_end|>``."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list | tuple) else [ends]
    found = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), *listed}
    return frozenset(token for token in found if token is not None)
