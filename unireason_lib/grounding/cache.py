"""A key-value cache that grows in place, to the bit the same as transformers' ``DynamicCache``, and
the attention over it on a CPU.

``DynamicCache`` copies all that it holds for every new token: behind a volume, thousands of slice
tokens. PyTorch's attention in bfloat16 takes twice as long on a CPU as in float32 for a single
query, and three times as long in its backward pass: there it is computed in float32,
in which keys and values are kept.
"""

from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

RESERVE = 256  # tokens reserved ahead when the buffer is full (a quarter of it, if that is more)
SDPA_ON_CPU = "sdpa_on_cpu"  # as which transformers knows :func:`sdpa_on_cpu`


class GrowingLayer(DynamicLayer):
    """One layer: keys and values ``(batch, heads, tokens, head_dim)``, views of a larger buffer, of
    another type than the model's if one is given."""

    kept_in: torch.dtype | None = None
    _buffer: torch.Tensor | None = None  # (2, batch, heads, capacity, head_dim)
    _view: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens and return all keys and values."""
        key_states, value_states = (
            x.to((x.device.type == "cpu" and self.kept_in) or x.dtype)
            for x in (key_states, value_states)
        )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        # selecting or repeating rows of the batch replaces `keys` by a tensor that is no view
        if self._buffer is None or self.keys is not self._view or total > self._buffer.shape[-2]:
            batch, heads, _, width = key_states.shape
            capacity = total + max(RESERVE, total // 4)
            self._buffer = key_states.new_empty(2, batch, heads, capacity, width)
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
    cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    if config.get_text_config()._attn_implementation == SDPA_ON_CPU:
        for layer in cache.layers:
            layer.kept_in = torch.float32
    return cache


def sdpa_on_cpu(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa`` in float32; queries, keys and values may be of any type. As it is for
    a model that a trainer has moved off the CPU."""
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, *args, **options)
    states = (x.float() for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(module, *states, *args, **options)
    return output.to(query.dtype), None


AttentionInterface.register(SDPA_ON_CPU, sdpa_on_cpu)
AttentionMaskInterface.register(SDPA_ON_CPU, sdpa_mask)
