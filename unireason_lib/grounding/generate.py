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

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from unireason_lib.grounding.cache import growing_cache
from unireason_lib.grounding.model import base_model
from unireason_lib.grounding.replies import GroundedInterface, Replies, Script, Settings
from unireason_lib.grounding.trace import GroundedRequest, Trace

VISION_BATCH = 64
"""Pictures that go through the vision tower at a time (bounds its memory; the result does not depend on it)."""


class GroundedGenerator(GroundedInterface):
    """Generates grounded replies for batches of requests.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``, possibly with a PEFT adapter.
        processor: Its ``Qwen2_5_VLProcessor``.
        reuse_cache: False encodes the whole sequence again after every box (the slow reference).
    """

    def __init__(self, model: Any, processor: Any, reuse_cache: bool = True) -> None:
        self.model = base_model(model)
        self.reuse_cache = reuse_cache
        ends = end_tokens(self.model, processor.tokenizer)
        super().__init__(processor, self.model.config.image_token_id, ends)

    def _replies(
        self,
        requests: Sequence[GroundedRequest],
        first: int,
        settings: Settings,
        samples: int,
        scripts: Sequence[Script | None],
    ) -> list[Trace]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return _Batch(self, requests, first, settings, samples).run(scripts)
        finally:
            self.model.train(was_training)

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


class _Batch(Replies):
    """Requests generated together, over one cache."""

    def __init__(
        self,
        generator: GroundedGenerator,
        requests: Sequence[GroundedRequest],
        first: int,
        settings: Settings,
        samples: int,
    ) -> None:
        super().__init__(generator, requests, first, settings, samples)
        self.model, self.device = generator.model, generator.model.device
        self.cache = growing_cache(self.model.config)
        self.mask = torch.ones(len(self.rows), 0, dtype=torch.long, device=self.device)
        self.padded = False
        self.logits: torch.Tensor | None = None
        self.next_position = [0] * len(self.rows)
        warpers = [TemperatureLogitsWarper(settings.temperature)] if settings.temperature > 0 else []
        self.warpers = [*warpers, TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else warpers

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
        self.rows = self._sampled()

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


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end the turn: those of the generation settings, and ``<|im_end|>``."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list | tuple) else [ends]
    found = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), *listed}
    return frozenset(token for token in found if token is not None)
