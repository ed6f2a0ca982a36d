"""Grounded generation: the model writes until it closes a box, the crop's image tokens are put into
the same reply, and it continues with them in view. Nothing is encoded twice: the key-value cache of
prompt and reply is kept, and only the new crop is appended. For that to equal encoding everything
again:

- positions: Qwen-VL gives every token three rotary positions (time, height, width). Those of
  injected tokens come from the model's own ``get_rope_index``, counted on from the last position so
  far (not the number of tokens: an image takes fewer positions than tokens);
- images: their features go in through ``mm_encoder_outputs``, because Qwen3-VL adds some of them
  behind its first layers, which embeddings of tokens cannot carry;
- masks: requests of one batch inject at different times. Shorter rows are padded inside the cache,
  and the padding is hidden by the attention mask and carries no position.
"""

from collections.abc import Sequence
from typing import Any

import torch

from unireason_lib.backbones import join_features, split_features
from unireason_lib.grounding.cache import growing_cache
from unireason_lib.grounding.model import base_model
from unireason_lib.grounding.replies import GroundedInterface, Row

VISION_BATCH = 64  # images in the vision tower at a time; bounds its memory, not the result


class GroundedGenerator(GroundedInterface):
    """Generates grounded replies with a model of one of the families of
    :mod:`unireason_lib.backbones` (perhaps under a PEFT adapter) and its processor.
    ``reuse_cache=False`` is the slow reference: it encodes all again after every box."""

    def __init__(self, model: Any, processor: Any, reuse_cache: bool = True) -> None:
        self.model, self.reuse_cache = base_model(model), reuse_cache
        ends = end_tokens(self.model, processor.tokenizer)
        super().__init__(processor, self.model.config.image_token_id, ends)

    def _complete(self, rows: list[Row], samples: int) -> list[Row]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return _Running(self, rows).run(samples)
        finally:
            self.model.train(was_training)

    def features(
        self, pixel_values: torch.Tensor, grids: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """What the vision tower makes of each image, ``(1 + deepstack layers, tokens, hidden)``,
        from pixel values ``(patches, patch_dim)`` and grids (time, height, width in patches)."""
        patches = torch.split(pixel_values, [t * h * w for t, h, w in grids])
        features: list[torch.Tensor] = []
        for first in range(0, len(grids), VISION_BATCH):
            part = slice(first, first + VISION_BATCH)
            pixels = torch.cat(patches[part]).to(self.model.device)
            grid = torch.tensor(grids[part], device=self.model.device)
            output = self.model.model.get_image_features(pixels, grid, return_dict=True)
            features += split_features(output)
        return features


class _Running:
    """Requests generated together over one cache. A *line* is a row's place in the cache."""

    def __init__(self, gen: GroundedGenerator, rows: list[Row]) -> None:
        self.gen, self.rows, self.settings = gen, rows, rows[0].settings
        self.model, self.device = gen.model, gen.model.device
        self.cache = growing_cache(self.model.config)
        self.mask = torch.ones(len(self.rows), 0, dtype=torch.long, device=self.device)
        self.padded = False
        self.logits: torch.Tensor | None = None

    def run(self, samples: int) -> list[Row]:
        self._feed(self.rows, self.rows)
        if samples > 1:  # the cache is copied, no prompt encoded again
            self.cache.batch_repeat_interleave(samples)
            self.logits = self.logits.repeat_interleave(samples, dim=0)
            self.mask = self.mask.repeat_interleave(samples, dim=0)
            self.rows = [copy for row in self.rows for copy in row.sampled(samples)]
        alive = list(self.rows)
        while alive:
            self._write(alive)
            alive = self._drop_finished(alive)
            # crops wait until all rows have some: one wide step is cheaper than many
            going = [row for row in alive if row.stop is None]
            ready = [row for row in going if not row.waiting] or going
            if not self.gen.reuse_cache and any(row.waiting for row in ready):
                self._start_over(going)
            if ready:
                self._feed(ready, alive)
        return self.rows

    def _write(self, alive: Sequence[Row]) -> None:
        """Every row that is not waiting for its crops writes one token."""
        lines = [k for k, row in enumerate(alive) if not row.pending and row.stop is None]
        if not lines:
            return
        rows, logits = [alive[line] for line in lines], self.logits[lines].float()
        logits[:, self.gen.never_written] = -torch.inf
        tokens = self._choose(rows, logits.clone())
        logprobs = (logits / (self.settings.temperature or 1.0)).log_softmax(-1)
        logprobs = logprobs.gather(1, tokens[:, None])[:, 0]
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.accept(token, logprob)

    def _choose(self, rows: Sequence[Row], scores: torch.Tensor) -> torch.Tensor:
        """The next token of each row; ``scores`` ``(rows, vocabulary)`` are changed."""
        forced: dict[int, int] = {}
        for i, row in enumerate(rows):
            if row.script is not None and row.written < len(row.script):
                if (token := row.script.plan[row.written]) is not None:
                    forced[i] = token
                else:
                    scores[i, [*self.gen.ends, self.gen.box_start, self.gen.box_end]] = -torch.inf
        greedy = self.settings.temperature == 0
        tokens = scores.argmax(-1) if greedy else self._sample(rows, scores)
        if forced:
            tokens[list(forced)] = torch.tensor(list(forced.values()), device=self.device)
        return tokens

    def _sample(self, rows: Sequence[Row], scores: torch.Tensor) -> torch.Tensor:
        """One token a row, where its next random number meets the cumulative probability: on the
        device and, in 64 bits, whatever the batch. ``top_p``: arXiv 1904.09751."""
        probabilities, order = (scores / self.settings.temperature).softmax(-1).double(), None
        if self.settings.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        reached = probabilities.cumsum(-1)
        last, mass = reached.shape[1] - 1, reached[:, -1:]
        if order is not None:
            ends = (reached < self.settings.top_p).sum(-1, keepdim=True)
            mass = reached.gather(1, ends.clamp(max=last))
        draws = torch.tensor([[row.draw.random()] for row in rows], dtype=torch.float64)
        draws = draws.to(self.device) * mass
        tokens = torch.searchsorted(reached, draws, right=True).clamp(max=last)
        return (tokens if order is None else order.gather(1, tokens))[:, 0]

    def _feed(self, ready: Sequence[Row], alive: Sequence[Row]) -> None:
        """Run the pending tokens of the ready rows through the model, behind the cache."""
        lines = {row: line for line, row in enumerate(alive)}
        length = max(len(row.pending) for row in ready)
        ids = torch.full((len(alive), length), self.gen.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        positions = torch.zeros(3, len(alive), length, dtype=torch.long)
        for row in ready:
            line, place = lines[row], slice(length - len(row.pending), length)
            ids[line, place] = torch.tensor(row.pending)
            mask[line, place] = 1
            positions[:, line, place] = self._positions(row)
        self.mask = torch.cat([self.mask, mask.to(self.device)], dim=1)
        self.padded |= not bool(mask.all())
        encoded = None
        if images := [part for row in ready for part in row.images]:  # in the order of their lines
            pixels = torch.cat([part for part, _ in images])
            features = self.gen.features(pixels, [grid for _, grids in images for grid in grids])
            encoded = {"image": join_features(features)}
        output = self.model(
            input_ids=ids.to(self.device),
            mm_encoder_outputs=encoded,
            attention_mask=self.mask if self.padded else None,
            position_ids=positions.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        fed, last = [lines[row] for row in ready], output.logits[:, -1]
        if len(ready) < len(alive) and self.logits is not None:
            self.logits[fed] = last[fed]
        else:
            self.logits = last
        for row in ready:
            row.pending, row.images, row.waiting = [], [], False

    def _positions(self, row: Row) -> torch.Tensor:
        """Rotary positions ``(3, pending)`` of a row's pending tokens."""
        if len(row.pending) == 1:
            row.position += 1
            return torch.full((3, 1), row.position - 1)
        ids = torch.tensor([row.pending])
        positions, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self.gen.image_token).int(),
            image_grid_thw=torch.tensor([grid for _, grids in row.images for grid in grids]),
        )
        positions = positions[:, 0] + row.position  # the rule itself counts from 0
        row.position = int(positions.max()) + 1
        return positions

    def _drop_finished(self, alive: list[Row]) -> list[Row]:
        """Take complete replies out of the cache; an eighth at a time, as that copies the cache."""
        keep = [line for line, row in enumerate(alive) if row.stop is None]
        if len(keep) > len(alive) * 7 / 8:
            return alive
        if keep:
            index = torch.tensor(keep)  # on the CPU: layers may lie on several devices
            self.cache.batch_select_indices(index)
            self.mask, self.logits = self.mask[index], self.logits[index]
        return [alive[line] for line in keep]

    def _start_over(self, alive: Sequence[Row]) -> None:
        """The reference without reuse: queue each row's whole sequence and images again."""
        self.cache = growing_cache(self.model.config)
        self.mask, self.padded, self.logits = self.mask[:, :0], False, None
        for row in alive:
            row.position = 0
            _, *images = self.gen.encode(row.request)
            crops = [pointing.crops for pointing in row.pointings if pointing.crops]
            row.pending = row.prompt_ids + row.ids
            row.images = [tuple(images), *map(self.gen.encode_crops, crops)]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end the turn: those of the generation settings, and ``<|im_end|>``."""
    listed = model.generation_config.eos_token_id
    listed = listed if isinstance(listed, list | tuple) else [listed]
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), *listed}
    return frozenset(token for token in ends if token is not None)
