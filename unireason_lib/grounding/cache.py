"""A key-value cache that grows in place.

transformers' ``DynamicCache`` copies everything it holds for every new token. Behind a volume that is thousands of
slice tokens a step, more work than the step itself in a small model. This one reserves room ahead and writes into it;
what attention reads is a view. Results are the same to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 256
"""Tokens reserved ahead whenever the room is used up (a quarter of what is held, if that is more)."""


class GrowingLayer(DynamicLayer):
    """One layer of the cache: keys and values ``(batch, heads, tokens, head_dim)`` as views of a larger buffer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffer: torch.Tensor | None = None  # (2, batch, heads, room, head_dim)
        self._view: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        # selecting or repeating rows of the batch replaces `keys` by a tensor that is no view of the buffer
        if self._buffer is None or self.keys is not self._view or total > self._buffer.shape[-2]:
            batch, heads, _, width = key_states.shape
            self._buffer = key_states.new_empty(2, batch, heads, total + max(ROOM, total // 4), width)
            if held:
                self._buffer[0, :, :, :held] = self.keys
                self._buffer[1, :, :, :held] = self.values
        self._buffer[0, :, :, held:total] = key_states
        self._buffer[1, :, :, held:total] = value_states
        self.keys = self._view = self._buffer[0, :, :, :total]
        self.values = self._buffer[1, :, :, :total]
        return self.keys, self.values


def growing_cache(config: Any) -> DynamicCache:
    """An empty cache for a model; layers with a sliding window keep transformers' own kind."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
